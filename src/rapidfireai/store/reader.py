"""Looks into an experiment's SQLite file while others write it; writes nothing itself.

What is asked here is what somebody who watches needs: only what is new, only the latest, or only
the extremes of a long series. Every query is short, is served by an index and holds no lock that a
writer would wait for.
"""

import math
import sqlite3
import threading
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from rapidfireai.core.commands import CommandRecord
from rapidfireai.core.events import Json, MetricSource
from rapidfireai.core.ids import RunId
from rapidfireai.core.run import Run
from rapidfireai.errors import StoreError
from rapidfireai.store import _codec
from rapidfireai.store._protocol import EventRow, ExperimentRecord, MetricRow
from rapidfireai.store.sqlite import (
    SCHEMA_VERSION,
    SqliteStore,
    check_version,
    command_record,
    explained,
    metric_row,
)

_PRAGMAS: Final = ("PRAGMA query_only = ON", "PRAGMA busy_timeout = 2000")

_FINITE: Final = "iif(abs(value) <= 1.7976931348623157e308, value, NULL)"
"""NaN is NULL in the file; here infinities are as well."""

_NEVER: Final = -1
"""A step before all others."""


class Value(NamedTuple):
    """A measured value of a run. `value` is NaN where it was not finite."""

    source: MetricSource
    name: str
    step: int
    value: float
    time_s: float


class Extreme(NamedTuple):
    """The least or the greatest value in a bucket of steps; NaN where none in it is finite."""

    bucket: int
    """Number of the bucket: the step divided by the buckets' width."""
    step: int
    value: float
    time_s: float


