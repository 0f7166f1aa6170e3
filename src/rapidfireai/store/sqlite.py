"""An experiment in one SQLite file: all SQL that writes is here, and what training reads.

Runs and events are rows whose `body` is JSON (see `_codec`); the columns beside it are what the
queries ask for. The file is in WAL mode, where readers and the writer do not wait for each other.
"""

import math
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final

from rapidfireai._version import __version__
from rapidfireai.core.commands import Command, CommandRecord, CommandStatus, Outcome
from rapidfireai.core.events import Event, Json, MetricSource
from rapidfireai.core.ids import RunId
from rapidfireai.core.run import Run
from rapidfireai.errors import StoreError
from rapidfireai.faults import reach
from rapidfireai.store import _codec
from rapidfireai.store._protocol import (
    EventRow,
    ExperimentRecord,
    MetricRow,
    not_pending,
    stale_run,
)

SCHEMA_VERSION: Final = 2
"""Kept in the file as `user_version`."""

_APPLICATION_ID: Final = 0x52464149
"""Kept in the file as `application_id`, so that another program's database is not taken for ours.
"RFAI" in ASCII."""

_BUSY_TIMEOUT_S: Final = 10
"""How long a write waits for another process's write, which takes milliseconds."""

_WAL_ATTEMPTS: Final = 20
"""Each waits for another process that opens the same new file; one or two are enough for four."""

_OLDEST_SQLITE: Final = (3, 37)
"""The first with STRICT tables."""

_PRAGMAS: Final = (
    f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_S * 1000}",
    "PRAGMA foreign_keys = ON",
    # In WAL mode this loses nothing when the process is killed: a commit has reached the kernel.
    # A power cut may take the last commits, and never the file's consistency.
    "PRAGMA synchronous = NORMAL",
)

_SCHEMA: Final = (
    "CREATE TABLE experiment (id INTEGER PRIMARY KEY CHECK (id = 1), body TEXT NOT NULL) STRICT",
    "CREATE TABLE runs (id INTEGER PRIMARY KEY, status TEXT NOT NULL, body TEXT NOT NULL) STRICT",
    """
    CREATE TABLE events (
        seq INTEGER PRIMARY KEY,
        run_id INTEGER NOT NULL REFERENCES runs (id),
        time_s REAL NOT NULL,
        body TEXT NOT NULL
    ) STRICT
    """,
    "CREATE INDEX events_by_run ON events (run_id, seq)",
    # SQLite has no NaN and stores it as NULL.
    """
    CREATE TABLE metrics (
        run_id INTEGER NOT NULL REFERENCES runs (id),
        source TEXT NOT NULL,
        step INTEGER NOT NULL,
        name TEXT NOT NULL,
        value REAL,
        time_s REAL NOT NULL,
        PRIMARY KEY (run_id, source, step, name)
    ) STRICT, WITHOUT ROWID
    """,
    f"PRAGMA application_id = {_APPLICATION_ID}",
)

_MIGRATIONS: Final[Mapping[int, tuple[str, ...]]] = {
    2: (
        """
        CREATE TABLE commands (
            id INTEGER PRIMARY KEY,
            status TEXT NOT NULL,
            given_s REAL NOT NULL,
            settled_s REAL,
            outcome TEXT NOT NULL,
            step INTEGER,
            new_run_id INTEGER,
            body TEXT NOT NULL
        ) STRICT
        """,
        "CREATE INDEX commands_by_status ON commands (status)",
        "CREATE TABLE schemas (name TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT",
    ),
}
"""Version -> what turns a file of the version before into one of it. A new file begins with
`_SCHEMA`, which is version 1, and goes through all of them."""

_ADVICE: Final = {
    sqlite3.SQLITE_BUSY: "another program keeps it locked: close that program and try again",
    sqlite3.SQLITE_CANTOPEN: "check that its folder exists and can be written",
    sqlite3.SQLITE_READONLY: "make the file and its folder writable",
    sqlite3.SQLITE_FULL: "free some space on its disk and try again",
    sqlite3.SQLITE_CORRUPT: "it is damaged: restore it or move it away, together with its -wal",
    sqlite3.SQLITE_NOTADB: "it is no SQLite file: move it away or use another place",
    sqlite3.SQLITE_CONSTRAINT: "every value and event must be of a run that the store holds",
}


