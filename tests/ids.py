"""Names of tests' parameters."""

import re


def plain(value: object) -> str:
    """`repr`, but the same in all processes that run tests: no addresses, sets in order."""
    if isinstance(value, set):
        return f"set({sorted(value)})"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
