"""From one RFModelConfig without knobs to one RunConfig."""

import os
from collections.abc import Mapping
from typing import Any

from rapidfireai.automl.argument_types import shown
from rapidfireai.automl.knobs import fresh
from rapidfireai.automl.model_config import RFModelConfig
from rapidfireai.automl.peft_configs import PeftTemplate, RFLoraConfig
from rapidfireai.automl.trainer_configs import TrainerTemplate
from rapidfireai.automl.trainer_kwargs import check_complete, check_names, check_values, takes
from rapidfireai.errors import ConfigError
from rapidfireai.training.config import RunConfig
from rapidfireai.training.registry import TRAINERS, TrainerSpec, trainer_spec

_SAMPLING_ONLY = ("temperature", "top_p", "top_k", "min_p", "typical_p")
_EXPERIMENTAL_ARGUMENTS = ("environment_factory", "rollout_func")
_MODEL_KEYS = ("model_name", "model_type", "model_kwargs", "tokenizer", "tokenizer_kwargs")


def run_config(config: RFModelConfig, trainer_type: str | None = None) -> RunConfig:
    """Returns the run that a configuration describes, sharing no container with it.

    Args:
        config: Without knobs.
        trainer_type: Name of the trainer; needed only where training_args does not say it.

    Raises:
        ConfigError: The parts do not fit together.
    """
    training = _training(config, trainer_type)
    peft = _peft(config, training)
    trainer_kwargs = config.trainer_kwargs
    notes = [*config.notes, *training.notes, *(peft.notes if peft else ())]
    if training.spec.experimental:
        notes.append(f"{training.spec.name} is experimental in TRL: it may change in any release")
    notes += [
        f"{name} is experimental in TRL: it may change in any release"
        for name in _EXPERIMENTAL_ARGUMENTS
        if trainer_kwargs.get(name) is not None
    ]
    compute_metrics, generation_config = config.compute_metrics, config.generation_config
    if compute_metrics is not None and generation_config is None:
        _check_own_metrics(training.spec)
        notes.append(
            "compute_metrics without generation_config is TRL's own: it gets an EvalPrediction, "
            "not texts"
        )
        trainer_kwargs["compute_metrics"] = compute_metrics
        compute_metrics = None
    elif compute_metrics is not None:
        notes += _sampling_notes(generation_config)
    elif generation_config is not None:
        raise ConfigError(
            f"generation_config={shown(generation_config)} has no use without compute_metrics; "
            f"give compute_metrics=..., or leave generation_config out"
        )
    check_names(training.spec, trainer_kwargs, config.known_arguments())
    check_complete(training.spec, trainer_kwargs)
    check_values(trainer_kwargs)
    training_args = fresh(training.training_args)
    return RunConfig(
        trainer_type=training.spec.name,
        model=_model(config, training.spec, training_args, notes),
        training_args=training_args,
        peft=peft.peft_spec() if peft else None,
        trainer_kwargs=fresh(trainer_kwargs),
        formatting_func=config.formatting_func,
        compute_metrics=compute_metrics,
        generation_config=fresh(generation_config),
        share_base=config.share_base,
        notes=tuple(notes),
    )


def _training(config: RFModelConfig, trainer_type: str | None) -> TrainerTemplate:
    given = config.training_args
    if isinstance(given, TrainerTemplate):
        if trainer_type not in (None, given.spec.name):
            wanted = TrainerTemplate.classes[trainer_spec(str(trainer_type)).name].__name__
            raise ConfigError(
                f"trainer_type={trainer_type!r} contradicts training_args="
                f"{type(given).__name__}(...); leave trainer_type out, or use {wanted}"
            )
        return given
    if trainer_type is None:
        raise ConfigError(
            f"training_args={shown(given)} does not say which trainer; use RFSFTConfig(...) or "
            f"another RF class for TRL, or trainer_type= with one of {', '.join(TRAINERS)}"
        )
    return TrainerTemplate.classes[trainer_spec(trainer_type).name](**(given or {}))


def _peft(config: RFModelConfig, training: TrainerTemplate) -> PeftTemplate | None:
    given, short = config.peft_config, training.lora
    if given is not None and short is not None:
        raise ConfigError(
            f"peft_config={shown(given)} and the short form {short!r} both describe the adapter; "
            f"give one of them"
        )
    if isinstance(given, dict):
        return RFLoraConfig(**given)
    return short if given is None else given


def _model(
    config: RFModelConfig, spec: TrainerSpec, training_args: dict[str, Any], notes: list[str]
) -> Mapping[str, Any]:
    given = config.arguments
    # All keys are there, as the incumbent's users expect in their create_model.
    model = {
        "model_name": None,
        "model_type": spec.model_type,
        "model_kwargs": {},
        "tokenizer": None,
        "tokenizer_kwargs": {},
        **{key: fresh(given[key]) for key in _MODEL_KEYS if given.get(key) is not None},
    }
    if model["model_name"] is not None:
        model["model_name"] = os.fspath(model["model_name"])
    # TRL would ignore it: every trainer is given a model that is loaded already.
    init_kwargs = training_args.pop("model_init_kwargs", None)
    if init_kwargs is not None:
        if not isinstance(init_kwargs, dict) or model["model_kwargs"]:
            raise ConfigError(
                f"model_init_kwargs={shown(init_kwargs)} of the training arguments: write it as "
                f"model_kwargs={{...}} of RFModelConfig"
            )
        model["model_kwargs"] = init_kwargs
        notes.append("model_init_kwargs became model_kwargs of the model")
    _translate_quantization(model["model_kwargs"], notes)
    return model


def _translate_quantization(model_kwargs: dict[str, Any], notes: list[str]) -> None:
    """What `from_pretrained` knew before transformers 5, and refuses now even where it is False."""
    for name in ("load_in_4bit", "load_in_8bit"):
        if name not in model_kwargs:
            continue
        if model_kwargs.pop(name):
            model_kwargs.setdefault("quantization_config", {name: True})
            notes.append(f"model_kwargs: {name}=True became quantization_config={{{name!r}: True}}")
        else:
            notes.append(f"model_kwargs: {name}=False was left out: it is the default")


def _sampling_notes(generation_config: Mapping[str, Any]) -> list[str]:
    idle = [name for name in _SAMPLING_ONLY if generation_config.get(name) is not None]
    if not idle or generation_config.get("do_sample"):
        return []
    return [
        f"generation_config: {', '.join(idle)} count only where tokens are sampled, that is with "
        "do_sample=True here or in the model's own generation config"
    ]


def _check_own_metrics(spec: TrainerSpec) -> None:
    if not takes(spec, "compute_metrics"):
        raise ConfigError(
            f"compute_metrics needs generation_config={{...}} with {spec.name}: its trainer has no "
            f"compute_metrics of its own"
        )
