"""The verbs that look."""

import json
import os
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rapidfireai import cli
from rapidfireai.control import open_store
from rapidfireai.paths import ExperimentFolder
from rapidfireai.report import as_html, find
from rapidfireai.report.terminal import show
from tests.commandline.laboratory import change, laboratory


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ExperimentFolder:
    monkeypatch.setenv("RF_EXPERIMENT_PATH", str(tmp_path))
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    return laboratory(tmp_path)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    assert cli.main(arguments) == status
    return capsys.readouterr().out


def values(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    return json.loads(printed(capsys, *arguments, "--json"))


@pytest.mark.usefixtures("lab")
def test_experiments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = laboratory(tmp_path, "another")
    (tmp_path / "no experiment").mkdir()
    with second.locked():
        first, other = sorted(values(capsys, "experiments"), key=lambda one: one["name"] == "lab")
    assert (first["name"], other["name"]) == ("another", "lab")
    assert other["runs"] == {"completed": 1, "waiting": 1, "stopped": 1, "failed": 1}
    assert other["best"] == {"run_id": 1, "metric": "eval_loss", "value": 0.75}
    assert other["begun_s"] == 1_763_801_400.0
    assert other["num_bytes"] > 4 * 8000
    assert other["trained_by"] is None
    assert first["trained_by"] > 0
    lines = printed(capsys, "experiments").splitlines()
    assert lines[0].split() == ["experiment", "begun", "runs", "best", "size"]
    assert "2025-11-22 08:50:00" in lines[2]
    assert "run 1, eval_loss 0.7500" in lines[2]


def test_an_experiment_that_cannot_be_read_does_not_hide_the_others(
    lab: ExperimentFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "experiment.db").write_bytes(b"no database" * 100)
    broken, whole = values(capsys, "experiments")
    assert "is no SQLite file" in broken["problem"]
    assert (whole["name"], whole["problem"]) == (lab.name, None)


def test_no_experiments_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = str(tmp_path / "nowhere")
    assert "there is no experiment in" in printed(capsys, "experiments", "--path", nowhere)
    assert values(capsys, "experiments", "--path", nowhere) == []
    assert cli.main(["runs", "--path", nowhere]) == 1
    assert f"there is no experiment in {nowhere}" in capsys.readouterr().err


def test_runs(lab: ExperimentFolder, capsys: pytest.CaptureFixture[str]) -> None:
    change(lab, 2, pinned=True, parent_id=1)
    lines = printed(capsys, "runs").splitlines()
    assert lines[1].split() == [
        "run", "status", "step", "loss", "eval_loss", "learning_rate", "r", "parent", "pinned",
        "notes",
    ]  # fmt: skip
    assert lines[3].split() == [
        "2", "waiting", "30/40", "0.9167", "1.2500", "0.001", "32", "1", "yes",
    ]  # fmt: skip
    assert lines[5].endswith("ValueError: out of luck")


@pytest.mark.parametrize(
    ("arguments", "runs"),
    [
        ([], [1, 2, 4]),
        (["--all"], [1, 2, 3, 4]),
        (["--where", "eval_loss > 1"], [2, 4]),
        (["--where", "eval_loss > 1", "--all"], [2, 3, 4]),
        (["--where", "status == 'deleted'", "--all"], [3]),
        (["--where", "lora_rank == 32 and learning_rate > 1e-4"], [2]),
        (["--where", "lora_alpha == 8"], [1, 2, 4]),  # a default
        (["--where", "rewards/margins < -1"], [2, 4]),
        (["--where", "training_args.learning_rate < 1e-4"], [4]),
        (["--where", "parent_id == None and not pinned"], [1, 2, 4]),
        (["--where", "loss > 100"], []),
    ],
)
def test_which_runs_are_listed(
    arguments: list[str],
    runs: list[int],
    lab: ExperimentFolder,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["delete-run", "3"]) == 0
    capsys.readouterr()
    assert [run["run_id"] for run in values(capsys, "runs", *arguments)] == runs
    if not runs:
        assert printed(capsys, "runs", *arguments) == f"{lab.name}: no run meets the condition\n"


@pytest.mark.usefixtures("lab")
def test_a_reader_that_has_had_enough_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run(
        [sys.executable, "-m", "rapidfireai", "runs"],
        stdout=writing,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        check=False,
    )
    os.close(writing)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_experiment_that_changed_last_is_meant(
    lab: ExperimentFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    laboratory(tmp_path, "later")
    assert printed(capsys, "runs").startswith("later\n")
    assert printed(capsys, "runs", "-e", "lab").startswith("lab\n")
    time.sleep(0.02)  # the file system's clock
    change(lab, 2, pinned=True)
    assert printed(capsys, "runs").startswith("lab\n")


def test_show_run(lab: ExperimentFolder, capsys: pytest.CaptureFixture[str]) -> None:
    change(lab, 2, parent_id=1, modified={"peft.r": [8, 32]})
    shown = printed(capsys, "show-run", "2")
    assert "run 2: waiting, step 30 of 40" in shown
    assert "run 2 is a clone of run 1: peft.r 8 -> 32" in shown
    assert '"learning_rate": 0.001' in shown
    assert "cloned by: 2" in printed(capsys, "show-run", "1")
    assert "Traceback (most recent call last)" in printed(capsys, "show-run", "4")
    row = values(capsys, "show-run", "2")
    assert [one["run_id"] for one in row["lineage"]] == [2, 1]
    assert row["metrics"] == {"eval_loss": 1.25, "rewards/margins": -1.25}
    assert cli.main(["show-run", "9"]) == 1
    assert "the experiment's runs are 1, 2, 3, 4" in capsys.readouterr().err


@pytest.mark.usefixtures("lab")
def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing has been asked" in printed(capsys, "commands")
    printed(capsys, "pin-run", "1", "--reason", "the best")
    printed(capsys, "delete-run", "1", status=1)
    pin, delete = values(capsys, "commands")
    assert (pin["verb"], pin["by"], pin["reason"], pin["status"]) == (
        "pin", "cli", "the best", "applied",
    )  # fmt: skip
    assert "is pinned: unpin it" in delete["outcome"]
    assert "run 1 is pinned" in printed(capsys, "commands")


MEASURED: dict[str, Any] = {
    "kind": "32 tokens a batch",
    "mode": "fused",
    "reason": "measured both ways",
    "members": [1, 2],
    "fused_s": 0.02,
    "sliced_s": 0.03,
    "step": 12,
}
ALONE: dict[str, Any] = {
    "kind": "",
    "mode": "sliced",
    "reason": "it trains all weights",
    "members": [],
    "fused_s": None,
    "sliced_s": None,
    "step": 0,
}


def test_how_passes_are_computed_is_shown_with_what_was_measured(
    lab: ExperimentFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "passes" not in printed(capsys, "runs")
    change(lab, 1, modes=(MEASURED,))
    change(lab, 3, modes=(ALONE,))
    table = printed(capsys, "runs")
    assert "fused: 32 tokens a batch 1.50x" in table
    assert "sliced: it trains all weights" in table
    assert (
        "32 tokens a batch: fused, measured both ways: 1.50 times as fast together (20 ms a pass) "
        "as alone (30 ms), runs 1, 2"
    ) in printed(capsys, "show-run", "1")
    assert "passes: sliced, it trains all weights" in printed(capsys, "show-run", "3")
    assert values(capsys, "show-run", "1")["modes"] == [MEASURED]


def test_a_report_tells_how_passes_were_computed(lab: ExperimentFolder) -> None:
    with closing(open_store(lab)) as store:
        found, (first, _, third, _) = find(store), store.runs()
    assert "Shared passes" not in as_html(found, 0.0)
    shared = (replace(first, modes=(ALONE, MEASURED)), replace(third, modes=(ALONE,)))
    findings = replace(found, shared=shared)
    page = as_html(findings, 0.0)
    assert "Shared passes" in page
    for cell in ("32 tokens a batch", "fused", "1.50x", "measured both ways", "1, 2"):
        assert f"<td>{cell}</td>" in page
    assert page.count("<td>it trains all weights</td>") == 1, "measuring stands for the rest"
    console = Console(record=True, width=120)
    show(findings, console)
    assert "passes of run 1: fused: 32 tokens a batch 1.50x" in console.export_text()
