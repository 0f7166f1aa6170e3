"""The engine on simulated time: who is told what, in which order, and what survives a failure."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest

from rapidfireai.core.commands import Command, Verb
from rapidfireai.core.engine import Engine, Listener
from rapidfireai.core.events import (
    ChunkAssigned,
    ChunkFinished,
    Event,
    MetricsLogged,
    MetricSource,
    RunFailed,
    RunInterrupted,
    RunNoted,
    RunPruned,
    StepFinished,
)
from rapidfireai.core.ids import RunId, WorkerId
from rapidfireai.core.run import Run, RunStatus
from rapidfireai.core.scheduler import Assign
from rapidfireai.testing.simulation import CommandDesk, FakeClock, SimulatedExecutor, queued_runs

QUEUED, RUNNING, WAITING, COMPLETED, STOPPED, FAILED, INTERRUPTED, PRUNED, DELETED = RunStatus


class Recorder:
    """Notes every call, in a log that several can share."""

    def __init__(
        self, log: list[tuple[str, Run, Event, Run]] | None = None, name: str = ""
    ) -> None:
        self.log = [] if log is None else log
        self._name = name

    def on_event(self, before: Run, event: Event, after: Run) -> None:
        self.log.append((self._name, before, event, after))

    @property
    def events(self) -> list[Event]:
        return [event for _, _, event, _ in self.log]

    def statuses(self, run_id: int) -> list[RunStatus]:
        """Statuses that the run went through, without repetition."""
        changes = [(b, a) for _, b, e, a in self.log if e.run_id == run_id and b.status != a.status]
        return [changes[0][0].status, *(after.status for _, after in changes)]


class Failing:
    """Raises on every event of one kind."""

    def __init__(self, kind: type) -> None:
        self._kind = kind

    def on_event(self, before: Run, event: Event, after: Run) -> None:
        if isinstance(event, self._kind):
            raise OSError("disk full")


def engine(
    durations_s: Mapping[int, Sequence[float]],
    *,
    num_workers: int = 1,
    record: Listener | None = None,
    listeners: Sequence[Listener] = (),
    failures: Mapping[int, int] | None = None,
) -> Engine:
    durations = {RunId(run_id): chunks for run_id, chunks in durations_s.items()}
    executor = SimulatedExecutor(
        FakeClock(),
        num_workers,
        durations,
        {RunId(run_id): chunk for run_id, chunk in (failures or {}).items()},
    )
    return Engine(queued_runs(durations), executor, CommandDesk(record), listeners)


def step_until(subject: Engine, reached: Callable[[Engine], bool]) -> None:
    for _ in range(100):
        if reached(subject):
            return
        subject.step()
    pytest.fail("not reached in 100 steps")


def status(subject: Engine) -> dict[int, RunStatus]:
    return {run.id: run.status for run in subject.runs}


def test_runs_go_through_their_life_in_order() -> None:
    record = Recorder()
    subject = engine({1: [1, 1], 2: [1]}, record=record)
    assert not subject.ended

    subject.run()

    assert subject.ended
    assert record.statuses(1) == [QUEUED, RUNNING, WAITING, RUNNING, COMPLETED]
    assert record.statuses(2) == [QUEUED, RUNNING, COMPLETED]
    first, second = subject.runs
    assert (first.step, first.chunks_done, first.active_s) == (2, 2, 2.0)
    assert (second.step, second.chunks_done, second.active_s) == (1, 1, 1.0)


def test_events_chain_from_state_to_state() -> None:
    record = Recorder()
    subject = engine({1: [1, 1], 2: [1, 1], 3: [2]}, num_workers=2, record=record)
    now = {run.id: run for run in subject.runs}
    subject.run()
    for _, before, event, after in record.log:
        assert before == now[event.run_id]
        now[event.run_id] = after
    assert tuple(now.values()) == subject.runs


def test_the_record_is_told_before_the_listeners() -> None:
    log: list[tuple[str, Run, Event, Run]] = []
    record, *listeners = (Recorder(log, name) for name in ("record", "first", "second"))
    engine({1: [1]}, record=record, listeners=listeners).run()
    names = [name for name, *_ in log]
    assert names == ["record", "first", "second"] * (len(log) // 3)
    assert [entry[1:] for entry in log[0::3]] == [entry[1:] for entry in log[2::3]]


def test_a_failing_listener_is_logged_and_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    record, other = Recorder(), Recorder()
    subject = engine({1: [1, 1]}, record=record, listeners=[Failing(StepFinished), other])

    with caplog.at_level(logging.ERROR, logger="rapidfireai"):
        subject.run()

    assert status(subject) == {1: COMPLETED}
    assert other.events == record.events, "later listeners are told all the same"
    assert len(caplog.records) == 2
    assert all(entry.exc_info and entry.exc_info[0] is OSError for entry in caplog.records)


def test_a_failing_record_is_the_engines_failure_and_nothing_has_happened() -> None:
    listener = Recorder()
    subject = engine({1: [1, 1]}, record=Failing(ChunkFinished), listeners=[listener])

    with pytest.raises(OSError, match="disk full"):
        subject.run()

    assert status(subject) == {1: RUNNING}
    assert not any(isinstance(event, ChunkFinished) for event in listener.events)


def test_an_order_that_could_not_be_recorded_is_not_given() -> None:
    subject = engine({1: [1]}, record=Failing(ChunkAssigned))
    with pytest.raises(OSError, match="disk full"):
        subject.step()
    assert status(subject) == {1: QUEUED}


def test_failing_runs_do_not_stop_the_others() -> None:
    record = Recorder()
    subject = engine({1: [1, 1, 1], 2: [1, 1], 3: [1, 1, 1]}, record=record, failures={1: 0, 3: 1})

    subject.run()

    assert status(subject) == {1: FAILED, 2: COMPLETED, 3: FAILED}
    assert record.statuses(3) == [QUEUED, RUNNING, WAITING, RUNNING, FAILED]
    assert subject.runs[0].error == "told to fail at chunk 0"
    assert [event.run_id for event in record.events if isinstance(event, RunFailed)] == [1, 3]


def test_workers_of_failed_runs_are_used_again() -> None:
    subject = engine({1: [1], 2: [1], 3: [1], 4: [1]}, num_workers=2, failures={1: 0, 2: 0})
    subject.run()
    assert {run.worker_id for run in subject.runs if run.status is COMPLETED} == {0, 1}


def test_stop_ends_queued_running_and_waiting_runs() -> None:
    record = Recorder()
    subject = engine({1: [1, 1, 1], 2: [1, 1, 1], 3: [1, 1]}, record=record)
    step_until(subject, lambda subject: subject.runs[0].status is WAITING)
    assert status(subject) == {1: WAITING, 2: RUNNING, 3: QUEUED}

    subject.stop([RunId(1), RunId(2), RunId(3)], "enough")

    assert subject.ended
    assert status(subject) == {1: STOPPED, 2: STOPPED, 3: STOPPED}
    assert all(run.notes == ("stopped: enough",) for run in subject.runs)
    assert [run.active_s for run in subject.runs] == [1.0, 0.0, 0.0]


def test_interrupt_writes_down_what_has_begun_and_leaves_the_rest_queued() -> None:
    record = Recorder()
    subject = engine({1: [1, 1, 1], 2: [1, 1, 1], 3: [1, 1], 4: [1]}, record=record)
    step_until(subject, lambda subject: subject.runs[0].status is WAITING)
    subject.stop([RunId(4)], "enough")

    subject.interrupt("SIGTERM")

    assert status(subject) == {1: INTERRUPTED, 2: INTERRUPTED, 3: QUEUED, 4: STOPPED}
    assert [event.reason for event in record.events if isinstance(event, RunInterrupted)] == [
        "SIGTERM"
    ] * 2


def test_stopped_runs_free_their_worker_and_leave_the_others_alone() -> None:
    subject = engine({1: [5, 5], 2: [1, 1]})
    subject.step()

    subject.stop([RunId(1)], "too slow")
    subject.run()

    assert status(subject) == {1: STOPPED, 2: COMPLETED}


def test_a_policy_prunes_a_run_once_all_have_done_the_chunk_and_before_the_next_one() -> None:
    class Prune:
        def on_chunk(
            self, run: Run, metrics: Mapping[str, float], runs: Sequence[Run]
        ) -> Sequence[Command]:
            return [Command(verb=Verb.PRUNE, run_id=run.id, reason="pruned")] if run.id == 1 else []

    record = Recorder()
    durations = {RunId(1): [1.0, 1.0], RunId(2): [1.0, 1.0]}
    executor = SimulatedExecutor(FakeClock(), 1, durations)
    subject = Engine(queued_runs(durations), executor, CommandDesk(record), policies=[Prune()])

    subject.run()

    assert status(subject) == {1: PRUNED, 2: COMPLETED}
    assert record.statuses(1) == [QUEUED, RUNNING, WAITING, PRUNED]
    told = [(event.run_id, type(event)) for event in record.events]
    at = told.index((RunId(2), ChunkFinished))
    assert told[at + 1 : at + 3] == [(1, RunPruned), (2, ChunkAssigned)]


def test_stopping_a_run_that_has_ended_changes_nothing() -> None:
    record = Recorder()
    subject = engine({1: [1]}, record=record)
    subject.run()
    before = (subject.runs, len(record.log))
    subject.stop([RunId(1)], "too late")
    assert (subject.runs, len(record.log)) == before


def test_runs_that_have_ended_before_are_left_alone() -> None:
    done = Run(id=RunId(1), name="done", config={}, path="", status=COMPLETED)
    durations = {RunId(1): [1.0], RunId(2): [1.0]}
    executor = SimulatedExecutor(FakeClock(), 1, durations)
    record = Recorder()
    subject = Engine([done, *queued_runs([RunId(2)])], executor, CommandDesk(record))
    subject.run()
    assert status(subject) == {1: COMPLETED, 2: COMPLETED}
    assert {event.run_id for event in record.events} == {2}


def test_no_runs_is_no_work() -> None:
    subject = engine({})
    assert subject.ended
    subject.run()
    subject.step()
    assert subject.runs == ()


def test_an_executor_without_workers_is_found_out_instead_of_waited_for() -> None:
    with pytest.raises(AssertionError, match="at least one worker"):
        engine({1: [1]}, num_workers=0).run()


def test_orders_follow_the_policy() -> None:
    class Spy(SimulatedExecutor):
        orders: list[Assign]

        def assign(self, order: Assign) -> None:
            self.orders.append(order)
            super().assign(order)

    durations = {RunId(1): [1.0, 1.0], RunId(2): [3.0, 3.0], RunId(3): [2.0, 2.0]}
    spy = Spy(FakeClock(), 1, durations)
    spy.orders = []
    Engine(queued_runs(durations), spy, CommandDesk()).run()
    # Unknown lengths in the order given; then the longest first.
    assert [(order.run_id, order.chunk) for order in spy.orders] == [
        (1, 0), (2, 0), (3, 0), (2, 1), (3, 1), (1, 1),
    ]  # fmt: skip


def test_unknown_work_counts_as_longest() -> None:
    durations = {RunId(1): [1.0, 1.0], RunId(2): [1.0, 1.0]}
    known, unknown = queued_runs([RunId(1), RunId(2)])
    unknown = replace(unknown, chunks_done=1)
    known = replace(known, chunks_done=1, step=1, num_steps=2, active_s=1.0)
    record = Recorder()
    Engine(
        [known, unknown], SimulatedExecutor(FakeClock(), 1, durations), CommandDesk(record)
    ).step()
    assert [event.run_id for event in record.events] == [unknown.id]


def test_a_run_stays_on_its_worker_when_all_fit() -> None:
    record = Recorder()
    engine({1: [1] * 4, 2: [2] * 4, 3: [3] * 4}, num_workers=5, record=record).run()
    assigned = [event for event in record.events if isinstance(event, ChunkAssigned)]
    assert {(event.run_id, event.worker_id) for event in assigned} == {
        (RunId(number), WorkerId(number - 1)) for number in (1, 2, 3)
    }


def test_metrics_and_notes_of_a_waiting_run_that_is_stopped_are_taken() -> None:
    """What a trainer logs when it is ended comes while its run waits."""

    class Talkative(SimulatedExecutor):
        def stop(self, run_id: RunId, reason: str) -> Sequence[Event]:
            logged = MetricsLogged(
                run_id=run_id, step=1, source=MetricSource.LOG, values={"train_runtime": 1.0}
            )
            noted = RunNoted(run_id=run_id, note="saved")
            return (logged, noted, *super().stop(run_id, reason))

    durations = {RunId(1): [1.0, 1.0], RunId(2): [1.0, 1.0]}
    subject = Engine(queued_runs(durations), Talkative(FakeClock(), 1, durations), CommandDesk())
    step_until(subject, lambda subject: subject.runs[0].status is WAITING)
    subject.stop([RunId(1)], "enough")
    assert subject.runs[0].notes == ("saved", "stopped: enough")
