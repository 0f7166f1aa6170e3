"""What an experiment has been through, told again from its store in the order it happened."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

from rapidfireai.core.events import (
    ChunkFinished,
    Event,
    MetricsLogged,
    MetricSource,
    RunAdded,
    RunCloned,
    RunCompleted,
    StepFinished,
)
from rapidfireai.core.ids import RunId
from rapidfireai.core.run import Run, RunStatus, apply
from rapidfireai.store._protocol import MetricRow, Store

Moment = tuple[Run, Event, Run]
"""What a run was, what happened, and what it was then."""


class History:
    """An experiment's events, and the runs that they happened to.

    Values are told right before the end of the chunk that they belong to. What a step took is not
    kept for each: `active_s` of `StepFinished` is that of the event before.

    Args:
        store: The experiment's.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._stored = store.runs()

    @property
    def begin(self) -> list[Run]:
        """The runs as they were before the first event, without those that came by an event."""
        later = {
            row.event.run_id
            for row in self._store.events()
            if isinstance(row.event, RunAdded | RunCloned)
        }
        return [_unborn(run) for run in self._stored if run.id not in later]

    def moments(self) -> Iterator[Moment]:
        """Every event in order."""
        now = {run.id: _unborn(run) for run in self._stored}
        values: dict[RunId, list[MetricRow]] = defaultdict(list)
        for row in sorted(self._store.metrics(), key=lambda row: row.step, reverse=True):
            values[row.run_id].append(row)
        for stored in self._store.events():
            event = stored.event
            before = now[event.run_id]
            if isinstance(event, RunCloned) and before.fork is not None:
                # A warm one stands where its parent stood.
                before = replace(before, chunks_done=now[event.parent_id].chunks_done)
            if isinstance(event, ChunkFinished | RunCompleted):
                rows = values[event.run_id]
                while rows and rows[-1].step <= event.step:
                    measured = _measured(rows.pop(), before.active_s)
                    after = apply(before, measured)
                    yield before, measured, after
                    before = after
            after = apply(before, event)
            now[event.run_id] = after
            yield before, event, after


def _unborn(run: Run) -> Run:
    return replace(
        run,
        status=RunStatus.QUEUED,
        worker_id=None,
        resolved={},
        step=0,
        num_steps=None,
        chunks_done=0,
        num_chunks=None,
        active_s=0.0,
        loss=None,
        error=None,
        traceback=None,
        notes=(),
        modes=(),
        pinned=False,
        deleted_from=None,
        undo_until_s=None,
        purged=False,
    )


def _measured(row: MetricRow, active_s: float) -> StepFinished | MetricsLogged:
    if row.source is MetricSource.STEP and row.name == "loss":
        return StepFinished(run_id=row.run_id, step=row.step, loss=row.value, active_s=active_s)
    return MetricsLogged(
        run_id=row.run_id, step=row.step, source=row.source, values={row.name: row.value}
    )
