"""Scripts that are killed and run again, and what they leave behind.

`run` is what a child process executes; the rest looks at the folder afterwards.
"""

import errno
import json
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback

from rapidfireai import Experiment, faults
from rapidfireai.automl import (
    Range,
    RFDPOConfig,
    RFGRPOConfig,
    RFLoraConfig,
    RFModelConfig,
    RFOptuna,
    RFSFTConfig,
)
from rapidfireai.core.events import Event, MetricSource
from rapidfireai.core.run import Run
from rapidfireai.errors import RapidFireError
from rapidfireai.paths import ExperimentFolder
from rapidfireai.policies import MedianPolicy, Policy
from rapidfireai.store import SqliteStore, disk
from rapidfireai.testing.tiny import tiny_model, tiny_tokenizer
from rapidfireai.training import checkpoint
from tests.training.scenarios import rows
from tests.training.solo import exact_rows, weights_hash

COMMON = {"per_device_train_batch_size": 4, "logging_steps": 1, "learning_rate": 5e-3}


def create_model(config: dict[str, Any]) -> tuple[Any, Any]:
    note({"loaded": config.get("model_name")})
    return tiny_model(), tiny_tokenizer()


def create_model_without_dropout(config: dict[str, Any]) -> tuple[Any, Any]:
    return tiny_model(dropout=0.0), tiny_tokenizer()


def word_variety(completions: list[str], **_: Any) -> list[float]:
    return [len(set(text.split())) / 10 for text in completions]


class GrowingReward:
    """A reward that keeps something."""

    __name__ = "growing_reward"

    def __init__(self) -> None:
        self.num_calls = 0

    def __call__(self, completions: list[str], **_: Any) -> list[float]:
        self.num_calls += 1
        return [self.num_calls * len(text) / 1000 for text in completions]


def lora(r: int, config: Any, **further: Any) -> RFModelConfig:
    return RFModelConfig(
        peft_config=RFLoraConfig(r=r, lora_dropout=0.1, target_modules=["q_proj", "v_proj"]),
        training_args=config,
        **further,
    )


def sft(**changes: Any) -> RFSFTConfig:
    return RFSFTConfig(**{**COMMON, "max_length": 64, **changes})


EXPERIMENTS: Mapping[str, Sequence[RFModelConfig]] = {
    "SFT": (
        lora(4, sft(max_steps=6, seed=1, gradient_accumulation_steps=2)),
        RFModelConfig(
            training_args=sft(num_train_epochs=2, logging_steps=3, seed=2, learning_rate=1e-3,
                              per_device_train_batch_size=8, lr_scheduler_type="cosine")
        ),
        lora(
            2,
            sft(max_steps=7, seed=3, eval_strategy="steps", eval_steps=2, save_strategy="steps",
                save_steps=2, load_best_model_at_end=True, save_total_limit=1,
                metric_for_best_model="eval_loss"),
            callbacks=[EarlyStoppingCallback(early_stopping_patience=3)],
        ),
    ),
    "DPO": (
        lora(4, RFDPOConfig(**COMMON, max_steps=5, max_length=64, seed=1)),
        RFModelConfig(
            training_args=RFDPOConfig(**{**COMMON, "learning_rate": 1e-4, "logging_steps": 2},
                                      max_steps=5, max_length=64, seed=2)
        ),
    ),
    "GRPO": (
        lora(
            2,
            RFGRPOConfig(**COMMON, max_steps=6, num_generations=4, max_completion_length=6,
                         num_iterations=2, gradient_accumulation_steps=2, beta=0.02, seed=1),
            reward_funcs=word_variety,
        ),
        lora(
            4,
            RFGRPOConfig(**COMMON, num_train_epochs=2, num_generations=2, max_completion_length=6,
                         seed=2),
            reward_funcs=[GrowingReward()],
        ),
    ),
    "gang": (
        lora(4, sft(max_steps=6, seed=1, gradient_accumulation_steps=3)),
        lora(8, sft(max_steps=7, seed=2, per_device_train_batch_size=2, bf16=True)),
        lora(2, RFDPOConfig(**COMMON, max_steps=5, max_length=64, seed=3)),
        lora(4, sft(num_train_epochs=2, seed=4, logging_steps=3, eval_strategy="steps",
                    eval_steps=2)),
        RFModelConfig(training_args=sft(max_steps=3, seed=5, learning_rate=1e-3)),
    ),
}  # fmt: skip
"""The configurations of the scripts."""

