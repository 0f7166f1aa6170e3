"""A run and the life it can lead.

Everything that affects a run's status lives in this file: `TRANSITIONS` is the whole table, and
`apply` the only function that follows it. An event that the table does not allow raises and
changes nothing. The picture in `docs/architecture.md` is drawn from the table.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, assert_never

from rapidfireai.core.events import (
    ChunkAssigned,
    ChunkFinished,
    Event,
    Json,
    MetricsLogged,
    ModeChosen,
    RunAdded,
    RunCloned,
    RunCompleted,
    RunDeleted,
    RunFailed,
    RunInterrupted,
    RunNoted,
    RunPinned,
    RunPruned,
    RunPurged,
    RunRecovered,
    RunRestored,
    RunResumed,
    RunStarted,
    RunStopped,
    StepFinished,
)
from rapidfireai.core.ids import RunId, WorkerId
from rapidfireai.core.modes import chosen
from rapidfireai.errors import IllegalTransitionError


class RunStatus(StrEnum):
    """Where a run is in its life."""

    QUEUED = "queued"
    """Accepted; nothing of it has been built yet."""
    RUNNING = "running"
    """Holds a worker and trains."""
    WAITING = "waiting"
    """Paused at a chunk boundary, complete in memory, until its next turn."""
    COMPLETED = "completed"
    """Did all its steps."""
    STOPPED = "stopped"
    """Ended early on request; its folder holds what it learned, and it can be resumed."""
    FAILED = "failed"
    """Raised, ran out of memory or diverged; its error and traceback are stored."""
    INTERRUPTED = "interrupted"
    """Written down because the process was asked to end; the same script again takes it up."""
    PRUNED = "pruned"
    """Ended early as not promising; otherwise as stopped."""
    DELETED = "deleted"
    """Removed; for a while it can be restored, then its files go."""


SETTLED: Final = frozenset(
    {RunStatus.COMPLETED, RunStatus.STOPPED, RunStatus.PRUNED}
    | {RunStatus.FAILED, RunStatus.DELETED}
)
"""Statuses in which a run stays until somebody asks for something else."""

ENDED: Final = SETTLED | {RunStatus.INTERRUPTED}
"""Statuses in which a run trains no more in this process."""

_Row = Mapping[type, RunStatus | None]

_ENDS: Final[_Row] = {
    RunStopped: RunStatus.STOPPED,
    RunPruned: RunStatus.PRUNED,
    RunFailed: RunStatus.FAILED,
}

_STAYS_SETTLED: Final[_Row] = {RunDeleted: RunStatus.DELETED}

_GOES_ON: Final[_Row] = {RunResumed: RunStatus.QUEUED, **_STAYS_SETTLED}

AS_BEFORE: Final = None
"""In the table: the status from which the run was deleted."""

TRANSITIONS: Final[Mapping[RunStatus, _Row]] = {
    RunStatus.QUEUED: {
        RunCloned: RunStatus.QUEUED,
        RunAdded: RunStatus.QUEUED,
        RunPinned: RunStatus.QUEUED,
        ChunkAssigned: RunStatus.RUNNING,
        **_ENDS,
    },
    RunStatus.RUNNING: {
        RunStarted: RunStatus.RUNNING,
        StepFinished: RunStatus.RUNNING,
        MetricsLogged: RunStatus.RUNNING,
        RunNoted: RunStatus.RUNNING,
        ModeChosen: RunStatus.RUNNING,
        RunPinned: RunStatus.RUNNING,
        ChunkFinished: RunStatus.WAITING,
        RunCompleted: RunStatus.COMPLETED,
        RunInterrupted: RunStatus.INTERRUPTED,
        # The process that ran it was killed.
        RunRecovered: RunStatus.QUEUED,
        **_ENDS,
    },
    RunStatus.WAITING: {
        ChunkAssigned: RunStatus.RUNNING,
        # A waiting run that is stopped ends its trainer first, which logs and has notes to give.
        MetricsLogged: RunStatus.WAITING,
        RunNoted: RunStatus.WAITING,
        RunPinned: RunStatus.WAITING,
        RunInterrupted: RunStatus.INTERRUPTED,
        RunRecovered: RunStatus.QUEUED,
        **_ENDS,
    },
    RunStatus.INTERRUPTED: {
        RunRecovered: RunStatus.QUEUED,
        RunStopped: RunStatus.STOPPED,
        RunPruned: RunStatus.PRUNED,
        RunPinned: RunStatus.INTERRUPTED,
    },
    RunStatus.COMPLETED: {RunPinned: RunStatus.COMPLETED, **_STAYS_SETTLED},
    RunStatus.STOPPED: {RunPinned: RunStatus.STOPPED, **_GOES_ON},
    RunStatus.PRUNED: {RunPinned: RunStatus.PRUNED, **_GOES_ON},
    RunStatus.FAILED: {RunPinned: RunStatus.FAILED, **_GOES_ON},
    RunStatus.DELETED: {RunRestored: AS_BEFORE, RunPurged: RunStatus.DELETED},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One configuration in training: what was asked for and how far it is."""

    id: RunId
    name: str
    config: Mapping[str, Json]
    """The configuration as given, after the search has expanded it."""
    identity: str = ""
    """Digest of all that decides about the run's numbers; equal ones are told apart by order."""
    path: str
    """Folder that holds the run's model, tokenizer, trainer state and configuration."""
    status: RunStatus = RunStatus.QUEUED
    worker_id: WorkerId | None = None
    """Worker that holds the run's state; None before it is first assigned."""
    resolved: Mapping[str, Json] = field(default_factory=dict)
    """The arguments in force; empty before the run's trainer stands."""
    step: int = 0
    start_step: int = 0
    """Of a warm-started clone: the step at which it began, all before being its parent's."""
    num_steps: int | None = None
    """Optimizer steps of the whole run; None before its trainer stands."""
    chunks_done: int = 0
    num_chunks: int | None = None
    """None before the run's trainer stands."""
    active_s: float = 0.0
    """Seconds the run has held a worker, pauses excluded."""
    loss: float | None = None
    """Loss of the latest step."""
    error: str | None = None
    traceback: str | None = None
    notes: tuple[str, ...] = ()
    modes: tuple[Mapping[str, Json], ...] = ()
    """How its passes are computed: the latest choice for each kind of pass, see `core.modes`."""
    pinned: bool = False
    """Protected from being pruned and deleted."""
    parent_id: RunId | None = None
    """The run that it was cloned from."""
    modified: Mapping[str, Json] = field(default_factory=dict)
    """Of a clone: the knobs that were modified, by full name, each as [the parent's, its own]."""
    fork: Mapping[str, Json] | None = None
    """Of a warm-started clone: from where it began, and how; see `core.fork`."""
    deleted_from: RunStatus | None = None
    """Of a deleted run: the status to which it would be restored."""
    undo_until_s: float | None = None
    """Of a deleted run: until when, in seconds since the Unix epoch."""
    purged: bool = False
    """Whether its files are gone."""

    @property
    def ended(self) -> bool:
        """Whether the run trains no more in this process."""
        return self.status in ENDED

    @property
    def unfinished(self) -> bool:
        """Whether the same script, run again, has something left to do for the run."""
        return self.status not in SETTLED

    @property
    def remaining_s(self) -> float | None:
        """Active seconds the run still needs at its pace so far; None before its first step."""
        num_done = self.step - self.start_step
        if self.num_steps is None or num_done <= 0:
            return None
        return self.active_s / num_done * (self.num_steps - self.step)


