"""Time that a run really trained: it stands still while the run is paused."""

import time


class Stopwatch:
    """Adds up the seconds between `start` and `stop`."""

    def __init__(self) -> None:
        self._total_s = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """Go on counting. Nothing to do if it counts."""
        if self._since is None:
            self._since = time.perf_counter()

    def stop(self) -> None:
        """Stand still. Nothing to do if it does."""
        if self._since is not None:
            self._total_s += time.perf_counter() - self._since
            self._since = None

    def add(self, seconds: float) -> None:
        """Count time that was spent for the run elsewhere."""
        self._total_s += seconds

    def reset(self, total_s: float = 0.0) -> None:
        """Begin again at `total_s`, counting or not as before."""
        self._total_s = total_s
        if self._since is not None:
            self._since = time.perf_counter()

    def read_s(self) -> float:
        """Seconds counted so far."""
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return self._total_s + running
