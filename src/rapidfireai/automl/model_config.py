"""`RFModelConfig`: a model, how it is adapted, and how it is trained."""

import os
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from rapidfireai.automl.argument_types import Argument
from rapidfireai.automl.knobs import covering, knobs_in
from rapidfireai.automl.peft_configs import PeftTemplate
from rapidfireai.automl.renamed import OLD_MODEL_NAMES
from rapidfireai.automl.template import Template
from rapidfireai.automl.trainer_configs import TrainerTemplate
from rapidfireai.automl.trainer_kwargs import ENGINE_OWNED, check_names
from rapidfireai.core.spelling import did_you_mean
from rapidfireai.errors import UnknownArgumentError

_FIELDS: Mapping[str, Argument] = {
    argument.name: argument
    for argument in (
        Argument(
            name="model_name", annotation=str | os.PathLike[str], says="a name or path, or None"
        ),
        Argument(
            name="peft_config",
            annotation=PeftTemplate | dict[str, Any],
            says="RFLoraConfig(...) or another RF class for PEFT, a dict for LoRA, None",
        ),
        Argument(
            name="training_args",
            annotation=TrainerTemplate | dict[str, Any],
            says="RFSFTConfig(...) or another RF class for TRL, or a dict with trainer_type",
        ),
        Argument(name="model_type", annotation=str),
        Argument(name="model_kwargs", annotation=dict[str, Any]),
        Argument(name="tokenizer", annotation=Any),
        Argument(name="tokenizer_kwargs", annotation=dict[str, Any]),
        Argument(name="formatting_func", annotation=Callable, says="a function of a row, or None"),
        Argument(
            name="compute_metrics",
            annotation=Callable,
            says="a function of (predictions, references), or None",
        ),
        Argument(name="generation_config", annotation=dict[str, Any]),
        Argument(name="share_base", annotation=bool, default=True),
    )
}

_GENERATION_EXTRAS = ("max_input_length", "add_generation_prompt", "truncation_side")
"""What generation_config may say besides the arguments of `transformers.GenerationConfig`."""


class RFModelConfig(Template):
    """One set of knobs: every argument is a value or a knob, and may hold knobs.

    Args:
        model_name: What `create_model` or the Auto classes load.
        peft_config: RFLoraConfig(...) or another adapter; None trains all weights.
        training_args: RFSFTConfig(...) or another trainer's arguments; its class chooses the
            trainer.
        model_type: Passed on to `create_model`, as are the next three.
        model_kwargs: Arguments of `from_pretrained`.
        tokenizer: Name of the tokenizer where it is not the model's.
        tokenizer_kwargs: Arguments of the tokenizer's `from_pretrained`.
        formatting_func: Row -> dict of columns, or row -> str as TRL has it.
        compute_metrics: (predictions, references) -> metrics, over texts generated as
            generation_config says; without generation_config it is TRL's own, and gets an
            `EvalPrediction`.
        generation_config: Arguments of `transformers.GenerationConfig`, and max_input_length,
            add_generation_prompt, truncation_side.
        share_base: False gives each run base weights of its own, for code that writes to them.
        reward_funcs: Rewards of GRPO, RLOO and the like; a plain list is one set of rewards.
        trainer_kwargs: Any other keyword of the trainer's constructor: ref_model, teacher_model,
            callbacks, tools, ...

    Raises:
        UnknownArgumentError: Neither this class nor the trainer has such an argument.
        ConfigError: A value is not possible.
    """

    old_names: ClassVar = {**ENGINE_OWNED, **OLD_MODEL_NAMES}

    def __init__(  # noqa: PLR0913  # the incumbent's users know these names
        self,
        model_name: Any = None,
        *,
        peft_config: Any = None,
        training_args: Any = None,
        model_type: Any = None,
        model_kwargs: Any = None,
        tokenizer: Any = None,
        tokenizer_kwargs: Any = None,
        formatting_func: Any = None,
        compute_metrics: Any = None,
        generation_config: Any = None,
        share_base: Any = None,
        reward_funcs: Any = None,
        **trainer_kwargs: Any,
    ) -> None:
        own = {
            "model_name": model_name,
            "peft_config": peft_config,
            "training_args": training_args,
            "model_type": model_type,
            "model_kwargs": model_kwargs,
            "tokenizer": tokenizer,
            "tokenizer_kwargs": tokenizer_kwargs,
            "formatting_func": formatting_func,
            "compute_metrics": compute_metrics,
            "generation_config": generation_config,
            "share_base": share_base,
            "reward_funcs": reward_funcs,
        }
        given = {name: value for name, value in own.items() if value is not None}
        super().__init__(**given, **trainer_kwargs)

    def known_arguments(self) -> Mapping[str, Argument]:
        """Returns the arguments of this class, without the trainer's."""
        return _FIELDS

    @property
    def trainer_kwargs(self) -> dict[str, Any]:
        """What goes to the trainer's constructor."""
        return {name: value for name, value in self._arguments.items() if name not in _FIELDS}

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "generation_config":
            value = _as_dict(value)
        super().__setattr__(name, value)
        if name == "generation_config":
            for variant in covering(value):
                _check_generation(variant or {})

    def _set_unknown(self, name: str, value: Any) -> None:
        if name in self.old_names:
            super()._set_unknown(name, value)
            return
        # Where the trainer is not known yet, the search that knows it checks the name.
        for template in covering(self.training_args):
            if isinstance(template, TrainerTemplate):
                check_names(template.spec, [name], _FIELDS)
        self._arguments[name] = value


def _as_dict(value: Any) -> Any:
    """Turns a GenerationConfig into a dict of what it changes; leaves anything else."""
    if hasattr(value, "to_diff_dict") and not any(knobs_in(value)):
        return {k: v for k, v in value.to_diff_dict().items() if k != "transformers_version"}
    return value


def _check_generation(config: Mapping[str, Any]) -> None:
    from transformers import GenerationConfig

    known = [name for name in vars(GenerationConfig()) if not name.startswith("_")]
    allowed = [name for name in (*known, *_GENERATION_EXTRAS) if name != "transformers_version"]
    for name in config:
        if name not in allowed:
            raise UnknownArgumentError(
                f"generation_config has no entry {name!r}; {did_you_mean(name, allowed)}"
            )