class SqliteReader:
    """An experiment's file, for reading. Threads may share it; they take turns.

    Args:
        path: The file. One of an older version of this package is brought up to date first, as
            by everybody who opens it.

    Raises:
        StoreError: The file cannot be read, is damaged, is not of this package or was written by
            a newer version of it, or holds nothing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        if self._open() < SCHEMA_VERSION:
            self._db.close()
            with closing(SqliteStore(path)):
                pass
            self._open()

    def num_changes(self) -> int:
        """A number that is another one once somebody has written to the file."""
        return int(self._rows("PRAGMA data_version")[0][0])

    def experiment(self) -> ExperimentRecord:
        """The experiment's record.

        Raises:
            StoreError: The file holds none, or one that cannot be read; as for all methods.
        """
        rows = self._rows("SELECT body FROM experiment")
        if not rows:
            raise StoreError(f"{self._path} holds no experiment")
        return _codec.decode_experiment(_codec.from_text(rows[0]["body"]))

    def run_ids(self, *, above: int = 0) -> list[RunId]:
        """Numbers of the runs above a number, in order."""
        rows = self._rows("SELECT id FROM runs WHERE id > ? ORDER BY id", (above,))
        return [RunId(row["id"]) for row in rows]

    def run(self, run_id: RunId) -> Run | None:
        """A run; None if there is none of that number."""
        rows = self._rows("SELECT body FROM runs WHERE id = ?", (run_id,))
        return _codec.decode_run(_codec.from_text(rows[0]["body"])) if rows else None

    def last_event(self) -> int:
        """Number of the latest event; 0 if there is none."""
        return int(self._rows("SELECT coalesce(max(seq), 0) AS seq FROM events")[0]["seq"])

    def events(
        self,
        *,
        after: int = 0,
        limit: int,
        run_id: RunId | None = None,
        kinds: Collection[str] = (),
        newest: bool = False,
    ) -> list[EventRow]:
        """Events in order.

        Args:
            after: Only those whose `seq` is above this.
            limit: At most as many.
            run_id: Only those of this run.
            kinds: Only those of these types; empty takes all.
            newest: Take the last of them rather than the first.
        """
        conditions, values = ["seq > ?"], [after]
        if run_id is not None:
            conditions.append("run_id = ?")
            values.append(run_id)
        if kinds:
            conditions.append(f"json_extract(body, '$.type') IN ({_marks(kinds)})")
        rows = self._rows(
            f"SELECT seq, time_s, body FROM events WHERE {' AND '.join(conditions)}"
            f" ORDER BY seq {'DESC' if newest else 'ASC'} LIMIT ?",
            (*values, *kinds, limit),
        )
        events = [
            EventRow(
                seq=row["seq"],
                time_s=row["time_s"],
                event=_codec.decode_event(_codec.from_text(row["body"])),
            )
            for row in rows
        ]
        return events[::-1] if newest else events

    def commands(
        self, *, after: int = 0, also: Collection[int] = (), limit: int, newest: bool = False
    ) -> list[CommandRecord]:
        """Commands in the order in which they were given.

        Args:
            after: Only those whose number is above this,
            also: and these.
            limit: At most as many.
            newest: Take the last of them rather than the first.
        """
        rows = self._rows(
            f"SELECT * FROM commands WHERE id > ? OR id IN ({_marks(also)})"
            f" ORDER BY id {'DESC' if newest else 'ASC'} LIMIT ?",
            (after, *also, limit),
        )
        commands = [command_record(row) for row in rows]
        return commands[::-1] if newest else commands

    def pending(self) -> set[int]:
        """Numbers of the commands that nobody has settled."""
        return {row["id"] for row in self._rows("SELECT id FROM commands WHERE status = 'pending'")}

    def schemas(self) -> dict[str, Json]:
        """Schemas of the configurations' arguments, by name."""
        rows = self._rows("SELECT name, body FROM schemas ORDER BY name")
        return {row["name"]: _codec.plain_value(row["body"]) for row in rows}

    def latest_values(self, run_id: RunId, source: MetricSource) -> list[Value]:
        """The latest value of each of a source's metrics."""
        rows = self._rows(
            f"SELECT source, name, max(step) AS step, {_FINITE} AS value, time_s FROM metrics"
            " WHERE run_id = ? AND source = ? GROUP BY name",
            (run_id, source),
        )
        return [_value(row) for row in rows]

    def latest_loss(self, run_id: RunId) -> Value | None:
        """The loss of the run's latest step; None before its first."""
        rows = self._rows(
            f"SELECT source, name, step, {_FINITE} AS value, time_s FROM metrics"
            " WHERE run_id = ? AND source = 'step' ORDER BY step DESC LIMIT 1",
            (run_id,),
        )
        return _value(rows[0]) if rows else None

    def values_from(
        self, run_id: RunId, source: MetricSource, step: int, limit: int
    ) -> list[Value]:
        """The first of a source's values at a step or after it, in the order of their steps."""
        rows = self._rows(
            f"SELECT source, name, step, {_FINITE} AS value, time_s FROM metrics"
            " WHERE run_id = ? AND source = ? AND step >= ? ORDER BY step, name LIMIT ?",
            (run_id, source, step, limit),
        )
        return [_value(row) for row in rows]

    def rows_from(
        self, run_id: RunId, source: MetricSource, step: int, limit: int
    ) -> list[MetricRow]:
        """The first of a source's values at a step or after it, by step and name, exact ones."""
        rows = self._rows(
            "SELECT run_id, source, step, name, value, time_s FROM metrics"
            " WHERE run_id = ? AND source = ? AND step >= ? ORDER BY step, name LIMIT ?",
            (run_id, source, step, limit),
        )
        return [metric_row(row) for row in rows]

    def num_values(self, run_id: RunId | None = None) -> int:
        """How many values there are, of all runs or one."""
        rows = self._rows(
            "SELECT count(*) AS num FROM metrics WHERE ? IS NULL OR run_id = ?", (run_id, run_id)
        )
        return int(rows[0]["num"])

    def last_events(self) -> dict[RunId, int]:
        """Number of the latest event of each run that has any."""
        rows = self._rows("SELECT run_id, max(seq) AS seq FROM events GROUP BY run_id")
        return {RunId(row["run_id"]): row["seq"] for row in rows}

    def values_since(
        self, run_id: RunId, source: MetricSource, time_s: float, limit: int
    ) -> list[Value]:
        """A source's values that were measured after a time, the latest first.

        Goes backwards from the last step, and looks at no more than `limit` values.
        """
        rows = self._rows(
            f"SELECT source, name, step, {_FINITE} AS value, time_s FROM metrics"
            " WHERE run_id = ? AND source = ? ORDER BY step DESC, name LIMIT ?",
            (run_id, source, limit),
        )
        return [_value(row) for row in rows if row["time_s"] > time_s]

    def losses_at(self, run_id: RunId, steps: Sequence[int]) -> dict[int, float]:
        """The losses of some steps, as far as they are there."""
        rows = self._rows(
            f"SELECT step, {_FINITE} AS value FROM metrics"
            " WHERE run_id = ? AND source = 'step' AND name = 'loss'"
            f" AND step IN ({_marks(steps)})",
            (run_id, *steps),
        )
        return {row["step"]: _number(row["value"]) for row in rows}

    def last_value(self, run_id: RunId, source: MetricSource, name: str) -> Value | None:
        """The latest value of a metric; None if there is none."""
        return self._one_value(run_id, source, name, "DESC")

    def first_value(self, run_id: RunId, source: MetricSource, name: str) -> Value | None:
        """The first value of a metric; None if there is none."""
        return self._one_value(run_id, source, name, "ASC")

    def extremes(
        self,
        run_id: RunId,
        metric: tuple[MetricSource, str],
        width: int,
        steps: tuple[int, int | None] = (_NEVER, None),
    ) -> tuple[list[Extreme], list[Extreme]]:
        """The least and the greatest values of a metric in each bucket of steps.

        Args:
            run_id: The run's.
            metric: Its source and name.
            width: Steps in a bucket; one begins at each multiple of it.
            steps: The first and the last to look at; None for the end.
        """
        least, greatest = (
            [
                Extreme(row["bucket"], row["step"], _number(row["value"]), row["time_s"])
                for row in self._rows(
                    f"SELECT step / :width AS bucket, step, {order}({_FINITE}) AS value, time_s"
                    " FROM metrics WHERE run_id = :run_id AND source = :source AND name = :name"
                    " AND step >= :start AND (:end IS NULL OR step <= :end)"
                    " GROUP BY bucket ORDER BY bucket",
                    {
                        "run_id": run_id,
                        "source": metric[0],
                        "name": metric[1],
                        "width": width,
                        "start": steps[0],
                        "end": steps[1],
                    },
                )
            ]
            for order in ("min", "max")
        )
        return least, greatest

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._lock, explained(self._path):
            self._db.close()

    def _open(self) -> int:
        """Open the file; returns the version of its tables."""
        with explained(self._path):
            self._db = sqlite3.connect(
                f"file:{quote(str(self._path))}?mode=ro",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                self._db.row_factory = sqlite3.Row
                for pragma in _PRAGMAS:
                    self._db.execute(pragma)
                if self._db.execute("PRAGMA schema_version").fetchone()[0] == 0:
                    raise StoreError(f"{self._path} is empty: restore it or move it away")
                return check_version(self._path, self._db)
            except BaseException:
                self._db.close()
                raise

    def _one_value(
        self, run_id: RunId, source: MetricSource, name: str, order: str
    ) -> Value | None:
        rows = self._rows(
            f"SELECT source, name, step, {_FINITE} AS value, time_s FROM metrics"
            f" WHERE run_id = ? AND source = ? AND name = ? ORDER BY step {order} LIMIT 1",
            (run_id, source, name),
        )
        return _value(rows[0]) if rows else None

    def _rows(self, sql: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[sqlite3.Row]:
        # All rows are fetched at once: a query that is left open would keep the writer from
        # starting its write-ahead log anew.
        with self._lock, explained(self._path):
            return self._db.execute(sql, values).fetchall()


def _marks(values: Collection[object]) -> str:
    return ", ".join("?" * len(values))


def _value(row: sqlite3.Row) -> Value:
    return Value(
        MetricSource(row["source"]), row["name"], row["step"], _number(row["value"]), row["time_s"]
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value
