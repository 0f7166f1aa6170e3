"""Constructor keywords of the trainers: which exist, which the engine owns, which are needed."""

import functools
import inspect
from collections.abc import Collection, Mapping
from inspect import Parameter
from typing import Any

from rapidfireai.automl.argument_types import shown
from rapidfireai.automl.renamed import Refused
from rapidfireai.core.spelling import did_you_mean
from rapidfireai.errors import ConfigError, UnknownArgumentError
from rapidfireai.training.registry import TRAINERS, TrainerSpec

ENGINE_OWNED: Mapping[str, Refused] = {
    "model": Refused("give model_name, or return the model from create_model"),
    "model_init": Refused("return the model from create_model"),
    "args": Refused("give training_args"),
    "train_dataset": Refused("give it to run_fit(train_dataset=...)"),
    "eval_dataset": Refused("give it to run_fit(eval_dataset=...)"),
    "processing_class": Refused("give tokenizer, or return the tokenizer from create_model"),
    "optimizers": Refused("choose with optim=... in the training arguments"),
    "quantization_config": Refused(
        "quantize where the model is loaded: model_kwargs={'quantization_config': ...}"
    ),
}
"""What the engine passes to every trainer itself, and what the user gives instead."""


@functools.cache
def _parameters(trainer: str) -> Mapping[str, Parameter]:
    """Returns what the user may pass to the trainer, bases behind **kwargs included."""
    found: dict[str, Parameter] = {}
    for cls in TRAINERS[trainer].load_trainer().__mro__:
        if "__init__" not in vars(cls):
            continue
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
        named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        for parameter in named:
            if parameter.name not in ENGINE_OWNED:
                found.setdefault(parameter.name, parameter)
        if len(named) == len(parameters):
            break
    return found


def check_names(spec: TrainerSpec, names: Collection[str], own: Collection[str]) -> None:
    """Checks that the trainer takes these keywords.

    Args:
        spec: The trainer.
        names: The keywords.
        own: What RFModelConfig takes itself; may have been meant.

    Raises:
        UnknownArgumentError: The trainer has no such keyword.
    """
    parameters = _parameters(spec.name)
    for name in names:
        if name not in parameters:
            raise UnknownArgumentError(
                f"RFModelConfig has no argument {name!r}, and neither has the trainer of "
                f"{spec.name}; {did_you_mean(name, [*own, *parameters])}"
            )


def check_complete(spec: TrainerSpec, names: Collection[str]) -> None:
    """Checks that nothing is missing that the trainer cannot do without.

    Raises:
        ConfigError: A needed keyword is not among `names`.
    """
    for parameter in _parameters(spec.name).values():
        if parameter.default is parameter.empty and parameter.name not in names:
            raise _missing(spec, parameter.name)
    if spec.needs_one_of and not any(name in names for name in spec.needs_one_of):
        raise _missing(spec, " or ".join(spec.needs_one_of))


def check_values(kwargs: Mapping[str, Any]) -> None:
    """Checks the keywords whose misuse the trainers notice late, or answer with a riddle.

    Raises:
        ConfigError: A value is not possible.
    """
    rewards = kwargs.get("reward_funcs")
    listed = rewards if isinstance(rewards, list | tuple) else [rewards]
    for reward in listed:
        if reward is not None and not (callable(reward) or isinstance(reward, str)):
            raise ConfigError(
                f"reward_funcs={shown(rewards)} is not possible: {shown(reward)} "
                f"({type(reward).__name__}) is no reward; allowed: functions of the completions, "
                f"reward models, and names of reward models"
            )
    if not listed:
        raise ConfigError(f"reward_funcs={rewards!r} is empty; give at least one function")
    callbacks = kwargs.get("callbacks")
    if callbacks is not None and not isinstance(callbacks, list | tuple):
        raise ConfigError(
            f"callbacks={shown(callbacks)} ({type(callbacks).__name__}) is not possible; allowed: "
            f"a list of transformers.TrainerCallback"
        )


def takes(spec: TrainerSpec, name: str) -> bool:
    """Returns whether the trainer has such a keyword."""
    return name in _parameters(spec.name)


def _missing(spec: TrainerSpec, what: str) -> ConfigError:
    return ConfigError(f"{spec.name} needs {what}; give it to RFModelConfig")
