"""The engine: what happened is applied, the next orders are decided and sent. Nothing else.

It holds the runs of one experiment, knows no torch and no database, and takes every decision from
`scheduler.schedule`. Sinks (the store, the live view, trackers, policies) listen to its events.
"""

import logging
from collections.abc import Sequence
from typing import Protocol

from rapidfireai.core.events import ChunkAssigned, Event, RunInterrupted, RunStopped
from rapidfireai.core.executor import Executor
from rapidfireai.core.ids import RunId, WorkerId
from rapidfireai.core.policy import Advice, Policy
from rapidfireai.core.run import Run, RunStatus, apply
from rapidfireai.core.scheduler import Assign, Snapshot, WaitingRun, WaitingRuns, schedule

logger = logging.getLogger(__name__)


class Listener(Protocol):
    """Learns of every event, after it has been applied.

    Called from the engine's thread while no run trains: be quick, and do not call the engine back.
    Calls come in the order of the events. An exception is logged and changes nothing for the runs,
    the store's excepted, which ends the experiment since nothing could be trusted after it.
    """

    def on_event(self, before: Run, event: Event, after: Run) -> None:
        """`event` turned `before` into `after`."""
        ...


class Engine:
    """Drives runs to their end on an executor's workers.

    Args:
        runs: The runs, queued, in the order in which equal ones are served.
        executor: Carries out the orders.
        record: Keeps the facts; told first, and its failure is the engine's.
        listeners: Told after `record`; their failures are logged.
        policies: Asked at the end of chunks which runs to stop.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        executor: Executor,
        record: Listener,
        listeners: Sequence[Listener] = (),
        policies: Sequence[Policy] = (),
    ) -> None:
        self._runs = {run.id: run for run in runs}
        self._executor = executor
        self._record = record
        self._advice = Advice(policies)
        self._listeners = (self._advice, *listeners)
        # Kept up to date run by run: a decision must not cost a walk over all runs.
        self._open = {run.id for run in runs if not run.ended}
        self._waiting = WaitingRuns(_waiting_run(run) for run in runs if _waits(run))
        self._busy: set[WorkerId | None] = set()

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs as they are now, in the order given."""
        return tuple(self._runs.values())

    @property
    def ended(self) -> bool:
        """Whether every run is in a terminal state."""
        return not self._open

    def run(self) -> None:
        """Step until every run has ended."""
        while not self.ended:
            self.step()

    def step(self) -> None:
        """Take in what happened, then give every idle worker its next order."""
        for event in self._executor.receive():
            self._apply(event)
        for decision in self._advice.take(self._runs.values()):
            self.stop([decision.run_id], decision.reason)
        for order in schedule(Snapshot(waiting=self._waiting, idle=self._idle())):
            self._assign(order)
        assert self._busy or self.ended, "an executor has at least one worker"

    def stop(self, run_ids: Sequence[RunId], reason: str) -> None:
        """End the given runs, keeping what they learned; runs that have ended stay as they are."""
        for run_id in run_ids:
            if not self._runs[run_id].ended:
                for event in self._executor.stop(run_id, reason):
                    self._apply(event)

    def interrupt(self, reason: str) -> None:
        """Write all runs down, to be taken up by another process; runs that ended stay so.

        Runs that have not begun have nothing to write down and stay queued.
        """
        for run in self.runs:
            if run.ended or run.status is RunStatus.QUEUED:
                continue
            for event in self._executor.stop(run.id, reason):
                if isinstance(event, RunStopped):
                    event = RunInterrupted(run_id=run.id, reason=reason, active_s=event.active_s)
                self._apply(event)

    def _idle(self) -> tuple[WorkerId, ...]:
        return tuple(worker for worker in self._executor.workers if worker not in self._busy)

    def _assign(self, order: Assign) -> None:
        self._apply(
            ChunkAssigned(run_id=order.run_id, worker_id=order.worker_id, chunk=order.chunk)
        )
        self._executor.assign(order)

    def _apply(self, event: Event) -> None:
        before = self._runs[event.run_id]
        after = apply(before, event)
        # First of all: what the record did not take has not happened.
        self._record.on_event(before, event, after)
        self._runs[event.run_id] = after
        if after.status is not before.status:
            self._refile(before, after)
        for listener in self._listeners:
            try:
                listener.on_event(before, event, after)
            except Exception:
                logger.exception("listener %r failed on %r", listener, event)

    def _refile(self, before: Run, after: Run) -> None:
        if before.status is RunStatus.RUNNING:
            self._busy.discard(before.worker_id)
        if after.status is RunStatus.RUNNING:
            self._busy.add(after.worker_id)
        self._waiting.discard(before.id)
        if _waits(after):
            self._waiting.add(_waiting_run(after))
        if after.ended:
            self._open.discard(after.id)


def _waits(run: Run) -> bool:
    return run.status in (RunStatus.QUEUED, RunStatus.WAITING)


def _waiting_run(run: Run) -> WaitingRun:
    return WaitingRun(
        run_id=run.id,
        chunks_done=run.chunks_done,
        # Unknown work counts as longest, so that every run shows its pace early.
        remaining_s=float("inf") if run.remaining_s is None else run.remaining_s,
        holder=run.worker_id,
    )
