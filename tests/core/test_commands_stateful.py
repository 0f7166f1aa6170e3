"""Commands at random, on an engine that is killed now and then, against a small model of it.

The model is a second opinion: it has its own table of what is possible in which status, and is
told only what the engine puts on record.
"""

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rapidfireai.core.commands import (
    UNDO_S,
    Command,
    CommandId,
    CommandRecord,
    CommandStatus,
    Outcome,
    Verb,
)
from rapidfireai.core.engine import Engine
from rapidfireai.core.events import Event, RunPinned, RunRecovered
from rapidfireai.core.ids import RunId
from rapidfireai.core.run import Run, RunStatus, apply
from rapidfireai.store import ExperimentRecord, MemoryStore, Recorder
from rapidfireai.testing.simulation import (
    CommandDesk,
    FakeClock,
    SimulatedExecutor,
    SimulatedPreparer,
)

ENDS = {"RunStopped": "stopped", "RunPruned": "pruned", "RunFailed": "failed"}
AFTER: Mapping[str, Mapping[str, str]] = {
    "queued": {"ChunkAssigned": "running", "RunCloned": "queued", **ENDS},
    "running": {
        "RunStarted": "running", "StepFinished": "running", "ChunkFinished": "waiting",
        "RunCompleted": "completed", "RunRecovered": "queued", **ENDS,
    },
    "waiting": {"ChunkAssigned": "running", "RunRecovered": "queued", **ENDS},
    "completed": {"RunDeleted": "deleted"},
    "stopped": {"RunResumed": "queued", "RunDeleted": "deleted"},
    "pruned": {"RunResumed": "queued", "RunDeleted": "deleted"},
    "failed": {"RunResumed": "queued", "RunDeleted": "deleted"},
    "deleted": {"RunPurged": "deleted", "RunRestored": "as it was"},
}  # fmt: skip
UNFINISHED = {"queued", "running", "waiting"}


