"""What a worker can run: the border between executors and workloads."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import torch

from rapidfireai.core.events import Event
from rapidfireai.core.ids import RunId


class Task(Protocol):
    """One run's work, done piece by piece. Used by one thread.

    A task reports what goes wrong as an event of its run; it does not raise.
    """

    def resume(self) -> Sequence[Event]:
        """Work until the next safe place to pause, a step or so, and tell what happened.

        The last event of a chunk is `ChunkFinished`, `RunCompleted` or `RunFailed`; with it, the
        process is as it was before the chunk.
        """
        ...

    def save(self) -> Path | None:
        """Write a paused run down as it stands, so that others can begin from there; the run goes
        on as if it had not been asked.

        Its tensors have to be on the device, as for `resume`.

        Returns:
            The folder of what was written; None where there is nothing that could be, as of a run
            that has not begun, or writing failed. The reason then comes as a note with the events
            that follow.
        """
        ...

    def stop(self, reason: str) -> Sequence[Event]:
        """End a paused run, keeping what it learned; the last event is its end."""
        ...

    def close(self) -> None:
        """Abandon the run and let go of what it holds. Idempotent."""
        ...

    def own_tensors(self) -> Iterable[torch.Tensor]:
        """The tensors that only this run holds; see `workers.memory.Owner`."""
        ...

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C arrived while the task worked."""
        ...


class Workload(Protocol):
    """Makes tasks. Training is one workload; evaluation of pipelines is another."""

    def task(self, run_id: RunId) -> Task:
        """The task of a run; called once for each run, when its first chunk is due."""
        ...
