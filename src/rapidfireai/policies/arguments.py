"""Checks of what policies are made with."""

import math
from typing import Any

from rapidfireai.errors import ConfigError


def at_least(name: str, value: Any, least: int) -> int:
    """The value, a whole number of at least `least`.

    Raises:
        ConfigError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name}={value!r} cannot be used; it has to be an integer >= {least}")
    return value


def between(name: str, value: Any, low: float, high: float) -> float:
    """The value, a number above `low` and below `high`.

    Raises:
        ConfigError: It is not.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low < value < high:
        raise ConfigError(
            f"{name}={value!r} cannot be used; it has to be a number between {low:g} and {high:g}"
        )
    return float(value)


def number_or_none(name: str, value: Any) -> float | None:
    """The value, a finite number or None.

    Raises:
        ConfigError: It is not.
    """
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        raise ConfigError(f"{name}={value!r} cannot be used; it has to be a number, or None")
    return float(value)
