"""What people, programs and policies ask of runs while they train, and what became of it.

There is one kind of command for all who ask: Python, the command line, HTTP and policies. It is a
row of the store from the moment it is given, and the engine settles it at the next step: applied,
or rejected with the reason. `refusal` is the one place that decides which of the two.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NewType, Protocol

from rapidfireai.core.events import (
    Event,
    Json,
    RunDeleted,
    RunPinned,
    RunPruned,
    RunRestored,
    RunResumed,
    RunStopped,
)
from rapidfireai.core.fork import OptimizerState, Schedule
from rapidfireai.core.ids import RunId
from rapidfireai.core.run import Run, RunStatus

CommandId = NewType("CommandId", int)
"""Number of a command within its experiment, from 1, in the order in which they were given."""

UNDO_S: Final = 600.0
"""Seconds for which a deleted run can be restored."""


class Verb(StrEnum):
    """What can be asked for."""

    STOP = "stop"
    """End the run here. What it learned is kept, and its device memory is free at once."""
    RESUME = "resume"
    """Let an ended run go on where it is, bit for bit."""
    PRUNE = "prune"
    """Stop the run because it is not promising."""
    DELETE = "delete"
    """Remove the run; first stop it if it trains."""
    RESTORE = "restore"
    """Undo a deletion."""
    PIN = "pin"
    """Protect the run from being pruned and deleted."""
    UNPIN = "unpin"
    """End that protection."""
    CLONE = "clone"
    """Make a new run with the same configuration, apart from what is modified."""


class CommandStatus(StrEnum):
    """What became of a command."""

    PENDING = "pending"
    """Given; the process that trains the experiment has not come to it yet."""
    APPLIED = "applied"
    REJECTED = "rejected"
    """Impossible, or too late: nothing has changed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """One thing asked of one run."""

    verb: Verb
    run_id: RunId
    by: str = "python"
    """Who asks: "python", "cli", "http", or "policy" with its name."""
    reason: str = ""
    """Why; kept with the run where it ends one."""
    modify: Mapping[str, Json] = field(default_factory=dict)
    """For a clone: knobs of the parent's configuration and their new values."""
    warm_start: bool = False
    """For a clone: begin with the parent's weights and progress instead of anew."""
    optimizer: OptimizerState = OptimizerState.KEEP
    """For a warm start: what becomes of the optimizer's state."""
    schedule: Schedule = Schedule.CONTINUE
    """For a warm start: where the learning rate's schedule begins."""

    def __str__(self) -> str:
        return f"{self.verb} run {self.run_id}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a command was settled."""

    command_id: CommandId
    status: CommandStatus
    text: str
    """For people: what happened, or why nothing did."""
    step: int | None = None
    """The run's step at which it was applied."""
    new_run_id: RunId | None = None
    """Of a clone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CommandRecord:
    """A command and what became of it so far."""

    id: CommandId
    command: Command
    given_s: float
    """When, in seconds since the Unix epoch."""
    status: CommandStatus = CommandStatus.PENDING
    settled_s: float | None = None
    outcome: str = ""
    step: int | None = None
    new_run_id: RunId | None = None

    @property
    def latency_s(self) -> float | None:
        """Seconds from being given to being settled."""
        return None if self.settled_s is None else self.settled_s - self.given_s

    def to_json(self) -> dict[str, Json]:
        """All of it in one level of JSON, as every list of commands shows it."""
        command = self.command
        return {
            "command_id": self.id,
            "verb": command.verb.value,
            "run_id": command.run_id,
            "by": command.by,
            "reason": command.reason,
            "modify": dict(command.modify),
            "warm_start": command.warm_start,
            "optimizer": command.optimizer.value,
            "schedule": command.schedule.value,
            "given_s": self.given_s,
            "status": self.status.value,
            "settled_s": self.settled_s,
            "latency_s": self.latency_s,
            "outcome": self.outcome,
            "step": self.step,
            "new_run_id": self.new_run_id,
        }


class Preparer(Protocol):
    """Makes runs ready to be trained; knows what a configuration means."""

    def resume(self, run: Run) -> None:
        """Have an ended run ready to go on.

        Raises:
            RapidFireError: It cannot, and nothing has changed.
        """
        ...

    def clone(self, parent: Run, command: Command, run_id: RunId) -> Run:
        """The new run, queued and ready to be trained.

        Args:
            parent: As it is now; one that trains has just been written down for a warm start.
            command: A clone's.
            run_id: The new run's.

        Raises:
            RapidFireError: It cannot be made, and nothing has changed.
        """
        ...


_ENDED_EARLY: Final = frozenset({RunStatus.STOPPED, RunStatus.PRUNED, RunStatus.FAILED})


def refusal(command: Command, runs: Mapping[RunId, Run]) -> str | None:
    """Why a command cannot be applied as things stand; None if it can, as far as that shows here.

    What a clone's new values are worth is for the `Preparer` to say.
    """
    run = runs.get(command.run_id)
    if run is None:
        known = ", ".join(map(str, runs)) or "none"
        return f"there is no run {command.run_id}; the experiment's runs are {known}"
    if run.status is RunStatus.DELETED and command.verb is not Verb.RESTORE:
        hint = "its files are gone" if run.purged else f"restore run {run.id} first"
        return f"run {run.id} is deleted: {hint}"
    return _REFUSALS[command.verb](run, command)


def _no_end(run: Run, command: Command) -> str | None:
    if not run.unfinished:
        return f"run {run.id} is {run.status} already: there is nothing to {command.verb}"
    if command.verb is Verb.PRUNE and run.pinned:
        return f"run {run.id} is pinned: unpin it before it is pruned, or stop it"
    return None


def _no_resumption(run: Run, command: Command) -> str | None:
    if run.status in _ENDED_EARLY:
        return None
    if run.unfinished:
        return f"run {run.id} is {run.status}: it goes on anyway"
    return (
        f"run {run.id} is {run.status}: it has done all its steps. To train it longer, clone it "
        "with warm_start=True and more steps (max_steps, or num_train_epochs)"
    )


def _no_deletion(run: Run, command: Command) -> str | None:
    return f"run {run.id} is pinned: unpin it before it is deleted" if run.pinned else None


def _no_restoration(run: Run, command: Command) -> str | None:
    if run.status is not RunStatus.DELETED:
        return f"run {run.id} is {run.status}, not deleted: there is nothing to restore"
    return f"run {run.id} cannot be restored: its files are gone" if run.purged else None


def _no_pin(run: Run, command: Command) -> str | None:
    is_pin = command.verb is Verb.PIN
    if run.pinned is is_pin:
        return f"run {run.id} is {'pinned already' if is_pin else 'not pinned'}"
    return None


def _no_clone(run: Run, command: Command) -> str | None:
    if command.warm_start and run.step == 0:
        return (
            f"run {run.id} has not finished a step, so there is nothing to start from: clone it "
            "with warm_start=False"
        )
    return None


_REFUSALS: Final = {
    Verb.STOP: _no_end,
    Verb.PRUNE: _no_end,
    Verb.RESUME: _no_resumption,
    Verb.DELETE: _no_deletion,
    Verb.RESTORE: _no_restoration,
    Verb.PIN: _no_pin,
    Verb.UNPIN: _no_pin,
    Verb.CLONE: _no_clone,
}


def events_of(command: Command, run: Run, now_s: float) -> list[Event]:
    """What a command that is not refused does to a run that nobody trains at this moment.

    Args:
        command: Any but a clone's.
        run: As it is.
        now_s: Seconds since the Unix epoch.
    """
    run_id, reason = command.run_id, command.reason or f"by {command.by}"
    match command.verb:
        case Verb.STOP:
            return [RunStopped(run_id=run_id, reason=reason, active_s=run.active_s)]
        case Verb.PRUNE:
            return [RunPruned(run_id=run_id, reason=reason, active_s=run.active_s)]
        case Verb.RESUME:
            return [RunResumed(run_id=run_id)]
        case Verb.DELETE:
            deleted = RunDeleted(run_id=run_id, undo_until_s=now_s + UNDO_S)
            if not run.unfinished:
                return [deleted]
            return [RunStopped(run_id=run_id, reason="deleted", active_s=run.active_s), deleted]
        case Verb.RESTORE:
            return [RunRestored(run_id=run_id)]
        case Verb.PIN | Verb.UNPIN:
            return [RunPinned(run_id=run_id, pinned=command.verb is Verb.PIN)]
        case Verb.CLONE:
            raise AssertionError("a clone is another run's beginning")


def told(command: Command, run: Run) -> str:
    """What was done, for people.

    Args:
        command: One that has been applied.
        run: As it is by now.
    """
    match command.verb:
        case Verb.STOP | Verb.PRUNE | Verb.RESUME:
            return f"run {run.id} is {run.status} at step {run.step}"
        case Verb.DELETE:
            return f"run {run.id} is deleted; for {UNDO_S / 60:.0f} minutes it can be restored"
        case Verb.RESTORE:
            return f"run {run.id} is restored: it is {run.status}"
        case Verb.PIN | Verb.UNPIN:
            return f"run {run.id} is {'pinned' if run.pinned else 'no longer pinned'}"
        case Verb.CLONE:
            return f"run {run.id} was cloned"
