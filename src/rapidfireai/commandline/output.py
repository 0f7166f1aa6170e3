"""What verbs print: tables for people, JSON for programs."""

import json
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

_NO_TERMINAL_WIDTH: Final = 1000
"""In cells: a pipe has room for everything."""


def print_json(value: Any) -> None:
    """Print strict JSON; what is not finite becomes a string."""
    sys.stdout.write(json.dumps(_strict(value), indent=2, allow_nan=False) + "\n")


def print_line(text: str = "") -> None:
    """Print a line."""
    sys.stdout.write(f"{text}\n")


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; columns in which nothing stands are left out.

    On a screen that is too narrow the columns on the right are left out, and a line says so.
    """
    # The last columns are the least important, wherever there is no room for all.
    from rapidfireai.live.table import Column, Span, table, text

    columns = [
        Column(
            title=title,
            cells=[(Span(row[number]),) for row in rows],
            importance=number,
            left=not all(_is_number(row[number]) for row in rows),
        )
        for number, title in enumerate(titles)
    ]
    full = table(columns, _NO_TERMINAL_WIDTH)
    shown = table(columns, _width())
    for line in shown:
        print_line(text(line))
    if len(shown[0]) < len(full[0]):
        print_line("(not all columns fit: make the window wider, or use --json)")


def format_time(time_s: float) -> str:
    """A point in time, in this machine's time zone."""
    return f"{datetime.fromtimestamp(time_s, UTC).astimezone():%Y-%m-%d %H:%M:%S}"


def format_size(num_bytes: int) -> str:
    """A size with the unit that suits it."""
    size, units = float(num_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1000 and len(units) > 1:
        size /= 1024
        del units[0]
    return f"{size:.0f} {units[0]}" if units[0] == "B" else f"{size:.1f} {units[0]}"


def format_number(value: float) -> str:
    """A metric with as many digits as one compares."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.4f}"
    return f"{value:.2e}" if math.isfinite(value) else str(value)


def _width() -> int:
    return os.get_terminal_size().columns if sys.stdout.isatty() else _NO_TERMINAL_WIDTH


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+.\d/?e]*|nan|-?inf", text) is not None


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value
