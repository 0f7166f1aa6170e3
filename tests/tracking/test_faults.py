"""What goes wrong around a tracker: servers that die, disks that are full, experiments that are
killed."""

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from rapidfireai.paths import ExperimentFolder
from rapidfireai.store import SqliteReader
from rapidfireai.tracking import MLflow, TensorBoard, Trackio, WandB, process
from rapidfireai.tracking.status import TrackerState, trackers_of
from tests.tracking.reading import told
from tests.tracking.story import Story
from tests.tracking.test_trackers import assert_equal

LIMIT_S = 200.0


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story.begin(tmp_path)


def wait_for(story: Story, name: str, *states: TrackerState) -> None:
    """Until the tracker is in one of the states."""
    deadline_s = time.monotonic() + LIMIT_S
    with closing(SqliteReader(story.folder.store)) as store:
        while time.monotonic() < deadline_s:
            found = {one.name: one for one in trackers_of(story.folder, store)}
            if name in found and found[name].state in states:
                return
            time.sleep(0.2)
    raise AssertionError(f"{name} is {found}, not {states}")


class Server:
    """A real MLflow server, to be killed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with closing(socket.socket()) as one:
            one.bind(("127.0.0.1", 0))
            self._port = one.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"

    @contextmanager
    def running(self) -> Iterator[None]:
        program = (
            "import os, sys; from mlflow import server; from werkzeug.serving import run_simple;"
            f"os.environ[server.BACKEND_STORE_URI_ENV_VAR] = 'sqlite:///{self._folder}/server.db';"
            f"os.environ[server.ARTIFACT_ROOT_ENV_VAR] = '{self._folder}/artifacts';"
            f"run_simple('127.0.0.1', {self._port}, server.app, threaded=True)"
        )
        with (self._folder / "server.log").open("ab") as log:
            child = subprocess.Popen([sys.executable, "-c", program], stdout=log, stderr=log)
        try:
            deadline_s = time.monotonic() + LIMIT_S
            while time.monotonic() < deadline_s:
                with suppress(OSError), socket.create_connection(("127.0.0.1", self._port)):
                    break
                time.sleep(0.2)
            yield
        finally:
            child.kill()
            child.wait()


def test_an_mlflow_server_that_is_killed_and_comes_back_lacks_nothing(
    story: Story, tmp_path: Path
) -> None:
    server = Server(tmp_path)
    tracker = MLflow(tracking_uri=server.url)
    story.train(1, 1, 10)
    with server.running():
        senders = process.start(story.folder, process.settled(story.folder, [tracker]))
        senders.await_reached()
        wait_for(story, "mlflow", TrackerState.CURRENT)
    story.tell_rest()
    wait_for(story, "mlflow", TrackerState.FAILING)
    with server.running():
        senders.end(LIMIT_S)
        wait_for(story, "mlflow", TrackerState.CURRENT)
        found = told(tracker, story.folder.name)
    expected = story.held()
    assert found.keys() == expected.keys()
    for name, series in expected.items():
        assert_equal(tracker, found[name], series)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder],
        check=False,
        capture_output=True,
    )
    if made.returncode != 0:
        pytest.skip("only root may mount a disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_under_tensorboard_loses_nothing(story: Story, small_disk: Path) -> None:
    tracker = TensorBoard(log_dir=str(small_disk))
    story.train(1, 1, 10)
    senders = process.start(story.folder, process.settled(story.folder, [tracker]))
    wait_for(story, "tensorboard", TrackerState.CURRENT)
    filler = small_disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(b"x" * 1000):
            pass
    story.tell_rest()
    wait_for(story, "tensorboard", TrackerState.FAILING)
    filler.unlink()
    senders.end(LIMIT_S)
    wait_for(story, "tensorboard", TrackerState.CURRENT)
    found, expected = told(tracker, story.folder.name), story.held()
    assert found.keys() == expected.keys()
    for name, series in expected.items():
        assert_equal(tracker, found[name], series)


SCRIPT = """
import sys
from rapidfireai import Experiment
from rapidfireai.automl import List, RFGridSearch, RFSFTConfig
from rapidfireai.testing.tiny import text_rows, tiny_model, tiny_tokenizer
from rapidfireai.tracking import WandB

def create_model(config):
    return tiny_model(), tiny_tokenizer()

class Kill:
    def on_event(self, before, event, after):
        if after.id == 2 and after.step == int(sys.argv[2]):
            import os, signal
            os.kill(os.getpid(), signal.SIGKILL)

Experiment("killed", experiment_path=sys.argv[1]).run_fit(
    RFGridSearch([
        RFSFTConfig(max_steps=24, per_device_train_batch_size=4, logging_steps=1, max_length=32,
                    lora_rank=2, learning_rate=List([1e-3, 1e-4]))
    ]),
    create_model, text_rows(), text_rows(8), num_chunks=3, checkpoint_every_s=0,
    trackers=["mlflow", "tensorboard", "trackio", WandB(mode="offline"), Kill()],
)
"""


@pytest.fixture
def own_trackio(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Another project than of the tests before."""
    monkeypatch.setenv("TRACKIO_PROJECT", re.sub(r"\W", "_", str(tmp_path))[-60:])
    return tmp_path


@pytest.mark.exam
def test_an_experiment_that_is_killed_and_goes_on_is_told_once(own_trackio: Path) -> None:
    """Some of its steps are done twice: those since the last checkpoint."""

    def run(kill_at: int) -> int:
        return subprocess.run(
            [sys.executable, "-c", SCRIPT, str(own_trackio), str(kill_at)],
            capture_output=True,
            check=False,
        ).returncode

    assert run(10) == -signal.SIGKILL
    assert run(19) == -signal.SIGKILL
    assert run(0) == 0
    story = Story(ExperimentFolder(own_trackio / "killed"))
    expected = story.held()
    assert {run.step for run in story.runs().values()} == {24}
    for tracker in (MLflow(), TensorBoard(), Trackio(), WandB(mode="offline")):
        wait_for(story, tracker.name, TrackerState.CURRENT)
        (settings,) = process.settled(story.folder, [tracker])
        found = told(settings, "killed")
        assert found.keys() == expected.keys()
        for name, series in expected.items():
            # The load of a machine is another one when steps are done again.
            assert_equal(tracker, found[name], series, but=("device/",))
