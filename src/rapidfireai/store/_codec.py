"""Runs, events and the experiment's record as strict JSON, and back without loss.

A record is an object with the name of its class under "type" and its fields beside it. JSON has
no NaN and no infinities: they are objects too, such as {"$float": "nan"}, and a key of the user's
that begins with "$" gets a second one, so that the two cannot be confused.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from enum import Enum
from typing import Any, Final, TypeVar, get_args, get_origin

from rapidfireai.core.commands import Command
from rapidfireai.core.events import Event, Json
from rapidfireai.core.run import Run
from rapidfireai.errors import StoreError
from rapidfireai.store._protocol import ExperimentRecord

EVENT_TYPES: Final[Mapping[str, type[Event]]] = {cls.__name__: cls for cls in get_args(Event)}

_FLOAT: Final = "$float"

_AS_IT_IS: Final = frozenset({str, int, bool, type(None)})
"""Most values are of these; asking here saves most of the time that a run takes to encode."""

R = TypeVar("R", Run, Event, ExperimentRecord, Command)


def encode(record: Run | Event | ExperimentRecord | Command) -> dict[str, Json]:
    """The record as strict JSON.

    Raises:
        StoreError: A field holds something that JSON does not have. Tuples count as such inside
            a field, since they would come back as lists.
    """
    kind = type(record).__name__
    encoded: dict[str, Json] = {"type": kind}
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, tuple):
            value = list(value)
        encoded[field.name] = _encode_value(value, f"{kind}.{field.name}")
    return encoded


def decode_run(encoded: Json) -> Run:
    """The run that `encode` was given.

    Raises:
        StoreError: It is not an encoded run.
    """
    return _decode(encoded, {"Run": Run})


def decode_event(encoded: Json) -> Event:
    """The event that `encode` was given.

    Raises:
        StoreError: It is not an encoded event.
    """
    return _decode(encoded, EVENT_TYPES)


def decode_experiment(encoded: Json) -> ExperimentRecord:
    """The record that `encode` was given.

    Raises:
        StoreError: It is not an encoded record of an experiment.
    """
    return _decode(encoded, {"ExperimentRecord": ExperimentRecord})


def decode_command(encoded: Json) -> Command:
    """The command that `encode` was given.

    Raises:
        StoreError: It is not an encoded command.
    """
    return _decode(encoded, {"Command": Command})


def to_text(record: Run | Event | ExperimentRecord | Command) -> str:
    """The record as a line of ASCII. Raises as `encode`."""
    return json.dumps(encode(record), allow_nan=False)


def from_text(text: str) -> Json:
    """What `to_text` encoded, to be passed to `decode_run` and its siblings.

    Raises:
        StoreError: The text is not JSON.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise StoreError(f"stored text is damaged: {text[:80]!r} is not JSON ({error})") from error


def plain_text(value: Json, where: str) -> str:
    """A value of JSON as a line of ASCII.

    Args:
        value: The value.
        where: What it is, for the message.

    Raises:
        StoreError: It holds something that JSON does not have.
    """
    return json.dumps(_encode_value(value, where), allow_nan=False)


def plain_value(text: str) -> Json:
    """What `plain_text` encoded.

    Raises:
        StoreError: The text is not JSON.
    """
    return _decode_value(from_text(text))


def _encode_value(value: object, where: str) -> Json:
    match value:
        case float() if not math.isfinite(value):
            return {_FLOAT: repr(float(value))}
        case None | bool() | int() | float() | str():
            return value
        case list():
            return [
                item if type(item) in _AS_IT_IS else _encode_value(item, f"{where}[{i}]")
                for i, item in enumerate(value)
            ]
        case Mapping():
            return {
                _encode_key(key, where): (
                    item if type(item) in _AS_IT_IS else _encode_value(item, f"{where}[{key!r}]")
                )
                for key, item in value.items()
            }
        case _:
            raise StoreError(
                f"{where} is {value!r}, a {type(value).__name__}, which JSON does not have: "
                "use None, bool, int, float, str, list or dict"
            )


def _encode_key(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise StoreError(
            f"{where} has the key {key!r}, a {type(key).__name__}: JSON's keys are strings"
        )
    return f"${key}" if key.startswith("$") else key


def _decode_value(value: Json) -> Json:
    match value:
        case {"$float": text}:
            return float(text)
        case dict():
            return {key.removeprefix("$"): _decode_value(item) for key, item in value.items()}
        case list():
            return [_decode_value(item) for item in value]
        case _:
            return value


def _decode(encoded: Json, types: Mapping[str, type[R]]) -> R:
    kind = encoded.get("type") if isinstance(encoded, dict) else None
    if not isinstance(kind, str) or kind not in types:
        raise StoreError(
            f"stored record is of the type {kind!r}, not of {', '.join(types)}: "
            "open it with the version of rapidfireai that wrote it"
        )
    known = {field.name: field for field in fields(types[kind])}
    given = encoded.keys() - {"type"}
    required = {name for name, field in known.items() if _is_required(field)}
    if not required <= given <= known.keys():
        raise StoreError(
            f"stored {kind} lacks {sorted(required - given)} and has the unknown "
            f"{sorted(given - known.keys())}: open it with the version of rapidfireai that wrote it"
        )
    try:
        values = {name: _decode_field(known[name], encoded[name]) for name in given}
    except (TypeError, ValueError) as error:
        raise StoreError(f"stored {kind} is damaged: {error}") from error
    return types[kind](**values)


def _decode_field(field: Field[Any], value: Json) -> Any:
    plain = _decode_value(value)
    if get_origin(field.type) is tuple:
        return tuple(plain)
    for candidate in (field.type, *get_args(field.type)):
        if plain is not None and isinstance(candidate, type) and issubclass(candidate, Enum):
            return candidate(plain)
    return plain


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING
