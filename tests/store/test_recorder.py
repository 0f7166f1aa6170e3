"""The recorder writes everything, in order, and the frequent events in batches."""

from collections.abc import Sequence

import pytest

from rapidfireai.core.commands import Command, CommandRecord, CommandStatus, Outcome, Verb
from rapidfireai.core.events import (
    ChunkAssigned,
    ChunkFinished,
    Event,
    MetricsLogged,
    MetricSource,
    RunStarted,
    RunStopped,
    StepFinished,
)
from rapidfireai.core.ids import RunId, WorkerId
from rapidfireai.core.run import Run, RunStatus, apply
from rapidfireai.errors import StaleRunError, StoreError
from rapidfireai.store import ExperimentRecord, MemoryStore, MetricRow, Recorder
from rapidfireai.testing.stores import FIRST, SECOND


class ManualClock:
    """Shows the time it was set to."""

    def __init__(self) -> None:
        self.now_s = 1_760_000_000.0

    def now(self) -> float:
        return self.now_s


class WatchedStore(MemoryStore):
    """Notes its writes, and refuses them while `broken`."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []
        self.broken = False

    def record(
        self,
        before: Run,
        event: Event,
        after: Run,
        time_s: float,
        settles: Outcome | None = None,
    ) -> None:
        super().record(before, event, after, time_s, settles)
        self.writes.append(type(event).__name__)

    def save_progress(self, runs: Sequence[Run], rows: Sequence[MetricRow]) -> None:
        if self.broken:
            raise StoreError("broken")
        super().save_progress(runs, rows)
        self.writes.append(f"{len(runs)} runs, {len(rows)} values")


class Recording:
    """Two runs on their first chunk, and the recorder that has recorded them."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = WatchedStore()
        self.recorder = Recorder(self.store, self.clock)
        self.runs = {
            run_id: Run(id=run_id, name=str(run_id), config={}, path=f"runs/{run_id}")
            for run_id in (FIRST, SECOND)
        }
        self.store.create(
            ExperimentRecord(name="exp1", created_s=1.0, seed=1, num_chunks=2),
            list(self.runs.values()),
        )
        for run_id in self.runs:
            self.happens(ChunkAssigned(run_id=run_id, worker_id=WorkerId(run_id), chunk=0))
            self.happens(RunStarted(run_id=run_id, num_steps=9, num_chunks=2, resolved={}))
        self.store.writes.clear()

    def happens(self, event: Event) -> None:
        before = self.runs[event.run_id]
        self.runs[event.run_id] = apply(before, event)
        self.recorder.on_event(before, event, self.runs[event.run_id])

    def step(self, step: int, run_id: RunId = FIRST) -> None:
        self.happens(StepFinished(run_id=run_id, step=step, loss=1 / step, active_s=float(step)))


@pytest.fixture
def recording() -> Recording:
    return Recording()


def test_other_events_are_recorded_at_once_with_the_time(recording: Recording) -> None:
    finished = ChunkFinished(run_id=FIRST, chunk=0, step=5, active_s=5.0)
    recording.clock.now_s += 100
    recording.happens(finished)
    assert recording.store.writes == ["ChunkFinished"]
    row = recording.store.events()[-1]
    assert (row.event, row.time_s) == (finished, recording.clock.now_s)
    assert recording.store.runs()[0] == recording.runs[FIRST]


def test_steps_become_values_and_progress_not_events(recording: Recording) -> None:
    num_events = len(recording.store.events())
    recording.step(1)
    recording.step(2)
    recording.recorder.flush()
    assert recording.store.metrics() == [
        MetricRow(
            run_id=FIRST,
            source=MetricSource.STEP,
            step=step,
            name="loss",
            value=1 / step,
            time_s=recording.clock.now_s,
        )
        for step in (1, 2)
    ]
    assert (recording.store.runs()[0].step, recording.store.runs()[0].loss) == (2, 0.5)
    assert len(recording.store.events()) == num_events


def test_metrics_become_a_value_each_with_their_source(recording: Recording) -> None:
    num_events = len(recording.store.events())
    for source in (MetricSource.CHUNK, MetricSource.LOG):
        recording.happens(
            MetricsLogged(run_id=FIRST, step=3, source=source, values={"a": 1.0, "b": 2.0})
        )
    recording.recorder.flush()
    assert [(r.source, r.step, r.name, r.value) for r in recording.store.metrics()] == [
        (MetricSource.CHUNK, 3, "a", 1.0),
        (MetricSource.CHUNK, 3, "b", 2.0),
        (MetricSource.LOG, 3, "a", 1.0),
        (MetricSource.LOG, 3, "b", 2.0),
    ]
    assert len(recording.store.events()) == num_events


