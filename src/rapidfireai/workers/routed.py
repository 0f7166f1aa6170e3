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
from transformers.cache_utils import Cache

from rapidfireai.workers.joint_cache import joint_cache

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
    cache: Cache | None = None
    """Of the tokens before these, to generate the next: L is 1 then, the mask covers those before
    as well, and positions are given."""
    num_cached: int = 0
    """Tokens of each row in the cache before the pass."""

    @property
    def num_rows(self) -> int:
        """B"""
        return self.input_ids.shape[0]

    @property
    def num_tokens(self) -> int:
        """L"""
        return self.input_ids.shape[1]

    @property
    def width(self) -> int:
        """Positions that rows are padded to; slices that share a pass agree on it."""
        return bucket_width(self.num_cached + self.num_tokens)


@dataclass(slots=True)
class _Plan:
    """The slices of the pass in progress; all routed layers look at the same plan."""

    slices: Sequence[Slice] = ()
    num_rows: int = 0
    generators: list[torch.Generator] = field(default_factory=list)

    def begin(self, slices: Sequence[Slice]) -> None:
        self.slices = slices
        self.num_rows = sum(part.num_rows for part in slices)
        if slices and slices[0].cache is not None:
            self.num_rows = _filled(self.num_rows)
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
        if x.ndim != 3 or len(x) != self._plan.num_rows:
            raise ValueError(f"{self._name} is given {tuple(x.shape)} instead of the runs' rows")
        routes: list[_Route] = []
        weights: list[torch.Tensor] = []
        for part, rows in self._plan.places():
            adapter = part.adapters.get(self._name)
            if adapter is not None:
                routes.append(_Route.of(adapter, rows, part))
                weights += _weights(adapter)
        if not routes:
            return y
        # After `y`: a run's gradients then add up in the order in which they do in PEFT's layer.
        added: torch.Tensor = _AddAdapters.apply(x, y, routes, *weights)
        return added


@dataclass(frozen=True, slots=True)
class _Route:
    """One run's way past a frozen layer."""

    rows: slice
    num_tokens: int
    scaling: float
    dropout: float
    generator: torch.Generator | None

    @classmethod
    def of(cls, adapter: LoraLinear, rows: slice, part: Slice) -> "_Route":
        (name,) = adapter.active_adapters
        dropout = adapter.lora_dropout[name]
        drops = isinstance(dropout, nn.Dropout) and dropout.training
        return cls(
            rows=rows,
            num_tokens=part.num_tokens,
            scaling=adapter.scaling[name],
            dropout=dropout.p if drops else 0.0,
            generator=part.generator,
        )

    def own(self, x: torch.Tensor) -> torch.Tensor:
        """The run's rows without their padding; a view."""
        rows = x[self.rows]
        return rows if self.num_tokens == x.shape[1] else rows[:, : self.num_tokens]

    def draw(self, like: torch.Tensor) -> torch.Tensor | None:
        """What dropout multiplies by, drawn as `F.dropout` does on a CPU; None without dropout."""
        if self.dropout == 0:
            return None
        assert self.generator is not None, "a run with dropout brings its generator"
        kept = torch.empty_like(like, memory_format=torch.contiguous_format)
        return kept.bernoulli_(1 - self.dropout, generator=self.generator).div_(1 - self.dropout)


def _weights(adapter: LoraLinear) -> tuple[torch.Tensor, torch.Tensor]:
    (name,) = adapter.active_adapters
    return adapter.lora_A[name].weight, adapter.lora_B[name].weight


