"""Messages for people: what runs have to say, and what libraries log while runs train."""

import logging
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Final

from rapidfireai.core.ids import RunId

LINES: Final = "rapidfireai.live.lines"
"""The logger of progress as lines, which a view that is redrawn in place does not repeat."""

_MAX_MESSAGES: Final = 200
_HEARD: Final = (
    "rapidfireai", "py.warnings", "transformers", "datasets", "trl", "peft", "accelerate",
)  # fmt: skip
_WARNING_PLACE: Final = re.compile(r"^\S.*?:\d+: (?=\w+: )")


@dataclass(slots=True)
class Message:
    """A message, once for all the runs that have it."""

    text: str
    level: int
    """As in `logging`."""
    run_ids: list[RunId] = field(default_factory=list)
    """Empty if the message is about no run."""


class Messages:
    """The latest messages, each text once. `add` may be called from any thread."""

    def __init__(self) -> None:
        self._new: SimpleQueue[tuple[str, int, RunId | None]] = SimpleQueue()
        self._messages: dict[tuple[str, int], Message] = {}

    def add(self, text: str, level: int, run_id: RunId | None = None) -> None:
        """Add a message, about a run or about none."""
        self._new.put((text, level, run_id))

    def all(self) -> list[Message]:
        """The messages, the one that came or was repeated last at the end."""
        while True:
            try:
                text, level, run_id = self._new.get_nowait()
            except Empty:
                return list(self._messages.values())
            message = self._messages.pop((text, level), None) or Message(text, level)
            if run_id is not None and run_id not in message.run_ids:
                message.run_ids.append(run_id)
            self._messages[text, level] = message
            if len(self._messages) > _MAX_MESSAGES:
                del self._messages[next(iter(self._messages))]


class _Handler(logging.Handler):
    """Puts records among a board's messages, but for the lines that its table shows anyway."""

    def __init__(self, messages: Messages) -> None:
        super().__init__()
        self._messages = messages
        self.addFilter(_is_no_line)

    def emit(self, record: logging.LogRecord) -> None:
        """Add the record's message, without a traceback: that is in the log."""
        message = record.getMessage()
        if record.name == "py.warnings":
            message = _WARNING_PLACE.sub("", message).splitlines()[0]
        self._messages.add(message, record.levelno)


def _is_no_line(record: logging.LogRecord) -> bool:
    return record.name != LINES


@contextmanager
def heard(messages: Messages) -> Iterator[None]:
    """Show what is logged among the messages rather than in the middle of the table.

    What the application shows by its own handlers goes its way, above the table.
    """
    root = logging.getLogger()
    with ExitStack() as stack:
        for handler in _screen_handlers(root):
            handler.addFilter(_is_no_line)
            stack.callback(handler.removeFilter, _is_no_line)
        for name in _HEARD:
            logger = logging.getLogger(name)
            replaced = _screen_handlers(logger)
            if replaced or not root.handlers:
                stack.enter_context(_exchanged(logger, replaced, _Handler(messages)))
        if not root.handlers:
            stack.enter_context(_warnings_logged())
        yield


@contextmanager
def _exchanged(
    logger: logging.Logger, old: Sequence[logging.Handler], new: logging.Handler
) -> Iterator[None]:
    for handler in old:
        logger.removeHandler(handler)
    logger.addHandler(new)
    try:
        yield
    finally:
        logger.removeHandler(new)
        for handler in old:
            logger.addHandler(handler)


@contextmanager
def _warnings_logged() -> Iterator[None]:
    before = warnings.showwarning
    logging.captureWarnings(True)
    is_new = warnings.showwarning is not before
    try:
        yield
    finally:
        if is_new:
            logging.captureWarnings(False)


def _screen_handlers(logger: logging.Logger) -> list[logging.Handler]:
    return [
        handler
        for handler in logger.handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream in (sys.stdout, sys.stderr)
    ]
