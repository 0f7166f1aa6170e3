"""Where things are kept on disk, and how an experiment's folder is laid out."""

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from rapidfireai.core.ids import RunId
from rapidfireai.errors import ConfigError, ExperimentBusyError, ExperimentPathError

_locks: set[int] = set()
"""Descriptors of the locks that this process holds. Its children let go of them: one that outlives
it for a moment, as a data loader's worker does, would keep the next process out."""


def _let_go_of_locks() -> None:
    for lock in _locks:
        os.close(lock)
    _locks.clear()


os.register_at_fork(after_in_child=_let_go_of_locks)

_LOCK_POLL_S = 0.01

_NAME = re.compile(r"\w[\w .+-]{0,99}")


def experiments_root(given: str | os.PathLike[str] | None = None) -> Path:
    """Folder of all experiments: as given, $RF_EXPERIMENT_PATH, or below $RF_HOME.

    Raises:
        ConfigError: What is given is no path.
    """
    if given is not None:
        if not isinstance(given, str | os.PathLike) or not isinstance(os.fspath(given), str):
            raise ConfigError(
                f"experiment_path={given!r} cannot be used; it is the folder of all experiments, "
                "as a string or a pathlib.Path. Leave it out to have the default."
            )
        return Path(given).expanduser().absolute()
    if path := os.environ.get("RF_EXPERIMENT_PATH"):
        return Path(path).expanduser().absolute()
    return home() / "rapidfire_experiments"


def home() -> Path:
    """Folder for everything that outlives an experiment: $RF_HOME, or ~/rapidfireai."""
    return Path(os.environ.get("RF_HOME") or "~/rapidfireai").expanduser().absolute()


@dataclass(frozen=True, slots=True)
class ExperimentFolder:
    """One experiment on disk."""

    path: Path

    @classmethod
    def claim(cls, root: Path, name: str) -> "ExperimentFolder":
        """Create a new folder for the name; the first free of name, name_2, name_3, ...

        Raises:
            ConfigError: The name cannot be a folder's.
            ExperimentPathError: The folder cannot be created or written.
        """
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(
                f"experiment_name={name!r} cannot be used: it names a folder, so it has to begin "
                "with a letter or digit and contain only letters, digits, spaces and . _ + -, at "
                "most 100 of them"
            )
        try:
            root.mkdir(parents=True, exist_ok=True)
            for candidate in _candidates(name):
                folder = cls(root / candidate)
                if folder.path.exists() and not folder.path.is_dir():
                    continue
                folder.path.mkdir(exist_ok=True)
                # One without both belongs to an attempt that was refused before it trained.
                if not folder.store.exists() and not folder.runs.exists():
                    folder.log.touch()  # whether it can be written shows here, not in training
                    return folder
        except OSError as error:
            raise ExperimentPathError(
                f"the folder for experiments, {root}, cannot be written: {error.strerror}. Give "
                "another with Experiment(..., experiment_path=...) or the environment variable "
                "RF_EXPERIMENT_PATH."
            ) from error
        raise AssertionError("the candidates never end")

    @classmethod
    def latest(cls, root: Path, name: str) -> "ExperimentFolder | None":
        """The experiment of that name that was begun last; None if there is none."""
        latest = None
        for candidate in _candidates(name):
            folder = cls(root / candidate)
            if not folder.path.exists():
                return latest
            if folder.store.exists():
                latest = folder
        raise AssertionError("the candidates never end")

    @classmethod
    def all(cls, root: Path) -> "list[ExperimentFolder]":
        """All experiments that have begun, by name; none if there is no such folder."""
        if not root.is_dir():
            return []
        folders = (cls(path) for path in sorted(root.iterdir()) if path.is_dir())
        return [folder for folder in folders if folder.store.exists()]

    @contextmanager
    def locked(self, *, wait_s: float = 0.0) -> Iterator[None]:
        """Be the only process that trains the experiment.

        Args:
            wait_s: Seconds to wait for another that holds the lock: one that only carries out a
                command does for milliseconds.

        Raises:
            ExperimentBusyError: Another one does.
            ExperimentPathError: The folder cannot be written.
        """
        try:
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ExperimentPathError(
                f"the experiment's folder, {self.path}, cannot be written: {error.strerror}"
            ) from error
        _locks.add(lock)
        try:
            if not take_lock(lock, wait_s):
                raise ExperimentBusyError(
                    f"the experiment {self.name!r} is being trained by process "
                    f"{os.read(lock, 20).decode().strip()}; wait for it, end it, or use another "
                    "experiment_name"
                )
            os.ftruncate(lock, 0)
            os.write(lock, f"{os.getpid()}\n".encode())
            yield
        finally:
            if lock in _locks:
                _locks.discard(lock)
                os.close(lock)

    def trained_by(self) -> int | None:
        """Number of the process that trains the experiment at this moment; None if none does.

        Raises:
            ExperimentPathError: The folder cannot be read.
        """
        try:
            lock = os.open(self.path / "lock", os.O_RDONLY)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ExperimentPathError(
                f"the experiment's folder, {self.path}, cannot be read: {error.strerror}"
            ) from error
        try:
            # Shared, so that several who only ask do not see each other.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(os.read(lock, 20) or 0)
        else:
            return None
        finally:
            os.close(lock)

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self.path.name

    @property
    def store(self) -> Path:
        """The experiment's database."""
        return self.path / "experiment.db"

    @property
    def study(self) -> Path:
        """What a search that learns from runs knows."""
        return self.path / "study.log"

    @property
    def report(self) -> Path:
        """The page that an experiment with policies ends with."""
        return self.path / "report.html"

    @property
    def log(self) -> Path:
        """The experiment's log."""
        return self.path / "experiment.log"

    @property
    def data(self) -> Path:
        """Prepared datasets."""
        return self.path / "data"

    @property
    def paused(self) -> Path:
        """Tensors of paused runs for which there is no memory."""
        return self.path / "paused"

    @property
    def trackers(self) -> Path:
        """How far each tracker has been told, one folder each."""
        return self.path / "trackers"

    @property
    def runs(self) -> Path:
        """All that the runs' trainers write."""
        return self.path / "runs"

    def run(self, run_id: RunId) -> Path:
        """All that a run's trainer writes."""
        return self.runs / str(run_id)

    def final(self, run_id: RunId) -> Path:
        """The ended run, as `from_pretrained` loads it."""
        return self.run(run_id) / "final"


def take_lock(descriptor: int, wait_s: float) -> bool:
    """Take an open file's lock; returns whether nobody else held it for so many seconds."""
    deadline_s = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline_s:
                return False
            time.sleep(_LOCK_POLL_S)
        else:
            return True


def _candidates(name: str) -> Iterator[str]:
    yield name
    for number in count(2):
        yield f"{name}_{number}"
