"""A `run_fit` that goes on while the caller does something else."""

import atexit
import threading
from collections.abc import Callable
from typing import Any

from rapidfireai.fit import Fit


class FitHandle:
    """A `run_fit` that goes on in the background.

    Training draws from the process's random generators. Code that draws from them as well while
    it goes on, in another cell or thread, is not kept apart from it.
    """

    def __init__(self, fit: Fit, status: Callable[[], Any]) -> None:
        self._fit = fit
        self._status = status
        self._cancelled = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="rapidfireai-fit", daemon=True)
        atexit.register(self._end_with_process)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether every run has ended."""
        return not self._thread.is_alive()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until every run has ended.

        Args:
            timeout_s: None waits as long as it takes.

        Returns:
            Whether every run has ended.

        Raises:
            Exception: What ended the training before its time; a failing run is none.
        """
        self._thread.join(timeout_s)
        if self._error is not None:
            raise self._error
        return self.done

    def status(self) -> Any:
        """All runs as they are now; the table of `Experiment.get_runs_info`."""
        return self._status()

    def cancel(self) -> None:
        """Save and stop all runs, and wait for that. Idempotent."""
        self._cancelled.set()
        self.wait()

    def _run(self) -> None:
        try:
            self._fit.run(self._cancelled)
        except BaseException as error:  # noqa: BLE001 - raised by wait()
            self._error = error
        finally:
            atexit.unregister(self._end_with_process)

    def _end_with_process(self) -> None:
        """The script is over, or was interrupted while it waited: write all runs down."""
        self._fit.end_soon()
        self._thread.join()
