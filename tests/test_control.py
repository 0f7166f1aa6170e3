"""Commands on real trainings: what they do, and that nobody else's numbers change."""

import json
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from rapidfireai import Experiment, fit
from rapidfireai.automl import RFModelConfig
from rapidfireai.control import give
from rapidfireai.core import commands
from rapidfireai.core.commands import Command, CommandStatus, Verb
from rapidfireai.core.events import Event, RunStopped, StepFinished
from rapidfireai.core.ids import RunId
from rapidfireai.core.run import Run
from rapidfireai.errors import CommandRejectedError, ConfigError
from rapidfireai.paths import ExperimentFolder
from rapidfireai.store import SqliteStore
from tests import recovery
from tests.children import Children
from tests.recovery import EXPERIMENTS, NUM_ROWS, Script, lora, sft
from tests.training.scenarios import rows
from tests.training.solo import weights_hash

CONFIGS = EXPERIMENTS["SFT"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class At:
    """Does something once, right after a run's step, in the thread that trains."""

    def __init__(self, run_id: int, step: int, action: Callable[[], object]) -> None:
        self._at = (run_id, step)
        self._action: Callable[[], object] | None = action

    def on_event(self, before: Run, event: Event, after: Run) -> None:
        if isinstance(event, StepFinished) and (event.run_id, event.step) == self._at:
            action, self._action = self._action, None
            if action is not None:
                action()


class Lab:
    """A script that is run again and again."""

    def __init__(self, root: Path, name: str = "lab") -> None:
        self._root = root
        self._name = name
        self.experiment = Experiment(name, experiment_path=root)

    def again(self) -> None:
        """As a new process would."""
        self.experiment = Experiment(self._name, experiment_path=self._root)

    def train(self, *trackers: Any, configs: Any = CONFIGS) -> None:
        self.experiment.run_fit(
            configs,
            recovery.create_model,
            Dataset.from_list(rows(NUM_ROWS["SFT"], seed=0)),
            Dataset.from_list(rows(6, seed=1)),
            num_chunks=2,
            trackers=list(trackers),
            checkpoint_every_s=0,
            fuse="off",
        )

    def cli(self, *arguments: str) -> int:
        """The command in a process of its own; its exit status."""
        return subprocess.run(
            [sys.executable, "-m", "rapidfireai", *arguments, "--path", str(self._root)],
            check=False,
            stdout=subprocess.DEVNULL,
        ).returncode

    @property
    def statuses(self) -> list[str]:
        return list(self.experiment.get_runs_info()["status"])

    def numbers(self) -> dict[str, Any]:
        """All numbers of all runs, to the bit."""
        left = recovery.left_behind(self.experiment.path)
        return {name: left[name] for name in ("values", "weights", "histories")}

    def numbers_of(self, run_id: int) -> Any:
        numbers = self.numbers()
        values = {key[1:]: v for key, v in numbers["values"].items() if key[0] == run_id}
        return values, numbers["weights"][run_id - 1], numbers["histories"][run_id - 1]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    torch.set_num_threads(1)
    lab = Lab(tmp_path_factory.mktemp("undisturbed"))
    lab.train()
    return lab


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def test_runs_stopped_from_another_process_and_resumed_end_with_the_same_numbers(
    lab: Lab, undisturbed: Lab
) -> None:
    statuses: list[int] = []

    def stop() -> None:
        waiting = lab.experiment.get_runs_info().set_index("run_id").loc[[1, 3], "status"]
        assert list(waiting) == ["waiting", "running"]
        statuses.append(lab.cli("stop-run", "1", "3", "--no-wait", "--reason", "a look"))

    lab.train(At(3, 2, stop))
    assert statuses == [3]  # given, and carried out once the step was over
    assert lab.statuses == ["stopped", "completed", "stopped"]
    given = lab.experiment.get_commands()
    assert list(given["status"]) == ["applied", "applied"]
    assert list(given["by"]) == ["cli", "cli"]
    assert lab.numbers_of(2) == undisturbed.numbers_of(2)
    # The folders of stopped runs hold what they have learned so far.
    assert lab.numbers_of(1)[1] != undisturbed.numbers_of(1)[1]

    assert lab.cli("resume-run", "1", "3") == 0
    assert lab.statuses == ["queued", "completed", "queued"]
    lab.again()
    lab.train()
    assert lab.experiment.name == "lab"
    assert lab.statuses == ["completed"] * 3
    assert lab.numbers() == undisturbed.numbers()
    recovery.assert_tidy(lab.experiment.path)


def test_whoever_waits_is_answered_by_the_process_that_trains(lab: Lab, tmp_path: Path) -> None:
    asking: list[subprocess.Popen[str]] = []

    def ask() -> None:
        arguments = ["stop-run", "1", "--json", "--path", str(tmp_path)]
        asking.append(
            subprocess.Popen(
                [sys.executable, "-m", "rapidfireai", *arguments],
                stdout=subprocess.PIPE,
                encoding="utf-8",
            )
        )
        # Training is so quick that it would be over before the other process has begun.
        with closing(SqliteStore(lab.experiment.path / "experiment.db")) as store:
            while not store.commands():
                time.sleep(0.01)

    lab.train(At(1, 2, ask))
    output, _ = asking[0].communicate()
    (answer,) = json.loads(output)
    assert asking[0].returncode == 0
    assert (answer["status"], answer["step"]) == ("applied", 2)
    assert answer["outcome"] == "run 1 is stopped at step 2"
    assert answer["latency_s"] > 0
    assert lab.statuses == ["stopped", "completed", "completed"]


def test_all_verbs_from_a_callback_of_a_training_in_the_foreground(
    lab: Lab, undisturbed: Lab
) -> None:
    asked: list[Any] = []

    def ask() -> None:
        asked.extend(lab.experiment.stop(where="status == 'running' and id == 1"))
        asked.extend(lab.experiment.pin(2))
        with pytest.raises(CommandRejectedError, match="there is no run 9"):
            lab.experiment.prune(9, reason="none")

    def resume() -> None:
        asked.extend(lab.experiment.resume(1))

    lab.train(At(1, 2, ask), At(2, 1, resume))
    # Nobody waits for himself.
    assert [record.status for record in asked] == [CommandStatus.PENDING] * 3
    assert set(lab.experiment.get_commands()["status"]) == {"applied", "rejected"}
    assert lab.statuses == ["completed"] * 3
    assert list(lab.experiment.get_runs_info()["pinned"]) == [False, True, False]
    assert lab.numbers() == undisturbed.numbers()


def test_a_clone_is_what_its_configuration_gives_by_itself(
    lab: Lab, undisturbed: Lab, tmp_path: Path
) -> None:
    modify = {"learning_rate": 1e-3, "lora_rank": 2, "lr_scheduler_type": "cosine"}
    lab.train(At(2, 2, lambda: lab.experiment.clone(1, modify)))
    info = lab.experiment.get_runs_info()
    assert list(info["status"]) == ["completed"] * 4
    assert info.loc[3, "parent_id"] == 1
    for run_id in (1, 2, 3):
        assert lab.numbers_of(run_id) == undisturbed.numbers_of(run_id)

    solo = Lab(tmp_path, "solo")
    arguments = sft(
        max_steps=6, seed=1, gradient_accumulation_steps=2, learning_rate=1e-3,
        lr_scheduler_type="cosine",
    )  # fmt: skip
    solo.train(configs=[lora(2, arguments)])
    assert lab.numbers_of(4) == solo.numbers_of(1)


def test_clones_asked_for_while_nobody_trains_are_made_by_the_script(
    lab: Lab, undisturbed: Lab
) -> None:
    lab.train()
    (given,) = lab.experiment.clone(1, {"learning_rate": 1e-3})
    assert given.status is CommandStatus.PENDING
    assert lab.cli("clone-run", "3", "--set", "lora_rank=4") == 3
    with pytest.raises(CommandRejectedError, match="did you mean 'learning_rate'"):
        lab.experiment.clone(1, {"learning_rte": 1e-3})
    lab.again()
    lab.train()
    assert lab.experiment.name == "lab"
    info = lab.experiment.get_runs_info()
    assert list(info["status"]) == ["completed"] * 5
    assert list(info["parent_id"].fillna(0)) == [0, 0, 0, 1, 3]
    assert info["config"][4]["peft"]["r"] == 4

    lab.experiment.clone(4, {"learning_rate": 5e-3})
    lab.again()
    lab.train()
    info = lab.experiment.get_runs_info()
    assert list(info["parent_id"].fillna(0)) == [0, 0, 0, 1, 3, 4]
    # Back to the value of the first: the same run once more.
    assert lab.numbers_of(6) == undisturbed.numbers_of(1)
    for run_id in (1, 2, 3):
        assert lab.numbers_of(run_id) == undisturbed.numbers_of(run_id)


def test_a_clone_goes_on_after_an_interruption(lab: Lab, tmp_path: Path) -> None:
    short = [lora(4, sft(max_steps=4, seed=1))]
    lab.train(At(1, 1, lambda: lab.experiment.clone(1, {"seed": 7})), configs=short)
    whole = lab.numbers_of(2)

    other = Lab(tmp_path, "other")
    with pytest.raises(KeyboardInterrupt):
        other.train(
            At(1, 1, lambda: other.experiment.clone(1, {"seed": 7})),
            At(2, 2, lambda: signal.raise_signal(signal.SIGINT)),
            configs=short,
        )
    other.again()
    other.train(configs=short)
    assert other.statuses == ["completed"] * 2
    assert other.numbers_of(2) == whole


def test_commands_where_nothing_trains(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="has no runs yet"):
        lab.experiment.stop(1)
    lab.train(At(1, 2, lambda: lab.experiment.stop([1, 2])), configs=CONFIGS)
    with pytest.raises(ConfigError, match="a number or several, or where"):
        lab.experiment.pin()
    with pytest.raises(ConfigError, match="either run"):
        lab.experiment.pin(1, where="id == 1")
    assert lab.experiment.stop(where="loss > 1000") == []
    folder = ExperimentFolder(lab.experiment.path)

    (deleted,) = lab.experiment.delete(1)
    assert deleted.status is CommandStatus.APPLIED
    assert list(lab.experiment.get_runs_info()["run_id"]) == [2, 3]
    assert set(lab.experiment.get_results()["run_id"]) <= {2, 3}
    lab.experiment.restore(1)
    assert lab.statuses == ["stopped", "stopped", "completed"]
    assert folder.final(RunId(1)).exists()

    monkeypatch.setattr(commands, "UNDO_S", 0.0)
    lab.experiment.delete(1)  # whoever takes the lock removes what has expired
    lab.experiment.pin(2)
    assert not folder.run(RunId(1)).exists()
    with pytest.raises(CommandRejectedError, match="its files are gone"):
        lab.experiment.restore(1)


def test_a_training_removes_the_files_of_deleted_runs_in_passing(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "UNDO_S", 0.0)
    monkeypatch.setattr(fit, "_SWEEP_S", 0.0)
    short = [lora(4, sft(max_steps=4, seed=seed)) for seed in (1, 2)]
    lab.train(At(2, 1, lambda: lab.experiment.delete(1)), configs=short)
    folder = ExperimentFolder(lab.experiment.path)
    assert not folder.run(RunId(1)).exists()
    assert folder.final(RunId(2)).exists()
    with closing(SqliteStore(folder.store)) as store:
        deleted, completed = store.runs()
    assert (deleted.status, deleted.purged) == ("deleted", True)
    assert (completed.status, completed.purged) == ("completed", False)


class _Remember(TrainerCallback):
    """Keeps weak references to what each run trains."""

    seen: dict[int, list["weakref.ref[Any]"]] = {}  # noqa: RUF012 - copies of it share it

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        parameters = [p for p in kwargs["model"].parameters() if p.requires_grad]
        states = [
            tensor
            for held in kwargs["optimizer"].state.values()
            for tensor in held.values()
            if isinstance(tensor, torch.Tensor)
        ]
        self.seen[args.seed] = [weakref.ref(tensor) for tensor in (*parameters, *states)]


def test_stopping_frees_the_runs_tensors_at_once(lab: Lab) -> None:
    alive: dict[int, int] = {}

    class Look:
        def on_event(self, before: Run, event: Event, after: Run) -> None:
            if isinstance(event, RunStopped):
                for seed, held in _Remember.seen.items():
                    alive[seed] = sum(reference() is not None for reference in held)

    def config(seed: int) -> RFModelConfig:
        return lora(4, sft(max_steps=6, seed=seed), callbacks=[_Remember()])

    _Remember.seen.clear()
    lab.train(At(2, 2, lambda: lab.experiment.stop(1)), Look(), configs=[config(1), config(2)])
    assert lab.statuses == ["stopped", "completed"]
    assert alive[1] == 0
    assert alive[2] == len(_Remember.seen[2]) > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_stopping_frees_device_memory_at_once(lab: Lab) -> None:
    allocated: list[int] = []

    def stop() -> None:
        allocated.append(torch.cuda.memory_allocated())
        lab.experiment.stop(1)

    class Look:
        def on_event(self, before: Run, event: Event, after: Run) -> None:
            if isinstance(event, RunStopped):
                allocated.append(torch.cuda.memory_allocated())

    lab.train(At(2, 2, stop), Look(), configs=[lora(64, sft(max_steps=6, seed=s)) for s in (1, 2)])
    before, after = allocated
    assert after < before


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    server = Children(("tests.recovery", "trl.trainer.sft_trainer"))
    yield server
    server.close()


def test_kill_9_between_a_command_and_its_application(
    tmp_path: Path, children: Children, undisturbed: Lab
) -> None:
    pipes = tmp_path / "pipe"
    for name in ("reached", "go"):
        os.mkfifo(f"{pipes}.{name}")
    script = Script("SFT", folder=str(tmp_path), name="lab", pipes=str(pipes))
    child = children.start(
        "tests.recovery:run", recovery.plain(script), output=tmp_path / "printed.txt"
    )
    Path(f"{pipes}.reached").read_text()
    folder = ExperimentFolder(tmp_path / "lab")
    given = give(
        folder,
        [
            Command(verb=Verb.STOP, run_id=RunId(1), reason="late"),
            Command(verb=Verb.PIN, run_id=RunId(2)),
        ],
        wait_s=0.0,
    )
    assert {record.status for record in given} == {CommandStatus.PENDING}
    child.send(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    with closing(SqliteStore(folder.store)) as store:
        assert store.commands() == given

    lab = Lab(tmp_path)
    lab.train()
    assert lab.statuses == ["stopped", "completed", "completed"]
    info = lab.experiment.get_runs_info()
    assert "stopped: late" in info["notes"][0]
    assert list(info["pinned"]) == [False, True, False]
    assert set(lab.experiment.get_commands()["status"]) == {"applied"}
    for run_id in (2, 3):
        path = Path(info["path"][run_id - 1])
        assert weights_hash(path) == undisturbed.numbers()["weights"][run_id - 1]