class _AddAdapters(torch.autograd.Function):
    """To `y`, on each run's rows, what PEFT's `lora.Linear.forward` adds to the frozen layer's
    output: `lora_B(lora_A(dropout(x))) * scaling`.

    One node of autograd for all runs, since with small batches most of the time goes into nodes.
    In place: a copy of `y` for each run would cost most of what sharing the pass saves. Each step
    rounds as PEFT's does, in autocast too.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        y: torch.Tensor,
        routes: list[_Route],
        *weights: torch.Tensor,
    ) -> torch.Tensor:
        kept: list[torch.Tensor | None] = []
        device = x.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        for route, a, b in zip(routes, weights[::2], weights[1::2], strict=True):
            own = route.own(x).to(a.dtype)
            mask = route.draw(own)
            dropped = own if mask is None else own * mask
            if autocast is not None:
                dropped, a, b = dropped.to(autocast), a.to(autocast), b.to(autocast)
            flat = dropped.reshape(-1, dropped.shape[-1])
            low = F.linear(flat, a)
            added, place = F.linear(low, b), route.own(y)
            if route.scaling != 1:
                added = added.mul_(route.scaling)
            place += added.view(place.shape)
            kept += (mask, flat, low, a, b)
        ctx.routes, ctx.shape, ctx.dtype = routes, x.shape, x.dtype
        ctx.weight_dtypes = [weight.dtype for weight in weights]
        ctx.save_for_backward(*kept)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (grad,) = grads
        kept = ctx.saved_tensors
        needs_below = ctx.needs_input_grad[0]
        below = None
        found: list[torch.Tensor] = []
        for i, route in enumerate(ctx.routes):
            mask, flat, low, a, b = kept[5 * i : 5 * i + 5]
            dtype_a, dtype_b = ctx.weight_dtypes[2 * i : 2 * i + 2]
            own = route.own(grad)
            scaled = own.to(b.dtype)
            if route.scaling != 1:
                scaled = scaled * route.scaling
            scaled = scaled.reshape(-1, own.shape[-1])
            low_grad = scaled @ b
            found += ((low_grad.t() @ flat).to(dtype_a), (scaled.t() @ low).to(dtype_b))
            if not needs_below:
                continue
            dropped = (low_grad @ a).view(*own.shape[:-1], -1).to(dtype_a)
            if mask is not None:
                dropped.mul_(mask)
            if dropped.shape == ctx.shape:  # all rows are this run's, without any padding
                below = dropped.to(ctx.dtype)
                continue
            if below is None:
                below = torch.zeros(ctx.shape, dtype=ctx.dtype, device=grad.device)
            route.own(below).copy_(dropped)
        return below, grad, None, *found


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
        trains: bool,
        autocast: torch.dtype | None = None,
        checkpointing: bool = False,
    ) -> list[torch.Tensor]:
        """Run the slices through the backbone, all padded to the width of their bucket.

        Args:
            slices: Of different runs, all of one width, and all with a cache or none.
            trains: Whether a backward pass is to follow; else nothing is kept for one.
            autocast: In which type matrices are multiplied; None for that of the weights.
            checkpointing: Keep only each layer's input for the backward pass.

        Returns:
            Each run's last hidden states (B, L, features), detached, to take gradients if it
            trains.
        """
        self._route({name for part in slices for name in part.adapters})
        self._plan.begin(slices)
        self._hidden = None
        if getattr(self._backbone, "gradient_checkpointing", False) != checkpointing:
            self._backbone._set_gradient_checkpointing(  # type: ignore[operator]  # noqa: SLF001
                enable=checkpointing, gradient_checkpointing_func=self._checkpoint
            )
        if self._backbone.training != trains:
            self._backbone.train(trains)
        inputs = _padded(slices) if slices[0].cache is None else self._next_tokens(slices)
        with torch.set_grad_enabled(trains), self._autocast(autocast):
            hidden = self._backbone(**inputs).last_hidden_state
        if trains:
            self._hidden = hidden
        hidden = hidden.detach()
        return [
            hidden[rows, : part.num_tokens].contiguous().requires_grad_(trains)
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
            own = (w for adapter in part.adapters.values() for w in _weights(adapter))
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

    def _next_tokens(self, slices: Sequence[Slice]) -> dict[str, Any]:
        """The backbone's inputs to generate one token: the slices' rows, and rows of nobody's."""
        width, num_rows = slices[0].width, self._plan.num_rows
        like = slices[0].input_ids
        inputs: dict[str, Any] = {
            "input_ids": like.new_zeros((num_rows, 1)),
            "position_ids": like.new_zeros((num_rows, 1)),
            "attention_mask": like.new_zeros((num_rows, width)),
        }
        inputs["attention_mask"][:, 0] = 1
        for part, rows in self._plan.places():
            mask: Any = 1 if part.attention_mask is None else part.attention_mask
            inputs["input_ids"][rows] = part.input_ids
            inputs["position_ids"][rows] = part.position_ids
            inputs["attention_mask"][rows, : part.num_cached + 1] = mask
        caches = [part.cache for part in slices if part.cache is not None]
        places = [rows for _, rows in self._plan.places()]
        return {
            **inputs,
            "past_key_values": joint_cache(caches, places, width, num_rows),
            "use_cache": True,
        }

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


def _filled(num_rows: int) -> int:
    """Rows of one token, with some of nobody's: matrix products then take as many at a time as with
    longer rows, however few there are. At least one, so that some position is always masked and
    attention never takes the way that it has for rows without padding."""
    return (num_rows // MIN_BUCKET + 1) * MIN_BUCKET


def _padded(slices: Sequence[Slice]) -> dict[str, Any]:
    """The backbone's inputs: the slices' rows one after the other, padded on the right."""
    width = slices[0].width
    inputs: dict[str, Any] = {
        "use_cache": False,
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
