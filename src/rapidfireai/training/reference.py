"""Where a reference model's work for one run serves the others.

DPO and KTO compare the trained model with a reference. With a new adapter TRL's reference is the
base itself, the adapter switched off: the same for all runs on the base, and for one run each time
that it evaluates. One method is replaced on an instance, the `forward` of the run's PeftModel. A
call with the adapter off is answered from what the base keeps, if that holds the output of the very
same call; otherwise the model computes it.

Nothing here changes a number: calls that get the same answer agree in all that decides about it.
"""

from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import TrainerCallback
from transformers.utils import ModelOutput

from rapidfireai.workers.kept_outputs import digest
from rapidfireai.workers.shared_weights import Base

COMPARING = ("DPO", "KTO")
"""Trainers that compare the model with a reference on rows that are there before training."""

_OUTPUTS = ("use_weighting",)
"""Arguments that decide which values a trainer asks of its model's head."""

_EMBEDDING_HOOK = "make_inputs_require_grads"
"""Set by trainers for activation checkpointing; without effect on any number."""


class SharedReference(TrainerCallback):
    """Lets a run with a new adapter on a shared base take its reference from what the base keeps.

    A callback, since some trainers ask their reference within their constructor already.

    Args:
        base: The run's.
        trainer_type: One of `COMPARING`.
        args: The run's, in force.
    """

    def __init__(self, base: Base, trainer_type: str, args: Any) -> None:
        self._base = base
        self._head = repr((trainer_type, *(getattr(args, name, None) for name in _OUTPUTS)))

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The trainer has its model."""
        model = kwargs["model"]
        if isinstance(model, PeftModel):
            _Reference(model, self._base, self._head).attach()


class _Reference:
    """The replaced method of one run's model."""

    def __init__(self, model: PeftModel, base: Base, head: str) -> None:
        self._model = model
        self._base = base
        self._head = head
        self._own_forward = model.forward
        self._layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
        # Of adapters that are off nothing is computed.
        off = {id(m) for layer in self._layers for m in _beside_base_layer(layer)}
        self._modules = [m for m in model.modules() if id(m) not in off]

    def attach(self) -> None:
        def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if module is not self._model:  # of a copy that somebody made of the model
                return type(module).forward(module, *args, **kwargs)
            return self._forward(*args, **kwargs)

        # A method of the model's, so that a copy of it gets one of its own.
        self._model.forward = MethodType(forward, self._model)

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        key = self._key(kwargs) if not args and self._is_bare(kwargs) else None
        if key is None:
            return self._own_forward(*args, **kwargs)
        device = kwargs["input_ids"].device
        known = self._base.outputs.get(key, device)
        if known is not None:
            return known
        before = _rng_states(device)
        output = self._own_forward(**kwargs)
        # What drew random numbers is nobody else's, nor what weights gave that somebody changed.
        drew = not all(map(torch.equal, before, _rng_states(device)))
        if isinstance(output, ModelOutput) and not drew and self._base.looks_intact():
            self._base.outputs.put(key, output)
        return output

    def _is_bare(self, kwargs: dict[str, Any]) -> bool:
        """Whether the call asks the base alone, for values of tokens, and draws nothing."""
        return (
            not torch.is_grad_enabled()
            and not torch.is_inference_mode_enabled()
            and kwargs.get("fused_lm_head") is True
            and isinstance(kwargs.get("input_ids"), torch.Tensor)
            and bool(self._layers)
            and all(layer.disable_adapters and not layer.merged for layer in self._layers)
            and not any(map(_interferes, self._modules))
        )

    def _key(self, kwargs: dict[str, Any]) -> bytes | None:
        device_type = kwargs["input_ids"].device.type
        return digest(
            {
                **{f"argument {name}": value for name, value in kwargs.items()},
                "head": self._head,
                "training": self._model.training,
                "autocast": torch.is_autocast_enabled(device_type),
                "autocast dtype": torch.get_autocast_dtype(device_type),
            }
        )


def _beside_base_layer(layer: BaseTunerLayer) -> Iterator[nn.Module]:
    """The modules of the adapter on a layer."""
    assert isinstance(layer, nn.Module), "adapters are modules"
    for name, child in layer.named_children():
        if name != "base_layer":
            yield from child.modules()


def _interferes(module: nn.Module) -> bool:
    """Whether something else than the module's own weights may decide about what it gives."""
    if isinstance(module, nn.Dropout):
        return module.training and module.p > 0
    return has_hook(module)


def has_hook(module: nn.Module) -> bool:
    """Whether somebody looks at what the module is given or gives, and may change it."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())  # noqa: SLF001
    return any(_EMBEDDING_HOOK not in getattr(hook, "__qualname__", "") for hook in hooks)


def _rng_states(device: torch.device) -> list[torch.Tensor]:
    """Of the generators that a forward pass may draw from."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states
