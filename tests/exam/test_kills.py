"""Killed at any moment, the same script run again ends with the same numbers."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, get_args

import pytest

from rapidfireai.faults import Point
from tests import recovery
from tests.children import Child, Children
from tests.recovery import Fault, Script
from tests.test_recovery import PRELOADED

pytestmark = pytest.mark.exam

SEED = 20261122

AT_LEAST = {
    "data.formatting": 2,
    "data.formatted": 2,
    "store.new": 1,
    "store.before_commit": 16,
    "store.recorded": 10,
    "run.recovered": 2,
    "final.begun": 2,
    "final.written": 2,
    "final.replacing": 2,
    "final.renamed": 2,
}
"""How often each experiment passes a point, however quick the machine is; others 4 times."""

NUM_EVENTS = {"SFT": 80, "DPO": 35, "GRPO": 50}
"""Of the whole experiment, at least."""


@dataclass(frozen=True)
class Moment:
    """Where a script is killed, the first time and possibly again."""

    experiment: str
    faults: tuple[Fault, ...]
    checkpoint_every: int
    fraction: float | None = None
    """Of the time that the experiment takes, instead: where it is killed from outside."""

    def __str__(self) -> str:
        if self.fraction is not None:
            return f"{self.experiment}-time-{self.fraction:.2f}"
        names = [f"{fault.point or 'event'}-{fault.number}" for fault in self.faults]
        return f"{self.experiment}-{'-then-'.join(names)}"


# Trackers are in processes of their own: tests/tracking kills those.
POINTS: Final = [p for p in get_args(Point) if not p.startswith("tracker.")]


def moments() -> list[Moment]:
    rng = random.Random(SEED)
    names = list(NUM_EVENTS)

    def event(name: str) -> Fault:
        return Fault(event=True, number=rng.randint(3, NUM_EVENTS[name] - 5))

    def moment(name: str, *faults: Fault, fraction: float | None = None) -> Moment:
        return Moment(name, faults, rng.choice([1, 2, 3]), fraction)

    found = []
    for index, point in enumerate(POINTS):
        name = names[index % len(names)]
        fault = Fault(point=point, number=rng.randint(1, AT_LEAST.get(point, 4)))
        if point == "run.recovered":
            # Passed for each run that goes on: once two of them have begun.
            begun = Fault(event=True, number=NUM_EVENTS[name] // 2)
            found.append(moment(name, begun, fault))
        else:
            found.append(moment(name, fault))
    for name in names:
        # Right after a checkpoint, when the store has not taken the step before it yet.
        written = Fault(point="checkpoint.after_rename", number=rng.randint(1, 4))
        found.append(replace(moment(name, written), checkpoint_every=1))
        found += [moment(name, event(name)) for _ in range(3)]
        found += [moment(name, fraction=rng.uniform(0.1, 0.8)) for _ in range(2)]
        early = Fault(event=True, number=rng.randint(3, 15))
        in_checkpoint = Fault(point="checkpoint.before_rename", number=rng.randint(1, 3))
        found.append(moment(name, early, in_checkpoint, replace(in_checkpoint, number=1)))
    return found


MOMENTS = moments()


@dataclass(frozen=True)
class Undisturbed:
    """An experiment that nobody interrupted."""

    left_behind: dict[str, Any]
    took_s: float


class Scripts:
    """Runs scripts in processes of their own."""

    def __init__(self, children: Children) -> None:
        self._children = children

    def start(self, script: Script) -> Child:
        output = Path(script.folder) / "printed.txt"
        return self._children.start("tests.recovery:run", recovery.plain(script), output=output)

    def run(self, script: Script) -> int:
        return self.start(script).wait()


@pytest.fixture(scope="module")
def scripts() -> Iterator[Scripts]:
    children = Children(PRELOADED)
    yield Scripts(children)
    children.close()


@pytest.fixture(scope="module")
def undisturbed(
    scripts: Scripts, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Undisturbed]:
    found = {}
    for name in NUM_EVENTS:
        folder = tmp_path_factory.mktemp(name)
        begin = time.monotonic()
        assert scripts.run(Script(name, str(folder))) == 0
        took_s = time.monotonic() - begin
        found[name] = Undisturbed(recovery.left_behind(folder / "exam"), took_s)
        assert len(recovery.life_log(folder)) > NUM_EVENTS[name]
    return found


def test_there_are_moments_of_all_kinds() -> None:
    assert len(MOMENTS) >= 25
    struck = {fault.point for moment in MOMENTS for fault in moment.faults}
    assert struck >= set(POINTS)
    assert {moment.experiment for moment in MOMENTS} == {"SFT", "DPO", "GRPO"}


@pytest.mark.parametrize("moment", MOMENTS, ids=str)
def test_killed_and_run_again_equals_undisturbed(
    moment: Moment, scripts: Scripts, undisturbed: dict[str, Undisturbed], tmp_path: Path
) -> None:
    expected = undisturbed[moment.experiment]
    script = Script(moment.experiment, str(tmp_path), checkpoint_every=moment.checkpoint_every)
    if moment.fraction is not None:
        child = scripts.start(script)
        time.sleep(moment.fraction * expected.took_s)
        child.send(signal.SIGKILL)
        child.wait()
    for fault in moment.faults:
        assert scripts.run(replace(script, fault=fault)) == -signal.SIGKILL, "it was not killed"
    if not has_ended(tmp_path / "exam"):
        assert scripts.run(script) == 0, (tmp_path / "printed.txt").read_text()
    assert recovery.left_behind(tmp_path / "exam") == expected.left_behind
    recovery.assert_tidy(tmp_path / "exam")
    recovery.assert_nothing_repeated(tmp_path)


GANGS = {
    "gang": Script("gang", "", fuse="on"),
    "gang that measures": Script("gang", "", fuse="auto"),
    "gang that generates": Script("GRPO", "", fuse="on", fuse_generation=True),
}


@pytest.mark.parametrize("name", GANGS)
def test_gangs_killed_again_and_again_equal_undisturbed(
    name: str, scripts: Scripts, tmp_path: Path
) -> None:
    """Each process is killed some events later than the one before, wherever the runs then are."""
    script = GANGS[name]
    (whole := tmp_path / "whole").mkdir()
    assert scripts.run(replace(script, folder=str(whole))) == 0
    expected = recovery.left_behind(whole / "exam")
    num_events = len(recovery.life_log(whole))
    rng = random.Random(f"{SEED} {name}")
    for attempt in range(4):
        (folder := tmp_path / str(attempt)).mkdir()
        own = replace(script, folder=str(folder), checkpoint_every=rng.choice([1, 2, 3]))
        for _ in range(2):
            fault = Fault(event=True, number=rng.randint(num_events // 8, num_events // 3))
            assert scripts.run(replace(own, fault=fault)) == -signal.SIGKILL, "it was not killed"
        assert scripts.run(own) == 0, (folder / "printed.txt").read_text()
        assert recovery.left_behind(folder / "exam") == expected
        recovery.assert_tidy(folder / "exam")
        recovery.assert_nothing_repeated(folder)


def has_ended(experiment: Path) -> bool:
    if not (experiment / "experiment.db").exists():
        return False
    return set(recovery.statuses(experiment)) == {"completed"}


def without_waits(left_behind: dict[str, Any]) -> dict[str, Any]:
    """Without the notes on waiting for room."""
    for run in left_behind["runs"]:
        run["notes"] = tuple(note for note in run["notes"] if "disk was full" not in note)
    return left_behind


@pytest.mark.parametrize(
    ("experiment", "point", "number", "noted"),
    [
        ("SFT", "checkpoint.begun", 3, True),
        ("DPO", "checkpoint.before_manifest", 2, True),
        ("GRPO", "final.written", 1, True),
        ("SFT", "store.before_commit", 12, False),
    ],
)
def test_a_full_disk_pauses_and_changes_no_number(
    experiment: str,
    point: str,
    number: int,
    noted: bool,
    scripts: Scripts,
    undisturbed: dict[str, Undisturbed],
    tmp_path: Path,
) -> None:
    fault = Fault(point=point, number=number, times_full=4)
    assert scripts.run(Script(experiment, str(tmp_path), fault=fault)) == 0
    printed = (tmp_path / "printed.txt").read_text()
    assert "is full: everything waits until" in printed
    assert "for room; going on" in printed
    got = recovery.left_behind(tmp_path / "exam")
    notes = [note for run in got["runs"] for note in run["notes"]]
    assert any("the disk was full" in note for note in notes) is noted
    assert without_waits(got) == undisturbed[experiment].left_behind


SCRIPT = """
import sys

