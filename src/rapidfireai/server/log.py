"""Parts of an experiment's log."""

import re
from pathlib import Path
from typing import Final

from rapidfireai.core.events import Json
from rapidfireai.core.ids import RunId
from rapidfireai.store.plain import shown_text

MAX_BYTES: Final = 1 << 18
"""Of the log that are read at once."""


def log_part(path: Path, after: int | None, run_id: RunId | None) -> dict[str, Json]:
    """Whole lines of a log.

    Args:
        path: The log.
        after: Byte at which a line begins; None for the last lines.
        run_id: Only lines that speak of this run; None for all.

    Returns:
        As `messages.LogPart`. A log that is not there yet has no lines.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            start = max(0, size - MAX_BYTES) if after is None else min(after, size)
            file.seek(start)
            content = file.read(MAX_BYTES)
    except FileNotFoundError:
        size, start, content = 0, 0, b""
    if after is None and start > 0:  # not in the middle of a line
        begin = content.find(b"\n") + 1
        start, content = start + begin, content[begin:]
    end = content.rfind(b"\n") + 1
    if end == 0 and len(content) == MAX_BYTES:  # a line that is longer than that
        end = len(content)
    lines = content[:end].decode(errors="replace").splitlines()
    if run_id is not None:
        about = re.compile(rf"\brun[ -]{run_id}\b")
        lines = [line for line in lines if about.search(line)]
    return {
        "lines": [shown_text(line) for line in lines],
        "first": start,
        "next": start + end,
        "size": size,
    }
