"""A backbone over the base's frozen weights, through which several runs' rows go at once.

The rows of all runs are one sequence of tokens (`rows`). What is frozen works on all of them; each
run's adapter (`adapters`) and attention (`apart`) work on the run's own, as they do alone. So a run
gets the hidden states and the gradients that it would get with nobody beside it.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rapidfireai.workers.adapters import Kernels, RoutedLinear, adapter_weights
from rapidfireai.workers.apart import Apart, joint_cache
from rapidfireai.workers.rows import Plan, Slice


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
        self._dtype = next(p.dtype for p in backbone.parameters() if p.is_floating_point())
        self._hidden: torch.Tensor | None = None

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
        dtype = self._dtype if autocast is None else autocast
        has_cache = slices[0].cache is not None
        self._plan.begin(
            slices,
            leave_out_padding=not has_cache
            and self._apart.can_leave_out_padding(dtype, self._device),
        )
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
                parameter.grad = grad.contiguous()
            else:
                parameter.grad += grad

    def forget(self) -> None:
        """Let go of the last forward pass."""
        self._hidden = None
        self._plan.begin(())

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
