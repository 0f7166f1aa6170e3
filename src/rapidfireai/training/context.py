"""What a user's `create_trainer` is given to build a trainer from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from rapidfireai.training.config import RunConfig
from rapidfireai.workers.shared_weights import Base


@dataclass(frozen=True, kw_only=True)
class TrainerContext:
    """The parts of one run. All but the base's weights are the run's own."""

    tokenizer: Any
    train_dataset: Any
    eval_dataset: Any
    output_dir: str
    """Where the trainer has to write; to be its arguments' `output_dir`."""
    seed: int
    device: torch.device
    training_args: Any
    """The trainer's config object with the arguments in force; None for a configuration that is a
    plain dictionary of the user's own knobs."""
    peft_config: Any
    """A PEFT config object, or None."""
    base: Base = field(repr=False)

    @property
    def model(self) -> nn.Module:
        """A new module tree over the shared base weights, which are frozen: put adapters on it."""
        return self.base.clone(private=False)

    def private_model(self) -> nn.Module:
        """A new model with weights of its own, for training them all."""
        return self.base.clone(private=True)


def config_mapping(config: RunConfig) -> dict[str, Any]:
    """The configuration as `create_trainer` reads it."""
    if config.knobs is not None:
        return dict(config.knobs)
    peft: Mapping[str, Any] | None = None if config.peft is None else config.peft.arguments
    return {
        **config.model,
        "trainer_type": config.trainer_type,
        "training_args": dict(config.training_args),
        "peft_config": None if peft is None else dict(peft),
        **config.trainer_kwargs,
    }
