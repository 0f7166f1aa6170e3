"""The engine: commands are carried out, what happened is applied, the next orders are sent.

It holds the runs of one experiment, knows no torch and no database, and takes every decision from
`scheduler.schedule`. Sinks (the store, the live view, trackers, policies) listen to its events.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from rapidfireai.core.clock import Clock, SystemClock
from rapidfireai.core.commands import (
    Command,
    CommandRecord,
    CommandStatus,
    Outcome,
    Preparer,
    Verb,
    events_of,
    refusal,
    told,
)
from rapidfireai.core.events import (
    ChunkAssigned,
    Event,
    RunAdded,
    RunCloned,
    RunInterrupted,
    RunPruned,
    RunPurged,
    RunStopped,
)
from rapidfireai.core.executor import Executor
from rapidfireai.core.ids import RunId, WorkerId
from rapidfireai.core.policy import Advice, Policy
from rapidfireai.core.run import Run, RunStatus, apply
from rapidfireai.core.scheduler import Assign, Snapshot, WaitingRun, WaitingRuns, schedule
from rapidfireai.errors import ConfigError, RapidFireError

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


class Record(Protocol):
    """Keeps the facts and the commands. What it did not take has not happened."""

    def on_event(
        self, before: Run, event: Event, after: Run, settles: Outcome | None = None
    ) -> None:
        """Keep that `event` turned `before` into `after`, and settled a command if it did."""
        ...

    def add_run(
        self, before: Run, event: Event, after: Run, settles: Outcome | None = None
    ) -> None:
        """Keep a new run, its first event, and that this settled a command if it did."""
        ...

    def pending(self) -> Sequence[CommandRecord]:
        """Commands that may have been given since the last call; quick if there are none."""
        ...

    def submit(self, command: Command) -> CommandRecord:
        """Keep a command of a policy's."""
        ...

    def settle(self, outcome: Outcome) -> None:
        """Keep what became of a command that changed nothing."""
        ...


class Supply(Protocol):
    """Has further runs begin while others train, as a search does that learns from them.

    Called from the engine's thread while no run trains, at the first step and whenever runs have
    ended a chunk or settled. What raises is switched off.
    """

    def next(self, runs: Sequence[Run], run_id: RunId) -> Run | None:
        """The next run, queued and ready to be trained; None if there is to be none for now.

        Args:
            runs: All as they are now.
            run_id: The new run's.
        """
        ...


class _Unprepared:
    """For engines whose runs need no preparation, and whose executors could train no clones."""

    def resume(self, run: Run) -> None:
        """Nothing to do."""

    def clone(self, parent: Run, command: Command, run_id: RunId) -> Run:
        """Refuse."""
        raise ConfigError("these runs cannot be cloned")


