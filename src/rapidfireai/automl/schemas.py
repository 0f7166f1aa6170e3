"""Arguments of configurations as JSON, for those who modify stored ones; see `core.schema`."""

import dataclasses
import importlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from rapidfireai.automl.argument_types import (
    Argument,
    alternatives,
    arguments_of,
    is_enum,
)
from rapidfireai.core.events import Json
from rapidfireai.core.schema import Schema
from rapidfireai.training.config import CUSTOM, PeftSpec, RunConfig, as_json
from rapidfireai.training.registry import trainer_spec

_TYPES: Mapping[Any, tuple[str, ...]] = {
    int: ("integer",),
    float: ("number",),
    str: ("string",),
    bool: ("boolean",),
    type(None): ("null",),
    list: ("array",),
    tuple: ("array",),
    set: ("array",),
    dict: ("object",),
    Any: ("null", "boolean", "integer", "number", "string", "array", "object"),
}


def schemas_of(configs: Iterable[RunConfig]) -> dict[str, Schema]:
    """The schemas of all kinds of configurations among these, by the kind's name."""
    found: dict[str, Schema] = {}
    for config in configs:
        if config.trainer_type != CUSTOM and config.trainer_type not in found:
            arguments = arguments_of(trainer_spec(config.trainer_type).load_config())
            found[config.trainer_type] = _schema(arguments)
        if config.peft is not None and config.peft.method not in found:
            target = getattr(importlib.import_module("peft"), config.peft.method)
            found[config.peft.method] = _schema(arguments_of(target))
    return found


def modified(config: RunConfig, knobs: Mapping[str, Json]) -> RunConfig:
    """A configuration with other values.

    Args:
        config: Is not changed.
        knobs: Of `core.schema.changes`, which has checked them.
    """
    parts: dict[str, Any] = {}
    for full, value in knobs.items():
        section, _, name = full.rpartition(".")
        section = section or "knobs"
        before = parts.get(section, getattr(config, section))
        if isinstance(before, PeftSpec):
            arguments = {**before.arguments, name: value}
            parts[section] = PeftSpec(method=before.method, arguments=arguments)
        else:
            parts[section] = {**(before or {}), name: value}
    return dataclasses.replace(config, **parts)


def _schema(arguments: Mapping[str, Argument]) -> Schema:
    schema = {}
    for name, argument in arguments.items():
        if described := _described(argument):
            schema[name] = described
    return schema


def _described(argument: Argument) -> dict[str, Json]:
    """What is known of an argument; empty if no value of JSON is one of its."""
    kinds: list[str] = []
    choices: list[Json] = []
    for member in alternatives(argument.annotation):
        choices += _choices(member)
        kinds += _TYPES.get(get_origin(member) or member, ())
    if any(isinstance(choice, str) for choice in choices):
        # TRL writes "SchedulerType | str", and takes no other strings than the enumeration's.
        kinds = [kind for kind in kinds if kind != "string"]
    if not choices and not set(kinds) - {"null"}:
        return {}
    if argument.default is None:
        kinds.append("null")
    described: dict[str, Json] = {
        "type": list(dict.fromkeys(kinds)),
        "default": as_json(argument.default),
        "allowed": argument.allowed,
        **argument.bounds,
    }
    return {**described, "enum": choices} if choices else described


def _choices(member: Any) -> Iterator[Json]:
    if get_origin(member) is Literal:
        yield from get_args(member)
    elif is_enum(member):
        yield from (str(choice.value) for choice in member)
