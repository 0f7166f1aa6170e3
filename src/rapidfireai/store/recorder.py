"""Writes the engine's events into a store, the frequent ones in batches."""

from collections.abc import Sequence
from typing import Final

from rapidfireai.core.clock import Clock
from rapidfireai.core.commands import Command, CommandRecord, CommandStatus, Outcome
from rapidfireai.core.events import Event, MetricsLogged, MetricSource, StepFinished
from rapidfireai.core.ids import RunId
from rapidfireai.core.run import Run
from rapidfireai.faults import reach
from rapidfireai.store._protocol import MetricRow, Store

MAX_AGE_S: Final = 0.5
"""The next event writes what has been held back for this long."""


class Recorder:
    """The engine's record: everything goes into the store, in the order in which it happened.

    `StepFinished` and `MetricsLogged` become values and the run's progress. They are held back
    for up to `MAX_AGE_S` and written together: a process that is killed loses no more than that,
    and every other event finds all that came before it written. Time passes with events only, so
    whoever pauses the engine calls `flush`. Implements `core.engine.Record`.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._runs: dict[RunId, Run] = {}
        self._rows: list[MetricRow] = []
        self._oldest_s: float | None = None
        """When the first of what is held back came; None while there is nothing."""
        self._num_changes: int | None = None
        """Of the store, when it was asked for commands last."""

    def on_event(
        self, before: Run, event: Event, after: Run, settles: Outcome | None = None
    ) -> None:
        """Record that `event` turned `before` into `after`, and settled a command if it did.

        Raises:
            StoreError: The store cannot be written, or somebody else changed the run.
        """
        now_s = self._clock.now()
        match event:
            case StepFinished():
                self._hold(after, step_rows(event, now_s), now_s)
            case MetricsLogged():
                self._hold(after, metric_rows(event, now_s), now_s)
            case _:
                self.flush()
                self._store.record(before, event, after, now_s, settles)
                reach("store.recorded")

    def add_run(
        self, before: Run, event: Event, after: Run, settles: Outcome | None = None
    ) -> None:
        """Record a new run, its first event, and that this settled a command if it did.

        Raises:
            StoreError: The store cannot be written.
        """
        self.flush()
        self._store.add_run(event, after, self._clock.now(), settles)

    def pending(self) -> Sequence[CommandRecord]:
        """Commands that nobody has settled, unless the store has not changed since the last call.

        Raises:
            StoreError: The store cannot be read.
        """
        num_changes = self._store.num_changes()
        if num_changes == self._num_changes:
            return ()
        self._num_changes = num_changes
        return self._store.commands(status=CommandStatus.PENDING)

    def submit(self, command: Command) -> CommandRecord:
        """Record a command of a policy's.

        Raises:
            StoreError: The store cannot be written.
        """
        return self._store.submit(command, self._clock.now())

    def settle(self, outcome: Outcome) -> None:
        """Record what became of a command that changed no run.

        Raises:
            StoreError: The store cannot be written.
        """
        self._store.settle(outcome, self._clock.now())

    def flush(self) -> None:
        """Write what is held back; after an error it is held back still.

        Raises:
            StoreError: The store cannot be written, or somebody else changed a run.
        """
        if self._oldest_s is None:
            return
        self._store.save_progress(tuple(self._runs.values()), self._rows)
        self._runs, self._rows, self._oldest_s = {}, [], None

    def _hold(self, run: Run, rows: list[MetricRow], now_s: float) -> None:
        self._runs[run.id] = run
        self._rows += rows
        if self._oldest_s is None:
            self._oldest_s = now_s
        if now_s - self._oldest_s >= MAX_AGE_S:
            self.flush()


def step_rows(event: StepFinished, time_s: float) -> list[MetricRow]:
    """The loss of a step, as the engine measured it."""
    return [
        MetricRow(
            run_id=event.run_id,
            source=MetricSource.STEP,
            step=event.step,
            name="loss",
            value=event.loss,
            time_s=time_s,
        )
    ]


def metric_rows(event: MetricsLogged, time_s: float) -> list[MetricRow]:
    """One row for each value."""
    return [
        MetricRow(
            run_id=event.run_id,
            source=event.source,
            step=event.step,
            name=name,
            value=value,
            time_s=time_s,
        )
        for name, value in event.values.items()
    ]
