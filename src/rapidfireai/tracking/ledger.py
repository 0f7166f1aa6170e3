"""How far a tracker has been told, on disk: what a process that is killed leaves to the next one.

A file below the experiment's folder, replaced as a whole after what was sent has been taken. It
also says how the tracker is doing, for those who only look.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from rapidfireai.core.events import Json, MetricSource
from rapidfireai.core.ids import RunId
from rapidfireai.core.run import RunStatus
from rapidfireai.paths import ExperimentFolder, take_lock

_FILE: Final = "ledger.json"


@dataclass(slots=True)
class RunLedger:
    """How far a tracker has been told of one run."""

    key: str
    """Of the tracker's own run."""
    seq: int = 0
    """Number of the latest event that it knows."""
    status: RunStatus = RunStatus.QUEUED
    """The run's after that event."""
    deleted_from: RunStatus | None = None
    num_values: int = 0
    """Values of the store that it holds."""
    steps: dict[MetricSource, tuple[int, frozenset[str]]] = field(default_factory=dict)
    """For each source the latest step, and the names of the values that it holds of that step. Of
    all steps before, it holds everything."""

    def to_json(self) -> dict[str, Json]:
        """As JSON."""
        return {
            **asdict(self),
            "steps": {
                source: [step, sorted(names)] for source, (step, names) in self.steps.items()
            },
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> "RunLedger":
        """What `to_json` gave."""
        was = found["deleted_from"]
        return cls(
            key=found["key"],
            seq=found["seq"],
            status=RunStatus(found["status"]),
            deleted_from=None if was is None else RunStatus(was),
            num_values=found["num_values"],
            steps={
                MetricSource(source): (step, frozenset(names))
                for source, (step, names) in found["steps"].items()
            },
        )


@dataclass(slots=True)
class Ledger:
    """How far a tracker has been told of an experiment, and how it is doing."""

    settings: dict[str, Json]
    """Of the tracker. Other ones are another tracker, which knows nothing yet."""
    runs: dict[RunId, RunLedger] = field(default_factory=dict)
    pid: int = 0
    """Of the process that sends, or did so last."""
    reached: bool = False
    """Whether that process has tried once, successfully or not."""
    connected: bool = False
    """Whether it was ever successful."""
    problem: str | None = None
    """Why the latest attempt to send failed; None if it did not."""
    refused: bool = False
    """Whether somebody has to change something before another attempt makes sense."""
    since_s: float | None = None
    """Since when it has failed, in seconds since the Unix epoch."""

    def to_json(self) -> dict[str, Json]:
        """As JSON."""
        return {
            "settings": self.settings,
            "runs": {run_id: run.to_json() for run_id, run in self.runs.items()},
            "pid": self.pid,
            "reached": self.reached,
            "connected": self.connected,
            "problem": self.problem,
            "refused": self.refused,
            "since_s": self.since_s,
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> "Ledger":
        """What `to_json` gave."""
        runs = {
            RunId(int(run_id)): RunLedger.from_json(run) for run_id, run in found["runs"].items()
        }
        return cls(**{**found, "runs": runs})


@dataclass(frozen=True, slots=True)
class TrackerFolder:
    """What is kept of one tracker of an experiment."""

    path: Path

    @classmethod
    def of(cls, folder: ExperimentFolder, name: str) -> "TrackerFolder":
        """The tracker's of that name."""
        return cls(folder.trackers / name)

    @classmethod
    def all(cls, folder: ExperimentFolder) -> "list[TrackerFolder]":
        """Those of all trackers that the experiment ever had, by name."""
        if not folder.trackers.is_dir():
            return []
        found = (cls(path) for path in sorted(folder.trackers.iterdir()))
        return [one for one in found if (one.path / _FILE).exists()]

    @property
    def name(self) -> str:
        """The tracker's."""
        return self.path.name

    @property
    def log(self) -> Path:
        """What the process that sends, and the library, have to say."""
        return self.path / "tracker.log"

    def read(self) -> Ledger | None:
        """The ledger; None if there is none that can be read."""
        try:
            return Ledger.from_json(json.loads((self.path / _FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def prepared(self, settings: dict[str, Json]) -> Ledger:
        """The ledger of a tracker with these settings, on disk, for whoever has claimed it."""
        ledger = self.read()
        if ledger is None or ledger.settings != settings:
            ledger = Ledger(settings)
        ledger.pid, ledger.reached = os.getpid(), False
        self.write(ledger)
        return ledger

    def write(self, ledger: Ledger) -> None:
        """Replace the ledger.

        Raises:
            OSError: The disk is full or gone; the one before is there still.
        """
        fresh = self.path / f"{_FILE}.new"
        fresh.write_text(json.dumps(ledger.to_json()), encoding="utf-8")
        os.replace(fresh, self.path / _FILE)

    @contextmanager
    def claimed(self, wait_s: float) -> Iterator[bool]:
        """Be the only process that sends to the tracker; gives whether that was possible."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            yield take_lock(lock, wait_s)
        finally:
            os.close(lock)

    def is_claimed(self) -> bool:
        """Whether a process sends to the tracker."""
        try:
            lock = os.open(self.path / "lock", os.O_RDONLY)
        except OSError:
            return False
        try:
            # Shared, so that several who only ask do not see each other.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            return False
        finally:
            os.close(lock)