class SqliteStore:
    """A `Store` in an SQLite file, which may be open in any number of processes.

    Args:
        path: The file; made if there is none, in a folder that exists.

    Raises:
        StoreError: The file cannot be opened, is damaged, is not of this package or was written
            by a newer version of it.
    """

    def __init__(self, path: Path) -> None:
        if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
            raise StoreError(
                f"this Python has SQLite {sqlite3.sqlite_version}, and 3.37 or newer is needed: "
                "use a Python that brings its own, such as one installed by uv or conda"
            )
        self._path = path
        with self._explained():
            self._db = sqlite3.connect(path, isolation_level=None)
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def create(self, experiment: ExperimentRecord, runs: Sequence[Run]) -> None:
        """Begin the experiment with its runs. See `Store.create`."""
        with self._transaction() as db:
            made = db.execute(
                "INSERT INTO experiment (id, body) VALUES (1, ?) ON CONFLICT DO NOTHING",
                (_codec.to_text(experiment),),
            )
            if made.rowcount == 0:
                name = self.experiment().name
                raise StoreError(
                    f"{self._path} holds the experiment {name!r} already: use another file"
                )
            _insert_runs(db, runs)

    def add_runs(self, runs: Sequence[Run]) -> None:
        """Take in further runs. See `Store.add_runs`."""
        with self._transaction() as db:
            self.experiment()
            _insert_runs(db, runs)

    def experiment(self) -> ExperimentRecord:
        """The experiment's record. See `Store.experiment`."""
        rows = self._rows("SELECT body FROM experiment")
        if not rows:
            raise StoreError(f"{self._path} holds no experiment: call create first")
        return _codec.decode_experiment(_codec.from_text(rows[0]["body"]))

    def runs(self) -> list[Run]:
        """All runs, by id."""
        rows = self._rows("SELECT body FROM runs ORDER BY id")
        return [_codec.decode_run(_codec.from_text(row["body"])) for row in rows]

    def record(
        self,
        before: Run,
        event: Event,
        after: Run,
        time_s: float,
        settles: Outcome | None = None,
    ) -> None:
        """Append the event and change the run. See `Store.record`."""
        with self._transaction() as db:
            self._update(db, before, after)
            _insert_event(db, event, time_s)
            if settles is not None:
                _settle(db, settles, time_s)

    def add_run(
        self, event: Event, run: Run, time_s: float, settles: Outcome | None = None
    ) -> None:
        """Take in a run that somebody asked for. See `Store.add_run`."""
        with self._transaction() as db:
            _insert_runs(db, [run])
            _insert_event(db, event, time_s)
            if settles is not None:
                _settle(db, settles, time_s)

    def submit(self, command: Command, time_s: float, refused: str | None = None) -> CommandRecord:
        """Keep a command. See `Store.submit`."""
        is_pending = refused is None
        with self._transaction() as db:
            made = db.execute(
                "INSERT INTO commands (status, given_s, settled_s, outcome, body)"
                " VALUES (?, ?, ?, ?, ?) RETURNING *",
                (
                    CommandStatus.PENDING if is_pending else CommandStatus.REJECTED,
                    time_s,
                    None if is_pending else time_s,
                    refused or "",
                    _codec.to_text(command),
                ),
            )
            return command_record(made.fetchone())

    def settle(self, outcome: Outcome, time_s: float) -> None:
        """Say what became of a pending command. See `Store.settle`."""
        with self._transaction() as db:
            _settle(db, outcome, time_s)

    def commands(self, *, status: CommandStatus | None = None) -> list[CommandRecord]:
        """All commands, or those with a status, in the order in which they were given."""
        rows = self._rows(
            f"SELECT * FROM commands WHERE {_equals(status=status)} ORDER BY id",
            {"status": status},
        )
        return [command_record(row) for row in rows]

    def num_changes(self) -> int:
        """A number that changes when another connection has written. See `Store.num_changes`."""
        with self._explained():
            return self._pragma("data_version")

    def save_schema(self, name: str, schema: Json) -> None:
        """Keep the schema of some knobs. See `Store.save_schema`."""
        with self._transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO schemas (name, body) VALUES (?, ?)",
                (name, _codec.plain_text(schema, f"the schema {name}")),
            )

    def schemas(self) -> dict[str, Json]:
        """All schemas by name."""
        rows = self._rows("SELECT name, body FROM schemas ORDER BY name")
        return {row["name"]: _codec.plain_value(row["body"]) for row in rows}

    def save_progress(self, runs: Sequence[Run], rows: Sequence[MetricRow]) -> None:
        """Update runs whose status has not changed, and write values. See `Store.save_progress`."""
        with self._transaction() as db:
            for run in runs:
                self._update(db, run, run)
            db.executemany(
                "INSERT OR REPLACE INTO metrics (run_id, source, step, name, value, time_s)"
                " VALUES (:run_id, :source, :step, :name, :value, :time_s)",
                _metric_columns(rows),
            )

    def metrics(
        self, *, run_id: RunId | None = None, source: MetricSource | None = None
    ) -> list[MetricRow]:
        """Values that pass every filter given, in the order of run, source, step and name."""
        rows = self._rows(
            "SELECT run_id, source, step, name, value, time_s FROM metrics"
            f" WHERE {_equals(run_id=run_id, source=source)} ORDER BY run_id, source, step, name",
            {"run_id": run_id, "source": source},
        )
        return [metric_row(row) for row in rows]

    def events(self, *, after: int = 0, run_id: RunId | None = None) -> list[EventRow]:
        """Events whose `seq` is above `after`, of all runs or one, in order."""
        rows = self._rows(
            "SELECT seq, time_s, body FROM events"
            f" WHERE seq > :after AND {_equals(run_id=run_id)} ORDER BY seq",
            {"after": after, "run_id": run_id},
        )
        return [
            EventRow(
                seq=row["seq"],
                time_s=row["time_s"],
                event=_codec.decode_event(_codec.from_text(row["body"])),
            )
            for row in rows
        ]

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._explained():
            self._db.close()

    def _prepare(self) -> None:
        self._db.row_factory = sqlite3.Row
        for pragma in _PRAGMAS:
            self._db.execute(pragma)
        if self._is_new():
            self._switch_to_wal()
            with self._transaction() as db:
                if self._is_new():
                    for statement in _SCHEMA:
                        db.execute(statement)
                    db.execute("PRAGMA user_version = 1")
        if self._pragma("user_version") < SCHEMA_VERSION:
            self._migrate()

    def _migrate(self) -> None:
        with self._transaction() as db:
            # Another process may have done it meanwhile.
            for version in range(self._pragma("user_version") + 1, SCHEMA_VERSION + 1):
                for statement in _MIGRATIONS[version]:
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {version}")

    def _is_new(self) -> bool:
        # The tables come with the two marks in one transaction, so a file in which another
        # process has just made them must not be looked at in the opposite order.
        if self._pragma("schema_version") == 0:
            return True
        check_version(self._path, self._db)
        return False

    def _switch_to_wal(self) -> None:
        # While another process makes this switch, SQLite refuses it at once instead of waiting
        # for the busy timeout. A transaction does wait, and finds the switch made or free to make.
        for _ in range(_WAL_ATTEMPTS):
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError:
                with self._transaction():
                    pass
        raise StoreError(f"{self._path} is being opened by too many processes: try again")

    def _pragma(self, name: str) -> int:
        return _pragma(self._db, name)

    def _rows(self, sql: str, values: dict[str, Any] | None = None) -> list[sqlite3.Row]:
        with self._explained():
            return self._db.execute(sql, values or {}).fetchall()

    def _update(self, db: sqlite3.Connection, before: Run, after: Run) -> None:
        changed = db.execute(
            "UPDATE runs SET status = :status, body = :body WHERE id = :id AND status = :before",
            {**_run_columns(after), "before": before.status},
        )
        if changed.rowcount == 0:
            found = db.execute("SELECT status FROM runs WHERE id = ?", (before.id,)).fetchone()
            raise stale_run(before, None if found is None else found["status"])

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All that is done inside happens, or none of it."""
        with self._explained():
            try:
                # The write lock comes first: a transaction that starts by reading cannot wait
                # for it later, SQLite would refuse it.
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                reach("store.before_commit")
                self._db.execute("COMMIT")
            finally:
                # Also after a KeyboardInterrupt and a COMMIT that failed; else does nothing.
                self._db.rollback()

    def _explained(self) -> AbstractContextManager[None]:
        return explained(self._path)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what SQLite raises about the file into errors that say what to do.

    Raises:
        StoreError: Instead of any `sqlite3.Error`.
    """
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        advice = _ADVICE.get(code, "open another store, in the thread that uses it")
        raise StoreError(f"{path}: {error}; {advice}") from error