POLICIES: Mapping[str, Callable[[], Policy]] = {
    "median": lambda: MedianPolicy(
        warm_up=1, min_peers=1, patience=1, objective="minimize:eval_loss"
    ),
}

SEARCHES: Mapping[str, Callable[[], RFOptuna]] = {
    "optuna": lambda: RFOptuna(
        lora(4, sft(max_steps=4, learning_rate=Range(1e-4, 1e-1, log=True))),
        n_initial=2,
        budget=4,
        seed=5,
    ),
    "one by one": lambda: RFOptuna(
        lora(4, sft(max_steps=4, learning_rate=Range(1e-4, 1e-1, log=True))),
        n_initial=1,
        budget=2,
        seed=5,
    ),
}
"""What decides about runs, of scripts in which something does."""

NUM_ROWS = {"SFT": 22, "DPO": 24, "GRPO": 6, "gang": 22}


@dataclass(frozen=True)
class Fault:
    """What ends a script before its time, if anything does."""

    point: str | None = None
    """One of `faults.Point`."""
    event: bool = False
    """Any event instead."""
    number: int = 1
    """At which of them: 1 is the first."""
    signal: int = signal.SIGKILL
    twice: bool = False
    """Send the signal again, once it has been noticed."""
    times_full: int = 0
    """Above 0, no signal: the disk is full at so many of these points in a row."""


@dataclass(frozen=True)
class Script:
    """A script, as plain data."""

    experiment: str
    """One of `EXPERIMENTS`."""
    folder: str
    """Of all experiments."""
    name: str = "exam"
    fault: Fault = field(default_factory=Fault)
    checkpoint_every: int = 1
    """Steps between two checkpoints."""
    pipes: str | None = None
    """At the first step, open the pipe of that name + ".reached", then wait for ".go"."""
    decides: str = ""
    """What decides about runs: one of `POLICIES` or `SEARCHES`."""
    background: bool = False
    """Train in the background, and end the script after the first step."""
    fuse: str = "off"
    fuse_generation: bool = False


LOG = "lives.jsonl"
"""In the folder of all experiments: what each process did."""

_log: Path | None = None


def note(fact: Mapping[str, Any]) -> None:
    """Write a line into the log."""
    if _log is not None:
        with _log.open("a") as file:
            file.write(json.dumps({"pid": os.getpid(), **fact}) + "\n")


class Witness:
    """A tracker that writes down what is trained, and counts towards the fault."""

    def __init__(self, script: Script) -> None:
        self._fault = script.fault
        self._pipes = script.pipes
        self._num_events = 0
        self.first_step = threading.Event()

    def on_event(self, before: Run, event: Event, after: Run) -> None:
        note({"run": after.id, "event": type(event).__name__, "step": after.step})
        self._num_events += 1
        if self._fault.event and self._num_events == self._fault.number:
            strike(self._fault)
        if after.step == 1:
            self.first_step.set()
        if self._pipes is not None and after.step == 1:
            pipes, self._pipes = self._pipes, None
            Path(f"{pipes}.reached").write_text("")
            Path(f"{pipes}.go").read_text()


def strike(fault: Fault) -> None:
    """Send this process the fault's signal, as somebody else would."""
    os.kill(os.getpid(), fault.signal)
    if fault.twice:
        time.sleep(0.1)  # two that are pending at once count as one
        os.kill(os.getpid(), fault.signal)


def run(plain: Mapping[str, Any]) -> None:
    """Run the script, in a process of its own."""
    global _log
    script = Script(**{**plain, "fault": Fault(**plain["fault"])})
    torch.set_num_threads(1)
    _log = Path(script.folder) / LOG
    checkpoint.CheckpointPace.is_due = (  # type: ignore[method-assign]
        lambda self, progress: progress.step % script.checkpoint_every == 0
    )
    disk.RETRY_S = 0.001  # type: ignore[misc]
    fault, num_reached = script.fault, 0

    def reached(point: str) -> None:
        nonlocal num_reached
        if point != fault.point:
            return
        num_reached += 1
        if fault.number <= num_reached < fault.number + fault.times_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        if num_reached == fault.number:
            strike(fault)

    faults.listen(reached)
    witness = Witness(script)
    experiment = Experiment(script.name, experiment_path=script.folder)
    experiment.run_fit(
        _what_to_train(script),
        create_model_without_dropout
        if script.experiment == "gang" or script.fuse != "off"
        else create_model,
        Dataset.from_list(rows(NUM_ROWS[script.experiment], seed=0)),
        Dataset.from_list(rows(6, seed=1)),
        num_chunks=2,
        trackers=[witness],
        policy=POLICIES[script.decides]() if script.decides in POLICIES else None,
        background=script.background,
        fuse=script.fuse,
        fuse_generation=script.fuse_generation,
    )
    if script.background:
        witness.first_step.wait()
    note({"ended": experiment.name})


