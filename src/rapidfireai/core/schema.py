"""What may be modified in a stored configuration, and whether a new value could be right.

Each kind of configuration (the arguments of a trainer, of an adapter) leaves a schema in the
store: argument -> `{"type": [...], "default": ..., "allowed": "float or None"}`. Types are those of
JSON Schema, and so are bounds of numbers, such as "minimum"; values under "enum" are possible
besides those of the types. So whoever asks for a
clone, in a terminal or a browser, can be told what is wrong without torch. What only the libraries
know, such as which arguments exclude each other, shows when the clone is made.
"""

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from rapidfireai.core.events import Json
from rapidfireai.core.spelling import did_you_mean
from rapidfireai.errors import ConfigError, UnknownArgumentError

Schema = Mapping[str, Mapping[str, Json]]
"""Argument -> what is known of it."""

TRAINING: Final = "training_args"
PEFT: Final = "peft"

_SHORT_FORMS: Final = {
    "lora_rank": "r",
    "rank": "r",
    "alpha": "lora_alpha",
    "lora_target_modules": "target_modules",
}
"""Other names of LoRA's arguments."""

_OTHER_SECTIONS: Final = ("model", "trainer_kwargs", "generation_config")
"""Parts of a configuration without a schema; the values that they have may be changed."""

_OF_OBJECTS: Final = "trainer_kwargs"
"""Where text stands for functions and objects, which a clone inherits."""

_BOUNDS: Final[Mapping[str, tuple[str, Callable[[float, float], bool]]]] = {
    "minimum": (">=", operator.ge),
    "exclusiveMinimum": (">", operator.gt),
    "maximum": ("<=", operator.le),
    "exclusiveMaximum": ("<", operator.lt),
}

_SYNONYMS: Final = {"peft_config": PEFT}

_UNMODIFIABLE: Final = {
    "output_dir": "every run writes to its own folder",
}


def changes(
    config: Mapping[str, Json], modify: Mapping[str, Json], schemas: Mapping[str, Schema]
) -> dict[str, Json]:
    """The knobs to change, under their full names, such as "training_args.learning_rate".

    Args:
        config: The parent's, as stored.
        modify: Knobs by their names, full or short, and new values.
        schemas: Of the experiment's kinds of configurations, by name.

    Raises:
        UnknownArgumentError: There is no such knob.
        ConfigError: A value cannot be right.
    """
    if not isinstance(modify, Mapping):
        raise ConfigError(
            f"modify={modify!r} cannot be used; it has to be a dictionary of knobs and new values"
        )
    found = {}
    for name, value in modify.items():
        full, known = _find(str(name), config, schemas)
        if full in found:
            raise ConfigError(f"{name} is given twice, under two of its names; give one of them")
        _check(str(name), value, known)
        found[full] = value
    return found


def knobs_of(
    config: Mapping[str, Json], schemas: Mapping[str, Schema]
) -> dict[str, Mapping[str, Json] | None]:
    """All knobs of a stored configuration by their full names, each with what is known of it.

    None stands for those without a schema.
    """
    if TRAINING not in config:
        return dict.fromkeys(_own(config))
    return dict(_candidates(config, schemas))


def differences(
    config: Mapping[str, Json], modify: Mapping[str, Json], schemas: Mapping[str, Schema]
) -> dict[str, list[Json]]:
    """The knobs to change, under their full names, each as [the parent's value, the new one].

    Takes and raises what `changes` does.
    """
    return {
        full: [value_of(config, full, schemas), new]
        for full, new in changes(config, modify, schemas).items()
    }


def changed(config: Mapping[str, Json], knobs: Mapping[str, Json]) -> dict[str, Json]:
    """A stored configuration with other values.

    Args:
        config: As stored.
        knobs: Of `changes`.
    """
    result = dict(config)
    for full, value in knobs.items():
        section, _, name = full.rpartition(".")
        if section:
            result[section] = {**(result.get(section) or {}), name: value}
        else:
            result[name] = value
    return result


def value_of(config: Mapping[str, Json], full: str, schemas: Mapping[str, Schema]) -> Json:
    """The value of a knob in a stored configuration: what was set, or the default.

    Args:
        config: As stored.
        full: The knob's full name.
        schemas: Of the experiment's kinds of configurations, by name.
    """
    section, _, name = full.rpartition(".")
    values = (config.get(section) or {}) if section else config
    if name in values:
        return values[name]
    kind = config["trainer_type"] if section == TRAINING else values.get("method")
    return schemas.get(str(kind), {}).get(name, {}).get("default")


