"""A store that lives and dies with its process: for tests, and as the contract's plainest form.

Runs and events are kept as the text that `SqliteStore` writes, so that both take, refuse and
return the same.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from rapidfireai.core.commands import Command, CommandId, CommandRecord, CommandStatus, Outcome
from rapidfireai.core.events import Event, Json, MetricSource
from rapidfireai.core.ids import RunId
from rapidfireai.core.run import Run, RunStatus
from rapidfireai.errors import StoreError
from rapidfireai.store import _codec
from rapidfireai.store._protocol import (
    EventRow,
    ExperimentRecord,
    MetricRow,
    not_pending,
    stale_run,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _StoredRun:
    status: RunStatus
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _StoredEvent:
    seq: int
    run_id: RunId
    time_s: float
    text: str


class MemoryStore:
    """A `Store` in this process's memory. Durable only as long as the process lives."""

    def __init__(self) -> None:
        self._experiment: str | None = None
        self._runs: dict[RunId, _StoredRun] = {}
        self._metrics: dict[tuple[RunId, MetricSource, int, str], MetricRow] = {}
        self._events: list[_StoredEvent] = []
        self._commands: dict[CommandId, CommandRecord] = {}
        self._schemas: dict[str, str] = {}
        self._closed = False

    def create(self, experiment: ExperimentRecord, runs: Sequence[Run]) -> None:
        """Begin the experiment with its runs. See `Store.create`."""
        self._check_open()
        if self._experiment is not None:
            name = self.experiment().name
            raise StoreError(f"the store holds the experiment {name!r} already: use another store")
        stored = _stored(runs)
        if len(stored) < len(runs):
            raise StoreError(f"two runs share an id in {[run.id for run in runs]}")
        self._experiment, self._runs = _codec.to_text(experiment), stored

    def add_runs(self, runs: Sequence[Run]) -> None:
        """Take in further runs. See `Store.add_runs`."""
        self.experiment()
        stored = _stored(runs)
        if len(stored) < len(runs) or stored.keys() & self._runs.keys():
            raise StoreError(f"two runs share an id in {[run.id for run in runs]}")
        self._runs = {**self._runs, **stored}

    def experiment(self) -> ExperimentRecord:
        """The experiment's record. See `Store.experiment`."""
        self._check_open()
        if self._experiment is None:
            raise StoreError("the store holds no experiment: call create first")
        return _codec.decode_experiment(_codec.from_text(self._experiment))

    def runs(self) -> list[Run]:
        """All runs, by id."""
        self._check_open()
        return [
            _codec.decode_run(_codec.from_text(stored.text))
            for _, stored in sorted(self._runs.items())
        ]

    def record(
        self,
        before: Run,
        event: Event,
        after: Run,
        time_s: float,
        settles: Outcome | None = None,
    ) -> None:
        """Append the event and change the run's row. See `Store.record`."""
        self._check_open()
        self._check_status(before)
        if settles is not None:
            self._check_pending(settles.command_id)
        self._append(event, _stored([after]), time_s, settles)

    def add_run(
        self, event: Event, run: Run, time_s: float, settles: Outcome | None = None
    ) -> None:
        """Take in a run that somebody asked for. See `Store.add_run`."""
        self.experiment()
        if run.id in self._runs:
            raise StoreError(f"two runs have the id {run.id}: give each its own")
        if settles is not None:
            self._check_pending(settles.command_id)
        self._append(event, _stored([run]), time_s, settles)

    def submit(self, command: Command, time_s: float, refused: str | None = None) -> CommandRecord:
        """Keep a command. See `Store.submit`."""
        self._check_open()
        record = CommandRecord(
            id=CommandId(len(self._commands) + 1),
            command=_copied(command),
            given_s=time_s,
            status=CommandStatus.PENDING if refused is None else CommandStatus.REJECTED,
            settled_s=None if refused is None else time_s,
            outcome=refused or "",
        )
        self._commands[record.id] = record
        return replace(record, command=_copied(command))

    def settle(self, outcome: Outcome, time_s: float) -> None:
        """Say what became of a pending command. See `Store.settle`."""
        self._check_open()
        self._check_pending(outcome.command_id)
        self._commands[outcome.command_id] = replace(
            self._commands[outcome.command_id],
            status=outcome.status,
            settled_s=time_s,
            outcome=outcome.text,
            step=outcome.step,
            new_run_id=outcome.new_run_id,
        )

    def commands(self, *, status: CommandStatus | None = None) -> list[CommandRecord]:
        """All commands, or those with a status, in the order in which they were given."""
        self._check_open()
        return [
            replace(record, command=_copied(record.command))
            for record in self._commands.values()
            if status in (None, record.status)
        ]

    def num_changes(self) -> int:
        """How many commands there are: nothing else comes from somebody else here."""
        self._check_open()
        return len(self._commands)

    def save_schema(self, name: str, schema: Json) -> None:
        """Keep the schema of some knobs. See `Store.save_schema`."""
        self._check_open()
        self._schemas[name] = _codec.plain_text(schema, f"the schema {name}")

    def schemas(self) -> dict[str, Json]:
        """All schemas by name."""
        self._check_open()
        return {name: _codec.plain_value(text) for name, text in sorted(self._schemas.items())}

    def save_progress(self, runs: Sequence[Run], rows: Sequence[MetricRow]) -> None:
        """Update runs whose status has not changed, and write values. See `Store.save_progress`."""
        self._check_open()
        for run in runs:
            self._check_status(run)
        unknown = {row.run_id for row in rows} - self._runs.keys()
        if unknown:
            raise StoreError(f"values of runs {sorted(unknown)}, which the store does not hold")
        self._runs.update(_stored(runs))
        for row in rows:
            self._metrics[row.run_id, row.source, row.step, row.name] = row

    def metrics(
        self, *, run_id: RunId | None = None, source: MetricSource | None = None
    ) -> list[MetricRow]:
        """Values that pass every filter given, in the order of run, source, step and name."""
        self._check_open()
        return [
            row
            for _, row in sorted(self._metrics.items())
            if run_id in (None, row.run_id) and source in (None, row.source)
        ]

    def events(self, *, after: int = 0, run_id: RunId | None = None) -> list[EventRow]:
        """Events whose `seq` is above `after`, of all runs or one, in order."""
        self._check_open()
        return [
            EventRow(
                seq=stored.seq,
                time_s=stored.time_s,
                event=_codec.decode_event(_codec.from_text(stored.text)),
            )
            for stored in self._events
            if stored.seq > after and run_id in (None, stored.run_id)
        ]

    def close(self) -> None:
        """Refuse further use. Idempotent."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("the store is closed: open another")

    def _append(
        self,
        event: Event,
        stored: Mapping[RunId, _StoredRun],
        time_s: float,
        settles: Outcome | None,
    ) -> None:
        text = _codec.to_text(event)
        if settles is not None:
            self.settle(settles, time_s)
        self._runs.update(stored)
        seq = len(self._events) + 1
        self._events.append(_StoredEvent(seq=seq, run_id=event.run_id, time_s=time_s, text=text))

    def _check_pending(self, command_id: CommandId) -> None:
        found = self._commands.get(command_id)
        if found is None or found.status is not CommandStatus.PENDING:
            raise not_pending(command_id, None if found is None else found.status)

    def _check_status(self, run: Run) -> None:
        stored = self._runs.get(run.id)
        if stored is None or stored.status is not run.status:
            raise stale_run(run, None if stored is None else stored.status)


def _copied(command: Command) -> Command:
    return _codec.decode_command(_codec.from_text(_codec.to_text(command)))


def _stored(runs: Iterable[Run]) -> dict[RunId, _StoredRun]:
    return {run.id: _StoredRun(status=run.status, text=_codec.to_text(run)) for run in runs}
