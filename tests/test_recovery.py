"""The same script again goes on, whatever ended it before."""

import json
import logging
import os
import signal
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rapidfireai import Experiment
from rapidfireai.automl import RFModelConfig
from rapidfireai.core.events import Event
from rapidfireai.core.run import Run
from rapidfireai.errors import ExperimentBusyError, ExperimentPathError, StoreError
from rapidfireai.paths import ExperimentFolder
from rapidfireai.testing.tiny import text_rows, tiny_model, tiny_tokenizer
from tests import recovery
from tests.children import Child, Children
from tests.recovery import Fault, Script, lora, sft

PRELOADED = (
    "tests.recovery",
    "trl.trainer.sft_trainer",
    "trl.trainer.dpo_trainer",
    "trl.trainer.grpo_trainer",
)


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    server = Children(PRELOADED)
    yield server
    server.close()


class Folder:
    """Of all experiments, with the scripts that run in it."""

    def __init__(self, path: Path, children: Children) -> None:
        self.path = path
        self._children = children

    def start(self, script: Script) -> Child:
        plain = recovery.plain(replace(script, folder=str(self.path)))
        return self.call("run", plain)

    def call(self, function: str, *args: Any) -> Child:
        """Call one of `tests.recovery`'s in a process of its own."""
        output = self.path / "printed.txt"
        return self._children.start(f"tests.recovery:{function}", *args, output=output)

    def run(self, script: Script) -> int:
        """Its exit status."""
        return self.start(script).wait()

    @property
    def printed(self) -> str:
        return (self.path / "printed.txt").read_text()

    def stored(self, name: str = "exam") -> dict[str, Any]:
        return recovery.left_behind(self.path / name)


@pytest.fixture
def folder(tmp_path: Path, children: Children) -> Folder:
    return Folder(tmp_path, children)


SCRIPT = Script("SFT", folder="")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, children: Children) -> dict[str, Any]:
    folder = Folder(tmp_path_factory.mktemp("undisturbed"), children)
    assert folder.run(SCRIPT) == 0, folder.printed
    return folder.stored()


class TestWhatEndsAScript:
    def test_kill_9(self, folder: Folder, undisturbed: dict[str, Any]) -> None:
        fault = Fault(point="final.renamed")
        assert folder.run(replace(SCRIPT, fault=fault, checkpoint_every=2)) == -signal.SIGKILL
        fault = Fault(event=True, number=30)
        assert folder.run(replace(SCRIPT, fault=fault, checkpoint_every=2)) == -signal.SIGKILL
        assert folder.run(SCRIPT) == 0, folder.printed
        assert folder.stored() == undisturbed
        recovery.assert_tidy(folder.path / "exam")
        recovery.assert_nothing_repeated(folder.path)
        assert "continuing experiment 'exam'" in folder.printed
        # One base, and so one model for each process that had something left to train.
        loaded = Counter(line["pid"] for line in recovery.life_log(folder.path) if "loaded" in line)
        assert list(loaded.values()) == [1, 1, 1]

    @pytest.mark.parametrize(
        ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM)]
    )
    def test_ctrl_c_and_preemption(
        self, number: int, status: int, folder: Folder, undisturbed: dict[str, Any]
    ) -> None:
        # No checkpoints but those that the end writes.
        script = replace(SCRIPT, checkpoint_every=1000)
        fault = Fault(event=True, number=55, signal=number)
        assert folder.run(replace(script, fault=fault)) == status, folder.printed
        assert "interrupted: writing all runs down" in folder.printed
        assert "run the same script again to go on where they are" in folder.printed
        assert {run["status"] for run in folder.stored()["runs"]} == {"interrupted"}
        steps = [run["step"] for run in folder.stored()["runs"]]
        assert folder.run(script) == 0, folder.printed
        assert folder.stored() == undisturbed
        recovery.assert_tidy(folder.path / "exam")
        continued = [line for line in recovery.life_log(folder.path) if "run" in line]
        begun = {line["run"]: line["step"] for line in continued if line["event"] == "RunStarted"}
        assert [begun[run] for run in (1, 2, 3)] == steps

    def test_a_second_signal_does_not_wait(
        self, folder: Folder, undisturbed: dict[str, Any]
    ) -> None:
        fault = Fault(point="evaluation.begun", number=4, signal=signal.SIGINT, twice=True)
        assert folder.run(replace(SCRIPT, fault=fault)) == 130, folder.printed
        assert "left at once" in folder.printed
        assert folder.run(SCRIPT) == 0, folder.printed
        assert folder.stored() == undisturbed

    def test_a_script_that_ends_while_it_trains_in_the_background(
        self, folder: Folder, undisturbed: dict[str, Any]
    ) -> None:
        assert folder.run(replace(SCRIPT, background=True)) == 0, folder.printed
        assert set(recovery.statuses(folder.path / "exam")) == {"interrupted", "queued"}
        assert folder.run(SCRIPT) == 0, folder.printed
        assert folder.stored() == undisturbed


