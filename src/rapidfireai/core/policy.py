"""What decides about runs while they train, besides a person."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from rapidfireai.core.commands import Command
from rapidfireai.core.events import ChunkFinished, Event, MetricsLogged, StepFinished
from rapidfireai.core.ids import RunId
from rapidfireai.core.run import Run

logger = logging.getLogger(__name__)


class Policy(Protocol):
    """Looks at a run at the end of each of its chunks and says what is to be done with which runs.

    Called from the engine's thread while no run trains. Its commands go the same way as a person's:
    they are stored with their reasons, and rejected where they are impossible, as pruning a pinned
    run is. An exception is logged and decides nothing.
    """

    def on_chunk(
        self, run: Run, metrics: Mapping[str, float], runs: Sequence[Run]
    ) -> Sequence[Command]:
        """Decide after `run` finished a chunk that is not its last.

        Args:
            run: The run.
            metrics: Latest value of each of its metrics; `loss` is the average over the chunk.
            runs: All runs as they are now, this one included.
        """
        ...


@dataclass(slots=True)
class _Seen:
    """What is known of a run's metrics."""

    latest: dict[str, float] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    """Of the present chunk's steps."""


class Advice:
    """Keeps what policies look at, and asks them at chunk ends; listens to an engine's events."""

    def __init__(self, policies: Sequence[Policy]) -> None:
        self._policies = tuple(policies)
        self._seen: dict[RunId, _Seen] = {}
        self._due: list[tuple[Run, dict[str, float]]] = []

    def on_event(self, before: Run, event: Event, after: Run) -> None:
        """Take note of metrics, and of who has finished a chunk."""
        if not self._policies:
            return
        seen = self._seen.setdefault(after.id, _Seen())
        match event:
            case StepFinished():
                seen.losses.append(event.loss)
            case MetricsLogged():
                seen.latest.update(event.values)
            case ChunkFinished():
                mean = sum(seen.losses) / len(seen.losses) if seen.losses else math.nan
                self._due.append((after, {**seen.latest, "loss": mean}))
                seen.losses.clear()
            case _:
                pass

    def take(self, runs: Iterable[Run]) -> list[Command]:
        """The decisions about what happened since the last call."""
        if not self._due:
            return []
        due, self._due = self._due, []
        now = tuple(runs)
        decisions: list[Command] = []
        for run, metrics in due:
            for policy in self._policies:
                try:
                    decisions += (
                        replace(command, by=f"policy {type(policy).__name__}")
                        for command in policy.on_chunk(run, metrics, now)
                    )
                except Exception:
                    logger.exception("policy %r failed on run %d", policy, run.id)
        return decisions
