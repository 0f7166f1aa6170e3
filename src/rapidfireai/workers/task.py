"""What a worker can run: the border between executors and workloads."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import torch

from rapidfireai.core.events import Event
from rapidfireai.core.ids import RunId
from rapidfireai.workers.gang import Request


class Task(Protocol):
    """One run's work, done piece by piece. Used by one thread.

    A task reports what goes wrong as an event of its run; it does not raise.
    """

    def resume(self) -> Sequence[Event]:
        """Work until the next safe place to pause, a step or so, and tell what happened.

        Empty if the task waits for an answer to its `request`.

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

    @property
    def request(self) -> Request | None:
        """What the task waits for in the middle of a step; None at a safe place."""
        ...

    @property
    def is_fused(self) -> bool:
        """Whether the task asks for passes that it shares with others. Known after the first
        events; a task that does not is to be let alone for a whole chunk."""
        ...

    def step_aside(self) -> None:
        """Put the process as it was before the chunk, in the middle of it. Idempotent."""
        ...

    def take_over(self, other: "Task") -> None:
        """Work next, in the middle of a chunk of the other's."""
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