GANG = Script("gang", folder="", fuse="on")


@pytest.fixture(scope="module")
def undisturbed_gang(
    tmp_path_factory: pytest.TempPathFactory, children: Children
) -> dict[str, Any]:
    folder = Folder(tmp_path_factory.mktemp("undisturbed"), children)
    assert folder.run(GANG) == 0, folder.printed
    stored = folder.stored()
    assert recovery.first_modes(folder.path / "exam") == ["fused"] * 4 + ["sliced"]
    return stored


class TestGangs:
    """Runs that share passes are ended in the middle of one another's steps."""

    @pytest.mark.parametrize(
        "modes",
        [
            ("on", "on", "on"),
            ("auto", "auto", "auto"),
            ("auto", "on", "auto"),
            ("on", "off", "off"),
        ],
    )
    def test_kill_9(
        self, modes: Sequence[str], folder: Folder, undisturbed_gang: dict[str, Any]
    ) -> None:
        """Shared or not, whoever is killed and goes on ends with the same numbers."""
        *killed, last = modes
        for number, checkpoint_every, fuse in zip((25, 50), (2, 3), killed, strict=True):
            fault = Fault(event=True, number=number)
            script = replace(GANG, fault=fault, checkpoint_every=checkpoint_every, fuse=fuse)
            assert folder.run(script) == -signal.SIGKILL
        assert folder.run(replace(GANG, fuse=last)) == 0, folder.printed
        assert folder.stored() == undisturbed_gang
        recovery.assert_tidy(folder.path / "exam")
        recovery.assert_nothing_repeated(folder.path)

    def test_ctrl_c_lets_every_run_end_its_step(
        self, folder: Folder, undisturbed_gang: dict[str, Any]
    ) -> None:
        # No checkpoints but those that the end writes.
        script = replace(GANG, checkpoint_every=1000)
        fault = Fault(event=True, number=60, signal=signal.SIGINT)
        assert folder.run(replace(script, fault=fault)) == 130, folder.printed
        assert all(run["step"] > 0 for run in folder.stored()["runs"][:4])
        assert folder.run(script) == 0, folder.printed
        assert folder.stored() == undisturbed_gang


class TestOneProcessAtATime:
    def test_the_second_is_refused_with_the_pid_of_the_first(
        self, folder: Folder, undisturbed: dict[str, Any]
    ) -> None:
        pipes = folder.path / "pipes"
        for end in ("reached", "go"):
            os.mkfifo(f"{pipes}.{end}")
        first = folder.start(replace(SCRIPT, pipes=str(pipes)))
        Path(f"{pipes}.reached").read_text()  # now it trains
        assert folder.run(SCRIPT) == 1
        assert (
            f"ExperimentBusyError: the experiment 'exam' is being trained by process {first.pid}"
            in folder.printed.replace("rapidfireai.errors.", "")
        )
        # Another experiment is nobody's business.
        other = folder.start(replace(SCRIPT, name="other"))
        Path(f"{pipes}.go").write_text("")
        assert (first.wait(), other.wait()) == (0, 0), folder.printed
        assert folder.stored() == undisturbed
        assert folder.stored("other") == undisturbed

    def test_children_of_a_killed_process_do_not_keep_the_next_one_out(
        self, folder: Folder
    ) -> None:
        """As data loader workers would, which take seconds to notice."""
        experiment = ExperimentFolder.claim(folder.path, "locked")
        pipe = folder.path / "pipe"
        os.mkfifo(pipe)
        killed = folder.call("hold_and_fork", str(experiment.path), str(pipe))
        assert killed.wait() == -signal.SIGKILL
        with experiment.locked():
            assert (experiment.path / "lock").read_text() == f"{os.getpid()}\n"
            with pytest.raises(ExperimentBusyError, match=str(os.getpid())), experiment.locked():
                pass
        pipe.write_text("")  # which waits for the child to read


