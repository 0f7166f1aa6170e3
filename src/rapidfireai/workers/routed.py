"""One pass of several runs' rows through a frozen backbone, each row through its run's own adapter.

The rows of all runs are one batch. What is frozen treats rows alike and works on all of them at
once. A target layer of LoRA is a `RoutedLinear`: the frozen layer over all rows, and to each run's
rows what that run's adapter adds, computed on these rows alone and without their padding. So a run
gets the hidden states and the gradients that it would get with nobody beside it.

The operations on a run's own rows are PEFT's, in PEFT's order, since another order would round
otherwise. Nothing here draws from the process's random generators.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

MIN_BUCKET = 16
"""Widths are multiples of it: also what attention's kernels take at a time on a CPU."""


def bucket_width(num_tokens: int) -> int:
    """The width that rows of this length are padded to: a function of the length alone.

    Up to 64 tokens the next multiple of 16, above that the next quarter between two powers of two,
    so that rows share few different widths and at most a fifth of a row is padding.
    """
    step = max(MIN_BUCKET, 1 << max(0, (num_tokens - 1).bit_length() - 3))
    return -(-num_tokens // step) * step


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """One run's rows in a pass. `B` rows of `L` tokens."""

    input_ids: torch.Tensor
    """(B, L)"""
    attention_mask: torch.Tensor | None
    """(B, L); None attends to everything."""
    position_ids: torch.Tensor | None
    """(B, L), or None for 0, 1, 2 and so on."""
    adapters: Mapping[str, LoraLinear]
    """The run's LoRA layers by the names of their places in the backbone."""
    generator: torch.Generator | None
    """Draws the run's dropout; None if it has none."""

    @property
    def num_rows(self) -> int:
        """B"""
        return self.input_ids.shape[0]

    @property
    def num_tokens(self) -> int:
        """L"""
        return self.input_ids.shape[1]


@dataclass(slots=True)
class _Plan:
    """The slices of the pass in progress; all routed layers look at the same plan."""

    slices: Sequence[Slice] = ()
    generators: list[torch.Generator] = field(default_factory=list)

    def begin(self, slices: Sequence[Slice]) -> None:
        self.slices = slices
        self.generators = [s.generator for s in slices if s.generator is not None]

    def places(self) -> Iterator[tuple[Slice, slice]]:
        """Each slice with its rows."""
        begin = 0
        for part in self.slices:
            yield part, slice(begin, begin + part.num_rows)
            begin += part.num_rows


class RoutedLinear(nn.Module):
    """A frozen layer, and on each run's rows what the run's adapter adds.

    Args:
        base: The frozen layer.
        name: Its place in the backbone.
        plan: Of the pass in progress.
    """

    def __init__(self, base: nn.Module, name: str, plan: _Plan) -> None:
        super().__init__()
        self.base = base
        self._name = name
        self._plan = plan

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` is (rows, width, features)."""
        y: torch.Tensor = self.base(x)
        num_rows = [part.num_rows for part in self._plan.slices]
        if x.ndim != 3 or len(x) != sum(num_rows):
            raise ValueError(f"{self._name} is given {tuple(x.shape)} instead of the runs' rows")
        # After `y`: a run's gradients then add up in the order in which they do in PEFT's layer.
        xs = x.split(num_rows)
        places, deltas = [], []
        for x_own, (part, rows) in zip(xs, self._plan.places(), strict=True):
            adapter = part.adapters.get(self._name)
            if adapter is not None:
                own = x_own if part.num_tokens == x.shape[1] else x_own[:, : part.num_tokens]
                places.append((rows, slice(part.num_tokens)))
                deltas.append(_delta(adapter, own, part.generator))
        if not deltas:
            return y
        added: torch.Tensor = _AddToRows.apply(y, places, *deltas)
        return added


def _delta(adapter: LoraLinear, x: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """What the adapter adds to the frozen layer's output, as in PEFT's `lora.Linear.forward`."""
    (name,) = adapter.active_adapters
    lora_a, lora_b = adapter.lora_A[name], adapter.lora_B[name]
    x = x.to(lora_a.weight.dtype)
    dropout = adapter.lora_dropout[name]
    p = dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
    if p > 0:
        assert generator is not None, "a run with dropout brings its generator"
        # What F.dropout does on a CPU, from a generator of the run's own.
        kept = torch.empty_like(x, memory_format=torch.contiguous_format)
        x = x * kept.bernoulli_(1 - p, generator=generator).div_(1 - p)
    delta: torch.Tensor = lora_b(lora_a(x)) * adapter.scaling[name]
    return delta


class _AddToRows(torch.autograd.Function):
    """`y` plus each delta in its place. In place: a copy of `y` for each run would cost most of
    what sharing the pass saves."""

    @staticmethod
    def forward(
        ctx: Any, y: torch.Tensor, places: list[tuple[slice, slice]], *deltas: torch.Tensor
    ) -> torch.Tensor:
        for place, delta in zip(places, deltas, strict=True):
            y[place] += delta
        ctx.places = places
        ctx.dtypes = [delta.dtype for delta in deltas]
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (grad,) = grads
        own = (grad[place].to(dtype) for place, dtype in zip(ctx.places, ctx.dtypes, strict=True))
        return grad, None, *own


class SharedBackbone:
    """A backbone over the base's frozen weights, through which several runs' rows go at once.

    Args:
        backbone: A module tree of its own that shares the base's tensors.
        device: Where these are.
    """

    def __init__(self, backbone: nn.Module, device: torch.device) -> None:
        self._backbone = backbone.train()
        self._device = device
        self._plan = _Plan()
        self._hidden: torch.Tensor | None = None

    def forward(
        self,
        slices: Sequence[Slice],
        *,
        autocast: torch.dtype | None = None,
        checkpointing: bool = False,
    ) -> list[torch.Tensor]:
        """Run the slices through the backbone, all padded to the width of their bucket.

        Args:
            slices: Of different runs, all of one `bucket_width`.
            autocast: In which type matrices are multiplied; None for that of the weights.
            checkpointing: Keep only each layer's input for the backward pass.

        Returns:
            Each run's last hidden states (B, L, features), detached, to take gradients.
        """
        self._route({name for part in slices for name in part.adapters})
        self._plan.begin(slices)
        self._hidden = None
        if getattr(self._backbone, "gradient_checkpointing", False) != checkpointing:
            self._backbone._set_gradient_checkpointing(  # type: ignore[operator]  # noqa: SLF001
                enable=checkpointing, gradient_checkpointing_func=self._checkpoint
            )
        width = bucket_width(max(part.num_tokens for part in slices))
        with torch.enable_grad(), self._autocast(autocast):
            self._hidden = self._backbone(
                **_padded(slices, width), use_cache=False
            ).last_hidden_state
        hidden = self._hidden.detach()
        return [
            hidden[rows, : part.num_tokens].contiguous().requires_grad_()
            for part, rows in self._plan.places()
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
        for (part, rows), grad in zip(self._plan.places(), grads, strict=True):
            if grad is None:
                continue
            below[rows, : part.num_tokens] = grad
            parameters += (p for m in part.adapters.values() for p in _trained(m))
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
                routed = RoutedLinear(module, name, self._plan)
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


def _trained(adapter: LoraLinear) -> Iterator[torch.Tensor]:
    for name in adapter.active_adapters:
        for module in (adapter.lora_A[name], adapter.lora_B[name]):
            yield from (p for p in module.parameters() if p.requires_grad)


def _padded(slices: Sequence[Slice], width: int) -> dict[str, torch.Tensor]:
    """The backbone's inputs: the slices' rows one after the other, padded on the right."""
    inputs = {
        "input_ids": torch.cat([_pad(part.input_ids, width) for part in slices]),
        "attention_mask": torch.cat(
            [
                _pad(
                    torch.ones_like(part.input_ids)
                    if part.attention_mask is None
                    else part.attention_mask.to(part.input_ids.dtype),
                    width,
                )
                for part in slices
            ]
        ),
    }
    positions = [part.position_ids for part in slices if part.position_ids is not None]
    if positions:
        inputs["position_ids"] = torch.cat([_pad(ids, width) for ids in positions])
    return inputs


def _pad(values: torch.Tensor, width: int) -> torch.Tensor:
    return F.pad(values, (0, width - values.shape[1]))
