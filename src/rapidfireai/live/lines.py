"""Progress as plain lines of the log: for log files, pipes and everything that is no screen."""

import logging

from rapidfireai.core.events import (
    ChunkFinished,
    Event,
    RunCompleted,
    RunFailed,
    RunInterrupted,
    RunNoted,
    RunPruned,
    RunStarted,
    RunStopped,
)
from rapidfireai.core.run import Run
from rapidfireai.live.board import Board, details_last, told
from rapidfireai.live.layout import Layout, format_s, format_value
from rapidfireai.live.messages import LINES
from rapidfireai.live.table import text

logger = logging.getLogger(LINES)

_NUM_METRICS = 3
_WIDTH = 120


class ProgressLines:
    """Logs a line whenever a run starts, finishes a chunk or ends; an engine's listener.

    Args:
        board: Knows the runs' metrics; has taken each event in before it comes here.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self._noted: set[str] = set()

    def on_event(self, before: Run, event: Event, after: Run) -> None:
        """Log what a person watching wants to know of the event."""
        match event:
            case RunStarted():
                logger.info(
                    "run %s  %d steps in %d chunks", after.id, event.num_steps, event.num_chunks
                )
                for note in event.notes:
                    self._note(after, note)
            case RunNoted():
                self._note(after, event.note)
            case ChunkFinished() | RunCompleted():
                logger.info("run %s  %s", after.id, self._standing(after))
            case RunStopped() | RunPruned() | RunInterrupted():
                logger.info(
                    "run %s  %s at step %d: %s", after.id, after.status, after.step, event.reason
                )
            case RunFailed():
                logger.error("run %s  failed at step %d: %s", after.id, after.step, event.error)
                for note in event.notes:
                    self._note(after, note)
            case _:
                for said, level in told(event, after):
                    logger.log(level, "run %s  %s", after.id, said)

    def finish(self) -> None:
        """Log the ranking, if there is anything to rank."""
        for line in Layout(self._board).ranking(_WIDTH):
            logger.info("%s", text(line))

    def _note(self, run: Run, note: str) -> None:
        """Log a note; the same one about further runs is theirs to read in `get_runs_info`."""
        if note not in self._noted:
            self._noted.add(note)
            logger.info("run %s  note: %s", run.id, note)

    def _standing(self, run: Run) -> str:
        metrics = self._board.rows[run.id].metrics
        names = details_last(metrics)[:_NUM_METRICS]
        parts = [
            f"chunk {run.chunks_done}/{run.num_chunks}",
            f"step {run.step}/{run.num_steps}",
        ]
        if run.loss is not None:
            parts.append(f"loss {format_value(run.loss)}")
        parts += [f"{name} {format_value(metrics[name])}" for name in names]
        if run.ended:
            parts.append(f"completed in {format_s(run.active_s)}")
        elif run.remaining_s is not None:
            parts.append(f"{format_s(run.remaining_s)} to go")
        return "  ".join(parts)
