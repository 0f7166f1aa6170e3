"""What makes two runs the same: a digest of everything that decides about a run's numbers.

What counts, so that a change of it makes a new run:

- values of the configuration, and the seed;
- a dataset by its fingerprint; a stream, which has none, by its columns and first rows;
- a function by module, qualified name and source, and so do functions and classes of its own module
  that it mentions by name; without a source, as in a REPL, its compiled code stands for it;
- what a function has at hand by default arguments, enclosing functions or constants of its module,
  as far as that cannot change while it runs: numbers, strings, tuples, functions;
- an object (a callback, a reward with settings) by its class and its attributes, not its address.

What does not count: the source of libraries, files, lists and dictionaries that a function only
mentions, variables that it counts in, the weights of models that are passed in.
"""

import dataclasses
import dis
import functools
import hashlib
import inspect
import json
import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from enum import Enum
from itertools import islice
from pathlib import Path
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from datasets import IterableDataset
from torch import nn

from rapidfireai.core.events import Json
from rapidfireai.training.config import RunConfig, as_json

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_NUM_ROWS = 8
"""Of a stream."""
_MAX_DEPTH = 6
"""Objects within objects; deeper ones count by their class."""
_STANDARD = sysconfig.get_path("stdlib")


def run_identity(config: RunConfig, surroundings: Mapping[str, Any]) -> str:
    """Digest of the configuration and of what all runs share.

    Args:
        config: The configuration.
        surroundings: Datasets, functions and seed, by name; or their digests.
    """
    parts = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    del parts["notes"]  # for people
    return digest({"config": parts, "surroundings": surroundings})


def digest(value: Any) -> str:
    """A text that is the same in every process for what counts as the same."""
    text = json.dumps(_describe(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _describe(value: Any, within: tuple[int, ...] = ()) -> Json:
    """The value as JSON that is the same in every process.

    Args:
        within: Ids of the objects and functions that it was reached by, against going in circles.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _describe(item, within) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_describe(item, within) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((_describe(item, within) for item in value), key=json.dumps)
    if (fingerprint := getattr(value, "_fingerprint", None)) is not None:
        return f"dataset {fingerprint}"
    if isinstance(value, IterableDataset):
        return ["stream", str(value), [_describe(row) for row in islice(value, _NUM_ROWS)]]
    if isinstance(value, torch.Tensor | np.ndarray):
        return [str(value.dtype), _describe(value.tolist())]
    if id(value) in within or len(within) > _MAX_DEPTH:
        return _name(value)
    return _describe_object(value, (*within, id(value)))


def _describe_object(value: Any, within: tuple[int, ...]) -> Json:
    if isinstance(value, functools.partial):
        parts = (value.func, value.args, value.keywords)
        return ["partial", *(_describe(part, within) for part in parts)]
    if isinstance(value, MethodType):
        return ["method", _describe(value.__func__, within), _describe(value.__self__, within)]
    if isinstance(value, FunctionType):
        return [_name(value), _source(value), _at_hand(value, within)]
    if inspect.isroutine(value):
        return _name(value)
    if inspect.isclass(value):
        return _describe_class(value)
    if isinstance(value, nn.Module):
        return [_describe_class(type(value)), str(value)]
    attributes = {name: _describe(item, within) for name, item in _attributes(value)}
    if attributes or callable(value):
        return [_describe_class(type(value)), attributes]
    described = str(value)
    return _name(value) if _ADDRESS.search(described) else described


def _describe_class(value: type) -> Json:
    """Sources of the class and of those that it inherits from, as far as they are its module's."""
    return [
        [_name(base), _source(base)]
        for base in value.__mro__
        if base.__module__ == value.__module__
    ]


def _at_hand(function: FunctionType, within: tuple[int, ...]) -> Json:
    """Constants and functions that the function uses without being given them."""
    code, own = function.__code__, function.__globals__
    captured = zip(code.co_freevars, function.__closure__ or (), strict=True)
    values = {name: cell.cell_contents for name, cell in captured if _is_filled(cell)}
    if not _is_installed(function):
        mentioned = {name: own[name] for name in _names(code) if name in own}
        values |= {n: v for n, v in mentioned.items() if _is_part(v, function.__module__)}
    counters = _names_assigned(code)
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).items()]
    return {
        "defaults": [_constant(value, within) for value in defaults],
        **{n: _constant(v, within) for n, v in values.items() if n not in counters},
    }


def _is_part(value: Any, module: str) -> bool:
    """Whether the global belongs to the function's module: a constant, or what is defined there."""
    if inspect.isfunction(value) or inspect.isclass(value):
        return bool(value.__module__ == module)
    return isinstance(value, bool | int | float | str | tuple)


def _constant(value: Any, within: tuple[int, ...]) -> Json:
    """The value, unless it could change while the function runs: then its type."""
    if isinstance(value, tuple):
        return [_constant(item, within) for item in value]
    is_fixed = value is None or isinstance(
        value, bool | int | float | str | frozenset | functools.partial
    )
    if is_fixed or inspect.isroutine(value) or inspect.isclass(value):
        return _describe(value, within)
    if getattr(value, "_fingerprint", None) is not None:
        return _describe(value, within)
    return _name(value)


def _is_filled(cell: CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:  # of a variable that is assigned later
        return False
    return True


def _codes(code: CodeType) -> Iterator[CodeType]:
    """The code, and that of the functions within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _names(code: CodeType) -> list[str]:
    """Names that the code mentions, of globals and attributes alike."""
    return sorted({name for part in _codes(code) for name in part.co_names})


def _names_assigned(code: CodeType) -> set[str]:
    """Variables of others that the code assigns to: it counts something in them."""
    return {
        instruction.argval
        for part in _codes(code)
        for instruction in dis.get_instructions(part)
        if instruction.opname in ("STORE_GLOBAL", "STORE_DEREF")
    }


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield field.name, getattr(value, field.name, None)
    elif not isinstance(value, Enum):
        yield from getattr(value, "__dict__", {}).items()


def _name(value: Any) -> str:
    """Module and qualified name of a function or class, or of an object's class."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return str(as_json(named))


@functools.lru_cache(maxsize=1024)
def _source(value: Any) -> Json:
    """The source of a function or class, or else its compiled code; None if it is a library's."""
    if _is_installed(value):
        return None
    try:
        # Not of the function itself, for which Python would show the one that it wraps.
        return inspect.getsource(value.__code__ if isinstance(value, FunctionType) else value)
    except (OSError, TypeError):
        if isinstance(value, FunctionType):
            return _code(value.__code__)
        return {
            name: _code(item.__code__)
            for name, item in vars(value).items()
            if isinstance(item, FunctionType)
        }


def _is_installed(value: Any) -> bool:
    """Whether a function or class comes from a library."""
    module = sys.modules.get(value.__module__ or "")
    file = getattr(module, "__file__", None)
    if file is None:
        return value.__module__ in sys.builtin_module_names
    return Path(file).is_relative_to(_STANDARD) or "site-packages" in Path(file).parts


def _code(code: CodeType) -> Json:
    constants = [
        _code(constant) if isinstance(constant, CodeType) else repr(constant)
        for constant in code.co_consts
    ]
    return [code.co_code.hex(), constants, list(code.co_names), list(code.co_varnames)]