def check_version(path: Path, db: sqlite3.Connection) -> int:
    """The version of the tables in a file that is not empty.

    Raises:
        StoreError: The file is not of this package, or of a newer version of it.
    """
    if _pragma(db, "application_id") != _APPLICATION_ID:
        raise StoreError(f"{path} is another program's database: move it away or use another place")
    version = _pragma(db, "user_version")
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{path} has schema version {version} of a newer rapidfireai, and this one "
            f"({__version__}) reads up to {SCHEMA_VERSION}: open it with the newer one, or "
            "start the experiment in another folder"
        )
    return version


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


def _insert_runs(db: sqlite3.Connection, runs: Sequence[Run]) -> None:
    for run in runs:
        made = db.execute(
            "INSERT INTO runs (id, status, body) VALUES (:id, :status, :body)"
            " ON CONFLICT DO NOTHING",
            _run_columns(run),
        )
        if made.rowcount == 0:
            raise StoreError(f"two runs have the id {run.id}: give each its own")


def _insert_event(db: sqlite3.Connection, event: Event, time_s: float) -> None:
    db.execute(
        "INSERT INTO events (run_id, time_s, body) VALUES (?, ?, ?)",
        (event.run_id, time_s, _codec.to_text(event)),
    )


def _settle(db: sqlite3.Connection, outcome: Outcome, time_s: float) -> None:
    changed = db.execute(
        "UPDATE commands SET status = :status, settled_s = :settled_s, outcome = :outcome,"
        " step = :step, new_run_id = :new_run_id WHERE id = :id AND status = :pending",
        {
            "id": outcome.command_id,
            "status": outcome.status,
            "settled_s": time_s,
            "outcome": outcome.text,
            "step": outcome.step,
            "new_run_id": outcome.new_run_id,
            "pending": CommandStatus.PENDING,
        },
    )
    if changed.rowcount == 0:
        found = db.execute(
            "SELECT status FROM commands WHERE id = ?", (outcome.command_id,)
        ).fetchone()
        raise not_pending(outcome.command_id, None if found is None else found["status"])