class Model:
    """What is known of each run by its status alone."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.status = {run.id: "queued" for run in runs}
        self.was: dict[int, str] = {}
        self.pinned: set[int] = set()
        self.purged: set[int] = set()
        self.begun: set[int] = set()
        """Runs that have finished a step."""

    def happens(self, event: Event) -> None:
        kind, run_id = type(event).__name__, event.run_id
        if kind == "RunPinned":
            assert isinstance(event, RunPinned)
            assert self.status[run_id] != "deleted"
            (self.pinned.add if event.pinned else self.pinned.discard)(run_id)
            return
        before = self.status[run_id]
        assert kind in AFTER[before], f"{kind} of run {run_id}, which is {before}"
        after = AFTER[before][kind]
        if kind == "RunDeleted":
            self.was[run_id] = before
        if kind == "RunPurged":
            self.purged.add(run_id)
        if kind == "StepFinished":
            self.begun.add(run_id)
        if kind == "RunRecovered":
            assert isinstance(event, RunRecovered)
            (self.begun.add if event.step else self.begun.discard)(run_id)
        self.status[run_id] = self.was[run_id] if after == "as it was" else after

    def allows(self, command: Command) -> bool:
        run_id = command.run_id
        if run_id not in self.status:
            return False
        status, pinned = self.status[run_id], run_id in self.pinned
        if status == "deleted":
            return command.verb is Verb.RESTORE and run_id not in self.purged
        return {
            Verb.STOP: status in UNFINISHED,
            Verb.PRUNE: status in UNFINISHED and not pinned,
            Verb.RESUME: status in ("stopped", "pruned", "failed") and run_id not in GONE,
            Verb.DELETE: not pinned,
            Verb.RESTORE: False,
            Verb.PIN: not pinned,
            Verb.UNPIN: pinned,
            Verb.CLONE: run_id not in GONE
            and command.modify.get("durations_s") != []
            and (not command.warm_start or run_id in self.begun),
        }[command.verb]


class Killed(BaseException):
    """The process is gone."""


class Examiner(Recorder):
    """A record that holds everything it is told against the model."""

    def __init__(self, store: MemoryStore, clock: FakeClock, model: Model) -> None:
        super().__init__(store, clock)
        self._memory = store
        self._model = model
        self.lives_for = -1
        """Writes until the process is killed; negative if it is not."""
        self.kills_before = False

    def on_event(
        self, before: Run, event: Event, after: Run, settles: Outcome | None = None
    ) -> None:
        self._live()
        if settles is not None:
            self._examine(settles)
        super().on_event(before, event, after, settles)
        self._model.happens(event)
        assert after.status.value == self._model.status[event.run_id]
        assert after.pinned is (event.run_id in self._model.pinned)
        self._die()

    def add_run(
        self, before: Run, event: Event, after: Run, settles: Outcome | None = None
    ) -> None:
        self._live()
        if settles is not None:
            self._examine(settles)
        assert after.id not in self._model.status
        super().add_run(before, event, after, settles)
        self._model.status[after.id] = "queued"
        self._die()

    def submit(self, command: Command) -> CommandRecord:
        self._live()
        record = super().submit(command)
        self._die()
        return record

    def settle(self, outcome: Outcome) -> None:
        self._live()
        self._examine(outcome)
        super().settle(outcome)
        self._die()

    def _examine(self, outcome: Outcome) -> None:
        (given,) = (c for c in self._memory.commands() if c.id == outcome.command_id)
        allowed = self._model.allows(given.command)
        assert outcome.status is (CommandStatus.APPLIED if allowed else CommandStatus.REJECTED), (
            given.command,
            outcome,
        )
        assert outcome.text

    def _live(self) -> None:
        if self.lives_for == 0 and self.kills_before:
            raise Killed

    def _die(self) -> None:
        if self.lives_for == 0:
            raise Killed
        self.lives_for -= 1


class Hasty:
    """A policy that prunes some runs at some of their chunks, and asks for what is impossible."""

    def on_chunk(
        self, run: Run, metrics: Mapping[str, float], runs: Sequence[Run]
    ) -> Sequence[Command]:
        if (run.id + run.chunks_done) % 4:
            return []
        return [
            Command(verb=verb, run_id=run_id, reason="hasty")
            for verb, run_id in (
                (Verb.PRUNE, run.id), (Verb.PRUNE, RunId(77)), (Verb.STOP, run.id)
            )
        ]  # fmt: skip


DURATIONS: Mapping[int, list[float]] = {
    1: [1.0, 2.0, 1.0, 1.0],
    2: [3.0],
    3: [2.0, 200.0, 2.0],
    4: [1.0] * 6,
    5: [5.0, 1.0, 5.0],
}
FAILURES = {RunId(4): 3}
GONE = {5}
"""Runs that can be neither resumed nor cloned."""


def fresh_runs() -> list[Run]:
    return [
        Run(
            id=RunId(number),
            name=f"run {number}",
            config={"durations_s": durations_s, "gone": number in GONE},
            path="",
        )
        for number, durations_s in DURATIONS.items()
    ]


def told(event: Event) -> Any:
    """An event without who carried it out and when."""
    changes: dict[str, Any] = {"active_s": 0.0}
    if hasattr(event, "worker_id"):
        changes = {"worker_id": 0}
    return replace(event, **changes) if hasattr(event, next(iter(changes))) else event


def alone(run: Run) -> tuple[Run, list[Any]]:
    """How a run ends that nobody asks anything of, and what is told of it."""
    seen: list[Any] = []

    class Listener:
        def on_event(self, before: Run, event: Event, after: Run) -> None:
            seen.append(told(event))

    executor = SimulatedExecutor(FakeClock(), 1, {run.id: run.config["durations_s"]}, FAILURES)
    begun = Run(id=run.id, name=run.name, config=run.config, path="", parent_id=run.parent_id)
    engine = Engine([begun], executor, CommandDesk(Listener()))
    engine.run()
    return engine.runs[0], seen


class Commands(RuleBasedStateMachine):
    """An experiment whose process may be killed, and those who ask things of its runs."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.store = MemoryStore()
        self.model = Model(fresh_runs())
        self.disturbed: set[int] = set()
        """Runs of which a process was killed, or something was asked that ends them."""
        self.num_workers = 1
        self.with_policy = False
        self.store.create(
            ExperimentRecord(name="random", created_s=0.0, seed=0, num_chunks=4), fresh_runs()
        )
        self.begin()

    def begin(self) -> None:
        """A process takes the experiment up, as `fit` does."""
        for run in self.store.runs():
            if run.unfinished and run.status is not RunStatus.QUEUED:
                self.disturbed.add(run.id)
                event = RunRecovered(
                    run_id=run.id,
                    step=run.chunks_done,
                    chunks_done=run.chunks_done,
                    active_s=run.active_s,
                )
                self.store.record(run, event, apply(run, event), self.clock.now())
                self.model.happens(event)
        runs = self.store.runs()
        executor = SimulatedExecutor(
            self.clock,
            self.num_workers,
            {run.id: run.config["durations_s"] for run in runs},
            FAILURES,
        )
        self.record = Examiner(self.store, self.clock, self.model)
        self.engine = Engine(
            runs,
            executor,
            self.record,
            policies=[Hasty()] if self.with_policy else [],
            preparer=SimulatedPreparer(executor),
            clock=self.clock,
        )

    def alive(self) -> None:
        """Take a step; if it is the process's last one, another process goes on."""
        given = self.pending()
        try:
            self.engine.step()
        except Killed:
            self.begin()
        else:
            assert not given & self.pending(), "a step settles what was given before it"

    def pending(self) -> set[CommandId]:
        return {command.id for command in self.store.commands(status=CommandStatus.PENDING)}

    @rule(num_steps=st.integers(1, 6))
    def steps(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.alive()

    @rule(
        verb=st.sampled_from([verb for verb in Verb if verb is not Verb.CLONE]),
        run_id=st.integers(0, 9),
    )
    def asks(self, verb: Verb, run_id: int) -> None:
        self.store.submit(Command(verb=verb, run_id=RunId(run_id)), self.clock.now())

    @rule(
        run_id=st.integers(1, 8),
        durations_s=st.one_of(st.none(), st.lists(st.just(2.0), max_size=5)),
        warm_start=st.booleans(),
    )
    @precondition(lambda self: len(self.engine.runs) < 12)
    def clones(self, run_id: int, durations_s: list[float] | None, warm_start: bool) -> None:
        modify = {} if durations_s is None else {"durations_s": durations_s}
        self.store.submit(
            Command(verb=Verb.CLONE, run_id=RunId(run_id), modify=modify, warm_start=warm_start),
            self.clock.now(),
        )

    @rule(num_workers=st.integers(1, 3), with_policy=st.booleans())
    def is_killed_between_steps(self, num_workers: int, with_policy: bool) -> None:
        self.num_workers, self.with_policy = num_workers, with_policy
        self.begin()

    @rule(lives_for=st.integers(0, 6), kills_before=st.booleans())
    def will_be_killed_within_a_step(self, lives_for: int, kills_before: bool) -> None:
        self.record.lives_for, self.record.kills_before = lives_for, kills_before

    @rule()
    def time_passes_and_deleted_runs_are_purged(self) -> None:
        self.clock.advance_to(self.clock.now() + UNDO_S / 2)
        try:
            for run in self.engine.runs:
                is_over = run.undo_until_s is not None and run.undo_until_s <= self.clock.now()
                if run.status is RunStatus.DELETED and is_over and not run.purged:
                    self.engine.purge(run.id)
        except Killed:
            self.begin()

    @invariant()
    def engine_and_store_agree(self) -> None:
        known = {run.id: run.status.value for run in self.store.runs()}
        assert known == self.model.status
        assert {run.id: run.status.value for run in self.engine.runs} == known
        running = [run.worker_id for run in self.engine.runs if run.status is RunStatus.RUNNING]
        assert len(set(running)) == len(running) <= self.num_workers

    def teardown(self) -> None:
        self.record.lives_for = -1
        while not self.engine.ended or self.pending():
            self.alive()
        for given in self.store.commands():
            assert given.status is not CommandStatus.PENDING
            assert given.outcome
        events: dict[int, list[Any]] = defaultdict(list)
        for row in self.store.events():
            events[row.event.run_id].append(row.event)
        for run in self.store.runs():
            self.examine(run, [type(event).__name__ for event in events[run.id]], events[run.id])

    def examine(self, run: Run, names: list[str], events: list[Event]) -> None:
        """A run that nobody ended is where it would be anyway, by the same events."""
        assert run.status not in (RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.WAITING)
        expected, sequence = alone(run)
        if run.status in (RunStatus.COMPLETED, RunStatus.FAILED):
            assert (run.status, run.step, run.chunks_done, run.loss, run.error) == (
                expected.status, expected.step, expected.chunks_done, expected.loss, expected.error,
            )  # fmt: skip
        asked = {"RunStopped", "RunPruned", "RunDeleted", "RunResumed", "RunRecovered"}
        if not asked & set(names):
            stored = [event for event in sequence if type(event).__name__ != "StepFinished"]
            own = [told(event) for event in events]
            ignored = ("RunPinned", "RunCloned")
            assert [e for e in own if type(e).__name__ not in ignored] == stored
            assert run.active_s == pytest.approx(expected.active_s)


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """Every rejection is logged, and here are thousands."""
    logger = logging.getLogger("rapidfireai")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


TestCommands = Commands.TestCase
TestCommands.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
