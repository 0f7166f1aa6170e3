"""The process around a training: its log, its libraries' chatter, and the signals it gets."""

import gc
import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rapidfireai.errors import ConfigError
from rapidfireai.live import message_handler
from rapidfireai.paths import ExperimentFolder

_WORLD_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
"""Variables in which launchers say how many processes they have started."""

_LAUNCHED = ("TORCHELASTIC_RUN_ID", "ACCELERATE_USE_CPU")
"""Variables that torchrun and `accelerate launch` set, also for one process. The latter sets
others besides, by which accelerate would change every run's precision and devices."""


def check_not_launched() -> None:
    """Refuse to be one of several processes, each of which would train everything.

    Raises:
        ConfigError: `accelerate launch`, torchrun or mpirun started this process.
    """
    several = [name for name in _WORLD_SIZES if os.environ.get(name, "1") not in ("", "1")]
    found = several or [name for name in _LAUNCHED if name in os.environ]
    if found:
        raise ConfigError(
            f"a launcher of distributed training has started this process ({found[0]}="
            f"{os.environ[found[0]]!r}). Start it as it is, with `python` or `rapidfireai fit` and "
            "without accelerate launch, torchrun or mpirun: one process trains all configurations"
        )


class EndAtOnce(BaseException):
    """A second signal: not even the step in progress is waited for. No KeyboardInterrupt, which the
    owner of a fiber would put off until the step has ended."""


class Ending:
    """Whether the process has been asked to end: by Ctrl-C, by SIGTERM with which clusters announce
    preemption, or because the script is over.

    Signals are only noted, so that they never strike between what is stored and what is in memory.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self.is_asked_for = False
        """Looked at between two steps, and by whoever waits for something."""

    def ask(self) -> None:
        """End after the step in progress."""
        self.is_asked_for = True

    def error(self) -> BaseException:
        """What the process ends with: as after Ctrl-C, or with SIGTERM's exit status."""
        if self._signal == signal.SIGTERM:
            return SystemExit(128 + signal.SIGTERM)
        return KeyboardInterrupt()

    @contextmanager
    def heeding_signals(self) -> Iterator[None]:
        """Take notice of Ctrl-C and SIGTERM.

        Only the main thread can do that; elsewhere the process's own handlers stay, and so do
        those of an application that ignores a signal or has its own for Ctrl-C.

        Raises:
            EndAtOnce: A second signal; anywhere inside.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {}
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            before[signal.SIGINT] = signal.signal(signal.SIGINT, self._handle)
        if signal.getsignal(signal.SIGTERM) not in (signal.SIG_IGN, None):
            before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        if self._signal is not None:
            raise EndAtOnce
        self._signal = number
        self.ask()


@contextmanager
def experiment_log(folder: ExperimentFolder) -> Iterator[None]:
    """Send the package's messages to the experiment's log, and to the screen unless the
    application has set logging up by itself."""
    package = logging.getLogger("rapidfireai")
    handlers: list[logging.Handler] = [logging.FileHandler(folder.log, delay=True)]
    handlers[0].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    if not logging.getLogger().handlers and not package.handlers:
        handlers.append(message_handler())
    level = package.level
    if package.getEffectiveLevel() > logging.INFO:
        package.setLevel(logging.INFO)
    for handler in handlers:
        package.addHandler(handler)
    try:
        yield
    finally:
        package.setLevel(level)
        for handler in handlers:
            package.removeHandler(handler)
            handler.close()


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Progress bars of libraries off and `Dataset.map`'s cache on, as long as runs train.

    Warnings that every run would repeat, and that no user can do anything about, are left out.
    """
    import datasets
    import transformers

    bars = datasets.are_progress_bars_disabled()
    transformers_bars = transformers.logging.is_progress_bar_enabled()
    caching = datasets.is_caching_enabled()
    # transformers 5.23 renames the option; TRL 1.16 still sets it under the old name. Not within
    # catch_warnings: a training in the background would undo what the user sets meanwhile.
    known = list(warnings.filters)
    warnings.filterwarnings("ignore", "`.*gradient_checkpointing.*` is deprecated", FutureWarning)
    # Said once more by a note on every such run.
    warnings.filterwarnings("ignore", "You are using '(rollout_func|environment_factory)'")
    ignored = warnings.filters[:2]
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    datasets.enable_caching()
    try:
        yield
    finally:
        for one in ignored:
            if one not in known and one in warnings.filters:
                warnings.filters.remove(one)  # type: ignore[attr-defined]
        if not bars:
            datasets.enable_progress_bars()
        if transformers_bars:
            transformers.logging.enable_progress_bar()
        if not caching:
            datasets.disable_caching()


@contextmanager
def old_objects_set_aside() -> Iterator[None]:
    """Let the garbage collector skip what is there already, libraries above all.

    Each trainer asks for a full collection when it begins, and each run when it ends. Looking at
    all that torch and TRL have imported takes some 0.3 s each time, and never finds anything.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
