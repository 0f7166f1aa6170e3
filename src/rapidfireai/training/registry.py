"""The trainers of TRL, one row each.

Knows names and import paths; TRL itself is imported when a row is loaded. What a trainer or its
config accepts is read from the loaded class, never repeated here.
"""

import importlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum, auto
from typing import Any

from rapidfireai.core.spelling import did_you_mean
from rapidfireai.errors import ConfigError


class DataKind(StrEnum):
    """What the rows of a trainer's dataset show; `training.columns` knows the columns."""

    DEMONSTRATION = auto()
    """How to reply."""
    CONVERSATION = auto()
    """How to reply, as messages and nothing else."""
    PREFERENCE = auto()
    """Which of two replies is better."""
    UNPAIRED_PREFERENCE = auto()
    """Whether a reply is good."""
    PROMPT = auto()
    """What to reply to; the trainer generates."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerSpec:
    """Where a trainer and its config class live."""

    name: str
    """As in `trainer_type="SFT"`."""
    config: str
    """"module:class" of the arguments."""
    trainer: str
    """"module:class" of the trainer."""
    data_kind: DataKind
    further_columns: tuple[str, ...] = ()
    """Columns that the trainer reads besides those of its `data_kind`."""
    model_type: str = "causal_lm"
    """What the trainer trains, as `training.loading` names it."""
    experimental: bool = False
    """True where TRL may change or remove it in any release."""
    needs_one_of: tuple[str, ...] = ()
    """Constructor arguments of which one is needed although each has a default."""

    def load_config(self) -> Any:
        """Returns the config class."""
        return _load(self.config)

    def load_trainer(self) -> Any:
        """Returns the trainer class."""
        return _load(self.trainer)


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    with warnings.catch_warnings():
        # Said once more by a note on every run of an experimental trainer.
        warnings.filterwarnings("ignore", message="You are importing from 'trl.experimental'")
        return getattr(importlib.import_module(module), name)


def _stable(name: str, data_kind: DataKind, needs_one_of: tuple[str, ...] = ()) -> TrainerSpec:
    return TrainerSpec(
        name=name,
        config=f"trl:{name}Config",
        trainer=f"trl:{name}Trainer",
        data_kind=data_kind,
        needs_one_of=needs_one_of,
    )


def _experimental(
    module: str, name: str, data_kind: DataKind, needs_one_of: tuple[str, ...] = ()
) -> TrainerSpec:
    path = f"trl.experimental.{module}:{name}"
    return TrainerSpec(
        name=name,
        config=f"{path}Config",
        trainer=f"{path}Trainer",
        experimental=True,
        data_kind=data_kind,
        needs_one_of=needs_one_of,
    )


TRAINERS: Mapping[str, TrainerSpec] = {
    spec.name: spec
    for spec in (
        _stable("SFT", DataKind.DEMONSTRATION),
        _stable("DPO", DataKind.PREFERENCE),
        _stable("GRPO", DataKind.PROMPT, needs_one_of=("reward_funcs", "environment_factory")),
        _stable("RLOO", DataKind.PROMPT),
        _stable("KTO", DataKind.UNPAIRED_PREFERENCE),
        replace(_stable("Reward", DataKind.PREFERENCE), model_type="seq_cls"),
        _stable("Distillation", DataKind.PROMPT, needs_one_of=("teacher_model",)),
        _experimental("a2po", "A2PO", DataKind.PROMPT),
        _experimental("cpo", "CPO", DataKind.PREFERENCE),
        _experimental("gkd", "GKD", DataKind.CONVERSATION, needs_one_of=("teacher_model",)),
        _experimental("gmpo", "GMPO", DataKind.PROMPT),
        _experimental("gold", "GOLD", DataKind.DEMONSTRATION, needs_one_of=("teacher_model",)),
        _experimental("iw_opd", "IWOPD", DataKind.CONVERSATION, needs_one_of=("teacher_model",)),
        _experimental("online_dpo", "OnlineDPO", DataKind.PROMPT, needs_one_of=("reward_funcs",)),
        _experimental("orpo", "ORPO", DataKind.PREFERENCE),
        replace(
            _experimental("sdft", "SDFT", DataKind.PROMPT), further_columns=("privileged_context",)
        ),
        _experimental("sdpo", "SDPO", DataKind.PROMPT),
        replace(_experimental("tpo", "TPO", DataKind.PREFERENCE), further_columns=("reference",)),
        TrainerSpec(
            name="BEMADPO",
            config="trl:DPOConfig",
            trainer="trl.experimental.bema_for_ref_model:DPOTrainer",
            data_kind=DataKind.PREFERENCE,
            experimental=True,
        ),
    )
}

REFUSED: Mapping[str, str] = {
    "AsyncGRPO": "it generates in a process of its own, which goes on while a run is paused: "
    "use GRPO",
    "AsyncDistillation": "it generates in a process of its own, which goes on while a run is "
    "paused: use Distillation",
    "ServerDistillation": "its teacher is a server that the runs cannot share: use Distillation",
}
"""Trainers of TRL that cannot be time-sliced, and why."""


def trainer_spec(name: str) -> TrainerSpec:
    """Returns the row of a trainer.

    Raises:
        ConfigError: No trainer has that name, or it cannot be time-sliced.
    """
    if name in REFUSED:
        raise ConfigError(f"trainer_type={name!r} is not supported: {REFUSED[name]}")
    if name not in TRAINERS:
        raise ConfigError(
            f"trainer_type={name!r} is not known; {did_you_mean(str(name), TRAINERS)}"
        )
    return TRAINERS[name]
