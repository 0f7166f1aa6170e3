"""What every store of experiments can do, and the contract that its tests examine."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rapidfireai.core.events import Event, MetricSource
from rapidfireai.core.ids import RunId
from rapidfireai.core.run import Run
from rapidfireai.errors import StaleRunError


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

    def record(self, before: Run, event: Event, after: Run, time_s: float) -> None:
        """Append the event and change the run from `before` to `after`; all three are of one run.

        Raises:
            StaleRunError: The stored run's status is not `before.status`, or there is no such
                run; nothing is written.
        """
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