def _what_to_train(script: Script) -> Any:
    if script.decides in SEARCHES:
        return SEARCHES[script.decides]()
    return EXPERIMENTS[script.experiment]


def decisions(experiment: Path) -> list[tuple[Any, ...]]:
    """What policies have asked for, and what became of it."""
    store = SqliteStore(experiment / "experiment.db")
    try:
        return [
            (r.command.verb, r.command.run_id, r.command.by, r.command.reason, r.status, r.step)
            for r in store.commands()
        ]
    finally:
        store.close()


def hold_and_fork(experiment: str, pipe: str) -> None:
    """Be killed while holding an experiment's lock, leaving a child that waits for the pipe."""
    with ExperimentFolder(Path(experiment)).locked():
        if os.fork() == 0:
            Path(pipe).read_text()
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)


def try_read_only(root: str) -> None:
    """Print what an existing and a new experiment say in a folder that cannot be written."""
    if os.geteuid() == 0:
        os.seteuid(65534)  # nobody; permissions mean nothing to root
    said = []
    for name in ("lab", "new"):
        try:
            Experiment(name, experiment_path=root)
        except RapidFireError as error:
            said.append([type(error).__name__, str(error)])
    sys.stdout.write(json.dumps(said) + "\n")


def plain(script: Script) -> dict[str, Any]:
    """The script as JSON."""
    return asdict(script)


def statuses(experiment: Path) -> list[str]:
    """Of all runs."""
    store = SqliteStore(experiment / "experiment.db")
    try:
        return [run.status.value for run in store.runs()]
    finally:
        store.close()


def first_modes(experiment: Path) -> list[str]:
    """How each run's passes were computed at its start."""
    store = SqliteStore(experiment / "experiment.db")
    try:
        return [run.modes[0]["mode"] for run in store.runs()]
    finally:
        store.close()


def life_log(folder: Path) -> list[dict[str, Any]]:
    """What the processes wrote down."""
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]


_CLOCKWORK = ("runtime", "per_second", "step_time", "preparation_time")


def left_behind(experiment: Path) -> dict[str, Any]:
    """All that an experiment has stored, without what a clock had a hand in; exact to the bit."""
    store = SqliteStore(experiment / "experiment.db")
    runs, metrics = store.runs(), store.metrics()
    store.close()
    return {
        "runs": [
            {
                "status": run.status.value,
                "step": run.step,
                "num_steps": run.num_steps,
                "chunks_done": run.chunks_done,
                "num_chunks": run.num_chunks,
                "loss": None if run.loss is None else run.loss.hex(),
                "notes": run.notes,
                "error": run.error,
                "resolved": json.dumps(run.resolved).replace(str(experiment), "FOLDER"),
            }
            for run in runs
        ],
        "values": {
            (row.run_id, row.source.value, row.step, row.name): row.value.hex()
            for row in metrics
            if row.source is not MetricSource.DEVICE
            and not any(word in row.name for word in _CLOCKWORK)
        },
        "weights": [weights_hash(Path(run.path)) for run in runs],
        "histories": [
            exact_rows(
                json.loads((Path(run.path) / "trainer_state.json").read_text())["log_history"]
            )
            for run in runs
        ],
    }


def assert_tidy(experiment: Path) -> None:
    """The database is consistent, and nothing half-done lies about."""
    db = sqlite3.connect(experiment / "experiment.db")
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert db.execute("PRAGMA foreign_key_check").fetchall() == []
    db.close()
    assert not list(experiment.rglob("*.unfinished"))
    assert not list(experiment.rglob("*.replaced"))


def assert_nothing_repeated(folder: Path) -> None:
    """No process touched a run that an earlier one had ended."""
    ended: dict[int, int] = {}
    for line in life_log(folder):
        if "run" not in line:
            continue
        assert ended.get(line["run"], line["pid"]) == line["pid"], line
        if line["event"] in ("RunCompleted", "RunStopped", "RunFailed"):
            ended[line["run"]] = line["pid"]