class Engine:
    """Drives runs to their end on an executor's workers.

    Args:
        runs: The runs, queued, in the order in which equal ones are served.
        executor: Carries out the orders.
        record: Keeps the facts; told first, and its failure is the engine's.
        listeners: Told after `record`; their failures are logged.
        policies: Asked at the end of chunks what to do with which runs.
        preparer: Makes resumed runs and clones ready to be trained.
        clock: Tells until when a deletion can be undone.
        supply: Has further runs begin while these train.
    """

    def __init__(  # noqa: PLR0913 - what an experiment consists of
        self,
        runs: Sequence[Run],
        executor: Executor,
        record: Record,
        listeners: Sequence[Listener] = (),
        policies: Sequence[Policy] = (),
        preparer: Preparer | None = None,
        clock: Clock | None = None,
        supply: Supply | None = None,
    ) -> None:
        self._runs = {run.id: run for run in runs}
        self._executor = executor
        self._record = record
        self._preparer = preparer or _Unprepared()
        self._clock = clock or SystemClock()
        self._supply = supply
        self._has_room = True
        """Whether the supply has to be asked, since runs have ended a chunk or settled."""
        self._advice = Advice(policies, runs)
        self._owed: list[Command] = []
        """Decisions that an earlier process did not come to write down."""
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
        """Carry out commands, take in what happened, give every idle worker its next order."""
        self.heed_commands()
        for event in self._executor.receive():
            self._apply(event)
        self._heed_policies()
        self._replenish()
        for order in schedule(Snapshot(waiting=self._waiting, idle=self._idle())):
            self._assign(order)
        assert self._busy or self.ended, "an executor has at least one worker"

    def recall(
        self,
        begin: Iterable[Run],
        history: Iterable[tuple[Run, Event, Run]],
        given: Iterable[Command],
    ) -> None:
        """Let policies know what earlier processes recorded; before the first step.

        Args:
            begin: The runs as they were before the first event.
            history: Every event, with the run before and after it.
            given: What policies asked for then.

        Raises:
            ObjectiveError: See `Policy`.
        """
        self._owed += self._advice.recall(begin, history, given)
        self._advice.meet(self._runs.values())

    def heed_commands(self) -> None:
        """Settle the commands that have been given meanwhile."""
        for one in self._record.pending():
            self._carry_out(one)
        # Whoever stopped the last run of all, or killed the process after it, has not ended the
        # search.
        self._replenish()

    def purge(self, run_id: RunId) -> None:
        """Note that the files of a deleted run are gone."""
        self._apply(RunPurged(run_id=run_id))

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

    def _heed_policies(self) -> None:
        owed, self._owed = self._owed, []
        for decision in (*owed, *self._advice.take(self._runs.values())):
            self._carry_out(self._record.submit(decision))

    def _replenish(self) -> None:
        """Take in what the supply has for the places of runs that have settled."""
        if not self._has_room:
            return
        self._has_room = False
        while self._supply is not None:
            try:
                run = self._supply.next(self.runs, RunId(max(self._runs, default=0) + 1))
            except Exception:
                logger.warning(
                    "the search %s failed and is switched off; what it began trains on",
                    type(self._supply).__name__,
                    exc_info=True,
                )
                self._supply = None
                return
            if run is None:
                return
            event = RunAdded(run_id=run.id, reason="; ".join(run.notes) or "asked for by a search")
            run = replace(run, notes=())
            self._enter(run, event, None)

    def _carry_out(self, given: CommandRecord) -> None:
        command = given.command
        reason = refusal(command, self._runs)
        clone = None
        if reason is None and command.verb is Verb.CLONE and command.warm_start:
            for event in self._executor.save(command.run_id):
                self._apply(event)
        if reason is None:
            try:
                clone = self._prepare(command)
            except RapidFireError as error:
                reason = str(error)
            except Exception as error:
                # Functions of the user's are called there.
                logger.exception("%s: it could not be prepared", command)
                reason = f"{type(error).__name__}: {error}"
        if reason is not None:
            logger.warning("%s (%s): rejected: %s", command, command.by, reason)
            outcome = Outcome(command_id=given.id, status=CommandStatus.REJECTED, text=reason)
            self._record.settle(outcome)
        elif clone is not None:
            self._take_in(clone, given)
        else:
            self._obey(given)

    def _prepare(self, command: Command) -> Run | None:
        """Do what may fail before anything changes; returns a clone."""
        run = self._runs[command.run_id]
        if command.verb is Verb.RESUME:
            self._preparer.resume(run)
        if command.verb is not Verb.CLONE:
            return None
        return self._preparer.clone(run, command, RunId(max(self._runs) + 1))

    def _obey(self, given: CommandRecord) -> None:
        command, run = given.command, self._runs[given.command.run_id]
        events = events_of(command, run, self._clock.now())
        if isinstance(events[0], RunStopped | RunPruned):
            events[:1] = self._end(run, events[0])
        for event in events[:-1]:
            self._apply(event)
        self._apply(events[-1], settles=given)

    def _end(self, run: Run, end: RunStopped | RunPruned) -> list[Event]:
        """Let the executor end the run: its last events."""
        *before, last = self._executor.stop(run.id, end.reason)
        if isinstance(end, RunPruned) and isinstance(last, RunStopped):
            last = RunPruned(run_id=run.id, reason=end.reason, active_s=last.active_s)
        return [*before, last]

    def _take_in(self, clone: Run, given: CommandRecord) -> None:
        parent = self._runs[given.command.run_id]
        event = RunCloned(run_id=clone.id, parent_id=parent.id)
        outcome = Outcome(
            command_id=given.id,
            status=CommandStatus.APPLIED,
            text="; ".join((f"run {clone.id} is a clone of run {parent.id}", *clone.notes)),
            step=parent.step,
            new_run_id=clone.id,
        )
        self._enter(clone, event, outcome)

    def _enter(self, run: Run, event: RunCloned | RunAdded, settles: Outcome | None) -> None:
        after = apply(run, event)
        self._record.add_run(run, event, after, settles)
        self._runs[run.id] = after
        self._open.add(run.id)
        self._waiting.add(_waiting_run(after))
        self._tell(run, event, after)

    def _idle(self) -> tuple[WorkerId, ...]:
        return tuple(worker for worker in self._executor.workers if worker not in self._busy)

    def _assign(self, order: Assign) -> None:
        self._apply(
            ChunkAssigned(run_id=order.run_id, worker_id=order.worker_id, chunk=order.chunk)
        )
        self._executor.assign(order)

    def _apply(self, event: Event, settles: CommandRecord | None = None) -> None:
        before = self._runs[event.run_id]
        after = apply(before, event)
        outcome = None if settles is None else _outcome(settles, after)
        # First of all: what the record did not take has not happened.
        self._record.on_event(before, event, after, outcome)
        self._runs[event.run_id] = after
        if after.status is not before.status:
            self._refile(before, after)
        self._tell(before, event, after)

    def _tell(self, before: Run, event: Event, after: Run) -> None:
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
        if after.status is not RunStatus.RUNNING:
            self._has_room = True
        if after.ended:
            self._open.discard(after.id)
        else:
            self._open.add(after.id)


def _outcome(given: CommandRecord, run: Run) -> Outcome:
    return Outcome(
        command_id=given.id,
        status=CommandStatus.APPLIED,
        text=told(given.command, run),
        step=run.step,
    )


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
