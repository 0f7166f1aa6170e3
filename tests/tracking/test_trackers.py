"""Each tracker against its real library: what it holds is what the store holds."""

import json
import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rapidfireai.tracking import MLflow, Settings, TensorBoard, Trackio, WandB
from rapidfireai.tracking._protocol import parameters
from rapidfireai.tracking.choice import to_json
from rapidfireai.tracking.process import settled
from tests.tracking.reading import Told, mlflow_client, stored_name, told
from tests.tracking.story import Series, Story

ALL: Sequence[Settings] = (MLflow(), TensorBoard(), Trackio(), WandB(mode="offline"))

each = pytest.mark.parametrize("tracker", ALL, ids=lambda tracker: tracker.name)


@pytest.fixture(autouse=True)
def own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in ("MLFLOW_TRACKING_URI", "WANDB_DIR", "WANDB_MODE", "RF_TENSORBOARD_LOG_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store of MLflow's, which takes seconds to make."""
    store = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow_client(f"sqlite:///{store}")
    return store


@pytest.fixture
def story(tmp_path: Path, mlflow_store: Path) -> Story:
    # Trackio's projects are all in one folder.
    story = Story.begin(tmp_path, name=tmp_path.name)
    (folder := story.folder.trackers / "mlflow").mkdir(parents=True)
    shutil.copy(mlflow_store, folder)
    return story


def in_force(tracker: Settings, story: Story) -> Settings:
    return settled(story.folder, [tracker])[0]


def catch_up(tracker: Settings, story: Story, *, kill_at: tuple[str, int] | None = None) -> int:
    """Send what is new, in a process; returns its exit status."""
    orders = {"folder": str(story.folder.path), "settings": to_json(in_force(tracker, story))}
    fault = [] if kill_at is None else [kill_at[0], str(kill_at[1])]
    done = subprocess.run(
        [sys.executable, "-m", "tests.tracking.killed", json.dumps(orders), *fault],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    # For a test that fails.
    sys.stderr.write(done.stderr)
    return done.returncode


def check(tracker: Settings, story: Story) -> dict[str, Told]:
    """That the tracker holds what the store holds, once each and in order."""
    found, expected = told(in_force(tracker, story), story.folder.name), story.held()
    assert found.keys() == expected.keys()
    for name, series in expected.items():
        assert_equal(tracker, found[name], series)
    return found


def assert_equal(
    tracker: Settings, found: Told, expected: Series, but: tuple[str, ...] = ()
) -> None:
    """That all is there once and in order; the values too, `but` of names that begin so."""
    steps: dict[str, list[int]] = {}
    for name, step, _ in found.points:
        steps.setdefault(name, []).append(step)
    assert all(one == sorted(set(one)) for one in steps.values()), "twice, or not in order"
    values = {(name, step): value for name, step, value in found.points}
    wanted = {
        (stored_name(tracker, name), step): kept(tracker, value)
        for (name, step), value in expected.items()
    }
    assert values.keys() == wanted.keys()
    differing = {
        at: (values[at], wanted[at])
        for at in wanted
        if values[at] != wanted[at]
        and not (math.isnan(values[at]) and math.isnan(wanted[at]))
        and not at[0].startswith(but)
    }
    assert not differing


def kept(tracker: Settings, value: float) -> float:
    """A value in the precision that the tracker has."""
    return float(np.float32(value)) if isinstance(tracker, TensorBoard) else value


def as_text(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}


@each
def test_it_holds_what_the_store_holds_also_after_kills(tracker: Settings, story: Story) -> None:
    story.train(1, 1, 10)
    assert catch_up(tracker, story, kill_at=("tracker.begun", 1)) == -signal.SIGKILL
    assert catch_up(tracker, story, kill_at=("tracker.sent", 1)) == -signal.SIGKILL
    story.tell_rest()
    assert catch_up(tracker, story) == 0
    found, runs = check(tracker, story), story.runs()
    for name, one in found.items():
        state = as_text(one.state)
        assert as_text(one.parameters) == as_text(parameters(runs[name]))
        assert state["status"] == runs[name].status
        assert state["run"] == str(runs[name].id)
        assert state["step"] == str(runs[name].step)
        assert state["chunks_done"] == str(runs[name].chunks_done)
    assert as_text(found["run-4"].state)["parent"] == "2"
    assert "no progress" in as_text(found["run-4"].state)["notes"]
    assert found["run-4"].state["modified"] == "training_args.learning_rate: 0.01 -> 0.5"
