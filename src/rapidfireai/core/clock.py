"""Where the engine gets the time from; tests inject their own."""

import time
from typing import Protocol


class Clock(Protocol):
    """A source of wall-clock time. Readings never decrease within one engine."""

    def now(self) -> float:
        """Seconds since the Unix epoch."""
        ...


class SystemClock:
    """The machine's clock, held monotonic: it never steps back when the system's is set."""

    def __init__(self) -> None:
        self._offset_s = time.time() - time.monotonic()

    def now(self) -> float:
        """Seconds since the Unix epoch."""
        return time.monotonic() + self._offset_s
