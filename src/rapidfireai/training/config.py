"""One fully determined configuration: what a search expands into and a run is made of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rapidfireai.core.events import Json

CUSTOM = "custom"
"""The trainer type of configurations for which the user's `create_trainer` builds the trainer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PeftSpec:
    """A PEFT configuration by class and arguments, so that every run builds its own object."""

    method: str
    """Name of the class in `peft`, such as "LoraConfig"."""
    arguments: Mapping[str, Any]
    """What the user set; everything else is PEFT's default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """One configuration without any knob left open."""

    trainer_type: str
    """Key of the trainer in `training.registry`, such as "SFT", or `CUSTOM`."""
    training_args: Mapping[str, Any]
    """Arguments of the trainer's config class that the user set."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """What `create_model` receives: model_name, model_type, model_kwargs, tokenizer and
    tokenizer_kwargs, or the user's own knobs."""
    peft: PeftSpec | None = None
    """None trains all weights, or the adapters of a PeftModel that `create_model` returned."""
    trainer_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Further constructor arguments of the trainer: reward_funcs, callbacks, ..."""
    formatting_func: Callable[[Mapping[str, Any]], Any] | None = None
    """Row -> dict of columns, or row -> str as TRL has it."""
    compute_metrics: Callable[[Any], Mapping[str, float]] | None = None
    """(predictions, references) -> metrics, over generated strings; needs generation_config."""
    generation_config: Mapping[str, Any] | None = None
    knobs: Mapping[str, Any] | None = None
    """A configuration that is a plain dictionary, for `create_trainer` alone to understand; only
    with `CUSTOM`."""
    share_base: bool = True
    """False gives the run base weights of its own, for code that has to write to them."""
    notes: tuple[str, ...] = ()
    """What was translated on the way here, for the user to read."""

    def to_json(self) -> dict[str, Json]:
        """As JSON: functions by module and qualified name, other objects by their repr."""
        if self.knobs is not None:
            return {"trainer_type": self.trainer_type, **as_json(self.knobs)}
        return {
            "trainer_type": self.trainer_type,
            "training_args": as_json(self.training_args),
            "model": as_json(self.model),
            "peft": None
            if self.peft is None
            else {"method": self.peft.method, **as_json(self.peft.arguments)},
            "trainer_kwargs": as_json(self.trainer_kwargs),
            "formatting_func": as_json(self.formatting_func),
            "compute_metrics": as_json(self.compute_metrics),
            "generation_config": as_json(self.generation_config),
        }


def as_json(value: Any) -> Json:
    """The value as JSON, for people to read: not meant to be turned back into objects."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((as_json(item) for item in value), key=str)
    name = getattr(value, "__qualname__", None)
    if name is not None:
        return f"{value.__module__}.{name}"
    return str(value)
