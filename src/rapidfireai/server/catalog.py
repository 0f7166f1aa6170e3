"""All experiments of a folder, and the few of them that are open.

Names that come from outside are looked up in a listing of the folder, and never become part of a
path.
"""

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rapidfireai.core.events import Json
from rapidfireai.core.ids import RunId
from rapidfireai.core.metrics import is_maximised
from rapidfireai.core.run import SETTLED, RunStatus
from rapidfireai.errors import ExperimentPathError, RapidFireError, StoreError
from rapidfireai.paths import ExperimentFolder
from rapidfireai.server.view import RunRow, View
from rapidfireai.store.plain import finite, shown

MAX_OPEN: Final = 6
"""Experiments that are kept open though nobody looks at them."""

_Signature = tuple[int, ...]


class UnknownExperimentError(RapidFireError):
    """There is no experiment of that name."""


@dataclass(slots=True)
class _Open:
    """An experiment that is open."""

    view: View
    inode: int
    num_users: int = 0


class Catalog:
    """The experiments in a folder. Threads may share it.

    Args:
        root: The folder; it need not exist yet.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _Open] = OrderedDict()
        """The least recently used first."""
        self._summaries: dict[str, tuple[_Signature, dict[str, Json]]] = {}

    def folder(self, name: str) -> ExperimentFolder:
        """The experiment of that name.

        Raises:
            UnknownExperimentError: There is none.
        """
        for folder in self._folders():
            if folder.name == name:
                return folder
        raise UnknownExperimentError(f"there is no experiment {name[:100]!r} in {self.root}")

    @contextmanager
    def view(self, name: str) -> Iterator[View]:
        """The experiment as it is now; it stays open inside.

        Raises:
            UnknownExperimentError: There is none of that name.
            StoreError: It cannot be read.
        """
        used = self._take(self.folder(name))
        try:
            used.view.refresh()
            yield used.view
        except StoreError:
            self._forget(name, used)
            raise
        finally:
            self._give_back(used)

    def summaries(self) -> list[dict[str, Json]]:
        """What there is to say of each experiment, the latest first, as `messages.Experiment`.

        One that cannot be read has its problem in place of that.
        """
        found = [self._summary(folder) for folder in self._folders()]
        return sorted(found, key=lambda one: -(one["created_s"] or 0.0))

    def summary(self, name: str) -> dict[str, Json]:
        """The same for one experiment.

        Raises:
            UnknownExperimentError: There is none of that name.
        """
        return self._summary(self.folder(name))

    def close(self) -> None:
        """Close all experiments."""
        with self._lock:
            for used in self._open.values():
                used.view.close()
            self._open.clear()

    def _folders(self) -> list[ExperimentFolder]:
        try:
            return ExperimentFolder.all(self.root)
        except OSError as error:
            raise ExperimentPathError(
                f"the folder for experiments, {self.root}, cannot be read: {error.strerror}"
            ) from error

    def _take(self, folder: ExperimentFolder) -> _Open:
        inode = _signature(folder)[0]
        with self._lock:
            used = self._open.get(folder.name)
            if used is not None and used.inode != inode:  # another one took its place
                self._open.pop(folder.name)
                used = None
            if used is None:
                used = self._open[folder.name] = _Open(View(folder), inode)
            used.num_users += 1
            self._open.move_to_end(folder.name)
            idle = [name for name, one in self._open.items() if one.num_users == 0]
            for name in idle[: max(0, len(self._open) - MAX_OPEN)]:
                self._open.pop(name).view.close()
            return used

    def _give_back(self, used: _Open) -> None:
        with self._lock:
            used.num_users -= 1
            if used.num_users == 0 and used not in self._open.values():
                used.view.close()

    def _forget(self, name: str, used: _Open) -> None:
        with self._lock:
            if self._open.get(name) is used:
                self._open.pop(name)

    def _summary(self, folder: ExperimentFolder) -> dict[str, Json]:
        signature = _signature(folder)
        kept = self._summaries.get(folder.name)
        if kept is not None and kept[0] == signature:
            return kept[1]
        try:
            with self.view(folder.name) as view:
                summary = summarised(view)
        except (RapidFireError, OSError) as error:
            summary = _unreadable(folder, str(error))
        self._summaries[folder.name] = (signature, summary)
        return summary


def summarised(view: View) -> dict[str, Json]:
    """An experiment in a few numbers, as `messages.Experiment`."""
    # Copied at once: another thread may be taking in further runs.
    shown_rows = dict(view.rows)
    rows = {run_id: row for run_id, row in shown_rows.items() if row.status != RunStatus.DELETED}
    unfinished = [row for row in rows.values() if row.status not in SETTLED]
    state = "ended"
    if view.trained_by is not None:
        state = "training"
    elif unfinished:
        state = "interrupted"
    return {
        "name": view.folder.name,
        "state": state,
        "problem": None,
        "trained_by": view.trained_by,
        "created_s": view.record.created_s,
        "seed": view.record.seed,
        "num_chunks": view.record.num_chunks,
        "versions": view.record.versions,
        "settings": shown(view.record.settings),
        "num_runs": len(rows),
        "statuses": dict(Counter(row.status.value for row in rows.values())),
        "progress": _progress(list(rows.values())),
        "remaining_s": _remaining_s(list(rows.values())) if unfinished else None,
        "best": _best(rows),
    }


def _unreadable(folder: ExperimentFolder, problem: str) -> dict[str, Json]:
    nothing = ("trained_by", "created_s", "seed", "num_chunks", "progress", "remaining_s", "best")
    return {
        "name": folder.name,
        "state": "unreadable",
        "problem": problem,
        **dict.fromkeys(nothing),
        "versions": {},
        "settings": {},
        "num_runs": 0,
        "statuses": {},
    }


def _progress(rows: list[RunRow]) -> float:
    """The share of all steps that is done; an ended run needs no more."""
    if not rows:
        return 0.0
    shares = (
        1.0 if row.status in SETTLED else row.step / row.num_steps if row.num_steps else 0.0
        for row in rows
    )
    return sum(shares) / len(rows)


def _remaining_s(rows: list[RunRow]) -> float | None:
    """Seconds of training that remain; runs without a pace so far are taken for average ones."""
    totals = [row.active_s + (row.remaining_s or 0.0) for row in rows if row.step > 0]
    if not totals:
        return None
    mean_s = sum(totals) / len(totals)
    work_s = sum(
        mean_s if row.remaining_s is None else row.remaining_s
        for row in rows
        if row.status not in SETTLED
    )
    return finite(work_s / max(1, sum(row.status is RunStatus.RUNNING for row in rows)))


def _best(rows: dict[RunId, RunRow]) -> dict[str, Json] | None:
    """The run with the best evaluation, or loss where none has been evaluated."""
    for metric in ("eval_loss", "loss"):
        values = {
            run_id: row.latest[metric][1]
            for run_id, row in rows.items()
            if metric in row.latest
            and row.status is not RunStatus.FAILED
            and finite(row.latest[metric][1]) is not None
        }
        if values:
            choose = max if is_maximised(metric) else min
            run_id = choose(values, key=values.__getitem__)
            return {"run_id": run_id, "metric": metric, "value": values[run_id]}
    return None


def _signature(folder: ExperimentFolder) -> _Signature:
    """Changes with whatever is written to the experiment, and with who trains it."""
    signature = [0]
    for path in (folder.store, folder.store.with_name(folder.store.name + "-wal")):
        try:
            found = path.stat()
        except OSError:
            continue
        signature[0] = signature[0] or found.st_ino
        signature += [found.st_mtime_ns, found.st_size]
    try:
        return (*signature, folder.trained_by() or 0)
    except ExperimentPathError:
        return tuple(signature)
