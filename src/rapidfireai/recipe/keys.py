"""The keys that a file may have, and which part of an experiment each of them goes to.

Those of TRL's command line are read from the dataclasses that it is made of, those of `run_fit`
from its signature.
"""

import inspect
import typing
from collections.abc import Mapping
from enum import StrEnum, auto
from typing import Any, Final, Literal

from rapidfireai.automl.argument_types import Argument, arguments_of
from rapidfireai.automl.renamed import OLD_NAMES, Dropped, Renamed
from rapidfireai.automl.trainer_kwargs import takes
from rapidfireai.core.spelling import did_you_mean
from rapidfireai.errors import UnknownArgumentError
from rapidfireai.experiment import Experiment
from rapidfireai.training.registry import TrainerSpec


class Part(StrEnum):
    """Of an experiment."""

    FILE = auto()
    """What the file says of the experiment as a whole."""
    FIT = auto()
    """Arguments of `run_fit`."""
    DATA = auto()
    MODEL = auto()
    QUANTIZATION = auto()
    ADAPTER = auto()
    REWARDS = auto()
    CODE = auto()
    """Objects of the user's own code, by name, and what goes with them."""
    ARGUMENTS = auto()
    """Of the trainer's config class."""


WITHOUT_KNOBS: Final = frozenset({Part.FILE, Part.FIT, Part.DATA})
"""Parts of which all runs have the same."""

_NOT_IN_A_FILE: Final = frozenset(
    {"self", "config_group", "create_model", "create_trainer", "train_dataset", "eval_dataset"}
    | {"num_gpus", "model", "background", "seed", "incumbent"}
)
"""Arguments of `run_fit` for which a file has other keys, or no use."""


def _arguments(**annotations: Any) -> dict[str, Argument]:
    return {name: Argument(name=name, annotation=each) for name, each in annotations.items()}


_FILE: Final = _arguments(
    trainer_type=str,
    experiment_name=str,
    experiment_path=str,
    num_runs=int,
    optuna=dict[str, Any],
    env=dict[str, Any],
)

_CODE: Final = _arguments(
    create_model=str,
    create_trainer=str,
    formatting_func=str,
    compute_metrics=str,
    generation_config=dict[str, Any],
    callbacks=list[str],
    tools=list[str],
    environment_factory=str | dict[str, str],
    rollout_func=str,
)

_MODEL: Final = _arguments(
    model_type=str, tokenizer=str, tokenizer_kwargs=dict[str, Any], share_base=bool
)

_CHOICES: Final = _arguments(
    dtype=Literal["auto", "bfloat16", "float16", "float32"],
    bnb_4bit_quant_type=Literal["fp4", "nf4"],
    # One module may be written without brackets.
    lora_target_modules=str | list[str],
    lora_target_parameters=str | list[str],
    lora_modules_to_save=str | list[str],
)
"""Of TRL's `ModelConfig`, where its types say less than its command line does."""


class Keys:
    """All keys of a file for one trainer.

    Args:
        spec: The trainer.
    """

    def __init__(self, spec: TrainerSpec) -> None:
        own = dict(arguments_of(spec.load_config()))
        self._parts: dict[Part, Mapping[str, Argument]] = {
            Part.FILE: _FILE,
            Part.FIT: _fit(),
            Part.DATA: _data(),
            **_model(),
            Part.REWARDS: _rewards() if takes(spec, "reward_funcs") else {},
            Part.CODE: {name: one for name, one in _CODE.items() if name not in own},
            Part.ARGUMENTS: own,
        }
        self._places = {
            name: part for part in reversed(Part) for name in self._parts[part]
        }  # earlier parts win, as ModelConfig's dtype does

    def place(self, key: str) -> tuple[Part, Argument]:
        """Where a key goes, and what may stand behind it.

        Raises:
            UnknownArgumentError: There is no such key.
        """
        if key in self._places:
            part = self._places[key]
            return part, self._parts[part][key]
        if isinstance(OLD_NAMES.get(key), Renamed | Dropped):
            # The template translates it, or says what to use.
            return Part.ARGUMENTS, Argument(name=key, annotation=Any)
        raise UnknownArgumentError(f"there is no key {key!r}; {did_you_mean(key, self._places)}")


def _fit() -> dict[str, Argument]:
    hints = typing.get_type_hints(Experiment.run_fit)
    return {
        name: Argument(name=name, annotation=_in_a_file(name, hints[name]), default=one.default)
        for name, one in inspect.signature(Experiment.run_fit).parameters.items()
        if name not in _NOT_IN_A_FILE
    }


def _in_a_file(name: str, annotation: Any) -> Any:
    return {"policy": Any, "trackers": list[Any]}.get(name, annotation)


def _data() -> dict[str, Argument]:
    from trl.scripts.utils import DatasetMixtureConfig, ScriptArguments

    return {
        **arguments_of(ScriptArguments),
        **arguments_of(DatasetMixtureConfig),
        **_arguments(dataset_name=str | dict[str, Any], datasets=list[dict[str, Any]]),
    }


def _model() -> dict[Part, Mapping[str, Argument]]:
    from trl import ModelConfig

    known = {**arguments_of(ModelConfig), **_CHOICES}
    quantization = {name for name in known if name.startswith(("load_in_", "bnb_", "use_bnb_"))}
    adapter = {name for name in known if name.startswith(("lora_", "use_"))} - quantization
    return {
        Part.MODEL: {
            **{name: one for name, one in known.items() if name not in quantization | adapter},
            **_MODEL,
        },
        Part.QUANTIZATION: {name: known[name] for name in known if name in quantization},
        Part.ADAPTER: {
            **{name: known[name] for name in known if name in adapter},
            **_arguments(peft=dict[str, Any]),
        },
    }


def _rewards() -> dict[str, Argument]:
    from trl.scripts.grpo import GRPOScriptArguments

    known = arguments_of(GRPOScriptArguments)
    return {name: known[name] for name in ("reward_funcs", "reward_model_name_or_path")}
