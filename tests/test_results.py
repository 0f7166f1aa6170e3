"""The tables of an experiment, its best run, and the life of an `Experiment` object."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from rapidfireai import Experiment
from rapidfireai.automl import RFSFTConfig
from rapidfireai.core.events import MetricSource
from rapidfireai.core.ids import RunId
from rapidfireai.core.run import Run, RunStatus
from rapidfireai.errors import ConfigError
from rapidfireai.results import best_run, metric_name, results_frame, runs_frame
from rapidfireai.store import MetricRow
from rapidfireai.testing.tiny import text_rows, tiny_model, tiny_tokenizer

STEP, LOG, CHUNK = MetricSource.STEP, MetricSource.LOG, MetricSource.CHUNK


def metric(run_id: int, source: MetricSource, step: int, name: str, value: float) -> MetricRow:
    return MetricRow(
        run_id=RunId(run_id), source=source, step=step, name=name, value=value, time_s=0.0
    )


METRICS = [
    metric(2, STEP, 1, "loss", 5.0),
    metric(2, CHUNK, 1, "eval_loss", 4.0),
    metric(1, STEP, 1, "loss", 3.0),
    metric(1, STEP, 2, "loss", 2.0),
    metric(1, LOG, 2, "loss", 2.5),
    metric(1, LOG, 2, "epoch", 0.5),
    metric(1, LOG, 2, "learning_rate", 1e-3),
    metric(1, CHUNK, 2, "eval_loss", 6.0),
]


def run(run_id: int, **changes: Any) -> Run:
    given: dict[str, Any] = {
        "id": RunId(run_id),
        "name": f"run-{run_id}",
        "config": {"training_args": {"seed": run_id}},
        "path": f"/runs/{run_id}/final",
        **changes,
    }
    return Run(**given)


RUNS = [
    run(1, status=RunStatus.COMPLETED, step=2, num_steps=2, chunks_done=1, num_chunks=1,
        active_s=1.5, loss=2.0, notes=("one", "two")),
    run(2, status=RunStatus.FAILED, step=1, num_steps=4, chunks_done=0, num_chunks=2,
        active_s=0.5, loss=5.0, error="ValueError: no", traceback="Traceback ..."),
    run(3),
]  # fmt: skip


class TestResultsFrame:
    def test_a_row_for_each_run_and_step(self) -> None:
        frame = results_frame(METRICS)
        assert list(frame.columns) == [
            "run_id", "step", "loss", "epoch", "eval_loss", "learning_rate", "logged_loss",
        ]  # fmt: skip
        assert frame[["run_id", "step", "loss"]].to_numpy().tolist() == [
            [1, 1, 3.0], [1, 2, 2.0], [2, 1, 5.0],
        ]  # fmt: skip
        assert frame.loc[1, "eval_loss"] == 6.0
        assert frame.loc[1, "logged_loss"] == 2.5
        assert math.isnan(float(frame["eval_loss"].iloc[0]))
        assert list(frame.index) == [0, 1, 2]
        assert frame["step"].dtype.kind == frame["run_id"].dtype.kind == "i"

    def test_the_steps_loss_and_the_trainers_average_are_two_columns(self) -> None:
        assert [metric_name(row) for row in METRICS[3:5]] == ["loss", "logged_loss"]

    def test_without_metrics_it_is_empty(self) -> None:
        frame = results_frame([])
        assert frame.empty
        assert list(frame.columns) == ["run_id", "step", "loss"]


class TestRunsFrame:
    def test_a_row_for_each_run(self) -> None:
        frame = runs_frame(RUNS, METRICS)
        assert list(frame["run_id"]) == [1, 2, 3]
        assert list(frame["status"]) == ["completed", "failed", "queued"]
        assert list(frame["step"]) == [2, 1, 0]
        assert list(frame["chunks_done"]) == [1, 0, 0]
        assert list(frame["active_s"]) == [1.5, 0.5, 0.0]
        assert list(frame["path"]) == [f"/runs/{number}/final" for number in (1, 2, 3)]
        assert frame.loc[0, "config"] == {"training_args": {"seed": 1}}
        assert frame.loc[0, "notes"] == "one; two"
        assert frame.loc[1, "error"] == "ValueError: no"
        assert frame.loc[1, "traceback"] == "Traceback ..."

    def test_the_latest_value_of_each_metric(self) -> None:
        frame = runs_frame(RUNS, METRICS)
        assert frame.loc[0, "loss"] == 2.0
        assert frame.loc[0, "logged_loss"] == 2.5
        assert list(frame["eval_loss"])[:2] == [6.0, 4.0]
        assert pd.isna(frame["eval_loss"].iloc[2])
        assert "epoch" not in frame

    def test_long_columns_come_last(self) -> None:
        assert list(runs_frame(RUNS, METRICS).columns)[-6:] == [
            "config", "passes", "notes", "error", "traceback", "path",
        ]  # fmt: skip


class TestBestRun:
    FRAME = pd.DataFrame(
        {
            "run_id": [1, 2, 3, 4],
            "status": ["completed"] * 4,
            "eval_loss": [0.5, 0.25, math.nan, 0.75],
            "eval_reward": [0.5, 0.25, math.nan, 0.75],
            "eval_mean_token_accuracy": [0.1, 0.2, 0.3, math.nan],
            "unmeasured": [math.nan] * 4,
        }
    )

    @pytest.mark.parametrize(
        ("name", "mode", "best"),
        [
            ("eval_loss", None, 2),
            ("eval_loss", "min", 2),
            ("eval_loss", "max", 4),
            ("eval_reward", None, 4),
            ("eval_reward", "min", 2),
            ("eval_mean_token_accuracy", None, 3),
        ],
    )
    def test_by_metric_and_mode(self, name: str, mode: str | None, best: int) -> None:
        assert best_run(self.FRAME, name, mode)["run_id"] == best

    def test_whatever_the_index(self) -> None:
        frame = self.FRAME.set_index(pd.Index([7, 7, 7, 7]))
        assert best_run(frame, "eval_loss", None)["run_id"] == 2

    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            ("eval_los", "did you mean 'eval_loss'?"),
            ("bleu", "allowed: run_id, eval_loss, eval_reward, eval_mean_token_accuracy"),
            ("unmeasured", "no run has the metric 'unmeasured'"),
            ("status", "no run has the metric 'status'"),
        ],
    )
    def test_a_metric_that_nobody_has(self, name: str, hint: str) -> None:
        with pytest.raises(ConfigError) as caught:
            best_run(self.FRAME, name, None)
        assert f"no run has the metric {name!r}" in str(caught.value)
        assert hint in str(caught.value)

    def test_a_mode_that_is_none(self) -> None:
        with pytest.raises(ConfigError, match="mode='lowest' is not known; it is 'min', 'max' or"):
            best_run(self.FRAME, "eval_loss", "lowest")


class Trained:
    """An experiment with two runs, two chunks and an evaluation set; then trained again; ended."""

    def __init__(self, root: Path) -> None:
        self.experiment = Experiment("results", experiment_path=root)
        self._train(1e-2, 0.0)
        self.first = self.experiment.path
        self.results = self.experiment.get_results()
        self.info = self.experiment.get_runs_info()
        self.best = self.experiment.best()
        self._train(1e-3)
        self.experiment.end()

    def _train(self, *learning_rates: float) -> None:
        args = {"max_steps": 4, "logging_steps": 2, "max_length": 32, "lora_rank": 2}
        self.experiment.run_fit(
            [RFSFTConfig(**args, learning_rate=rate) for rate in learning_rates],
            create_model=lambda config: (tiny_model(), tiny_tokenizer()),
            train_dataset=text_rows(32),
            eval_dataset=text_rows(8, seed=1),
            num_chunks=2,
        )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    torch.set_num_threads(1)
    return Trained(tmp_path_factory.mktemp("experiments"))


class TestExperiment:
    def test_the_tables_of_a_training(self, trained: Trained) -> None:
        results, info = trained.results, trained.info
        assert list(results["run_id"]) == [1] * 4 + [2] * 4
        assert list(results["step"]) == [1, 2, 3, 4] * 2
        assert results["loss"].notna().all()
        assert list(results.loc[results["eval_loss"].notna(), "step"]) == [2, 4, 2, 4]
        assert set(results.loc[results["logged_loss"].notna(), "step"]) == {2, 4}
        assert list(info["status"]) == ["completed", "completed"]
        assert list(info["step"]) == list(info["num_steps"]) == [4, 4]
        assert list(info["chunks_done"]) == list(info["num_chunks"]) == [2, 2]
        assert info["active_s"].gt(0).all()
        assert next(iter(info["config"]))["training_args"]["learning_rate"] == 1e-2
        assert all(Path(path).is_dir() for path in info["path"])
        last = results[results["step"] == 4].set_index("run_id")
        assert list(info["eval_loss"]) == list(last["eval_loss"])
        assert list(info["loss"]) == list(last["loss"])
        # The other has not learned anything.
        assert trained.best["run_id"] == 1

    def test_a_second_run_fit_gets_a_numbered_folder(self, trained: Trained) -> None:
        assert trained.first.name == "results"
        assert trained.experiment.name == "results_2"
        assert trained.experiment.path == trained.first.with_name("results_2")
        assert list(trained.experiment.get_runs_info()["run_id"]) == [1]
        assert (trained.first / "experiment.db").exists()

    def test_after_its_end_it_can_be_read_but_not_trained(self, trained: Trained) -> None:
        trained.experiment.end()
        assert len(trained.experiment.get_runs_info()) == 1
        with pytest.raises(ConfigError, match="'results_2' has been ended; make a new Experiment"):
            trained.experiment.run_fit(RFSFTConfig(), train_dataset=text_rows(2))

    def test_its_log_tells_what_happened(self, trained: Trained) -> None:
        log = trained.experiment.get_log_file_path().read_text()
        assert trained.experiment.get_log_file_path() == trained.experiment.path / "experiment.log"
        assert "the experiment 'results' has ended already: this one is 'results_2'" in log
        assert "experiment 'results_2': 1 configurations on cpu" in log
        assert "run 1  chunk 2/2  step 4/4" in log

    def test_names_are_numbered(self, trained: Trained) -> None:
        root = trained.experiment.path.parent
        names = [Experiment("results", experiment_path=root).name for _ in range(2)]
        assert names == ["results_3", "results_3"]  # nothing has been trained in it yet

    def test_without_a_training_there_is_nothing_to_read(self, tmp_path: Path) -> None:
        experiment = Experiment("fresh", experiment_path=tmp_path)
        for read in (experiment.get_results, experiment.get_runs_info, experiment.best):
            with pytest.raises(ConfigError, match="has no results yet; call run_fit"):
                read()
        experiment.end()
