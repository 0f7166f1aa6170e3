"""One experiment as it is shown, kept up to date by reading only what is new.

Whoever asks brings the view up to date first: that is one question to SQLite while nothing has
changed. What changed is numbered by versions, so that a reader who has seen one gets what came
after it; new values of metrics are remembered for a while for that purpose.
"""

import secrets
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from rapidfireai.core.commands import CommandRecord
from rapidfireai.core.events import (
    Json,
    MetricSource,
    RunRecovered,
    RunStarted,
)
from rapidfireai.core.ids import RunId
from rapidfireai.core.metrics import shown_name
from rapidfireai.core.modes import summary
from rapidfireai.core.run import SETTLED, Run, RunStatus
from rapidfireai.errors import StoreError
from rapidfireai.paths import ExperimentFolder
from rapidfireai.server.knobs import arguments_in_force, flat
from rapidfireai.server.series import SeriesCache
from rapidfireai.store import EventRow, ExperimentRecord, SqliteReader
from rapidfireai.store.plain import encoded, finite, shown, shown_text
from rapidfireai.store.reader import Value

MAX_REMEMBERED: Final = 20_000
"""Values of metrics that are remembered for readers who follow; about 5 MB."""

MAX_BATCH: Final = 5_000
"""Events and values of one run that are taken in at a time; more of them are a new beginning."""

_SPARKS: Final = 32
"""Values of a sparkline."""

_REMEMBERED_SOURCES: Final = (MetricSource.LOG, MetricSource.CHUNK, MetricSource.DEVICE)


