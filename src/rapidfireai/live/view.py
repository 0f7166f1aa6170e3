"""Chooses the view for where output goes, and opens it for as long as runs train.

This is the one place that decides: a terminal is redrawn in place, a notebook has one output that
is replaced, and everything else gets plain lines.
"""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Final, Protocol

import rich
from rich.console import Console

from rapidfireai.core.clock import Clock, SystemClock
from rapidfireai.core.engine import Listener
from rapidfireai.core.events import ChunkAssigned, Event, RunStarted
from rapidfireai.core.run import Run
from rapidfireai.live.board import Board
from rapidfireai.live.layout import Layout
from rapidfireai.live.lines import ProgressLines
from rapidfireai.live.messages import heard
from rapidfireai.live.notebook import NotebookScreen
from rapidfireai.live.terminal import TerminalScreen
from rapidfireai.store import MetricRow

logger = logging.getLogger(__name__)

MIN_INTERVAL_S: Final = 1 / 8
"""Between two frames."""
MAX_SHARE: Final = 0.005
"""Of the time, that drawing may take; on a slow terminal there are fewer frames instead."""
_BURST_S: Final = 0.05


class Screen(Protocol):
    """Shows a board in place."""

    def draw(self) -> None:
        """Draw what there is to see now."""
        ...

    def close(self) -> None:
        """Leave the final ranking behind."""
        ...


def message_handler() -> logging.Handler:
    """A handler that shows the package's messages on the screen while no view is open."""
    # A notebook paints what comes from stderr red.
    stream = sys.stdout if rich.get_console().is_jupyter else sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(message)s"))
    return handler


@contextmanager
def progress_view(
    runs: Sequence[Run],
    stored: Iterable[MetricRow] = (),
    *,
    console: Console | None = None,
    clock: Clock | None = None,
) -> Iterator[Listener]:
    """Show the runs as long as it is open; what it gives listens to their engine.

    Chunks and the final ranking go to the package's logger as lines, wherever the view is. While it
    is redrawn in place, messages of the package and of the libraries below it appear in it, each
    once, unless the application has set logging up by itself.

    It draws between two steps, in the engine's thread: nothing trains meanwhile. It draws no random
    numbers, and takes `MAX_SHARE` of the time at most.

    Args:
        runs: The runs there are.
        stored: What earlier processes have measured of them.
        console: Where to show them. None: Rich's own console, on stdout.
        clock: None: the system's.
    """
    clock = clock or SystemClock()
    console = console or rich.get_console()
    board = Board(runs, clock)
    board.take_stored(stored)
    open_screen = _screen_for(console)
    with ExitStack() as stack:
        screen = None
        if open_screen is not None:
            # Before the screen opens, which puts something else in the place of stdout.
            stack.enter_context(heard(board.messages))
            screen = open_screen(Layout(board))
        view = _View(board, screen, Pace(clock))
        stack.callback(view.close)
        yield view


def _screen_for(console: Console) -> Callable[[Layout], Screen] | None:
    """What opens the screen there is; None where output can only be added to."""
    if console.is_jupyter:
        return NotebookScreen
    # Rich takes a file for a terminal when FORCE_COLOR is set, as it often is in CI.
    if console.is_interactive and console.file.isatty():
        return partial(TerminalScreen, console=console)
    return None


class Pace:
    """Says when it is time to draw."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last_s = clock.now() - MIN_INTERVAL_S
        self._credit_s = _BURST_S

    def is_due(self, *, urgent: bool) -> bool:
        """Whether to draw now.

        Args:
            urgent: What there is to see may stay for long, so that it should not wait for the next
                frame.
        """
        elapsed_s = self._clock.now() - self._last_s
        if elapsed_s < MIN_INTERVAL_S and not urgent:
            return False
        return self._credit_s + MAX_SHARE * elapsed_s > 0

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Account for what is drawn within."""
        begin_s = self._clock.now()
        earned_s = MAX_SHARE * (begin_s - self._last_s)
        self._credit_s = min(_BURST_S, self._credit_s + earned_s)
        try:
            yield
        finally:
            self._last_s = self._clock.now()
            self._credit_s -= self._last_s - begin_s


class _View:
    """Takes events in and shows them; an engine's listener."""

    def __init__(self, board: Board, screen: Screen | None, pace: Pace) -> None:
        self._board = board
        self._log = ProgressLines(board)
        self._screen = screen
        self._pace = pace

    def on_event(self, before: Run, event: Event, after: Run) -> None:
        """Take the event in, and draw if it is time."""
        self._board.on_event(before, event, after)
        self._log.on_event(before, event, after)
        # These two come last before a run trains, maybe for long; others may follow at once.
        urgent = isinstance(event, ChunkAssigned | RunStarted)
        if self._screen is not None and self._pace.is_due(urgent=urgent):
            with self._pace.drawing():
                self._try(self._screen.draw)

    def close(self) -> None:
        """Show the final ranking."""
        self._log.finish()
        if self._screen is not None:
            self._try(self._screen.close)

    def _try(self, show: Callable[[], None]) -> None:
        """A screen that fails, such as a terminal that has been closed, is given up."""
        try:
            show()
        except Exception:
            logger.exception("the live view has been given up")
            screen, self._screen = self._screen, None
            if screen is not None:
                with suppress(Exception):
                    screen.close()
