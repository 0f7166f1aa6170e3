"""The view in a notebook: one output of the cell, replaced in place."""

from html import escape
from typing import Any, Final

from rapidfireai.live.layout import Layout
from rapidfireai.live.table import Line, text

_WIDTH: Final = 120
_HEIGHT: Final = 40
_PRE: Final = "white-space:pre;overflow-x:auto;line-height:1.25;font-family:monospace"
# Colours that can be read on white as well as on black.
_CSS: Final = {
    "bold": "font-weight:bold",
    "dim": "opacity:0.6",
    "cyan": "color:#1295b8",
    "green": "color:#2f9e44",
    "red": "color:#e03131",
    "yellow": "color:#c77700",
}


class NotebookScreen:
    """Draws in the output of the cell that makes it; a `view.Screen`.

    Args:
        layout: What to draw.
    """

    def __init__(self, layout: Layout) -> None:
        from IPython.display import display  # noqa: PLC0415 - only there in notebooks

        self._layout = layout
        self._handle: Any = display(_bundle([]), raw=True, display_id=True)

    def draw(self) -> None:
        """Draw what there is to see now."""
        self._show(self._layout.live(_WIDTH, _HEIGHT))

    def close(self) -> None:
        """Replace the table by the ranking, which stays."""
        self._show(self._layout.final(_WIDTH))

    def _show(self, lines: list[Line]) -> None:
        self._handle.update(_bundle(lines), raw=True)


def _bundle(lines: list[Line]) -> dict[str, str]:
    """The lines for front ends that show HTML, and for those that do not."""
    html = "\n".join("".join(_html(*span) for span in line) for line in lines)
    return {
        "text/plain": "\n".join(text(line) for line in lines),
        "text/html": f'<pre style="{_PRE}">{html}</pre>',
    }


def _html(text: str, style: str) -> str:
    css = ";".join(_CSS[word] for word in style.split())
    return f'<span style="{css}">{escape(text)}</span>' if css else escape(text)
