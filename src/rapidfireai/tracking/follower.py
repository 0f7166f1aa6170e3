"""Follows an experiment for one tracker: looks, sends, waits; and tries again what failed."""

import logging
import select
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from rapidfireai.errors import RapidFireError, TrackerRefusedError
from rapidfireai.paths import ExperimentFolder
from rapidfireai.store import SqliteReader
from rapidfireai.tracking._protocol import Settings, Tracker
from rapidfireai.tracking.choice import to_json
from rapidfireai.tracking.ledger import TrackerFolder
from rapidfireai.tracking.sender import Sender

logger = logging.getLogger(__name__)

_LOOK_S: Final = 1.0
"""Between two looks at the store."""

_SHARE: Final = 0.1
"""Of the time that goes into sending while somebody trains, unless the pauses get too long."""

_MAX_PAUSE_S: Final = 30.0
_FIRST_RETRY_S: Final = 1.0
_LAST_RETRY_S: Final = 60.0

_GIVE_UP_S: Final = 60.0
"""Without any success, once nobody trains."""


class Follower:
    """Keeps a tracker up to date.

    Args:
        experiment: Whose store is followed; it may have none yet.
        settings: The tracker, settled.
        folder: Where to keep how far it is; claimed by the caller.
    """

    def __init__(
        self, experiment: ExperimentFolder, settings: Settings, folder: TrackerFolder
    ) -> None:
        self._experiment = experiment
        self._settings = settings
        self._folder = folder
        self._ledger = folder.prepared(to_json(settings))
        self._tracker: Tracker | None = None
        self._store: SqliteReader | None = None
        self._sender: Sender | None = None

    @property
    def problem(self) -> str | None:
        """Why the latest attempt failed."""
        return self._ledger.problem

    def follow(self, is_over: Callable[[float], bool], give_up_s: float = _GIVE_UP_S) -> bool:
        """Send until it is over, and then until the tracker holds everything.

        Args:
            is_over: Waits for some seconds, or until nobody trains any more; returns whether
                that is so.
            give_up_s: For how long to try in vain, once nobody trains.

        Returns:
            Whether the tracker holds everything.
        """
        over, latest_s, retry_s = False, time.monotonic(), _FIRST_RETRY_S
        try:
            while True:
                begin_s, before = time.monotonic(), self._progress()
                is_well = self._try()
                now_s = time.monotonic()
                if self._progress() != before or not over:
                    latest_s = now_s
                elif is_well or now_s - latest_s >= give_up_s:
                    return is_well
                if is_well:
                    retry_s = _FIRST_RETRY_S
                    pause_s = max(_LOOK_S, (now_s - begin_s) * (1 / _SHARE - 1))
                    pause_s = 0.0 if over else min(pause_s, _MAX_PAUSE_S)
                else:
                    pause_s = min(retry_s, give_up_s) if over else retry_s
                    retry_s = min(2 * retry_s, _LAST_RETRY_S)
                if over:
                    time.sleep(pause_s)
                else:
                    over = is_over(pause_s)
                    retry_s = _FIRST_RETRY_S if over else retry_s
        finally:
            self._disconnect()

    def _progress(self) -> int:
        return sum(run.num_values + run.seq for run in self._ledger.runs.values())

    def _try(self) -> bool:
        """Send what there is; returns whether nothing went wrong."""
        try:
            self._connect()
            problem = self._sender.send() if self._sender is not None else None
        except Exception as error:
            logger.warning("%s: not sent", self._settings.name, exc_info=True)
            problem = error
        if problem is not None:
            self._disconnect()
        self._note(problem)
        return problem is None

    def _connect(self) -> None:
        if self._tracker is None:
            self._tracker = self._settings.connect(self._experiment.name)
        if self._sender is None and self._experiment.store.exists():
            self._store = SqliteReader(self._experiment.store)
            self._sender = Sender(self._store, self._tracker, self._ledger, self._save)

    def _note(self, problem: Exception | None) -> None:
        """Let others know how it went."""
        ledger = self._ledger
        told = None if problem is None else told_of(problem)
        if (told, True) == (ledger.problem, ledger.reached):
            return
        ledger.reached = True
        ledger.connected = ledger.connected or problem is None
        ledger.refused = isinstance(problem, TrackerRefusedError)
        ledger.since_s = None if told is None else ledger.since_s or time.time()
        ledger.problem = told
        with suppress(OSError):  # a full disk: what failed for want of room is tried again as well
            self._save()

    def _save(self) -> None:
        self._folder.write(self._ledger)

    def _disconnect(self) -> None:
        """Begin the next attempt from nothing: half of a connection may be broken."""
        if self._sender is not None and self._store is not None:
            self._store.close()
        tracker, self._tracker, self._sender, self._store = self._tracker, None, None, None
        if tracker is not None:
            try:
                tracker.close()
            except Exception:
                logger.warning("%s: not closed", self._settings.name, exc_info=True)


def told_of(error: BaseException) -> str:
    """What went wrong, in a line."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text if isinstance(error, RapidFireError) else f"{type(error).__name__}: {text}"
    return text if len(text) <= 500 else f"{text[:500]}..."


def training_ends(timeout_s: float) -> bool:
    """Wait for so many seconds, or until the process at the other end of standard input lets go."""
    readable, _, _ = select.select([sys.stdin.fileno()], [], [], timeout_s)
    return bool(readable)
