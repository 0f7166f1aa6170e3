"""The arguments of a config class (TRL, PEFT): their names, types and defaults.

Reads the dataclass without instantiating it: TRL's configs ask for bf16 when they are built, and
raise on a machine without a GPU.
"""

import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from rapidfireai.automl.knobs import List, Range, covering, knobs_in
from rapidfireai.core.schema import bounds_in_words, is_within
from rapidfireai.errors import ConfigError

_WIDER: Mapping[tuple[str, str], Any] = {
    ("TrainingArguments", "fsdp"): bool | str | list[str] | None,
    ("DPOConfig", "loss_type"): str | list[str],
    ("GRPOConfig", "scale_rewards"): bool | str,
    ("OnlineDPOConfig", "beta"): float | list[float],
    ("LoraConfig", "init_lora_weights"): bool | str,  # also pissa_niter_16 and the like
}
"""Where the class takes more than its annotation says (TRL 1.16, PEFT 0.21)."""

_AT_LEAST_0: Mapping[str, float] = {"minimum": 0}
_AT_LEAST_1: Mapping[str, float] = {"minimum": 1}
_POSITIVE: Mapping[str, float] = {"exclusiveMinimum": 0}
_BELOW_1: Mapping[str, float] = {"minimum": 0, "exclusiveMaximum": 1}
_SHARE: Mapping[str, float] = {"minimum": 0, "maximum": 1}

_BOUNDS: Mapping[str, Mapping[str, float]] = {
    "learning_rate": _AT_LEAST_0,
    "weight_decay": _AT_LEAST_0,
    "adam_beta1": _BELOW_1,
    "adam_beta2": _BELOW_1,
    "adam_epsilon": _AT_LEAST_0,
    "max_grad_norm": _AT_LEAST_0,
    "warmup_steps": _AT_LEAST_0,
    "warmup_ratio": _SHARE,
    "label_smoothing_factor": _SHARE,
    "num_train_epochs": _AT_LEAST_0,
    "per_device_train_batch_size": _AT_LEAST_1,
    "per_device_eval_batch_size": _AT_LEAST_1,
    "gradient_accumulation_steps": _AT_LEAST_1,
    "max_length": _AT_LEAST_1,
    "max_completion_length": _AT_LEAST_1,
    "num_generations": _AT_LEAST_1,
    "beta": _AT_LEAST_0,
    "temperature": _AT_LEAST_0,
    "top_p": {"exclusiveMinimum": 0, "maximum": 1},
    "repetition_penalty": _POSITIVE,
    "LoraConfig.r": _AT_LEAST_1,
    "LoraConfig.lora_dropout": _BELOW_1,
}
"""Of the numbers that an argument takes, of one class or whichever has it, as JSON Schema has them.
Only what the libraries themselves refuse, or can make nothing of."""

_MAX_SHOWN = 80