def command_record(row: sqlite3.Row) -> CommandRecord:
    """The command of a row."""
    return CommandRecord(
        id=row["id"],
        command=_codec.decode_command(_codec.from_text(row["body"])),
        given_s=row["given_s"],
        status=CommandStatus(row["status"]),
        settled_s=row["settled_s"],
        outcome=row["outcome"],
        step=row["step"],
        new_run_id=row["new_run_id"],
    )


def _run_columns(run: Run) -> dict[str, Any]:
    return {"id": run.id, "status": run.status, "body": _codec.to_text(run)}


def _metric_columns(rows: Iterable[MetricRow]) -> Iterator[dict[str, Any]]:
    for row in rows:
        yield {
            "run_id": row.run_id,
            "source": row.source,
            "step": row.step,
            "name": row.name,
            "value": row.value,
            "time_s": row.time_s,
        }


def metric_row(row: sqlite3.Row) -> MetricRow:
    """The value of a row, NaN and infinities as they were."""
    return MetricRow(
        run_id=row["run_id"],
        source=MetricSource(row["source"]),
        step=row["step"],
        name=row["name"],
        value=math.nan if row["value"] is None else row["value"],
        time_s=row["time_s"],
    )


def _equals(**columns: object) -> str:
    """The condition that the columns whose value is not None equal the parameter of their name."""
    given = [f"{name} = :{name}" for name, value in columns.items() if value is not None]
    return " AND ".join(given) or "TRUE"