@dataclass(slots=True)
class RunRow:
    """A run as the table shows it."""

    version: int
    """Of the view, when the row changed last."""
    status: RunStatus
    json: bytes
    """As `messages.RunRow` has it."""
    knobs: dict[str, Json]
    """The configuration by the arguments' full names, without secrets."""
    latest: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Metric -> step and value."""
    step: int = 0
    num_steps: int | None = None
    active_s: float = 0.0
    remaining_s: float | None = None
    samples_per_step: int | None = None
    seen: dict[MetricSource, tuple[int, frozenset[str]]] = field(default_factory=dict)
    """For each source the last step that has been read, and what has been read of it."""


@dataclass(frozen=True, slots=True)
class NewValue:
    """A value that came while the view was watched."""

    version: int
    run_id: RunId
    value: Value


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """What is new for somebody who has seen a version."""

    runs: list[bytes]
    values: list[NewValue]
    events: list[EventRow]
    commands: list[CommandRecord]
    trained_by: int | None
    version: int
    """Which this leads to."""
    cursor: str


class View:
    """An experiment as it is shown. Threads may share it.

    Args:
        folder: The experiment's.

    Raises:
        StoreError: It cannot be read.
    """

    def __init__(self, folder: ExperimentFolder) -> None:
        self.folder = folder
        self.reader = SqliteReader(folder.store)
        self.series = SeriesCache(self.reader)
        self.birth = secrets.token_hex(4)
        """Tells the versions of one view from those of another."""
        self.rows: dict[RunId, RunRow] = {}
        self.names: set[tuple[MetricSource, str]] = set()
        """Metrics that there are."""
        self.trained_by: int | None = None
        self._lock = threading.Lock()
        self._version = 0
        """That is being taken in."""
        self._place = (0, f"{self.birth}.0.0.0")
        self._num_changes: int | None = None
        self._last_event = 0
        self._last_time_s = 0.0
        """When the latest value that has been read was measured."""
        self._pending: set[int] = set()
        self._last_command = 0
        self._values: deque[NewValue] = deque(maxlen=MAX_REMEMBERED)
        self._events: deque[tuple[int, EventRow]] = deque(maxlen=MAX_BATCH)
        self._commands: deque[tuple[int, CommandRecord]] = deque(maxlen=MAX_BATCH)
        self._forgotten = 0
        """The latest version of which something has been forgotten."""
        try:
            self.record: ExperimentRecord = self.reader.experiment()
        except StoreError:
            self.reader.close()
            raise

    @property
    def place(self) -> tuple[int, str]:
        """The version up to which all is there, and the cursor of one who has seen that.

        A cursor means something to another view of the same experiment as well. Whoever reads on
        after this may find some of the next version already, which he will get once more.
        """
        return self._place

    @property
    def version(self) -> int:
        """The version up to which all is there."""
        return self._place[0]

    def refresh(self) -> int:
        """Bring the view up to date.

        Returns:
            Its version.

        Raises:
            StoreError: The experiment cannot be read.
        """
        with self._lock:
            trained_by = self.folder.trained_by()
            num_changes = self.reader.num_changes()
            if num_changes == self._num_changes and trained_by == self.trained_by:
                return self.version
            self._version += 1
            self.trained_by = trained_by
            if num_changes != self._num_changes:
                self._take_in_changes()
                # Only now: what failed on the way is read again.
                self._num_changes = num_changes
            microseconds = round(self._last_time_s * 1e6)
            cursor = f"{self.birth}.{self._version}.{self._last_event}.{microseconds}"
            self._place = (self._version, cursor)
            return self._version

    def changed(self, since: int = 0) -> list[bytes]:
        """The rows of runs that changed after a version, by number."""
        return [row.json for _, row in sorted(self.rows.items()) if row.version > since]

    def seen_by(self, cursor: str) -> int | None:
        """The version up to which the reader has seen everything, if it is of this view."""
        birth, _, rest = cursor.partition(".")
        version = rest.partition(".")[0]
        if birth != self.birth or not version.isdecimal() or len(version) > 12:
            return None
        return int(version) if self._forgotten <= int(version) <= self.version else None

    def since(self, version: int) -> Batch | None:
        """What is new since a version; None if part of it has been forgotten."""
        with self._lock:
            if version < self._forgotten:
                return None
            return Batch(
                runs=self.changed(version),
                values=[value for value in self._values if value.version > version],
                events=[row for number, row in self._events if number > version],
                commands=[row for number, row in self._commands if number > version],
                trained_by=self.trained_by,
                version=self._place[0],
                cursor=self._place[1],
            )

    def since_another(self, cursor: str) -> Batch | None:
        """What is new for a reader who followed another view, before the server was restarted.

        He may get some of it for the second time. None if it is too much, or if what he says is no
        cursor.
        """
        parts = cursor.split(".")
        if len(parts) != 4 or not all(part.isdecimal() and len(part) < 20 for part in parts[1:]):
            return None
        last_event, time_s = int(parts[2]), int(parts[3]) / 1e6
        with self._lock:
            events = self.reader.events(after=last_event, limit=MAX_BATCH)
            if last_event > self._last_event or len(events) == MAX_BATCH:
                return None
            ids = {row.event.run_id for row in events}
            ids |= {run_id for run_id, row in self.rows.items() if row.status not in SETTLED}
            values = [
                NewValue(self._version, run_id, value)
                for run_id in sorted(ids)
                for source in MetricSource
                for value in self.reader.values_since(run_id, source, time_s, MAX_BATCH)[::-1]
            ]
            if len(values) >= MAX_REMEMBERED:
                return None
            return Batch(
                runs=[self.rows[run_id].json for run_id in sorted(ids & self.rows.keys())],
                values=values,
                events=events,
                commands=self.reader.commands(limit=100, newest=True),
                trained_by=self.trained_by,
                version=self._place[0],
                cursor=self._place[1],
            )

    def close(self) -> None:
        """Close the experiment. Idempotent."""
        self.reader.close()

    def _take_in_changes(self) -> None:
        is_first = self._num_changes is None
        last_event = self.reader.last_event()
        new_runs = self.reader.run_ids(above=max(self.rows, default=0))
        if is_first:
            changed = set(new_runs)
        else:
            events = self.reader.events(after=self._last_event, limit=MAX_BATCH)
            changed = {row.event.run_id for row in events} | set(new_runs)
            if len(events) == MAX_BATCH:  # nobody has looked for long
                self._forgotten = self._version
                changed |= set(self.rows)
                for run_id in self.rows:
                    self.series.forget(run_id)
                events = self.reader.events(limit=MAX_BATCH, newest=True)
            last_event = events[-1].seq if events else last_event
            self._forget_oldest(self._events, len(events))
            self._events.extend((self._version, row) for row in events)
            self._forget_series(events)
            # Steps and values are written without an event, of runs that are training.
            changed |= {
                run_id for run_id, row in self.rows.items() if row.status is RunStatus.RUNNING
            }
        self._take_in_commands(is_first=is_first)
        for run_id in sorted(changed):
            self._take_in_run(run_id)
        self._last_event = last_event

    def _forget_series(self, events: Iterable[EventRow]) -> None:
        for row in events:
            event = row.event
            if isinstance(event, RunStarted | RunRecovered):
                # Steps after this one may have been trained before, and are trained again.
                self.series.forget(event.run_id)
                if known := self.rows.get(event.run_id):
                    known.seen = dict.fromkeys(MetricSource, (event.step, frozenset()))

    def _forget_oldest(self, kept: deque[Any], num_new: int) -> None:
        """Note what the deque is about to drop."""
        num_dropped = len(kept) + num_new - (kept.maxlen or 0)
        if num_dropped > 0 and kept:
            oldest = kept[min(num_dropped, len(kept)) - 1]
            version = oldest.version if isinstance(oldest, NewValue) else oldest[0]
            self._forgotten = max(self._forgotten, version)

    def _take_in_commands(self, *, is_first: bool) -> None:
        if is_first:
            self._pending = self.reader.pending()
            newest = self.reader.commands(limit=1, newest=True)
            self._last_command = newest[-1].id if newest else 0
            return
        found = self.reader.commands(
            after=self._last_command, also=sorted(self._pending), limit=MAX_BATCH
        )
        new = [one for one in found if one.id not in self._pending or one.settled_s is not None]
        self._forget_oldest(self._commands, len(new))
        self._commands.extend((self._version, one) for one in new)
        self._pending = {one.id for one in found if one.settled_s is None}
        self._last_command = max((one.id for one in found), default=self._last_command)

    def _take_in_run(self, run_id: RunId) -> None:
        run = self.reader.run(run_id)
        if run is None:
            return
        before = self.rows.get(run_id)
        row = RunRow(
            version=self._version,
            status=run.status,
            json=b"",
            knobs=before.knobs if before else _knobs(run),
            latest=before.latest if before else {},
            step=run.step,
            num_steps=run.num_steps,
            active_s=run.active_s,
            remaining_s=run.remaining_s,
            samples_per_step=_samples_per_step(arguments_in_force(run)),
            seen=before.seen if before else {},
        )
        if before is None:
            self._read_latest(run_id, row)
        else:
            self._read_new(run_id, row)
        row.json = encoded(_as_json(run, row, self._sparkline(run)))
        self.rows[run_id] = row

    def _read_latest(self, run_id: RunId, row: RunRow) -> None:
        """Of a run that is new to the view: the latest value of each metric."""
        for source in _REMEMBERED_SOURCES:
            values = self.reader.latest_values(run_id, source)
            last = max((value.step for value in values), default=0)
            names = frozenset(value.name for value in values if value.step == last)
            row.seen[source] = (last, names)
            self._note(row, values)
        loss = self.reader.latest_loss(run_id)
        if loss is not None:
            row.seen[MetricSource.STEP] = (loss.step, frozenset({loss.name}))
            self._note(row, [loss])

    def _read_new(self, run_id: RunId, row: RunRow) -> None:
        """Of a run that is known: the values since the last time."""
        for source in MetricSource:
            last, names = row.seen.get(source, (0, frozenset()))
            values = self.reader.values_from(run_id, source, last, MAX_BATCH)
            new = [value for value in values if value.step > last or value.name not in names]
            if not new:
                continue
            if len(values) == MAX_BATCH:
                # Too many to be handed on one by one; the row shows the latest all the same.
                self._forgotten = self._version
                new = self.reader.latest_values(run_id, source)
            newest = max(value.step for value in new)
            at_newest = frozenset(value.name for value in new if value.step == newest)
            row.seen[source] = (newest, at_newest | (names if newest == last else frozenset()))
            self._note(row, new)
            self._forget_oldest(self._values, len(new))
            self._values.extend(NewValue(self._version, run_id, value) for value in new)

    def _note(self, row: RunRow, values: Iterable[Value]) -> None:
        latest = dict(row.latest)
        for value in values:
            self.names.add((value.source, value.name))
            self._last_time_s = max(self._last_time_s, value.time_s)
            name = shown_name(value.source, value.name)
            if name not in latest or latest[name][0] <= value.step:
                latest[name] = (value.step, value.value)
        row.latest = latest

    def _sparkline(self, run: Run) -> list[float | None]:
        """Losses at some steps that lie evenly, from the first to the latest."""
        if run.step == 0:
            return []
        num = min(_SPARKS, run.step)
        steps = sorted({1 + round(i * (run.step - 1) / max(1, num - 1)) for i in range(num)})
        losses = self.reader.losses_at(run.id, steps)
        return [finite(losses[step]) for step in steps if step in losses]


def _knobs(run: Run) -> dict[str, Json]:
    return {name: shown(value, name) for name, value in sorted(flat(run.config).items(), key=str)}


def _as_json(run: Run, row: RunRow, sparkline: list[float | None]) -> dict[str, Json]:
    model = run.config.get("model")
    return {
        "run_id": run.id,
        "name": run.name,
        "status": run.status.value,
        "step": run.step,
        "num_steps": run.num_steps,
        "chunks_done": run.chunks_done,
        "num_chunks": run.num_chunks,
        "active_s": finite(run.active_s),
        "remaining_s": finite(run.remaining_s) if not run.ended else None,
        "loss": finite(run.loss),
        "metrics": {name: finite(value) for name, (_, value) in sorted(row.latest.items())},
        "sparkline": sparkline,
        "pinned": run.pinned,
        "trainer_type": run.config.get("trainer_type"),
        "model_name": shown(model.get("model_name")) if isinstance(model, Mapping) else None,
        "samples_per_step": row.samples_per_step,
        "worker_id": run.worker_id,
        "parent_id": run.parent_id,
        "modified": {name: shown(value, name) for name, value in run.modified.items()},
        "fork": shown(run.fork),
        "error": None if run.error is None else shown_text(run.error),
        "passes": shown_text(summary(run.modes)),
        "num_notes": len(run.notes),
        "deleted_from": run.deleted_from,
        "undo_until_s": run.undo_until_s,
        "purged": run.purged,
        "version": row.version,
    }


def _samples_per_step(arguments: Mapping[str, Any]) -> int | None:
    """Samples that go into an optimizer step of a run on one device."""
    size = arguments.get("per_device_train_batch_size")
    accumulation = arguments.get("gradient_accumulation_steps") or 1
    if not isinstance(size, int) or not isinstance(accumulation, int):
        return None
    return size * accumulation


def differing(rows: Mapping[RunId, RunRow]) -> list[str]:
    """Names of the knobs by which some runs differ."""
    names = dict.fromkeys(name for row in rows.values() for name in row.knobs)
    absent = object()

    def is_same(name: str) -> bool:
        values = [row.knobs.get(name, absent) for row in rows.values()]
        return all(value == values[0] for value in values[1:])

    return [name for name in names if not is_same(name)]