def bounds(known: Mapping[str, Any]) -> dict[str, float]:
    """The bounds of numbers among what is known of an argument."""
    return {keyword: known[keyword] for keyword in _BOUNDS if keyword in known}


def is_within(value: Any, known: Mapping[str, Any]) -> bool:
    """Whether a value keeps the bounds; what is no number has none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    return all(_BOUNDS[keyword][1](value, bound) for keyword, bound in bounds(known).items())


def bounds_in_words(known: Mapping[str, Any]) -> str:
    """The bounds for people, such as ">= 0 and < 1"; empty if there are none."""
    return " and ".join(
        f"{_BOUNDS[keyword][0]} {bound}" for keyword, bound in bounds(known).items()
    )


def _find(
    name: str, config: Mapping[str, Json], schemas: Mapping[str, Schema]
) -> tuple[str, Mapping[str, Json] | None]:
    """A knob's full name, and what is known of it; None where there is no schema."""
    if TRAINING not in config:
        return _find_own(name, config)
    candidates = dict(_candidates(config, schemas))
    section, _, last = name.rpartition(".")
    section = _SYNONYMS.get(section, section)
    for full, known in candidates.items():
        if full == f"{section}.{last}" or (not section and full.rpartition(".")[2] == last):
            return full, known
    if section in ("", PEFT) and f"{PEFT}.{_SHORT_FORMS.get(last)}" in candidates:
        full = f"{PEFT}.{_SHORT_FORMS[last]}"
        return full, candidates[full]
    if config.get(PEFT) is None and (last in _SHORT_FORMS or section == PEFT):
        raise ConfigError(f"{name} cannot be modified: the run trains no adapter")
    if last in (config.get(_OF_OBJECTS) or {}):
        raise ConfigError(
            f"{name} cannot be modified: functions and objects are inherited from the parent"
        )
    allowed = {full.rpartition(".")[2] for full in candidates}
    raise UnknownArgumentError(f"there is no knob {name!r}; {did_you_mean(last, allowed)}")


def _find_own(name: str, config: Mapping[str, Json]) -> tuple[str, None]:
    """A knob of a configuration that only the user's `create_trainer` understands."""
    own = _own(config)
    if name not in own:
        raise UnknownArgumentError(f"there is no knob {name!r}; {did_you_mean(name, own)}")
    return name, None


def _own(config: Mapping[str, Json]) -> list[str]:
    return [key for key in config if key != "trainer_type"]


def _candidates(
    config: Mapping[str, Json], schemas: Mapping[str, Schema]
) -> Iterator[tuple[str, Mapping[str, Json] | None]]:
    for name, known in schemas.get(str(config["trainer_type"]), {}).items():
        if name not in _UNMODIFIABLE:
            yield f"{TRAINING}.{name}", known
    peft = config.get(PEFT)
    if peft is not None:
        for name, known in schemas.get(peft["method"], {}).items():
            yield f"{PEFT}.{name}", known
    for section in _OTHER_SECTIONS:
        for name, value in (config.get(section) or {}).items():
            if section != _OF_OBJECTS or not isinstance(value, str | list | Mapping):
                yield f"{section}.{name}", None


def _check(name: str, value: Json, known: Mapping[str, Json] | None) -> None:
    if known is None:
        if not _is_json(value):
            raise ConfigError(
                f"{name}={value!r} cannot be stored with the clone: functions and objects are "
                "inherited from the parent, and new values are numbers, strings, lists or None"
            )
        return
    is_choice = not isinstance(value, bool) and value in known.get("enum", ())
    if is_choice or (
        any(_has_type(value, kind) for kind in known["type"]) and is_within(value, known)
    ):
        return
    raise ConfigError(f"{name}={value!r} is not possible; allowed: {known['allowed']}")


def _is_json(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_json(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_json, value))
    return value is None or isinstance(value, bool | int | float | str)


def _has_type(value: Json, kind: str) -> bool:
    match kind:
        case "null":
            return value is None
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "string":
            return isinstance(value, str)
        case "array":
            return isinstance(value, list) and _is_json(value)
        case "object":
            return isinstance(value, Mapping) and _is_json(value)
        case _:
            raise AssertionError(f"{kind} is no type of JSON")
