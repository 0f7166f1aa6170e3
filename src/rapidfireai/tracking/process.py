"""The processes that send to trackers, from the side of the one that trains.

They are processes, not threads: the libraries' work, their locks when a data loader forks, and
their state for the whole process stay away from the training, and what was measured is still sent
after the training has been killed.
"""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from rapidfireai.errors import ConfigError
from rapidfireai.paths import ExperimentFolder
from rapidfireai.tracking._protocol import Settings
from rapidfireai.tracking.choice import to_json
from rapidfireai.tracking.ledger import Ledger, TrackerFolder

logger = logging.getLogger(__name__)

CATCH_UP_S: Final = 10.0
"""How long the end of `run_fit` waits for trackers; then they go on without it."""

_REACH_S: Final = 90.0
"""For a tracker elsewhere to answer before the training begins."""

_POLL_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class _Child:
    settings: Settings
    folder: TrackerFolder
    process: "subprocess.Popen[bytes]"

    def ledger(self) -> Ledger | None:
        """Of this process, once it has tried to reach the tracker."""
        ledger = self.folder.read()
        is_own = ledger is not None and ledger.pid == self.process.pid and ledger.reached
        return ledger if is_own else None


class Senders:
    """One process for each tracker of an experiment."""

    def __init__(self, children: Sequence[_Child]) -> None:
        self._children = children

    def await_reached(self) -> None:
        """Wait until trackers that are elsewhere have answered.

        Raises:
            ConfigError: One cannot be reached, and never was before; or it refuses.
        """
        deadline_s = time.monotonic() + _REACH_S
        for child in self._children:
            if not child.settings.is_remote:
                continue
            while (ledger := child.ledger()) is None and child.process.poll() is None:
                if time.monotonic() > deadline_s:
                    break
                time.sleep(_POLL_S)
            problem = "it does not answer" if ledger is None else ledger.problem
            if problem is None:
                continue
            if ledger is not None and ledger.connected and not ledger.refused:
                logger.warning(
                    "%s is not there (%s); the training goes on without it, and it is told later",
                    child.settings.name,
                    problem,
                )
                continue
            raise ConfigError(
                f"the tracker {child.settings.name!r} cannot be used: {problem}. Correct its "
                f"settings or start it, or leave it out of trackers; {child.folder.log} says more"
            )

    def end(self, wait_s: float = CATCH_UP_S) -> None:
        """Let the trackers catch up; whoever needs longer goes on alone.

        Args:
            wait_s: For how long to wait for them.
        """
        for child in self._children:
            assert child.process.stdin is not None, "it was asked for"
            with suppress(BrokenPipeError):
                child.process.stdin.write(b"\n")
            with suppress(BrokenPipeError):
                child.process.stdin.close()
        deadline_s = time.monotonic() + wait_s
        for child in self._children:
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, deadline_s - time.monotonic()))
            if child.process.returncode is None:
                # Whenever it has ended, somebody takes note: else it stays a zombie.
                threading.Thread(target=child.process.wait, daemon=True).start()
            if child.process.returncode != 0:
                ledger = child.ledger()
                logger.warning(
                    "%s does not know everything yet%s; `rapidfireai sync` sends the rest",
                    child.settings.name,
                    f" ({ledger.problem})" if ledger is not None and ledger.problem else "",
                )

    def kill(self) -> None:
        """End at once: nothing has been trained."""
        for child in self._children:
            child.process.kill()
            child.process.wait()
            assert child.process.stdin is not None, "it was asked for"
            child.process.stdin.close()


def settled(folder: ExperimentFolder, trackers: Sequence[Settings]) -> list[Settings]:
    """The trackers' settings as they are in force for an experiment.

    Raises:
        ConfigError: They cannot work.
    """
    return [one.settled(TrackerFolder.of(folder, one.name).path) for one in trackers]


def start(folder: ExperimentFolder, trackers: Sequence[Settings]) -> Senders:
    """Start the processes.

    Args:
        folder: The experiment's.
        trackers: Settled.

    Raises:
        ConfigError: There is no room for what they keep.
    """
    children: list[_Child] = []
    for settings in trackers:
        kept = TrackerFolder.of(folder, settings.name)
        orders = json.dumps({"folder": str(folder.path), "settings": to_json(settings)})
        with _log(kept) as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "rapidfireai.tracking", orders],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                # Ctrl-C is for the training, whose last words they have to send.
                start_new_session=True,
            )
        children.append(_Child(settings, kept, process))
    return Senders(children)


@contextmanager
def _log(folder: TrackerFolder) -> Iterator[int]:
    folder.path.mkdir(parents=True, exist_ok=True)
    log = os.open(folder.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        yield log
    finally:
        os.close(log)
