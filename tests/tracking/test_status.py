"""How trackers are doing: in the ledger, on the command line and over the API."""

import json
from contextlib import closing
from pathlib import Path

import pytest

from rapidfireai.cli import main
from rapidfireai.store import SqliteReader
from rapidfireai.tracking import TensorBoard
from rapidfireai.tracking._protocol import parameters
from rapidfireai.tracking.choice import to_json
from rapidfireai.tracking.follower import Follower
from rapidfireai.tracking.ledger import TrackerFolder
from rapidfireai.tracking.process import settled
from rapidfireai.tracking.status import TrackerState, TrackerStatus, trackers_of
from tests.tracking.story import Story


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story.begin(tmp_path)


def follow(story: Story) -> bool:
    """Send what there is to TensorBoard, in this process."""
    (settings,) = settled(story.folder, [TensorBoard()])
    folder = TrackerFolder.of(story.folder, "tensorboard")
    with folder.claimed(0.0) as is_mine:
        assert is_mine
        return Follower(story.folder, settings, folder).follow(lambda pause_s: True, 0.0)


def status(story: Story) -> TrackerStatus:
    with closing(SqliteReader(story.folder.store)) as store:
        (found,) = trackers_of(story.folder, store)
    return found


def make_unwritable(story: Story) -> Path:
    """A file where the folder of the run's events would be."""
    logs = TrackerFolder.of(story.folder, "tensorboard").path / "logs"
    logs.mkdir(parents=True)
    (logs / "story").write_text("in the way")
    return logs / "story"


def test_it_is_current_then_behind_then_current(story: Story) -> None:
    story.train(1, 1, 3)
    assert follow(story)
    assert status(story).state is TrackerState.CURRENT
    assert status(story).told() == "up to date"
    story.train(1, 4, 5, chunk=1)
    now = status(story)
    assert now.state is TrackerState.BEHIND
    # Three values a step, two at the chunk's end.
    assert (now.num_waiting, now.num_runs_waiting) == (8, 1)
    assert now.told() == "behind; 8 values of 1 runs wait for `rapidfireai sync`"
    assert follow(story)
    assert status(story).state is TrackerState.CURRENT


def test_a_failure_is_told_and_gone_once_it_is_mended(story: Story) -> None:
    story.train(1, 1, 3)
    in_the_way = make_unwritable(story)
    assert not follow(story)
    now = status(story)
    assert now.state is TrackerState.BEHIND
    assert now.problem is not None
    assert now.problem.startswith("NotADirectoryError")
    assert now.since_s is not None
    with TrackerFolder.of(story.folder, "tensorboard").claimed(0.0):
        assert status(story).state is TrackerState.FAILING
    in_the_way.unlink()
    assert follow(story)
    assert status(story).problem is None


def test_one_run_that_cannot_be_sent_keeps_back_no_other(story: Story) -> None:
    story.train(1, 1, 3)
    story.train(2, 1, 3)
    logs = TrackerFolder.of(story.folder, "tensorboard").path / "logs"
    (logs / "story").mkdir(parents=True)
    (logs / "story" / "run-1").write_text("in the way")
    assert not follow(story)
    now = status(story)
    assert (now.num_waiting, now.num_runs_waiting) == (11, 1)


def test_other_settings_are_another_tracker(story: Story, tmp_path: Path) -> None:
    story.train(1, 1, 3)
    assert follow(story)
    folder = TrackerFolder.of(story.folder, "tensorboard")
    elsewhere = TensorBoard(log_dir=str(tmp_path / "elsewhere"))
    with folder.claimed(0.0):
        assert Follower(story.folder, elsewhere, folder).follow(lambda pause_s: True, 0.0)
    assert (tmp_path / "elsewhere" / "story" / "run-1").is_dir()
    ledger = folder.read()
    assert ledger is not None
    assert ledger.settings == to_json(elsewhere)


def test_only_one_process_sends(story: Story) -> None:
    folder = TrackerFolder.of(story.folder, "tensorboard")
    with folder.claimed(0.0) as first, folder.claimed(0.0) as second:
        assert (first, second) == (True, False)


def test_the_command_line_tells_and_catches_up(
    story: Story, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ["--path", str(story.folder.path.parent)]
    story.train(1, 1, 3)
    assert main(["sync", *path]) == 0
    assert "story has no trackers; run_fit(trackers=[...]) chooses them" in capsys.readouterr().out
    assert follow(story)
    story.train(2, 1, 3)
    assert main(["status", *path]) == 0
    told = "    tensorboard: behind; 11 values of 1 runs wait for `rapidfireai sync`"
    assert told in capsys.readouterr().out.splitlines()
    assert main(["sync", "--json", *path]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["name"], found["state"]) == ("tensorboard", "current")
    assert status(story).state is TrackerState.CURRENT


def test_sync_that_achieves_nothing_says_so(
    story: Story, capsys: pytest.CaptureFixture[str]
) -> None:
    story.train(1, 1, 3)
    make_unwritable(story)
    assert not follow(story)
    assert main(["sync", "--wait", "3", "--path", str(story.folder.path.parent)]) == 1
    assert "NotADirectoryError" in capsys.readouterr().out


def test_secrets_are_not_sent(story: Story) -> None:
    run = next(iter(story.runs().values()))
    config = {**run.config, "training_args": {"hub_token": "hf_abcdefghijklmnopqrstuvwxyz"}}
    secret = type(run)(id=run.id, name=run.name, config=config, path=run.path)
    assert parameters(secret)["training_args.hub_token"] == "********"