@dataclass(frozen=True, kw_only=True, slots=True)
class Argument:
    """One argument of a config class."""

    name: str
    annotation: Any
    default: Any = None
    says: str = ""
    """The allowed values in words; empty: the annotation's."""
    bounds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Of numbers, under the keywords of JSON Schema."""

    @property
    def allowed(self) -> str:
        """The possible values in words."""
        words = bounds_in_words(self.bounds)
        text = self.says or describe(self.annotation)
        return f"{text}; numbers {words}" if words else text

    def renamed(self, name: str) -> "Argument":
        """Returns the same argument under another name."""
        return dataclasses.replace(self, name=name)

    def checked(self, value: Any, owner: str) -> Any:
        """Returns the value as it will be used: lists for tuples and sets, where lists are meant.

        Args:
            value: May hold knobs; then each alternative is checked.
            owner: Whose argument it is, for the message.

        Raises:
            ConfigError: The value has another type than the argument.
        """
        if isinstance(value, List):
            return List([self.checked(item, owner) for item in value.values])
        if isinstance(value, Range):
            self._check_range(value, owner)
            return value
        if any(knobs_in(value)):
            for variant in covering(value):
                self._checked_plain(variant, owner)
            return value
        return self._checked_plain(value, owner)

    def _check_range(self, value: Range, owner: str) -> None:
        members = set(alternatives(self.annotation))
        if value.dtype is None and value.whole and float in members and int not in members:
            raise ConfigError(
                f"{owner}: {self.name}={value!r} would draw whole numbers, but {self.name} is a "
                f'float; write Range({value.start!r}.0, {value.end!r}.0), or dtype="float"'
            )
        for end in covering(value):
            self._checked_plain(end, owner)

    def _checked_plain(self, value: Any, owner: str) -> Any:
        if value is None and self.default is None:
            return value
        if _is_numpy_scalar(value):
            value = value.item()
        members = list(alternatives(self.annotation))
        choices = [member for member in members if is_enum(member)]
        if choices and isinstance(value, str):
            allowed = [str(choice.value) for member in choices for choice in member]
            if value not in allowed:
                raise self._error(value, owner, f"allowed: {', '.join(allowed)}")
            return value
        for candidate in _readings(value):
            if self._fits(candidate, members):
                return candidate
        raise self._error(
            value,
            owner,
            f"allowed: {self.allowed}{_hint(value, members)}",
        )

    def _fits(self, value: Any, members: list[Any]) -> bool:
        if isinstance(value, bool) and not any(_takes_bool(member) for member in members):
            return False  # Python counts bool as an int, TRL does not
        return has_type(value, self.annotation) and is_within(value, self.bounds)

    def _error(self, value: Any, owner: str, allowed: str) -> ConfigError:
        given = f"{self.name}={shown(value)} ({type(value).__name__})"
        return ConfigError(f"{owner}: {given} is not possible; {allowed}")


@functools.cache
def arguments_of(target: type[Any]) -> Mapping[str, Argument]:
    """Returns the arguments of a dataclass by name, in its order."""
    hints = typing.get_type_hints(target)
    arguments = {}
    for field in dataclasses.fields(target):
        if not field.init:
            continue
        wider = (_WIDER.get((base.__name__, field.name)) for base in target.__mro__)
        annotation = next((one for one in wider if one is not None), hints[field.name])
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        arguments[field.name] = Argument(
            name=field.name,
            annotation=annotation,
            default=None if default is dataclasses.MISSING else default,
            bounds=_bounds(target, field.name),
        )
    return arguments


def _bounds(target: type[Any], name: str) -> Mapping[str, float]:
    owned = (_BOUNDS.get(f"{base.__name__}.{name}") for base in target.__mro__)
    return next((one for one in owned if one is not None), _BOUNDS.get(name, {}))


def shown(value: Any) -> str:
    """Returns the value's repr in one line, cut where it is long (models, datasets)."""
    text = " ".join(line.strip() for line in repr(value).splitlines())
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def has_type(value: Any, annotation: Any) -> bool:
    """Returns whether the value has the type, its items included; an int is a float too."""
    from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

    try:
        check_type(value, annotation, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
    except TypeCheckError:
        return False
    return True


def describe(annotation: Any) -> str:
    """Returns the type as a reader would say it, such as "int or None"."""
    names = []
    for member in alternatives(annotation):
        if member is type(None):
            names.append("None")
        elif get_origin(member) is Literal:
            names.extend(repr(choice) for choice in get_args(member))
        elif is_enum(member):
            names.append(f"one of {', '.join(repr(str(choice.value)) for choice in member)}")
        else:
            names.append(member.__name__ if isinstance(member, type) else str(member))
    return " or ".join(dict.fromkeys(names))


def alternatives(annotation: Any) -> Iterator[Any]:
    """Yields the types of which a value may be one."""
    if get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from alternatives(member)
    else:
        yield annotation


def is_enum(member: Any) -> bool:
    """Returns whether the type is an enumeration."""
    return isinstance(member, type) and issubclass(member, enum.Enum)


def _takes_bool(member: Any) -> bool:
    if get_origin(member) is Literal:
        return any(isinstance(choice, bool) for choice in get_args(member))
    return member in (bool, Any, object)


def _is_numpy_scalar(value: Any) -> bool:
    return type(value).__module__ == "numpy" and hasattr(value, "item") and value.ndim == 0


def _readings(value: Any) -> Iterator[Any]:
    """Yields the value, then the list that a tuple or a set stands for."""
    yield value
    if isinstance(value, tuple):
        yield list(value)
    elif isinstance(value, set | frozenset):
        yield sorted(value, key=str)  # a set's own order differs from process to process


def _hint(value: Any, members: list[Any]) -> str:
    """Returns what the user probably meant, as a clause to add."""
    if isinstance(value, str):
        if value in ("True", "False", "None"):
            return f"; write {value} without quotes"
        is_number = value.replace(".", "").replace("-", "").replace("e", "").isdigit()
        if is_number and (int in members or float in members):
            return f"; write the number without quotes: {value}"
    if isinstance(value, float) and value.is_integer():
        return f"; write {int(value)}"
    if isinstance(value, list):
        return f"; to try several values write List({shown(value)})"
    return ""
