"""The adapter that a file describes: by the keys of TRL's command line, or in full by `peft`."""

from collections.abc import Mapping
from typing import Any, Final

from rapidfireai.automl.argument_types import shown
from rapidfireai.automl.knobs import List
from rapidfireai.automl.peft_configs import PeftTemplate, RFLoraConfig
from rapidfireai.core.spelling import did_you_mean
from rapidfireai.errors import ConfigError
from rapidfireai.recipe.values import as_knob, mapped
from rapidfireai.training.registry import TrainerSpec

_TRL_DEFAULTS: Final = {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05}
"""Of TRL's `ModelConfig`; PEFT's are others."""

_TASKS: Final = {"causal_lm": "CAUSAL_LM", "seq_cls": "SEQ_CLS"}


def adapter(given: Mapping[str, Any], spec: TrainerSpec) -> Any:
    """A template, several as alternatives, or None where all weights are trained.

    Args:
        given: The keys of the file about it, with their values.
        spec: The trainer.

    Raises:
        ConfigError: The keys do not go together, or a value is not possible.
    """
    rest = dict(given)
    full, use = rest.pop("peft", None), rest.pop("use_peft", False)
    if full is not None and (rest or use is not False):
        raise ConfigError(f"peft describes the adapter in full: leave out {', '.join(given)}")
    if full is not None:
        return mapped(full, _in_full)
    if use is False and rest:
        raise ConfigError(f"{', '.join(rest)} has no effect without use_peft: true")
    if use is False:
        return None
    template = _lora(rest, spec)
    return mapped(use, lambda on: template if on else None)


def _lora(given: Mapping[str, Any], spec: TrainerSpec) -> RFLoraConfig:
    """As TRL's `get_peft_config` builds it."""
    arguments: dict[str, Any] = {"lora_task_type": _TASKS.get(spec.model_type)}
    arguments |= {**_TRL_DEFAULTS, **given}
    return RFLoraConfig(
        **{_peft_name(key): mapped(value, _unpacked(key)) for key, value in arguments.items()},
        bias="none",
    )


def _peft_name(key: str) -> str:
    if key in ("lora_alpha", "lora_dropout"):
        return key
    return key.removeprefix("lora_")


def _unpacked(key: str) -> Any:
    """TRL's command line gives a single target in a list, where PEFT tells "all-linear" from it."""

    def unpack(value: Any) -> Any:
        if key == "lora_target_modules" and isinstance(value, list) and len(value) == 1:
            return value[0]
        if key != "lora_target_modules" and key.endswith(("_parameters", "_to_save")):
            return [value] if isinstance(value, str) else value
        return value

    return unpack


def _in_full(given: Any) -> PeftTemplate | None:
    if given is None:
        return None
    arguments = dict(given)
    methods = {_short(one.method): one for one in PeftTemplate.__subclasses__()}
    method = arguments.pop("method", "lora")
    if isinstance(method, List):
        raise ConfigError(
            f"peft has the methods {shown(method.values)}: write a list of adapters, each with "
            "its method and its arguments"
        )
    if _short(str(method)) not in methods:
        raise ConfigError(f"peft: method {method!r} is not known; {did_you_mean(method, methods)}")
    template = methods[_short(str(method))]()
    known = template.known_arguments()
    for name, value in arguments.items():
        # What is unknown there, the template has an answer to.
        setattr(template, name, as_knob(value, known[name], "peft") if name in known else value)
    return template


def _short(method: str) -> str:
    return method.lower().removesuffix("config")
