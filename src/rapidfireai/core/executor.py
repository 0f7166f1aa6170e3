"""The border between the engine and whatever trains: threads, processes or a cluster."""

from collections.abc import Sequence
from typing import Protocol

from rapidfireai.core.events import Event
from rapidfireai.core.ids import RunId, WorkerId
from rapidfireai.core.scheduler import Assign


class Executor(Protocol):
    """Carries the engine's orders out and reports what happened.

    The engine is its only caller, from one thread. For each order of `assign` it reports, in the
    order of occurrence, any number of events of that run and at last exactly one of
    `ChunkFinished`, `RunCompleted` or `RunFailed`. Whatever a run does, also what kills it, is
    reported as an event of that run; an exception out of a method is a defect of the executor.
    Nothing is reported of a run that has ended, not even what it did before.
    """

    @property
    def workers(self) -> Sequence[WorkerId]:
        """The workers there are, at least one; one order each at a time."""
        ...

    def assign(self, order: Assign) -> None:
        """Accept an order for an idle worker. Returns at once."""
        ...

    def receive(self) -> Sequence[Event]:
        """Wait until something happened and return it; empty if no order is open."""
        ...

    def stop(self, run_id: RunId, reason: str) -> Sequence[Event]:
        """End a run that has no open order or has just reported; keep what it learned.

        An open order of the run is closed by it, and its worker is idle again. Returns the run's
        last events, those of the step that it was in and its end: `RunStopped` or, if that came
        first, `RunFailed` or `RunCompleted`.
        """
        ...

    def save(self, run_id: RunId) -> Sequence[Event]:
        """Write a run down as it stands, for another to start from; it goes on as if nothing was.

        Nothing happens for one that is not in memory: its latest checkpoint is on disk. Returns
        what happened before it could be written, such as the end of the step that it was in.
        """
        ...

    def close(self) -> None:
        """Let go of everything. Idempotent; unfinished runs are abandoned where they stand."""
        ...
