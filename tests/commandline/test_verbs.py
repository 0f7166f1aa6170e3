"""The verbs that control runs, where no process trains them."""

import json
import os
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import pytest

from rapidfireai import cli
from rapidfireai.paths import ExperimentFolder
from rapidfireai.store import sqlite
from tests.commandline.laboratory import laboratory, stored


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ExperimentFolder:
    monkeypatch.setenv("RF_EXPERIMENT_PATH", str(tmp_path))
    return laboratory(tmp_path)


def statuses(lab: ExperimentFolder) -> dict[int, str]:
    return {run_id: run.status.value for run_id, run in stored(lab).items()}


BEFORE = {1: "completed", 2: "waiting", 3: "stopped", 4: "failed"}


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        (["stop-run", "2"], {2: "stopped"}),
        (["resume-run", "3", "4", "3"], {3: "queued", 4: "queued"}),
        (["prune-run", "2", "--reason", "bad"], {2: "pruned"}),
        (["delete-run", "2", "4"], {2: "deleted", 4: "deleted"}),
        (["stop-run", "--where", "eval_loss > 1 and status == 'waiting'"], {2: "stopped"}),
        (["stop-run", "--where", "eval_loss > 100"], {}),
        (["pin-run", "2", "--no-wait"], {}),
    ],
)
def test_applied(arguments: list[str], changed: dict[int, str], lab: ExperimentFolder) -> None:
    assert cli.main(arguments) == 0
    assert statuses(lab) == {**BEFORE, **changed}


def test_undone(lab: ExperimentFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["delete-run", "1", "3"]) == 0
    assert cli.main(["restore-run", "--where", "id == 3"]) == 0
    assert statuses(lab) == {**BEFORE, 1: "deleted"}
    assert cli.main(["pin-run", "2"]) == cli.main(["unpin-run", "2"]) == 0
    assert not stored(lab)[2].pinned
    assert capsys.readouterr().out.splitlines() == [
        "run 1 is deleted; for 10 minutes it can be restored",
        "run 3 is deleted; for 10 minutes it can be restored",
        "run 3 is restored: it is stopped",
        "run 2 is pinned",
        "run 2 is no longer pinned",
    ]


def test_what_is_rejected_does_not_keep_the_rest(
    lab: ExperimentFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["stop-run", "1", "2", "9", "--json"]) == 1
    answers = json.loads(capsys.readouterr().out)
    assert [answer["status"] for answer in answers] == ["rejected", "applied", "rejected"]
    assert "completed already" in answers[0]["outcome"]
    assert "the experiment's runs are 1, 2, 3, 4" in answers[2]["outcome"]
    assert statuses(lab) == {**BEFORE, 2: "stopped"}