def test_values_keep_the_time_at_which_they_came(recording: Recording) -> None:
    start_s = recording.clock.now_s
    recording.step(1)
    recording.clock.now_s = start_s + 0.25
    recording.step(2)
    recording.clock.now_s = start_s + 60
    recording.recorder.flush()
    assert [row.time_s - start_s for row in recording.store.metrics()] == [0.0, 0.25]


def test_steps_are_held_back_until_the_oldest_is_half_a_second_old(recording: Recording) -> None:
    for step, wait_s in ((1, 0.25), (2, 0.125), (3, 0.0625)):
        recording.step(step)
        recording.clock.now_s += wait_s
    assert recording.store.writes == []
    recording.clock.now_s += 0.0625
    recording.step(4)
    assert recording.store.writes == ["1 runs, 4 values"]


def test_age_counts_anew_after_a_write(recording: Recording) -> None:
    recording.step(1)
    recording.clock.now_s += 0.5
    recording.step(2)
    recording.clock.now_s += 0.25
    recording.step(3)
    recording.clock.now_s += 0.25
    recording.step(4)
    assert recording.store.writes == ["1 runs, 2 values"]
    recording.clock.now_s += 0.25
    recording.step(5)
    assert recording.store.writes == ["1 runs, 2 values", "1 runs, 3 values"]


def test_runs_are_written_together(recording: Recording) -> None:
    recording.step(1, FIRST)
    recording.step(1, SECOND)
    recording.step(2, SECOND)
    recording.recorder.flush()
    assert recording.store.writes == ["2 runs, 3 values"]
    assert [run.step for run in recording.store.runs()] == [1, 2]


def test_another_event_finds_all_before_it_written(recording: Recording) -> None:
    recording.step(1, FIRST)
    recording.happens(RunStopped(run_id=SECOND, reason="enough", active_s=0.0))
    recording.step(2, FIRST)
    recording.happens(ChunkFinished(run_id=FIRST, chunk=0, step=2, active_s=2.0))
    assert recording.store.writes == [
        "1 runs, 1 values",
        "RunStopped",
        "1 runs, 1 values",
        "ChunkFinished",
    ]
    assert [run.status for run in recording.store.runs()] == [
        RunStatus.WAITING,
        RunStatus.STOPPED,
    ]


def test_flush_without_anything_held_back_writes_nothing(recording: Recording) -> None:
    recording.recorder.flush()
    recording.step(1)
    recording.recorder.flush()
    recording.recorder.flush()
    assert recording.store.writes == ["1 runs, 1 values"]


def test_failed_flush_keeps_what_it_held_back(recording: Recording) -> None:
    recording.step(1)
    recording.store.broken = True
    with pytest.raises(StoreError, match="broken"):
        recording.recorder.flush()
    recording.store.broken = False
    recording.recorder.flush()
    assert [row.step for row in recording.store.metrics()] == [1]


def test_run_changed_by_somebody_else_is_an_error(recording: Recording) -> None:
    running = recording.runs[FIRST]
    stopped = RunStopped(run_id=FIRST, reason="elsewhere", active_s=0.0)
    recording.store.record(running, stopped, apply(running, stopped), 1.0)
    recording.step(1)
    with pytest.raises(StaleRunError, match="stopped in the store, not running"):
        recording.recorder.flush()
    assert recording.store.metrics() == []


class CountedStore(MemoryStore):
    """Counts how often it is asked for commands."""

    num_questions = 0

    def commands(self, *, status: CommandStatus | None = None) -> list[CommandRecord]:
        self.num_questions += 1
        return super().commands(status=status)


def test_commands_are_only_looked_for_when_somebody_has_written() -> None:
    store, clock = CountedStore(), ManualClock()
    run = Run(id=FIRST, name="1", config={}, path="")
    store.create(ExperimentRecord(name="exp1", created_s=1.0, seed=1, num_chunks=2), [run])
    earlier = store.submit(Command(verb=Verb.PIN, run_id=FIRST), 1.0)
    recorder = Recorder(store, clock)
    assert recorder.pending() == [earlier]  # given before this process began
    assert recorder.pending() == ()
    assert store.num_questions == 1
    given = store.submit(Command(verb=Verb.STOP, run_id=FIRST), 2.0)
    assert recorder.pending() == [earlier, given]
    recorder.settle(
        Outcome(command_id=earlier.id, status=CommandStatus.REJECTED, text="pinned already")
    )
    store.submit(Command(verb=Verb.UNPIN, run_id=FIRST), 3.0)
    assert [record.command.verb for record in recorder.pending()] == [Verb.STOP, Verb.UNPIN]
    assert recorder.submit(Command(verb=Verb.PRUNE, run_id=FIRST)).given_s == clock.now_s
