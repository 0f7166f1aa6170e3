"""A backbone over the base's frozen weights, through which several runs' rows go at once.

The rows of all runs are one sequence of tokens (`rows`). What is frozen works on all of them; each
run's adapter (`adapters`) and attention (`apart`) work on the run's own, as they do alone. So a run
gets the hidden states and the gradients that it would get with nobody beside it.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rapidfireai.workers.adapters import Kernels, RoutedLinear, adapter_weights
from rapidfireai.workers.apart import Apart, joint_cache
from rapidfireai.workers.by_run import with_products
from rapidfireai.workers.rows import Plan, Slice

logger = logging.getLogger(__name__)

MAX_DISAGREEMENT = 0.05
"""By which part of their norm hidden states may differ between two ways to compute attention in
half precision. Roundings make less; tokens that see what they should not, or too little, more."""


class SharedBackbone:
    """A backbone over the base's frozen weights, through which several runs' rows go at once.

    Args:
        backbone: A module tree of its own that shares the base's tensors.
        device: Where these are.
    """

    def __init__(self, backbone: nn.Module, device: torch.device) -> None:
        self._backbone = backbone.train()
        self._device = device
        self._plan = Plan()
        self._kernels = Kernels(device)
        self._apart = Apart(backbone, self._plan)
        if device.type == "cpu":
            with_products(backbone, self._plan)
        self._dtype = next(p.dtype for p in backbone.parameters() if p.is_floating_point())
        self._hidden: torch.Tensor | None = None
        self._leaves_out_padding: bool | None = None
        """None until it has been tried."""

    def forward(
        self,
        slices: Sequence[Slice],
        *,
        trains: bool,
        autocast: torch.dtype | None = None,
        checkpointing: bool = False,
    ) -> list[torch.Tensor]:
        """Run the slices through the backbone.

        Args:
            slices: Of different runs, all with a cache or none.
            trains: Whether a backward pass is to follow; else nothing is kept for one.
            autocast: In which type matrices are multiplied; None for that of the weights.
            checkpointing: Keep only each layer's input for the backward pass.

        Returns:
            Each run's last hidden states (B, L, features), detached, to take gradients if it
            trains.
        """
        self._route({name for part in slices for name in part.adapters})
        has_cache = slices[0].cache is not None
        leave_out = not has_cache and self._may_leave_out_padding(slices, autocast)
        self._plan.begin(slices, leave_out_padding=leave_out)
        self._hidden = None
        if getattr(self._backbone, "gradient_checkpointing", False) != checkpointing:
            self._backbone._set_gradient_checkpointing(  # type: ignore[operator]  # noqa: SLF001
                enable=checkpointing, gradient_checkpointing_func=self._checkpoint
            )
        if self._backbone.training != trains:
            self._backbone.train(trains)
        cached = {"past_key_values": joint_cache(self._plan)} if has_cache else {}
        with torch.set_grad_enabled(trains), self._autocast(autocast):
            hidden = self._backbone(
                **self._plan.inputs(), **cached, use_cache=has_cache
            ).last_hidden_state
        if trains:
            self._hidden = hidden
        hidden = hidden.detach()[0]
        return [
            place.unpack(hidden[place.tokens]).requires_grad_(trains) for place in self._plan.places
        ]

    def backward(self, grads: Sequence[torch.Tensor | None]) -> None:
        """Add to each run's adapter the gradients of the last forward pass.

        All or nothing: if it raises, no gradient has changed.

        Args:
            grads: Of what `forward` returned, in its order; None for a run that needs no more.
        """
        assert self._hidden is not None, "there was a forward pass"
        hidden, self._hidden = self._hidden, None
        below = torch.zeros_like(hidden)
        parameters: list[torch.Tensor] = []
        for place, grad in zip(self._plan.places, grads, strict=True):
            if grad is None:
                continue
            below[0, place.tokens] = place.pack(grad)
            own = (w for adapter in place.part.adapters.values() for w in adapter_weights(adapter))
            parameters += (weight for weight in own if weight.requires_grad)
        if not parameters:
            return
        found = torch.autograd.grad(hidden, parameters, below, allow_unused=True)
        for parameter, grad in zip(parameters, found, strict=True):
            if grad is None:
                continue
            if parameter.grad is None:
                parameter.grad = grad if _is_its_own(grad) else grad.clone()
            else:
                parameter.grad += grad

    def forget(self) -> None:
        """Let go of the last forward pass."""
        self._hidden = None
        self._plan.begin(())

    def _may_leave_out_padding(self, slices: Sequence[Slice], autocast: torch.dtype | None) -> bool:
        """Whether sequences of different lengths can be attended to, and that is right for this
        backbone: the first pass is computed with padding as well, and compared."""
        dtype = self._dtype if autocast is None else autocast
        if not self._apart.can_leave_out_padding(dtype, self._device):
            return False
        if self._leaves_out_padding is None:
            self._leaves_out_padding = self._agree(slices, autocast)
        return self._leaves_out_padding

    def _agree(self, slices: Sequence[Slice], autocast: torch.dtype | None) -> bool:
        # Without adapters: their dropout would not be the same both ways.
        bare = [replace(part, adapters={}, generator=None) for part in slices]
        try:
            padded, unpadded = (
                self._bare_states(bare, autocast, leave_out=leave_out)
                for leave_out in (False, True)
            )
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError) as error:  # a kernel that is not for this device
            logger.warning("padding is not left out of passes: %s", error)
            return False
        difference = float((unpadded - padded).norm() / padded.norm())
        if difference < MAX_DISAGREEMENT:
            return True
        logger.warning(
            "padding is not left out of passes: hidden states would differ by %.2g of their norm",
            difference,
        )
        return False

    def _bare_states(
        self, slices: Sequence[Slice], autocast: torch.dtype | None, *, leave_out: bool
    ) -> torch.Tensor:
        """The base's hidden states of all tokens that nobody masks: (tokens, features)."""
        self._plan.begin(slices, leave_out_padding=leave_out)
        with torch.no_grad(), self._autocast(autocast):
            states = self._backbone(**self._plan.inputs(), use_cache=False).last_hidden_state[0]
        each = []
        for place in self._plan.places:
            hidden, mask = place.unpack(states[place.tokens]), place.part.attention_mask
            each.append(hidden.flatten(0, 1) if mask is None else hidden[mask.bool()])
        return torch.cat(each).float()

    def _route(self, names: set[str]) -> None:
        for name in names:
            module = self._backbone.get_submodule(name)
            if not isinstance(module, RoutedLinear):
                parent, _, child = name.rpartition(".")
                routed = RoutedLinear(module, name, self._plan, self._kernels)
                setattr(self._backbone.get_submodule(parent), child, routed)

    def _autocast(self, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
        return nullcontext() if dtype is None else torch.autocast(self._device.type, dtype)

    def _checkpoint(self, function: Callable[..., Any], *args: Any) -> Any:
        """Checkpoint a layer; computed again, it draws the dropout that it drew before."""
        before = [generator.get_state() for generator in self._plan.generators]
        is_first = True

        def run(*args: Any) -> Any:
            nonlocal is_first
            if is_first:
                is_first = False
                return function(*args)
            generators = self._plan.generators
            now = [generator.get_state() for generator in generators]
            for generator, state in zip(generators, before, strict=True):
                generator.set_state(state)
            try:
                return function(*args)
            finally:
                for generator, state in zip(generators, now, strict=True):
                    generator.set_state(state)

        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False)


def _is_its_own(tensor: torch.Tensor) -> bool:
    """Whether it is no part of a larger one, with which other runs' would be moved and freed."""
    return tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
