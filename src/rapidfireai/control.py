"""Giving commands to an experiment from wherever one is: its own process, or another one.

A command is written into the experiment's store, where the process that trains it finds it before
its next step. Where no process does, whoever gives the command takes the experiment's lock and
carries it out himself; only a clone has to wait until the script is run again, since its functions
and data are in there.
"""

import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from typing import Final

from rapidfireai.core import schema
from rapidfireai.core.clock import SystemClock
from rapidfireai.core.commands import (
    Command,
    CommandId,
    CommandRecord,
    CommandStatus,
    Outcome,
    Verb,
    events_of,
    refusal,
    told,
)
from rapidfireai.core.events import Json, RunPurged
from rapidfireai.core.ids import RunId
from rapidfireai.core.run import Run, RunStatus, apply
from rapidfireai.core.schema import Schema, changes
from rapidfireai.errors import ConfigError, ExperimentBusyError, StoreError
from rapidfireai.paths import ExperimentFolder
from rapidfireai.store import SqliteStore, Store

WAIT_S: Final = 60.0
"""How long an answer is waited for by default: a step may take long, and so may an evaluation."""

_POLL_S: Final = 0.01

_NEEDS_SCRIPT: Final = frozenset({Verb.CLONE})
_LEADS_ON: Final = frozenset({Verb.CLONE, Verb.RESUME})


def check(folder: ExperimentFolder, commands: Sequence[Command]) -> list[str | None]:
    """Why each command would be rejected as things stand; None for those that would not.

    Raises:
        ConfigError: The experiment has no runs yet.
        StoreError: Its store cannot be read.
    """
    with closing(open_store(folder)) as store:
        return _refusals(commands, store)


def give(
    folder: ExperimentFolder, commands: Sequence[Command], *, wait_s: float = WAIT_S
) -> list[CommandRecord]:
    """Give commands, and wait until they are settled.

    Args:
        folder: The experiment's.
        commands: Carried out in this order.
        wait_s: Seconds to wait for the process that trains; 0 does not wait.

    Returns:
        What became of each: those that nobody has come to in time are pending, and stay in force.

    Raises:
        ConfigError: The experiment has no runs yet.
        StoreError: Its store cannot be read or written.
    """
    with closing(open_store(folder)) as store:
        clock = SystemClock()
        given = [
            store.submit(command, clock.now(), refused)
            for command, refused in zip(commands, _refusals(commands, store), strict=True)
        ]
        _wait(folder, store, {record.id for record in given}, wait_s)
        settled = {record.id: record for record in store.commands()}
        return [settled[record.id] for record in given]


def leads_on(store: Store) -> bool:
    """Whether a command is pending that gives the script, run again, something to do."""
    pending = store.commands(status=CommandStatus.PENDING)
    return any(record.command.verb in _LEADS_ON for record in pending)


def differences(folder: ExperimentFolder, command: Command) -> dict[str, list[Json]]:
    """What a clone's knobs would be changed from and to, by their full names.

    Args:
        folder: The experiment's.
        command: A clone's, which `check` has found nothing against.

    Raises:
        StoreError: The experiment's store cannot be read.
    """
    with closing(open_store(folder)) as store:
        (config,) = (run.config for run in store.runs() if run.id == command.run_id)
        schemas = store.schemas()
    return schema.differences(config, command.modify, schemas)


def expired(runs: Iterable[Run], now_s: float) -> list[RunId]:
    """Deleted runs that cannot be restored any more, and whose files can go."""
    return [
        run.id
        for run in runs
        if run.status is RunStatus.DELETED
        and not run.purged
        and run.undo_until_s is not None
        and run.undo_until_s <= now_s
    ]


def purge(folder: ExperimentFolder, store: Store, run: Run) -> None:
    """Remove the files of a deleted run. The caller holds the experiment's lock."""
    event = RunPurged(run_id=run.id)
    # First of all: a run whose files are gone must not be restored.
    store.record(run, event, apply(run, event), SystemClock().now())
    remove_files(folder, run.id)


def remove_files(folder: ExperimentFolder, run_id: RunId) -> None:
    """Remove all that a purged run has left; what cannot be removed stays for `clean`."""
    shutil.rmtree(folder.run(run_id), ignore_errors=True)


def settle_alone(folder: ExperimentFolder, store: Store) -> None:
    """Carry out what is pending and needs no script. The caller holds the experiment's lock."""
    clock = SystemClock()
    for given in store.commands(status=CommandStatus.PENDING):
        if given.command.verb in _NEEDS_SCRIPT:
            continue
        runs = {run.id: run for run in store.runs()}
        reason = refusal(given.command, runs)
        if reason is None:
            _carry_out(given, runs[given.command.run_id], store, clock.now())
        else:
            store.settle(_outcome(given, CommandStatus.REJECTED, reason), clock.now())
    stored = {run.id: run for run in store.runs()}
    for run_id in expired(stored.values(), clock.now()):
        purge(folder, store, stored[run_id])


def open_store(folder: ExperimentFolder) -> SqliteStore:
    """The experiment's store.

    Raises:
        ConfigError: It has none yet.
        StoreError: It cannot be opened.
    """
    if not folder.store.exists():
        raise ConfigError(
            f"the experiment {folder.name!r} has no runs yet; call run_fit(...) first"
        )
    if folder.store.stat().st_size == 0:
        # SQLite would take it for a new one.
        raise StoreError(f"{folder.store} is empty: it has been truncated; restore it from a copy")
    return SqliteStore(folder.store)


def _refusals(commands: Sequence[Command], store: Store) -> list[str | None]:
    runs = {run.id: run for run in store.runs()}
    schemas = store.schemas()
    return [refusal(command, runs) or _wrong_knob(command, runs, schemas) for command in commands]


def _wrong_knob(
    command: Command, runs: Mapping[RunId, Run], schemas: Mapping[str, Schema]
) -> str | None:
    if command.verb is not Verb.CLONE:
        return None
    try:
        changes(runs[command.run_id].config, command.modify, schemas)
    except ConfigError as error:
        return str(error)
    return None


def _wait(folder: ExperimentFolder, store: SqliteStore, ids: set[CommandId], wait_s: float) -> None:
    deadline_s = time.monotonic() + wait_s
    while True:
        pending = [r for r in store.commands(status=CommandStatus.PENDING) if r.id in ids]
        if not pending:
            return
        try:
            with folder.locked():
                settle_alone(folder, store)
            return
        except ExperimentBusyError:
            pass
        if time.monotonic() >= deadline_s:
            return
        time.sleep(_POLL_S)


def _carry_out(given: CommandRecord, run: Run, store: Store, now_s: float) -> None:
    events = events_of(given.command, run, now_s)
    for event in events:
        after = apply(run, event)
        outcome = None
        if event is events[-1]:
            text = told(given.command, after)
            outcome = _outcome(given, CommandStatus.APPLIED, text, after.step)
        store.record(run, event, after, now_s, outcome)
        run = after


def _outcome(
    given: CommandRecord, status: CommandStatus, text: str, step: int | None = None
) -> Outcome:
    return Outcome(command_id=given.id, status=status, text=text, step=step)
