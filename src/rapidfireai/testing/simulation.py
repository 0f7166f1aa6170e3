"""A clock and an executor that live in simulated time: no sleeping, no threads, no training."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import count
from types import MappingProxyType

from rapidfireai.core.commands import (
    Command,
    CommandId,
    CommandRecord,
    CommandStatus,
    Outcome,
)
from rapidfireai.core.engine import Listener
from rapidfireai.core.events import (
    ChunkFinished,
    Event,
    MetricsLogged,
    MetricSource,
    RunCompleted,
    RunFailed,
    RunStarted,
    RunStopped,
    StepFinished,
)
from rapidfireai.core.ids import RunId, WorkerId
from rapidfireai.core.run import Run
from rapidfireai.core.scheduler import Assign
from rapidfireai.errors import ConfigError


class FakeClock:
    """A clock that stands still until it is told to advance."""

    def __init__(self, now_s: float = 0.0) -> None:
        self._now_s = now_s

    def now(self) -> float:
        """Seconds since the start of the simulated time."""
        return self._now_s

    def advance_to(self, now_s: float) -> None:
        """Go forward to a point in time.

        Raises:
            ValueError: The point is in the past.
        """
        if not now_s >= self._now_s:
            raise ValueError(f"a clock never goes back: it is {self._now_s}, not {now_s}")
        self._now_s = now_s


@dataclass(frozen=True, kw_only=True, slots=True)
class _Open:
    """An order being carried out."""

    order: Assign
    start_s: float


class SimulatedExecutor:
    """Carries orders out in simulated time; every chunk is one optimizer step.

    A run whose first order is not for its first chunk goes on from a checkpoint at its beginning.

    Args:
        clock: Advanced by `receive` to the time at which the next order is done.
        num_workers: Workers, each with one order at a time; at least 1.
        durations_s: For each run the seconds that each of its chunks takes, one entry a chunk.
        failures: For runs that fail, the chunk at whose end they do.
        losses: For runs that are evaluated, `eval_loss` after each of their chunks.
    """

    def __init__(
        self,
        clock: FakeClock,
        num_workers: int,
        durations_s: Mapping[RunId, Sequence[float]],
        failures: Mapping[RunId, int] = MappingProxyType({}),
        losses: Mapping[RunId, Sequence[float]] = MappingProxyType({}),
    ) -> None:
        self._clock = clock
        self._workers = tuple(WorkerId(number) for number in range(num_workers))
        self._durations_s = dict(durations_s)
        self._failures = failures
        self._losses = dict(losses)
        self._active_s = dict.fromkeys(durations_s, 0.0)
        self._standing: set[RunId] = set()
        self._open: dict[RunId, _Open] = {}
        self._busy: set[WorkerId] = set()
        # The serial number makes orders that end at the same time come out as they were given.
        self._ends: list[tuple[float, int, RunId]] = []
        self._serial = count()

    @property
    def workers(self) -> Sequence[WorkerId]:
        """The workers there are."""
        return self._workers

    def add(
        self, run_id: RunId, durations_s: Sequence[float], losses: Sequence[float] | None = None
    ) -> None:
        """Know of another run, such as a clone."""
        self._durations_s[run_id] = durations_s
        self._active_s[run_id] = 0.0
        if losses is not None:
            self._losses[run_id] = losses

    def assign(self, order: Assign) -> None:
        """Accept an order for an idle worker."""
        assert order.worker_id not in self._busy, f"worker {order.worker_id} is busy: {order}"
        assert order.run_id not in self._open, f"run {order.run_id} is running: {order}"
        now_s = self._clock.now()
        self._busy.add(order.worker_id)
        self._open[order.run_id] = _Open(order=order, start_s=now_s)
        end_s = now_s + self._durations_s[order.run_id][order.chunk]
        heappush(self._ends, (end_s, next(self._serial), order.run_id))

    def receive(self) -> Sequence[Event]:
        """Advance the clock to the end of the next order and report it; empty if none is open."""
        while self._ends:
            end_s, _, run_id = heappop(self._ends)
            # A stopped run's entry stays in the heap; nothing of that run may come any more.
            if run_id in self._open:
                # Somebody else may have let more time pass.
                self._clock.advance_to(max(end_s, self._clock.now()))
                order = self._open.pop(run_id).order
                self._busy.remove(order.worker_id)
                return self._end(order)
        return ()

    def stop(self, run_id: RunId, reason: str) -> Sequence[Event]:
        """End a run now, also in the middle of a chunk."""
        self._standing.discard(run_id)
        entry = self._open.pop(run_id, None)
        if entry is not None:
            self._busy.remove(entry.order.worker_id)
            self._active_s[run_id] += self._clock.now() - entry.start_s
        return (RunStopped(run_id=run_id, reason=reason, active_s=self._active_s[run_id]),)

    def save(self, run_id: RunId) -> Sequence[Event]:
        """Nothing to write."""
        return ()

    def close(self) -> None:
        """Abandon the open orders."""
        self._open.clear()
        self._busy.clear()
        self._ends.clear()

    def _end(self, order: Assign) -> list[Event]:
        run_id, step = order.run_id, order.chunk + 1
        durations_s = self._durations_s[run_id]
        self._active_s[run_id] += durations_s[order.chunk]
        active_s = self._active_s[run_id]
        events: list[Event] = []
        if run_id not in self._standing:
            self._standing.add(run_id)
            num = len(durations_s)
            started = RunStarted(
                run_id=run_id,
                num_steps=num,
                num_chunks=num,
                resolved={},
                step=order.chunk,
                chunks_done=order.chunk,
                active_s=active_s - durations_s[order.chunk],
            )
            events += [started]
        if self._failures.get(run_id) == order.chunk:
            self._standing.discard(run_id)
            error = f"told to fail at chunk {order.chunk}"
            events += [RunFailed(run_id=run_id, error=error, traceback="", active_s=active_s)]
            return events
        losses = self._losses.get(run_id)
        loss = 1 / step if losses is None else losses[order.chunk]
        events += [StepFinished(run_id=run_id, step=step, loss=loss, active_s=active_s)]
        if losses is not None:
            events += [
                MetricsLogged(
                    run_id=run_id,
                    step=step,
                    source=MetricSource.CHUNK,
                    values={"eval_loss": loss},
                )
            ]
        if step == len(durations_s):
            events += [RunCompleted(run_id=run_id, step=step, active_s=active_s)]
        else:
            events += [
                ChunkFinished(run_id=run_id, chunk=order.chunk, step=step, active_s=active_s)
            ]
        return events


class SimulatedPreparer:
    """Makes clones for a simulated executor, from runs that have their durations as configuration.

    A run's configuration, and what a clone modifies of it, is `{"durations_s": [...]}`; one that
    has `"gone": True` can be neither resumed nor cloned.

    Args:
        executor: Is told of the clones.
    """

    def __init__(self, executor: SimulatedExecutor) -> None:
        self._executor = executor

    def resume(self, run: Run) -> None:
        """Nothing to do, unless it is impossible."""
        if run.config.get("gone"):
            raise ConfigError(f"run {run.id} is no longer in the script")

    def clone(self, parent: Run, command: Command, run_id: RunId) -> Run:
        """The new run. See `core.commands.Preparer`."""
        self.resume(parent)
        config = {**parent.config, **command.modify}
        durations_s = config["durations_s"]
        if not durations_s:
            raise ConfigError("durations_s=[] is not possible; a run has at least one chunk")
        self._executor.add(run_id, durations_s)
        return Run(id=run_id, name=f"run {run_id}", config=config, path="", parent_id=parent.id)


class CommandDesk:
    """An engine's record that keeps commands in memory and passes events on.

    Args:
        listener: Told of every event; what it raises is the record's failure.
    """

    def __init__(self, listener: Listener | None = None) -> None:
        self._listener = listener
        self.commands: dict[CommandId, CommandRecord] = {}

    def give(self, command: Command) -> CommandId:
        """Have the engine carry a command out at its next step."""
        return self.submit(command).id

    def on_event(
        self, before: Run, event: Event, after: Run, settles: Outcome | None = None
    ) -> None:
        """Pass the event on, and settle the command if it did."""
        if self._listener is not None:
            self._listener.on_event(before, event, after)
        if settles is not None:
            self.settle(settles)

    def add_run(
        self, before: Run, event: Event, after: Run, settles: Outcome | None = None
    ) -> None:
        """Likewise for a new run's first event."""
        self.on_event(before, event, after, settles)

    def pending(self) -> Sequence[CommandRecord]:
        """Commands that nobody has settled."""
        return [c for c in self.commands.values() if c.status is CommandStatus.PENDING]

    def submit(self, command: Command) -> CommandRecord:
        """Take a command in."""
        record = CommandRecord(id=CommandId(len(self.commands) + 1), command=command, given_s=0.0)
        self.commands[record.id] = record
        return record

    def settle(self, outcome: Outcome) -> None:
        """Note what became of a pending command."""
        given = self.commands[outcome.command_id]
        assert given.status is CommandStatus.PENDING, f"{given} is settled twice"
        self.commands[given.id] = replace(
            given,
            status=outcome.status,
            settled_s=0.0,
            outcome=outcome.text,
            step=outcome.step,
            new_run_id=outcome.new_run_id,
        )


def queued_runs(run_ids: Iterable[RunId]) -> list[Run]:
    """Runs with nothing but an id, as an engine takes them."""
    return [Run(id=run_id, name=f"run {run_id}", config={}, path="") for run_id in run_ids]
