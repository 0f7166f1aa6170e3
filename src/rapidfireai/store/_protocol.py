"""What every store of experiments can do, and the contract that its tests examine."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rapidfireai.core.commands import Command, CommandId, CommandRecord, CommandStatus, Outcome
from rapidfireai.core.events import Event, Json, MetricSource
from rapidfireai.core.ids import RunId
from rapidfireai.core.run import Run
from rapidfireai.errors import StaleRunError, StoreError


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentRecord:
    """What is known of an experiment as a whole."""

    name: str
    created_s: float
    """Seconds since the Unix epoch."""
    seed: int
    num_chunks: int
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of the libraries that the numbers depend on."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `run_fit`, JSON."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricRow:
    """One measured value, of a run that the store holds. `value` may be NaN or infinite."""

    run_id: RunId
    source: MetricSource
    step: int
    name: str
    value: float
    time_s: float
    """Seconds since the Unix epoch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EventRow:
    """One event in the order in which it happened."""

    seq: int
    """Increases by at least one from event to event, from 1."""
    time_s: float
    event: Event


class Store(Protocol):
    """Holds one experiment: its record, runs, events and metrics.

    Durability: what a method wrote before it returned survives the process being killed.
    Atomicity: each method call is one transaction; it happens as a whole or not at all.
    Threads: a store is used from the thread that opened it; other threads and processes open
    their own on the same place. Readers never block the writer, nor the writer readers.
    Copies: changing a value that was passed in or returned changes nothing in the store.
    Values: every field comes back equal, NaN and infinities included. What JSON does not have
    is refused with StoreError, and so is anything else that the store cannot write or read.

    A store in memory keeps all of this except that it ends with its process and that there is
    nothing for others to open.
    """

    def create(self, experiment: ExperimentRecord, runs: Sequence[Run]) -> None:
        """Begin the experiment with its runs.

        Raises:
            StoreError: The store holds an experiment already, or two runs share an id.
        """
        ...

    def add_runs(self, runs: Sequence[Run]) -> None:
        """Take in further runs of the experiment.

        Raises:
            StoreError: Nothing has been created, or a run has the id of another.
        """
        ...

    def experiment(self) -> ExperimentRecord:
        """The experiment's record.

        Raises:
            StoreError: Nothing has been created.
        """
        ...

    def runs(self) -> list[Run]:
        """All runs, by id."""
        ...

    def record(
        self,
        before: Run,
        event: Event,
        after: Run,
        time_s: float,
        settles: Outcome | None = None,
    ) -> None:
        """Append the event and change the run from `before` to `after`; all three are of one run.

        Args:
            before: The run as the store has it.
            event: What happened to it.
            after: The run from now on.
            time_s: Seconds since the Unix epoch.
            settles: What has thereby become of a command.

        Raises:
            StaleRunError: The stored run's status is not `before.status`, or there is no such
                run; nothing is written.
            StoreError: The command is not pending; nothing is written.
        """
        ...

    def add_run(
        self, event: Event, run: Run, time_s: float, settles: Outcome | None = None
    ) -> None:
        """Take in a run that a command or a search asked for, with its first event.

        Raises:
            StoreError: There is a run with its id, or the command is not pending; nothing is
                written.
        """
        ...

    def submit(self, command: Command, time_s: float, refused: str | None = None) -> CommandRecord:
        """Keep a command for the process that trains the experiment.

        Args:
            command: The command.
            time_s: Seconds since the Unix epoch.
            refused: Why it is not even given to that process; it is kept for the log.
        """
        ...

    def settle(self, outcome: Outcome, time_s: float) -> None:
        """Say what became of a pending command that changed no run.

        Raises:
            StoreError: The command is not pending.
        """
        ...

    def commands(self, *, status: CommandStatus | None = None) -> list[CommandRecord]:
        """All commands, or those with a status, in the order in which they were given."""
        ...

    def num_changes(self) -> int:
        """A number that is another one once somebody else has written to the place.

        Quick enough to be asked for at every step; what this store wrote may count or not.
        """
        ...

    def save_schema(self, name: str, schema: Json) -> None:
        """Keep the schema of the knobs of a kind of configuration; one of that name is replaced."""
        ...

    def schemas(self) -> dict[str, Json]:
        """All schemas by name."""
        ...

    def save_progress(self, runs: Sequence[Run], rows: Sequence[MetricRow]) -> None:
        """Update runs whose status has not changed, and write values.

        A value of the same run, source, step and name replaces the older.

        Raises:
            StaleRunError: A stored run's status is another than given, or there is no such run;
                nothing is written.
            StoreError: A value is of a run that the store does not hold; nothing is written.
        """
        ...

    def metrics(
        self, *, run_id: RunId | None = None, source: MetricSource | None = None
    ) -> list[MetricRow]:
        """Values that pass every filter given, in the order of run, source, step and name."""
        ...

    def events(self, *, after: int = 0, run_id: RunId | None = None) -> list[EventRow]:
        """Events whose `seq` is above `after`, of all runs or one, in order."""
        ...

    def close(self) -> None:
        """Let go of the place. Idempotent; every other method raises StoreError afterwards."""
        ...


def not_pending(command_id: CommandId, stored: str | None) -> StoreError:
    """The error of settling a command that is not pending.

    Args:
        command_id: The command's.
        stored: Its status in the store; None if there is no such command.
    """
    found = "is not in the store" if stored is None else f"is {stored} already"
    return StoreError(f"command {command_id} {found}: it cannot be settled")


def stale_run(given: Run, stored: str | None) -> StaleRunError:
    """The error of a change that started from `given` where `stored` is the status in the store.

    Args:
        given: The run as the caller believed it to be.
        stored: Status of the stored run; None if there is no such run.
    """
    if stored is None:
        return StaleRunError(f"run {given.id} is not in the store: create it with its experiment")
    return StaleRunError(
        f"run {given.id} is {stored} in the store, not {given.status}: "
        "somebody else changed it; read it again before changing it"
    )
