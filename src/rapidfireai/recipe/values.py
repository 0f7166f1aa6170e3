"""What stands behind a key: a value, or a knob.

The rule. Where an argument takes no list, a list holds alternatives. Where it does take one, a list
is its value, and a list that holds lists holds alternatives. `{list: [...]}` holds alternatives
everywhere, `{range: [low, high]}` is a range.
"""

from collections.abc import Callable, Mapping
from typing import Any, get_origin

from rapidfireai.automl.argument_types import Argument, alternatives, shown
from rapidfireai.automl.knobs import List, Range
from rapidfireai.errors import ConfigError

_RANGE_KEYS = ("range", "log", "step", "dtype")
_SWITCHES = {"yes": True, "on": True, "no": False, "off": False}
"""YAML 1.1's other words for booleans."""


def as_knob(value: Any, argument: Argument, owner: str) -> Any:
    """The value or knob that stands in a file, checked.

    Args:
        value: As it was read.
        argument: Whose it is.
        owner: Where it stands, for messages.

    Raises:
        ConfigError: It is not possible there.
    """
    return argument.checked(_read(value, argument, owner), owner)


def mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """The value with a function applied, to every alternative if there are several."""
    if isinstance(value, List):
        return List([mapped(item, function) for item in value.values])
    return function(value)


def takes_list(argument: Argument) -> bool:
    """Whether a list may be one value of the argument."""
    kinds = {get_origin(member) or member for member in alternatives(argument.annotation)}
    return bool(kinds & {list, tuple, set})


def _read(value: Any, argument: Argument, owner: str) -> Any:
    if isinstance(value, dict) and set(value) == {"list"}:
        return _alternatives(value["list"], argument, owner)
    if isinstance(value, dict) and "range" in value and set(value) <= set(_RANGE_KEYS):
        return _range(value, argument, owner)
    if isinstance(value, list):
        if not takes_list(argument) or any(isinstance(item, list) for item in value):
            return _alternatives(value, argument, owner)
        return value
    if isinstance(value, dict):
        return {key: _read(item, _ENTRY, owner) for key, item in value.items()}
    members = set(alternatives(argument.annotation))
    if isinstance(value, str) and bool in members and str not in members:
        return _SWITCHES.get(value.lower(), value)
    return value


_ENTRY = Argument(name="entry", annotation=Any | list[Any])
"""Of a mapping: nobody knows which of its entries take lists, so a list is a value there."""


def _alternatives(values: Any, argument: Argument, owner: str) -> List:
    if not isinstance(values, list) or not values:
        raise ConfigError(
            f"{owner}: {argument.name} has {shown(values)} as its alternatives; give a list with "
            "at least one"
        )
    return List([_alternative(value, argument, owner) for value in values])


def _alternative(value: Any, argument: Argument, owner: str) -> Any:
    """One of several: a list is a value here."""
    return value if isinstance(value, list) else _read(value, argument, owner)


def _range(given: Mapping[str, Any], argument: Argument, owner: str) -> Range:
    ends = given["range"]
    if not isinstance(ends, list) or len(ends) != 2:
        raise ConfigError(
            f"{owner}: {argument.name} has range: {shown(ends)}; write it as "
            "{range: [low, high]}, with log: true for numbers of different magnitude"
        )
    further = {name: given[name] for name in _RANGE_KEYS[1:] if name in given}
    members = set(alternatives(argument.annotation))
    if float in members and int not in members:
        further.setdefault("dtype", "float")
    return Range(*ends, **further)
