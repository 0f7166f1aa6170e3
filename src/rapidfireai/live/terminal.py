"""The view in a terminal: redrawn in place, what others print scrolls by above it."""

import logging
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import groupby
from operator import attrgetter

from rich.console import Console
from rich.live import Live
from rich.segment import Segment, Segments
from rich.style import Style

from rapidfireai.live.layout import Layout
from rapidfireai.live.table import Line

_ASCII = str.maketrans({"━": "#", "─": "-", "·": "|", "…": "~"})


class TerminalScreen:
    """Draws on a terminal until closed, then leaves the ranking behind; a `view.Screen`.

    Args:
        layout: What to draw.
        console: The terminal.
    """

    def __init__(self, layout: Layout, console: Console) -> None:
        self._layout = layout
        self._console = console
        # No thread of its own: one could draw in the middle of a step, or hold a lock that a data
        # loader's process inherits.
        self._live = Live(
            console=console,
            auto_refresh=False,
            transient=True,
            vertical_overflow="crop",
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
        )
        self._opened = ExitStack()
        streams = (sys.stdout, sys.stderr)
        self._opened.enter_context(self._live)
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream in streams:
                # It holds the stream of before, which would write into the middle of the table.
                self._opened.callback(handler.setStream, handler.stream)
                handler.setStream((sys.stdout, sys.stderr)[streams.index(handler.stream)])

    def draw(self) -> None:
        """Draw what there is to see now."""
        width, height = self._console.size
        # A terminal that is filled to its last line scrolls.
        lines = self._layout.live(width, height - 1)
        self._live.update(self._rendered(lines), refresh=True)

    def close(self) -> None:
        """Replace the table by the ranking, which stays."""
        self._opened.close()
        lines = self._layout.final(self._console.width)
        self._console.print(self._rendered(lines), soft_wrap=True)

    def _rendered(self, lines: Iterable[Line]) -> Segments:
        """The lines as the terminal can show them.

        Rich keeps them: what others print meanwhile redraws them, but does not lay them out again.
        """
        encodable = self._to_ascii if self._console.options.ascii_only else str
        segments = []
        for line in lines:
            for style, spans in groupby(line, key=attrgetter("style")):
                text = encodable("".join(span.text for span in spans))
                segments.append(Segment(text, Style.parse(style) if style else None))
            segments.append(Segment.line())
        return Segments(segments)

    def _to_ascii(self, text: str) -> str:
        encoding = self._console.encoding
        return text.translate(_ASCII).encode(encoding, "replace").decode(encoding)
