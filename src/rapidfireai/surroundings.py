"""The process around a training: its log, its libraries' chatter, and the signals it gets."""

import logging
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rapidfireai.live import message_handler
from rapidfireai.paths import ExperimentFolder


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived. Takes the ways of Ctrl-C: between two steps, with everything written."""

    exit_status = 128 + signal.SIGTERM


@contextmanager
def terminated_as_interrupt() -> Iterator[None]:
    """Let SIGTERM, with which clusters announce preemption, end the training as Ctrl-C does.

    Only the main thread can do that; elsewhere the process's own handler stays.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
    ignored = warnings.filters[0]
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    datasets.enable_caching()
    try:
        yield
    finally:
        if ignored not in known and ignored in warnings.filters:
            warnings.filters.remove(ignored)  # type: ignore[attr-defined]
        if not bars:
            datasets.enable_progress_bars()
        if transformers_bars:
            transformers.logging.enable_progress_bar()
        if not caching:
            datasets.disable_caching()
