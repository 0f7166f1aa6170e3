"""TRL's own `report_to`: each run in a run of the tracker's own."""

import subprocess
import sys
from pathlib import Path

import pytest

from rapidfireai.core.events import MetricSource
from rapidfireai.paths import ExperimentFolder
from rapidfireai.store import SqliteStore
from tests.tracking.reading import mlflow_client

SCRIPT = """
import sys
from rapidfireai import Experiment
from rapidfireai.automl import List, RFGridSearch, RFSFTConfig
from rapidfireai.testing.tiny import text_rows, tiny_model, tiny_tokenizer

def create_model(config):
    return tiny_model(), tiny_tokenizer()

Experiment("reports", experiment_path=sys.argv[1]).run_fit(
    RFGridSearch([
        RFSFTConfig(max_steps=4, per_device_train_batch_size=4, logging_steps=1, max_length=32,
                    lora_rank=2, learning_rate=List([1e-2, 1e-4]), report_to=["mlflow"],
                    run_name=name)
        for name in ("one", "two")
    ]),
    create_model, text_rows(), num_chunks=2, trackers=[],
)
"""


def test_each_run_is_reported_to_a_run_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    store = SqliteStore(ExperimentFolder(tmp_path / "reports").store)
    expected = sorted(
        [
            (row.step, row.value)
            for row in store.metrics(run_id=run.id, source=MetricSource.LOG)
            if row.name == "loss"
        ]
        for run in store.runs()
    )
    store.close()
    assert len(expected) == 4
    assert mlflow_losses(uri) == expected


def mlflow_losses(uri: str) -> list[list[tuple[int, float]]]:
    client = mlflow_client(uri)
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert {run.info.status for run in runs} == {"FINISHED"}
    return sorted(
        [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, "loss")]
        for run in runs
    )
