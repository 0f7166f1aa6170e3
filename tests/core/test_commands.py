"""What can be asked of a run in which status, and what the engine does about it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from rapidfireai.core.commands import (
    UNDO_S,
    Command,
    CommandStatus,
    Verb,
    events_of,
    refusal,
    told,
)
from rapidfireai.core.engine import Engine
from rapidfireai.core.events import ChunkAssigned, Event, RunStopped
from rapidfireai.core.ids import RunId
from rapidfireai.core.run import Run, RunStatus, apply
from rapidfireai.testing.simulation import (
    CommandDesk,
    FakeClock,
    SimulatedExecutor,
    SimulatedPreparer,
)

QUEUED, RUNNING, WAITING, COMPLETED, STOPPED, FAILED, INTERRUPTED, PRUNED, DELETED = RunStatus
UNFINISHED = {QUEUED, RUNNING, WAITING, INTERRUPTED}
ALLOWED: Mapping[Verb, set[RunStatus]] = {
    Verb.STOP: UNFINISHED,
    Verb.PRUNE: UNFINISHED,
    Verb.RESUME: {STOPPED, PRUNED, FAILED},
    Verb.DELETE: set(RunStatus) - {DELETED},
    Verb.RESTORE: {DELETED},
    Verb.PIN: set(RunStatus) - {DELETED},
    Verb.UNPIN: set(),
    Verb.CLONE: set(RunStatus) - {DELETED},
}
ONE = RunId(1)


def a_run(status: RunStatus, **changes: object) -> Run:
    was = {"deleted_from": STOPPED} if status is DELETED else {}
    run = Run(id=ONE, name="run-1", config={}, path="", status=status, step=3)
    return replace(run, **{**was, **changes})  # type: ignore[arg-type]


def refused(verb: Verb, run: Run, **further: object) -> str | None:
    return refusal(Command(verb=verb, run_id=ONE, **further), {ONE: run})  # type: ignore[arg-type]


@pytest.mark.parametrize("verb", Verb)
@pytest.mark.parametrize("status", RunStatus)
def test_every_verb_in_every_status(verb: Verb, status: RunStatus) -> None:
    run = a_run(status)
    reason = refused(verb, run)
    assert (reason is None) is (status in ALLOWED[verb])
    if reason is not None:
        assert "run 1" in reason
    elif verb is not Verb.CLONE:
        # What is not refused can be done.
        for event in events_of(Command(verb=verb, run_id=ONE), run, 0.0):
            run = apply(run, event)
        assert "run 1 is" in told(Command(verb=verb, run_id=ONE), run)


@pytest.mark.parametrize("verb", Verb)
@pytest.mark.parametrize("status", RunStatus)
def test_a_pin_keeps_from_being_pruned_and_deleted_and_nothing_else(
    verb: Verb, status: RunStatus
) -> None:
    reason = refused(verb, a_run(status, pinned=True))
    is_allowed = status in ALLOWED[verb]
    if verb in (Verb.PRUNE, Verb.DELETE, Verb.PIN):
        is_allowed = False
    if verb is Verb.UNPIN:
        is_allowed = status is not DELETED
    assert (reason is None) is is_allowed
    if verb in (Verb.PRUNE, Verb.DELETE) and status in ALLOWED[verb]:
        assert "unpin it" in str(reason)


def test_what_is_gone_is_gone() -> None:
    for verb in Verb:
        assert "its files are gone" in str(refused(verb, a_run(DELETED, purged=True)))


@pytest.mark.parametrize("verb", Verb)
def test_runs_that_there_are_not(verb: Verb) -> None:
    command = Command(verb=verb, run_id=RunId(7))
    assert refusal(command, {ONE: a_run(QUEUED)}) == (
        "there is no run 7; the experiment's runs are 1"
    )
    assert refusal(command, {}) == "there is no run 7; the experiment's runs are none"


def test_a_warm_start_needs_something_to_start_from() -> None:
    assert "clone it with warm_start=False" in str(
        refused(Verb.CLONE, a_run(QUEUED, step=0), warm_start=True)
    )
    assert refused(Verb.CLONE, a_run(RUNNING), warm_start=True) is None
    assert refused(Verb.CLONE, a_run(QUEUED, step=0)) is None


class Lab:
    """An engine on simulated time, and the desk at which commands are given."""

    def __init__(self, durations_s: Mapping[int, Sequence[float]], **further: object) -> None:
        self.clock = FakeClock()
        self.events: list[Event] = []
        self.desk = CommandDesk(self)
        durations = {RunId(number): chunks for number, chunks in durations_s.items()}
        self.executor = SimulatedExecutor(self.clock, 1, durations)
        self.engine = Engine(
            [
                Run(id=i, name=f"run {i}", config={"durations_s": chunks}, path="")
                for i, chunks in durations.items()
            ],
            self.executor,
            self.desk,
            preparer=SimulatedPreparer(self.executor),
            clock=self.clock,
            **further,  # type: ignore[arg-type]
        )

    def on_event(self, before: Run, event: Event, after: Run) -> None:
        self.events.append(event)

    def ask(self, verb: Verb, run_id: int, **further: object) -> str:
        """What becomes of a command, in one word and its text."""
        given = self.desk.give(
            Command(verb=verb, run_id=RunId(run_id), **further)  # type: ignore[arg-type]
        )
        self.engine.heed_commands()
        record = self.desk.commands[given]
        return f"{record.status}: {record.outcome}"

    def step_until(self, run_id: int, status: RunStatus) -> None:
        for _ in range(50):
            if self[run_id].status is status:
                return
            self.engine.step()
        pytest.fail(f"run {run_id} is not {status} after 50 steps")

    def __getitem__(self, run_id: int) -> Run:
        return next(run for run in self.engine.runs if run.id == run_id)


@pytest.fixture
def lab() -> Lab:
    return Lab({1: [1.0, 1.0, 1.0], 2: [2.0, 2.0], 3: [1.0]})


@pytest.mark.parametrize("status", [QUEUED, RUNNING, WAITING])
def test_stop_and_resume_lose_no_step(status: RunStatus, lab: Lab) -> None:
    lab.step_until(1, status)
    before = lab[1]
    assert lab.ask(Verb.STOP, 1, reason="why") == (
        f"applied: run 1 is stopped at step {before.step}"
    )
    assert lab[1].notes == ("stopped: why",)
    lab.engine.run()
    assert (lab[1].status, lab[2].status) == (STOPPED, COMPLETED)
    assert lab.ask(Verb.RESUME, 1) == f"applied: run 1 is queued at step {before.step}"
    assert not lab.engine.ended
    lab.engine.run()
    assert (lab[1].status, lab[1].step, lab[1].chunks_done) == (COMPLETED, 3, 3)


def test_delete_stops_first_and_restore_brings_back_what_was(lab: Lab) -> None:
    lab.step_until(1, WAITING)
    assert "for 10 minutes it can be restored" in lab.ask(Verb.DELETE, 1)
    assert lab[1].status is DELETED
    assert lab[1].undo_until_s == lab.clock.now() + UNDO_S
    assert isinstance(lab.events[-2], RunStopped)
    assert lab.ask(Verb.RESUME, 1) == "rejected: run 1 is deleted: restore run 1 first"
    assert lab.ask(Verb.RESTORE, 1) == "applied: run 1 is restored: it is stopped"
    assert lab[1].undo_until_s is None
    lab.ask(Verb.DELETE, 1)
    lab.engine.purge(ONE)
    assert "cannot be restored: its files are gone" in lab.ask(Verb.RESTORE, 1)


def test_a_clone_joins_at_the_round_of_those_who_are_least_far(lab: Lab) -> None:
    lab.step_until(1, WAITING)
    assert lab.ask(Verb.CLONE, 1, modify={"durations_s": [1.0, 1.0]}) == (
        "applied: run 4 is a clone of run 1"
    )
    assert (lab[4].parent_id, lab[4].status) == (1, QUEUED)
    lab.engine.run()
    assigned = [event for event in lab.events if isinstance(event, ChunkAssigned)]
    chunks = [(event.run_id, event.chunk) for event in assigned]
    # Nobody begins a second chunk before the clone has done its first.
    assert chunks.index((RunId(4), 0)) < chunks.index((ONE, 1))
    assert all(run.status is COMPLETED for run in lab.engine.runs)


def test_a_clone_of_a_clone_gets_a_number_that_nobody_had(lab: Lab) -> None:
    lab.ask(Verb.CLONE, 1)
    lab.ask(Verb.DELETE, 4)
    lab.engine.purge(RunId(4))
    lab.ask(Verb.CLONE, 2)
    lab.ask(Verb.CLONE, 5)
    assert [run.parent_id for run in lab.engine.runs] == [None, None, None, 1, 2, 5]
    lab.engine.run()
    assert lab[6].status is COMPLETED


def test_what_cannot_be_prepared_is_rejected_and_changes_nothing(lab: Lab) -> None:
    before = lab.engine.runs
    assert lab.ask(Verb.CLONE, 1, modify={"durations_s": []}) == (
        "rejected: durations_s=[] is not possible; a run has at least one chunk"
    )
    assert lab.engine.runs == before


def test_a_preparer_that_raises_anything_rejects_the_command(lab: Lab) -> None:
    class Broken(SimulatedPreparer):
        def resume(self, run: Run) -> None:
            raise KeyError("mine")

    engine = Engine(
        lab.engine.runs, lab.executor, lab.desk, preparer=Broken(lab.executor), clock=lab.clock
    )
    lab.engine = engine
    lab.ask(Verb.STOP, 1)
    assert lab.ask(Verb.RESUME, 1) == "rejected: KeyError: 'mine'"
    assert lab[1].status is STOPPED


def test_runs_that_need_no_preparer_cannot_be_cloned() -> None:
    clock = FakeClock()
    desk = CommandDesk()
    run = Run(id=ONE, name="1", config={}, path="")
    engine = Engine([run], SimulatedExecutor(clock, 1, {ONE: [1.0]}), desk)
    given = desk.give(Command(verb=Verb.CLONE, run_id=ONE))
    engine.run()
    assert desk.commands[given].outcome == "these runs cannot be cloned"


def test_what_a_policy_asks_for_is_stored_with_its_name_and_vetoed_by_a_pin() -> None:
    class Strict:
        def on_chunk(
            self, run: Run, metrics: Mapping[str, float], runs: Sequence[Run]
        ) -> Sequence[Command]:
            return [Command(verb=Verb.PRUNE, run_id=run.id, reason="too slow")]

    lab = Lab({1: [1.0, 1.0], 2: [1.0, 1.0]}, policies=[Strict()])
    lab.ask(Verb.PIN, 1)
    lab.engine.run()
    assert (lab[1].status, lab[2].status) == (COMPLETED, PRUNED)
    assert lab[2].notes == ("pruned: too slow",)
    asked = [record for record in lab.desk.commands.values() if record.command.verb is Verb.PRUNE]
    assert {record.command.by for record in asked} == {"policy Strict"}
    assert [record.status for record in asked] == [CommandStatus.REJECTED, CommandStatus.APPLIED]
