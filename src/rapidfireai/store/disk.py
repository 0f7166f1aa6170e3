"""A full disk: what cannot be written waits until there is room.

It is the one failure of a disk that somebody can mend while the training waits, with nothing lost.
"""

import errno
import logging
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from rapidfireai.core.commands import Command, CommandRecord, Outcome
from rapidfireai.core.events import Event
from rapidfireai.core.run import Run
from rapidfireai.store._protocol import MetricRow
from rapidfireai.store.sqlite import SqliteStore

logger = logging.getLogger(__name__)

RETRY_S: Final = 5.0

_LEAST_BYTES: Final = 2**20
"""A write that failed where less than this is left failed for want of room. Not every library says
so: torch reports an unexpected position in the file."""

_MESSAGES: Final = ("No space left on device", "os error 28", "Disk quota exceeded")


class Room:
    """Repeats writes until the disk has room for them.

    Args:
        is_given_up: Whether waiting is pointless by now, as the process has been asked to end.
        sleep: Waits for some seconds.
        clock: Seconds on any scale.
    """

    def __init__(
        self,
        is_given_up: Callable[[], bool] = lambda: False,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.is_given_up = is_given_up
        self._sleep = sleep
        self._clock = clock

    def write(self, write: Callable[[], None], folder: Path, what: str) -> str | None:
        """Call `write` until it no longer fails for want of room.

        Args:
            write: May be called any number of times.
            folder: Where it writes; one that exists, or will be below one that does.
            what: For the log: what is to be written.

        Returns:
            None, or that it had to wait.

        Raises:
            Exception: What `write` raised for another reason, or when waiting was given up.
        """
        begin_s: float | None = None
        while True:
            try:
                write()
            except Exception as error:
                if not is_full(error, folder) or self.is_given_up():
                    raise
                if begin_s is None:
                    begin_s = self._clock()
                    logger.warning(
                        "the disk of %s is full: everything waits until %s can be written. Free "
                        "some space there. Ctrl-C ends the training without it; the same script "
                        "goes on from what was written before.",
                        folder,
                        what,
                    )
                self._sleep(RETRY_S)
            else:
                if begin_s is None:
                    return None
                note = f"the disk was full: {what} waited {self._clock() - begin_s:.0f} s for room"
                logger.warning("%s; going on", note)
                return note


class PatientStore(SqliteStore):
    """A store in a file whose changes wait for room on the disk.

    Args:
        path: The file.
        room: How they wait.
    """

    def __init__(self, path: Path, room: Room) -> None:
        super().__init__(path)
        self._room = room
        self._folder = path.parent

    def record(
        self,
        before: Run,
        event: Event,
        after: Run,
        time_s: float,
        settles: Outcome | None = None,
    ) -> None:
        """Append the event and change the run. See `Store.record`."""
        record = super().record
        self._write(lambda: record(before, event, after, time_s, settles))

    def add_run(
        self, event: Event, run: Run, time_s: float, settles: Outcome | None = None
    ) -> None:
        """Take in a run that somebody asked for. See `Store.add_run`."""
        add_run = super().add_run
        self._write(lambda: add_run(event, run, time_s, settles))

    def submit(self, command: Command, time_s: float, refused: str | None = None) -> CommandRecord:
        """Keep a command. See `Store.submit`."""
        submit, made = super().submit, []
        self._write(lambda: made.append(submit(command, time_s, refused)))
        return made[0]

    def settle(self, outcome: Outcome, time_s: float) -> None:
        """Say what became of a pending command. See `Store.settle`."""
        settle = super().settle
        self._write(lambda: settle(outcome, time_s))

    def save_progress(self, runs: Sequence[Run], rows: Sequence[MetricRow]) -> None:
        """Update runs and write values. See `Store.save_progress`."""
        save_progress = super().save_progress
        self._write(lambda: save_progress(runs, rows))

    def _write(self, write: Callable[[], None]) -> None:
        self._room.write(write, self._folder, "the experiment's database")


def is_full(error: BaseException, folder: Path) -> bool:
    """Whether the error, raised by a write to the folder, comes from a full disk."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if isinstance(cause, sqlite3.Error):
            return getattr(cause, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
        if any(message in str(cause) for message in _MESSAGES):
            return True
    return _free_bytes(folder) < _LEAST_BYTES


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _free_bytes(folder: Path) -> int:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free
