"""Helps with misspelt names: what every "unknown name" message ends with."""

import difflib
from collections.abc import Iterable

_MAX_LISTED = 30


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """Returns a clause that names the nearest of `allowed`; where none is near, all, if few."""
    by_lower = {name.lower(): name for name in allowed}
    close = difflib.get_close_matches(given.lower(), by_lower, n=1, cutoff=0.7)
    if close:
        return f"did you mean {by_lower[close[0]]!r}?"
    if len(by_lower) > _MAX_LISTED:
        return f"none of the {len(by_lower)} that exist is similar"
    return f"allowed: {', '.join(by_lower.values())}"