class StopButton:
    """Presses Ctrl-C at a certain step of a run."""

    def __init__(self, run_id: int, step: int) -> None:
        self._at = (run_id, step)

    def on_event(self, before: Run, event: Event, after: Run) -> None:
        if (after.id, after.step) == self._at:
            self._at = (0, 0)
            signal.raise_signal(signal.SIGINT)


def create_model(config: dict[str, Any]) -> tuple[Any, Any]:
    return tiny_model(), tiny_tokenizer()


def create_other_model(config: dict[str, Any]) -> tuple[Any, Any]:
    return tiny_model(seed=5), tiny_tokenizer()


def config(**changes: Any) -> RFModelConfig:
    return lora(4, sft(max_steps=4, **changes))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class Lab:
    """An experiment in this process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def train(
        self, configs: list[RFModelConfig], *, name: str = "lab", **changes: Any
    ) -> Experiment:
        experiment = Experiment(name, experiment_path=self.path)
        data = text_rows(24)
        arguments = {"create_model": create_model, "train_dataset": data, "num_chunks": 2}
        experiment.run_fit(configs, **{**arguments, **changes})
        return experiment

    def interrupt(self, configs: list[RFModelConfig], *, at: tuple[int, int] = (2, 2)) -> None:
        with pytest.raises(KeyboardInterrupt):
            self.train(configs, trackers=[StopButton(*at)])

    def losses(self, experiment: Experiment) -> dict[int, list[float]]:
        results = experiment.get_results().dropna(subset=["loss"])
        return {
            run: list(results["loss"][results["run_id"] == run])
            for run in sorted(set(results["run_id"]))
        }


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


class TestWhatTheScriptHasNow:
    def test_a_changed_configuration_is_new_and_the_old_run_is_stopped(
        self, lab: Lab, caplog: pytest.LogCaptureFixture
    ) -> None:
        lab.interrupt([config(), config(seed=2)])
        with caplog.at_level(logging.INFO, "rapidfireai"):
            experiment = lab.train([config(), config(seed=3)])
        info = experiment.get_runs_info()
        assert experiment.name == "lab"
        assert list(info["status"]) == ["completed", "stopped", "completed"]
        assert list(info["step"]) == [4, 2, 4]
        assert "no longer in the script" in str(info.loc[1, "notes"])
        assert "1 runs go on, 0 had ended, 1 are new; 1 are no longer" in caplog.text
        losses = lab.losses(experiment)
        assert len(losses[1]) == len(losses[3]) == 4
        assert len(losses[2]) == 2

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param({"create_model": create_other_model}, id="create_model"),
            pytest.param({"train_dataset": text_rows(20)}, id="dataset"),
            pytest.param({"seed": 7}, id="seed"),
        ],
    )
    def test_what_all_runs_share_makes_all_of_them_new(
        self, change: dict[str, Any], lab: Lab
    ) -> None:
        lab.interrupt([config()], at=(1, 2))
        info = lab.train([config()], **change).get_runs_info()
        assert list(info["status"]) == ["stopped", "completed"]

    def test_an_added_configuration_is_added(self, lab: Lab) -> None:
        lab.interrupt([config(), config(seed=2)])
        experiment = lab.train([config(), config(seed=3), config(seed=2)])
        info = experiment.get_runs_info()
        assert list(info["status"]) == ["completed"] * 3
        assert [run["training_args"]["seed"] for run in info["config"][1:]] == [2, 3]
        whole = lab.losses(lab.train([config(), config(seed=2), config(seed=3)], name="whole"))
        assert lab.losses(experiment) == whole

    def test_equal_configurations_are_told_apart_by_their_order(self, lab: Lab) -> None:
        lab.interrupt([config(), config()], at=(2, 3))
        experiment = lab.train([config(), config()])
        assert list(experiment.get_runs_info()["status"]) == ["completed"] * 2
        losses = lab.losses(experiment)
        assert losses[1] == losses[2]

    def test_another_number_of_chunks_changes_no_loss(self, lab: Lab) -> None:
        lab.interrupt([config()], at=(1, 3))
        experiment = lab.train([config()], num_chunks=4)
        assert lab.losses(experiment) == lab.losses(lab.train([config()], name="whole"))

    def test_a_name_that_has_ended_gets_a_number_and_says_so(
        self, lab: Lab, caplog: pytest.LogCaptureFixture
    ) -> None:
        lab.train([config()])
        with caplog.at_level(logging.INFO, "rapidfireai"):
            second = lab.train([config()])
        assert second.name == "lab_2"
        assert "the experiment 'lab' has ended already: this one is 'lab_2'" in caplog.text
        with pytest.raises(KeyboardInterrupt):
            lab.train([config()], trackers=[StopButton(1, 2)])
        third = lab.train([config()])
        assert third.name == "lab_3"
        assert lab.losses(third) == lab.losses(second)


def truncate(store: Path) -> None:
    with store.open("r+b") as file:
        file.truncate(store.stat().st_size // 2)


def garble(store: Path) -> None:
    store.write_bytes(b"not a database" * 1000)


def make_newer(store: Path) -> None:
    db = sqlite3.connect(store)
    db.execute("PRAGMA user_version = 99")
    db.close()


class TestBadStores:
    @pytest.mark.parametrize(
        ("harm", "message"),
        [
            (truncate, "experiment.db: .*malformed.*restore it or move it away"),
            (garble, "experiment.db: file is not a database"),
            (make_newer, "schema version 99 of a newer rapidfireai"),
        ],
    )
    def test_are_refused_clearly_and_left_alone(
        self, harm: Callable[[Path], None], message: str, lab: Lab
    ) -> None:
        lab.interrupt([config()], at=(1, 2))
        folder = lab.path / "lab"
        harm(folder / "experiment.db")
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for _ in range(2):
            with pytest.raises(StoreError, match=message):
                lab.train([config()])
        after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert after == before

    def test_one_that_is_gone_takes_no_run_for_another(self, lab: Lab) -> None:
        """Its runs' folders would be found under numbers that are given anew."""
        lab.interrupt([config(seed=5)], at=(1, 2))
        (lab.path / "lab" / "experiment.db").unlink()
        first = lab.train([config()])
        assert first.name == "lab_2"
        assert len(lab.losses(first)[1]) == 4
        assert (lab.path / "lab" / "runs" / "1" / "checkpoints").exists()
        with pytest.raises(KeyboardInterrupt):
            lab.train([config()], trackers=[StopButton(1, 2)])
        assert lab.train([config()]).name == "lab_3"

    def test_one_that_was_never_finished_is_begun_anew(self, folder: Folder) -> None:
        script = replace(SCRIPT, fault=Fault(point="store.new"))
        assert folder.run(script) == -signal.SIGKILL
        assert not (folder.path / "exam" / "experiment.db").exists()
        assert Experiment("exam", experiment_path=folder.path).name == "exam"


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that other users can look into; pytest's cannot."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_read_only_folders_are_refused_clearly(folder: Folder, public: Path) -> None:
    lab = Lab(public)
    lab.interrupt([config()], at=(1, 2))
    writable = [path for path in (public, *public.rglob("*")) if path.is_dir()]
    for path in writable:
        path.chmod(0o555)
    try:
        assert folder.call("try_read_only", str(public)).wait() == 0, folder.printed
    finally:
        for path in writable:
            path.chmod(0o755)
    existing, new = json.loads(folder.printed.splitlines()[-1])
    assert existing[0] == StoreError.__name__
    assert "make the file and its folder writable" in existing[1]
    assert new[0] == ExperimentPathError.__name__
    assert "cannot be written: Permission denied" in new[1]
    assert list(lab.train([config()]).get_runs_info()["status"]) == ["completed"]
