"""Lines of styled text, and tables made of them.

Columns are laid out by hand: Rich's tables take fifty times as long, and runs wait while the view
is drawn.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from rich.cells import cell_len, set_cell_size


class Span(NamedTuple):
    """A piece of a line."""

    text: str
    style: str = ""
    """Colours and attributes as Rich names them: "bold red"."""


Line = tuple[Span, ...]

_GAP: Final = Span("  ")


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A column of a table, in the order from left to right."""

    title: str
    cells: Sequence[Line]
    importance: int
    """Where there is no room for all, those with the highest number are left out first."""
    left: bool = False
    """Whether it is aligned to the left."""

    @property
    def width(self) -> int:
        """Cells that its widest entry takes."""
        return max(_num_cells(self.title), *(_len(cell) for cell in self.cells))

    @property
    def is_empty(self) -> bool:
        """Whether no entry says anything."""
        return not any(span.text for cell in self.cells for span in cell)


def text(line: Line) -> str:
    """The line without its styles."""
    return "".join(span.text for span in line).rstrip()


def crop(line: Line, width: int) -> Line:
    """The line's first cells, marked where something is missing."""
    if _len(line) <= width:
        return line
    spans: list[Span] = []
    room = width - 1
    for span in line:
        if _num_cells(span.text) > room:
            return (*spans, Span(set_cell_size(span.text, room) + "…", span.style))
        room -= _num_cells(span.text)
        spans.append(span)
    raise AssertionError("a line that is too long has a span that does not fit")


def shorten(text: str, width: int) -> str:
    """The text's first cells, marked where something is missing."""
    return text if _num_cells(text) <= width else set_cell_size(text, width - 1) + "…"


def table(columns: Iterable[Column], width: int) -> list[Line]:
    """Titles and rows, with as many of the columns as fit. Empty columns are left out."""
    chosen = _fitting([column for column in columns if not column.is_empty], width)
    if not chosen:
        return []
    widths = [column.width for column in chosen]
    titles = tuple((Span(column.title, "dim"),) for column in chosen)
    rows = zip(*(column.cells for column in chosen), strict=True)
    return [
        _joined(
            _padded(cell, width, column.left)
            for column, cell, width in zip(chosen, row, widths, strict=True)
        )
        for row in (titles, *rows)
    ]


def _joined(cells: Iterable[Line]) -> Line:
    first, *others = cells
    return (*first, *(span for cell in others for span in (_GAP, *cell)))


def _fitting(columns: list[Column], width: int) -> list[Column]:
    """The most important columns that fit together, in their order."""
    room = width + _len((_GAP,))
    chosen: set[int] = set()
    for number, column in sorted(enumerate(columns), key=lambda item: item[1].importance):
        needed = column.width + _len((_GAP,))
        if needed <= room:
            room -= needed
            chosen.add(number)
    return [column for number, column in enumerate(columns) if number in chosen]


def _padded(cell: Line, width: int, left: bool) -> Line:
    pad = " " * (width - _len(cell))
    return (*cell, Span(pad)) if left else (Span(pad), *cell)


def _len(line: Line) -> int:
    return sum(_num_cells(span.text) for span in line)


def _num_cells(text: str) -> int:
    return len(text) if text.isascii() else cell_len(text)