def apply(run: Run, event: Event) -> Run:
    """The run after the event.

    Raises:
        IllegalTransitionError: The run's status does not allow the event. The run is unchanged.
    """
    try:
        status = TRANSITIONS[run.status][type(event)]
    except KeyError:
        raise IllegalTransitionError(run.id, run.status, type(event).__name__) from None
    if status is AS_BEFORE:
        status = run.deleted_from
        assert status is not None, "a deleted run knows what it was"
    return replace(run, status=status, **_changes(run, event))


def _changes(run: Run, event: Event) -> dict[str, Json]:  # noqa: C901, PLR0912 - a table: one case each
    match event:
        case ChunkAssigned():
            return {"worker_id": event.worker_id}
        case RunStarted():
            return {
                "num_steps": event.num_steps,
                "num_chunks": event.num_chunks,
                "step": event.step,
                # No time spent on what lies behind it: that was its parent's.
                "start_step": run.start_step if event.active_s else event.step,
                "chunks_done": event.chunks_done,
                "active_s": event.active_s,
                "resolved": dict(event.resolved),
                # Those that it had before its process ended are given again.
                "notes": (*run.notes, *(note for note in event.notes if note not in run.notes)),
            }
        case StepFinished():
            return {"step": event.step, "loss": event.loss, "active_s": event.active_s}
        case MetricsLogged():
            return {}
        case RunNoted():
            return {"notes": (*run.notes, event.note)}
        case ModeChosen():
            return {"modes": chosen(run.modes, event, run.step)}
        case ChunkFinished():
            return {
                "step": event.step,
                "chunks_done": event.chunk + 1,
                "active_s": event.active_s,
            }
        case RunCompleted():
            return {
                "step": event.step,
                # Not `num_chunks`: a trainer's own callback may end the training early.
                "chunks_done": run.chunks_done + 1,
                "active_s": event.active_s,
            }
        case RunStopped():
            return {"active_s": event.active_s, "notes": (*run.notes, f"stopped: {event.reason}")}
        case RunPruned():
            return {"active_s": event.active_s, "notes": (*run.notes, f"pruned: {event.reason}")}
        case RunResumed():
            return {"worker_id": None, "error": None, "traceback": None}
        case RunDeleted():
            return {"deleted_from": run.status, "undo_until_s": event.undo_until_s}
        case RunRestored():
            return {"deleted_from": None, "undo_until_s": None}
        case RunPurged():
            return {"purged": True}
        case RunPinned():
            return {"pinned": event.pinned}
        case RunCloned():
            return {"parent_id": event.parent_id}
        case RunAdded():
            return {"notes": (*run.notes, event.reason)}
        case RunInterrupted():
            return {"active_s": event.active_s}
        case RunRecovered():
            return {
                "step": event.step,
                "chunks_done": event.chunks_done,
                "active_s": event.active_s,
                "worker_id": None,
            }
        case RunFailed():
            return {
                "active_s": event.active_s,
                "error": event.error,
                "traceback": event.traceback,
                "notes": run.notes + event.notes,
            }
        case _:  # pragma: no cover - mypy proves that this cannot be reached
            assert_never(event)
