"""docs/compatibility.md: its tables, as trials fill them in."""

import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from tests.compatibility.trial import Result, Seen, Trial

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "compatibility.md"

_TITLES = "|  | outcome | base weights | |\n|---|---|---|---|\n"
_VERSIONS = ("trl", "transformers", "peft", "accelerate", "datasets", "torch", "bitsandbytes")


def line(trial: Trial, seen: Seen) -> str:
    """A row of the page."""
    reason = seen.reason if seen.result is not Result.EXACT else ""
    why = re.sub(r"^.*? (?:cannot be used here|is not supported): ", "", reason)
    remark = " ".join([*([trial.note] if trial.note else []), *([why] if why else [])])
    cells = (trial.name, str(seen.result), seen.base, " ".join(remark.split()))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def table(section: str) -> str:
    """What stands between the section's markers."""
    found = re.search(_pattern(section), PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found, f"{PAGE.name} has no table {section!r}"
    return found[2]


def lines(section: str) -> dict[str, str]:
    """The rows of a table, by their first cell."""
    below = table(section).splitlines(keepends=True)[2:]
    return {row.split(" | ")[0].removeprefix("| "): row for row in below}


def write(section: str, names: Sequence[str], name: str, row: str) -> None:
    """Put a row into a table, and leave out those that are not among its names any more.

    Args:
        section: Of the page.
        names: Of all rows, in order.
        name: Of the new one.
        row: As `line` gives it.
    """
    rows = {**lines(section), name: row}
    inner = _TITLES + "".join(rows[each] for each in names if each in rows)
    _put(section, inner)


def write_versions() -> None:
    """Say with what the trials ran."""
    numbers = [f"{name} {version(name).partition('+')[0]}" for name in _VERSIONS]
    _put("versions", ", ".join(numbers) + "\n")


def _put(section: str, inner: str) -> None:
    text = PAGE.read_text(encoding="utf-8")
    replaced = re.sub(
        _pattern(section), lambda found: found[1] + inner + found[3], text, flags=re.DOTALL
    )
    PAGE.write_text(replaced, encoding="utf-8")


def _pattern(section: str) -> str:
    return rf"(<!-- {section}:begin -->\n)(.*?)(<!-- {section}:end -->\n)"