def test_a_command_that_nobody_comes_to_stays_in_force(
    lab: ExperimentFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    with lab.locked():
        assert cli.main(["stop-run", "2", "--wait", "0.02"]) == 3
        assert cli.main(["pin-run", "2", "--no-wait"]) == 3
    assert "stop run 2: pending; `rapidfireai commands` shows" in capsys.readouterr().out
    assert statuses(lab) == BEFORE
    assert cli.main(["pin-run", "1"]) == 0  # who comes next carries all of them out
    assert statuses(lab) == {**BEFORE, 2: "stopped"}
    assert stored(lab)[2].pinned


def test_a_clone_waits_for_the_script(
    lab: ExperimentFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["clone-run", "2", "--set", "lora_rank=16"]) == 3
    assert "it is made when the script goes on" in capsys.readouterr().out
    assert statuses(lab) == BEFORE


def test_dry_run(lab: ExperimentFolder, capsys: pytest.CaptureFixture[str]) -> None:
    before = stored(lab)
    assert cli.main(["delete-run", "2", "--dry-run"]) == 0
    assert cli.main(["stop-run", "1", "--dry-run"]) == 1
    arguments = ["clone-run", "2", "--set", "learning_rate=1e-4", "--set", "lora_rank=16"]
    assert cli.main([*arguments, "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "delete run 2: would be carried out",
        "stop run 1: would be rejected: run 1 is completed already: there is nothing to stop",
        "clone run 2: would be carried out",
        "  training_args.learning_rate: 0.001 -> 0.0001",
        "  peft.r: 32 -> 16",
    ]
    assert cli.main([*arguments, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["modified"] == {
        "training_args.learning_rate": [0.001, 0.0001],
        "peft.r": [32, 16],
    }
    assert stored(lab) == before
    assert cli.main(["commands", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("learning_rate=1e-4", 1e-4),
        ("packing=true", True),
        ("packing=False", False),
        ("max_steps=12", 12),
        ("lr_scheduler_type=cosine", "cosine"),
        ("lr_scheduler_type=null", None),
        ('target_modules=["q_proj"]', ["q_proj"]),
        ("target_modules=None", None),
        ("target_modules=all-linear", "all-linear"),
        ("target_modules=a=b", "a=b"),
    ],
)
@pytest.mark.usefixtures("lab")
def test_values_of_knobs(text: str, value: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["clone-run", "1", "--set", text, "--json"]) == 3
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["modify"] == {text.partition("=")[0]: value}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["clone-run", "2", "--set", "learning_rat=1"], "did you mean 'learning_rate'"),
        (["clone-run", "2", "--set", "packing=yes"], "'yes' is not possible; allowed: bool"),
        (["clone-run", "2", "--set", "output_dir=x"], "there is no knob 'output_dir'"),
        (["clone-run", "2", "--set", "max_steps=1.5"], "max_steps=1.5 is not possible"),
        (["clone-run", "2", "--set", "r=4", "--set", "lora_rank=4"], "given twice"),
        (["clone-run", "9", "--set", "r=4"], "there is no run 9"),
        (["restore-run", "1"], "not deleted"),
        (["resume-run", "1"], "it has done all its steps"),
    ],
)  # fmt: skip
def test_rejected(
    arguments: list[str], message: str, lab: ExperimentFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stored(lab)
    assert cli.main([*arguments, "--dry-run"]) == 1
    assert message in capsys.readouterr().out
    assert cli.main(arguments) == 1
    assert message in capsys.readouterr().out
    assert stored(lab) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stop-run"], "stop-run takes either numbers of runs, or --where"),
        (["stop-run", "1", "--where", "id == 2"], "takes either"),
        (["stop-run", "--where", "losss > 1"], "did you mean 'loss'?"),
        (["stop-run", "--where", "loss >"], "cannot be read: invalid syntax"),
        (["stop-run", "--where", ""], "is no condition"),
        (["stop-run", "--where", "status > 1"], "cannot be compared by size"),
        (["clone-run", "1", "--set", "r=1", "--set", "r=2"], "--set names a knob twice"),
        (["stop-run", "1", "-e", "lba"], "there is no experiment 'lba'"),
        (["stop-run", "1", "-e", "../lab"], "there is no experiment '../lab'"),
    ],
)
def test_refused_at_once(
    arguments: list[str], message: str, lab: ExperimentFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stored(lab)
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert stored(lab) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["stop-run", "one"],
        ["prune-run", "1"],
        ["clone-run", "1", "--set", "learning_rate"],
        ["clone-run", "1", "--optimizer", "new"],
        ["stop-run", "1", "--wait", "-1"],
        ["stop-run", "1", "--wait", "soon"],
        ["stop-run", "1", "--wait", "1", "--no-wait"],
    ],
)
@pytest.mark.usefixtures("lab")
def test_arguments_that_cannot_be_read(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().err


VERBS = [["runs"], ["show-run", "1"], ["commands"], ["stop-run", "2"], ["clean"], ["export", "1"]]


@pytest.mark.parametrize("arguments", VERBS, ids=" ".join)
@pytest.mark.parametrize("damage", ["empty", "cut off", "other", "newer"])
def test_a_damaged_store_is_one_line(
    arguments: list[str],
    damage: str,
    lab: ExperimentFolder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if damage == "newer":
        with sqlite3.connect(lab.store) as db:
            db.execute(f"PRAGMA user_version = {sqlite.SCHEMA_VERSION + 1}")
        db.close()
    for file in lab.path.glob("experiment.db-*"):
        file.unlink()
    content = lab.store.read_bytes()
    damaged = {"empty": b"", "cut off": content[:5000], "other": b"text" * 999, "newer": content}
    lab.store.write_bytes(damaged[damage])
    if arguments[0] == "export":
        arguments = [*arguments, str(tmp_path / "exported")]
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err
    expected = {
        "empty": "has been truncated",
        "cut off": "it is damaged",
        "other": "is no SQLite file",
        "newer": "of a newer rapidfireai",
    }
    assert expected[damage] in error
    assert len(error.splitlines()) == 1
    assert lab.store.read_bytes() == damaged[damage]
    assert not (tmp_path / "exported").exists()


def test_a_folder_that_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    # Not below tmp_path, which only its owner can look into.
    with tempfile.TemporaryDirectory() as root:
        lab = laboratory(Path(root))
        before = stored(lab)
        for folder in (lab.path, Path(root)):
            folder.chmod(0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)  # nobody; permissions mean nothing to root
        try:
            assert cli.main(["stop-run", "2", "--path", root]) == 1
        finally:
            if user == 0:
                os.seteuid(0)
            lab.path.chmod(0o755)
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1
        assert "writ" in error
        assert stored(lab) == before