from rapidfireai import Experiment
from rapidfireai.automl import List, RFGRPOConfig, RFModelConfig
from rapidfireai.testing.tiny import prompt_rows, tiny_model, tiny_tokenizer

SCALE = 0.1


class Told:
    def on_event(self, before, event, after):
        print(type(event).__name__, after.id, after.step, flush=True)


def variety(completions, **columns):
    return [SCALE * len(set(text)) for text in completions]


def create_model(config):
    return tiny_model(), tiny_tokenizer()


arguments = RFGRPOConfig(
    lora_rank=4,
    learning_rate=List([1e-3, 1e-2]),
    num_generations=2,
    max_completion_length=6,
    per_device_train_batch_size=2,
    max_steps=4,
    logging_steps=1,
)
rewards = [variety, lambda completions, **columns: [float(len(text)) for text in completions]]
Experiment("script", experiment_path=sys.argv[1]).run_fit(
    RFModelConfig(training_args=arguments, reward_funcs=rewards),
    create_model,
    prompt_rows(8),
    num_chunks=2,
    trackers=[Told()],
    checkpoint_every_s=0,
)
"""


def test_a_script_of_its_own(tmp_path: Path) -> None:
    """Started as users start it, so that its functions are those of `__main__`."""
    file = tmp_path / "script.py"
    file.write_text(SCRIPT)

    def command(folder: str) -> Sequence[str]:
        return [sys.executable, str(file), str(tmp_path / folder)]

    with subprocess.Popen(
        command("killed"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8"
    ) as process:
        assert process.stdout is not None
        assert any(line.startswith("StepFinished 2 2") for line in process.stdout)
        process.kill()
    for folder in ("killed", "whole"):
        done = subprocess.run(command(folder), capture_output=True, encoding="utf-8", check=False)
        assert done.returncode == 0, done.stderr
    killed, whole = (
        recovery.left_behind(tmp_path / folder / "script") for folder in ("killed", "whole")
    )
    assert killed == whole
