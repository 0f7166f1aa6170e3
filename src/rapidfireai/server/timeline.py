"""When which run held which worker, computed from an experiment's events."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from rapidfireai.core.events import (
    ChunkAssigned,
    ChunkFinished,
    RunCompleted,
    RunFailed,
    RunInterrupted,
    RunPruned,
    RunRecovered,
    RunStarted,
    RunStopped,
)
from rapidfireai.core.ids import RunId, WorkerId
from rapidfireai.store import EventRow

_ENDS: Final = {
    ChunkFinished: "paused",
    RunCompleted: "completed",
    RunStopped: "stopped",
    RunPruned: "pruned",
    RunFailed: "failed",
    RunInterrupted: "interrupted",
    RunRecovered: "killed",
}
"""What ends a turn, and what it is called."""

KINDS: Final = tuple(kind.__name__ for kind in (ChunkAssigned, RunStarted, *_ENDS))
"""The events that a timeline is made of."""


@dataclass(kw_only=True, slots=True)
class Turn:
    """A run's turn on a worker."""

    seq: int
    """Of the event with which it began."""
    run_id: RunId
    worker_id: WorkerId
    chunk: int
    start_s: float
    """When the worker got the order, in seconds since the Unix epoch."""
    started_s: float | None = None
    """When the run's trainer stood, for a turn in which it was built."""
    end_s: float | None = None
    """None while it goes on."""
    end: str | None = None
    """"paused" until the run's next turn; else what became of the run."""
    active_s: float | None = None
    """Seconds of the turn in which the run's own work was done; None while it goes on."""
    gap_s: float | None = None
    """Seconds in which the worker had nobody before this turn; None for the first one shown."""


@dataclass(kw_only=True, slots=True)
class Timeline:
    """Turns in the order in which they began."""

    turns: list[Turn] = field(default_factory=list)
    busy_s: float = 0.0
    """Seconds in which workers held a run, added up."""
    active_s: float = 0.0
    """Of these, seconds of the runs' own work; the rest is handing over, building and saving."""
    span_s: float = 0.0
    """Seconds from the first turn's begin to the last one's end, added up over workers."""
    first_seq: int = 0
    """Of the earliest event that was looked at; 0 if there was none."""
    last_seq: int = 0


def timeline(events: Iterable[EventRow], active_before: dict[RunId, float]) -> Timeline:
    """The turns that some events tell of.

    Args:
        events: In order, of the types of `KINDS`; turns that began before them are not shown.
        active_before: Active seconds of runs before the first event, as far as they are known.
    """
    found = Timeline()
    open_turns: dict[RunId, Turn] = {}
    last_ends: dict[WorkerId, float] = {}
    active = dict(active_before)
    for row in events:
        event = row.event
        found.first_seq = found.first_seq or row.seq
        found.last_seq = row.seq
        match event:
            case ChunkAssigned():
                turn = Turn(
                    seq=row.seq,
                    run_id=event.run_id,
                    worker_id=event.worker_id,
                    chunk=event.chunk,
                    start_s=row.time_s,
                )
                if event.worker_id in last_ends:
                    turn.gap_s = max(0.0, row.time_s - last_ends[event.worker_id])
                found.turns.append(turn)
                open_turns[event.run_id] = turn
            case RunStarted():
                active[event.run_id] = event.active_s
                if event.run_id in open_turns:
                    open_turns[event.run_id].started_s = row.time_s
            case _ if type(event) in _ENDS:
                ended = open_turns.pop(event.run_id, None)
                total_s = event.active_s  # type: ignore[union-attr]
                if ended is not None:
                    _end(ended, row, active, total_s)
                    last_ends[ended.worker_id] = row.time_s
                active[event.run_id] = total_s
    _add_up(found)
    return found


def _end(turn: Turn, row: EventRow, active: dict[RunId, float], total_s: float) -> None:
    turn.end_s = row.time_s
    turn.end = _ENDS[type(row.event)]
    before_s = active.get(turn.run_id, 0.0 if turn.chunk == 0 else None)
    if before_s is not None and not isinstance(row.event, RunRecovered):
        turn.active_s = min(max(0.0, total_s - before_s), turn.end_s - turn.start_s)


def _add_up(found: Timeline) -> None:
    spans: dict[WorkerId, tuple[float, float]] = {}
    for turn in found.turns:
        if turn.end_s is None or turn.end == "killed":
            continue  # nobody knows when a killed process ended
        found.busy_s += turn.end_s - turn.start_s
        found.active_s += turn.active_s or 0.0
        begin_s, _ = spans.get(turn.worker_id, (turn.start_s, 0.0))
        spans[turn.worker_id] = (begin_s, turn.end_s)
    found.span_s = sum(end_s - begin_s for begin_s, end_s in spans.values())
