"""Progress of an experiment as plain lines, for terminals, notebooks and log files alike."""

import logging
from typing import Any

from rapidfireai.core.events import (
    ChunkFinished,
    Event,
    MetricsLogged,
    MetricSource,
    RunCompleted,
    RunFailed,
    RunStarted,
    RunStopped,
)
from rapidfireai.core.ids import RunId
from rapidfireai.core.run import Run

logger = logging.getLogger(__name__)


class ProgressLines:
    """Logs a line whenever a run starts, finishes a chunk or ends; an engine's listener."""

    def __init__(self) -> None:
        self._evaluated: dict[RunId, dict[str, float]] = {}

    def on_event(self, before: Run, event: Event, after: Run) -> None:
        """Log what a person watching wants to know of the event."""
        match event:
            case RunStarted():
                logger.info(
                    "%s  %d steps in %d chunks", _label(after), event.num_steps, event.num_chunks
                )
                for note in event.notes:
                    logger.info("%s  note: %s", _label(after), note)
            case MetricsLogged(source=MetricSource.CHUNK):
                self._evaluated[after.id] = dict(event.values)
            case ChunkFinished() | RunCompleted():
                logger.info("%s  %s", _label(after), self._standing(after))
            case RunStopped():
                logger.info("%s  stopped at step %d: %s", _label(after), after.step, event.reason)
            case RunFailed():
                logger.error("%s  failed at step %d: %s", _label(after), after.step, event.error)
            case _:
                pass

    def _standing(self, run: Run) -> str:
        parts = [
            f"chunk {run.chunks_done}/{run.num_chunks}",
            f"step {run.step}/{run.num_steps}",
        ]
        if run.loss is not None:
            parts.append(f"loss {run.loss:.4f}")
        evaluated = self._evaluated.get(run.id, {})
        parts += [f"{name} {value:.4f}" for name, value in evaluated.items() if "loss" in name]
        if run.ended:
            parts.append(f"completed in {format_s(run.active_s)}")
        elif run.remaining_s is not None:
            parts.append(f"{format_s(run.remaining_s)} to go")
        return "  ".join(parts)


def format_s(seconds: float) -> str:
    """Seconds as 0:42, 12:05 or 3:07:10."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _label(run: Any) -> str:
    return f"run {run.id}"
