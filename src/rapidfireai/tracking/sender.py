"""Reads what is new in an experiment's store and sends it to one tracker, from where it was last.

The store is the queue: it holds everything in order, and the ledger is a place in it. So catching
up after a failure, or in another process, is the same as ordinary work.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Final

from rapidfireai.core.events import MetricSource
from rapidfireai.core.ids import RunId
from rapidfireai.core.run import Run, RunStatus, apply
from rapidfireai.errors import StoreError
from rapidfireai.faults import reach
from rapidfireai.store import EventRow, MetricRow, SqliteReader
from rapidfireai.tracking._protocol import STATUS, STATUS_CODES, Point, Tracker
from rapidfireai.tracking.ledger import Ledger, RunLedger

logger = logging.getLogger(__name__)

BATCH: Final = 1000
"""Values that are sent at once; MLflow takes no more."""


class Sender:
    """Brings a tracker up to the state of a store.

    Args:
        store: The experiment's.
        tracker: Where to.
        ledger: How far it has been told; changed as it is told more.
        save: Keeps the ledger.
    """

    def __init__(
        self,
        store: SqliteReader,
        tracker: Tracker,
        ledger: Ledger,
        save: Callable[[], None],
    ) -> None:
        self._store = store
        self._tracker = tracker
        self._ledger = ledger
        self._save = save
        record = store.experiment()
        self._experiment = f"{record.name}-{record.created_s:.3f}"
        self._seen_seq = 0
        """Number of the latest event that made its run `open`."""
        self._open: set[RunId] = set()
        """Runs of which the tracker may not know everything."""
        self._certain: set[RunId] = set()
        """Runs of which it holds what the ledger says, and no more: of others it may hold what was
        sent when a process was killed or an answer got lost."""

    def send(self) -> Exception | None:
        """Send all that is new; a run whose turn fails does not keep back the others.

        Returns:
            What the last run that failed raised.

        Raises:
            StoreError: The store cannot be read.
        """
        self._look()
        problem = None
        for run_id in sorted(self._open):
            try:
                self._send_run(run_id)
            except StoreError:
                raise
            except Exception as error:
                self._certain.discard(run_id)
                logger.warning("run %d could not be sent", run_id, exc_info=True)
                problem = error
        return problem

    def _look(self) -> None:
        while events := self._store.events(after=self._seen_seq, limit=BATCH):
            for row in events:
                self._seen_seq = row.seq
                known = self._ledger.runs.get(row.event.run_id)
                if known is None or known.seq < row.seq or known.status is RunStatus.RUNNING:
                    self._open.add(row.event.run_id)

    def _send_run(self, run_id: RunId) -> None:
        known = self._ledger.runs.get(run_id)
        # The events first: all values from before them are in the store by then.
        events = self._store.events(
            after=0 if known is None else known.seq, limit=BATCH, run_id=run_id
        )
        run = self._store.run(run_id)
        assert run is not None, "an event is of a run"
        if known is None:
            known = self._begin(run, events[0].time_s)
        while rows := self._new_rows(known, run_id):
            self._log(run_id, known, [_point(row) for row in rows])
            _note_rows(known, rows)
            self._save()
        if events:
            self._tell(run, known, events)
        elif known.status is not RunStatus.RUNNING:
            self._open.discard(run_id)

    def _begin(self, run: Run, time_s: float) -> RunLedger:
        parent = None if run.parent_id is None else self._ledger.runs.get(run.parent_id)
        key = self._tracker.begin(
            run, f"{self._experiment}-{run.id}", None if parent is None else parent.key, time_s
        )
        reach("tracker.begun")
        known = self._ledger.runs[run.id] = RunLedger(key)
        self._save()
        return known

    def _tell(self, run: Run, known: RunLedger, events: Sequence[EventRow]) -> None:
        """Send what the events did to the run's status."""
        points: list[Point] = []
        was = Run(
            id=run.id,
            name=run.name,
            config={},
            path="",
            status=known.status,
            deleted_from=known.deleted_from,
        )
        for row in events:
            now = apply(was, row.event)
            if now.status is not was.status:
                points.append(Point(STATUS, row.seq, STATUS_CODES[now.status], row.time_s))
            was = now
        self._log(run.id, known, points)
        self._tracker.update(known.key, run, events[-1].time_s)
        reach("tracker.updated")
        known.seq, known.status, known.deleted_from = events[-1].seq, was.status, was.deleted_from
        self._save()

    def _log(self, run_id: RunId, known: RunLedger, points: Sequence[Point]) -> None:
        if run_id not in self._certain and points:
            held = self._tracker.held(known.key, points)
            points = [point for point in points if (point.name, point.step) not in held]
        if points:
            self._tracker.log(known.key, points)
            reach("tracker.sent")
        self._certain.add(run_id)

    def _new_rows(self, known: RunLedger, run_id: RunId) -> list[MetricRow]:
        """The first of the values that the tracker does not hold, in the order of their steps."""
        rows: list[MetricRow] = []
        for source in MetricSource:
            step, names = known.steps.get(source, (0, frozenset()))
            found = self._store.rows_from(run_id, source, step, BATCH + len(names))
            rows += [row for row in found if row.step > step or row.name not in names]
        return sorted(rows, key=lambda row: row.step)[:BATCH]


def _point(row: MetricRow) -> Point:
    return Point(f"{row.source}/{row.name}", row.step, row.value, row.time_s)


def _note_rows(known: RunLedger, rows: Sequence[MetricRow]) -> None:
    known.num_values += len(rows)
    for row in rows:
        step, names = known.steps.get(row.source, (0, frozenset()))
        kept = names if row.step == step else frozenset()
        known.steps[row.source] = (row.step, kept | {row.name})
