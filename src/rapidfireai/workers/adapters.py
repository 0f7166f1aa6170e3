"""What the runs' LoRA adapters add to a frozen layer, each on its own run's tokens.

Three ways compute it. One run after the other, with PEFT's operations in PEFT's order, since
another order would round otherwise: so a run gets the bits that it gets alone. All runs as a batch
of matrix products, if they are of one size and the library gives the same bits, which is tried out.
Or all runs at once, with grouped matrix products: for GPUs, where many small kernels take longer
than one, and where what is alike to the bit is not to be had anyway, as cuBLAS chooses kernels by
the number of rows.

Nothing here draws from the process's random generators.
"""

import logging
import math
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.nn import functional as F

from rapidfireai.workers.rows import Place, Plan

logger = logging.getLogger(__name__)

ALIGNED_RANK = 8
"""Grouped products want rows of 16 bytes: ranks are filled up with zeros to a multiple of it."""

NUM_WARM_UP = 2
NUM_TIMED = 4
"""Repetitions of each way when the two are compared."""


class RoutedLinear(nn.Module):
    """A frozen layer, and on each run's tokens what the run's adapter adds.

    Args:
        base: The frozen layer.
        name: Its place in the backbone.
        plan: Of the pass in progress.
        kernels: Choose how adapters are computed.
    """

    def __init__(self, base: nn.Module, name: str, plan: Plan, kernels: "Kernels") -> None:
        super().__init__()
        self.base = base
        self._name = name
        self._plan = plan
        self._kernels = kernels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` is (1, tokens, features), or without the 1."""
        y: torch.Tensor = self.base(x)
        if x.shape[:-1].numel() != self._plan.num_tokens:
            raise ValueError(f"{self._name} is given {tuple(x.shape)} instead of the runs' tokens")
        routes: list[Route] = []
        weights: list[torch.Tensor] = []
        for place in self._plan.places:
            adapter = place.part.adapters.get(self._name)
            if adapter is not None:
                routes.append(Route.of(adapter, place))
                weights += adapter_weights(adapter)
        if not routes:
            return y
        if len({route.dtype for route in routes}) > 1:
            raise ValueError(f"the adapters on {self._name} are of different types")
        # Of `x` itself, and after `y`: a run's gradients then add up in the order in which they do
        # in PEFT's layer.
        added: torch.Tensor = _AddAdapters.apply(y, x, self._kernels, routes, *weights)
        return added


@dataclass(frozen=True, slots=True)
class Route:
    """One run's way past a frozen layer."""

    tokens: slice
    rank: int
    dtype: torch.dtype
    """Of its adapter's weights."""
    scaling: float
    dropout: float
    generator: torch.Generator | None

    @classmethod
    def of(cls, adapter: LoraLinear, place: Place) -> "Route":
        (name,) = adapter.active_adapters
        dropout = adapter.lora_dropout[name]
        drops = isinstance(dropout, nn.Dropout) and dropout.training
        return cls(
            tokens=place.tokens,
            rank=adapter.r[name],
            dtype=adapter.lora_A[name].weight.dtype,
            scaling=adapter.scaling[name],
            dropout=dropout.p if drops else 0.0,
            generator=place.part.generator,
        )


def adapter_weights(adapter: LoraLinear) -> tuple[torch.Tensor, torch.Tensor]:
    """A (rank, in) and B (out, rank) of the one adapter that is active."""
    (name,) = adapter.active_adapters
    return adapter.lora_A[name].weight, adapter.lora_B[name].weight


def adapter_dtype(adapters: Mapping[str, LoraLinear]) -> torch.dtype:
    """Of a run's weights, which are all of one type."""
    return adapter_weights(next(iter(adapters.values())))[0].dtype


class _AddAdapters(torch.autograd.Function):
    """To `y`, on each run's tokens, what PEFT's `lora.Linear.forward` adds to the frozen layer's
    output: `lora_B(lora_A(dropout(x))) * scaling`.

    One node of autograd for all runs, since with small batches most of the time goes into nodes.
    In place: a copy of `y` for each run would cost most of what sharing the pass saves. `y` comes
    first, as autograd wants it of what may be a view.
    """

    @staticmethod
    def forward(
        ctx: Any,
        y: torch.Tensor,
        x: torch.Tensor,
        kernels: "Kernels",
        routes: list[Route],
        *weights: torch.Tensor,
    ) -> torch.Tensor:
        device = x.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        flat, place = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        mask = draw(flat, routes)
        way = kernels.choose(flat, place, routes, mask, weights, autocast)
        ctx.save_for_backward(*way.forward(flat, place, routes, mask, weights, autocast))
        ctx.way, ctx.routes, ctx.shape, ctx.dtype = way, routes, x.shape, x.dtype
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (grad,) = grads
        flat = grad.reshape(-1, grad.shape[-1])
        dtype = ctx.dtype if ctx.needs_input_grad[1] else None
        below, found = ctx.way.backward(flat, ctx.routes, ctx.saved_tensors, dtype)
        return grad, None if below is None else below.view(ctx.shape), None, None, *found


def draw(x: torch.Tensor, routes: Sequence[Route]) -> torch.Tensor | None:
    """What dropout multiplies `x` (tokens, features) by, drawn for each run as `F.dropout` does on
    a CPU; None without dropout."""
    if not any(route.dropout for route in routes):
        return None
    mask = torch.empty(x.shape, dtype=routes[0].dtype, device=x.device)
    for route in routes:
        own = mask[route.tokens]
        if route.dropout == 0:
            own.fill_(1)
            continue
        assert route.generator is not None, "a run with dropout brings its generator"
        own.bernoulli_(1 - route.dropout, generator=route.generator).div_(1 - route.dropout)
    return mask


class OneByOne:
    """One run after the other; each step rounds as PEFT's does, in autocast too."""

    @staticmethod
    def forward(
        x: torch.Tensor,
        y: torch.Tensor,
        routes: Sequence[Route],
        mask: torch.Tensor | None,
        weights: Sequence[torch.Tensor],
        autocast: torch.dtype | None,
    ) -> list[torch.Tensor | None]:
        """Add to `y` (tokens, out), and return what the backward pass needs.

        Args:
            x: (tokens, in)
            routes: The runs'.
            mask: Of their dropout (tokens, in); None if none has any.
            weights: A and B of each.
            autocast: In which type matrices are multiplied; None for that of the weights.
        """
        kept = [mask]
        for route, a, b in zip(routes, weights[::2], weights[1::2], strict=True):
            dropped, place = x[route.tokens].to(a.dtype), y[route.tokens]
            if route.dropout:
                assert mask is not None, "it has been drawn"
                dropped = dropped * mask[route.tokens]
            if autocast is not None:
                dropped, a, b = dropped.to(autocast), a.to(autocast), b.to(autocast)
            low = torch.mm(dropped, a.t())
            added = torch.mm(low, b.t())
            if route.scaling != 1:
                added *= route.scaling
            place += added
            kept += (dropped, low, a, b)
        return kept

    @staticmethod
    def backward(
        grad: torch.Tensor,
        routes: Sequence[Route],
        kept: Sequence[Any],
        dtype: torch.dtype | None,
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """The gradients of `x` and of the weights.

        Args:
            grad: Of `y`, (tokens, out).
            routes: As `forward`.
            kept: What `forward` returned.
            dtype: Of `x`; None if its gradient is not needed.
        """
        parts: list[torch.Tensor] = []
        found: list[torch.Tensor] = []
        end = 0
        for i, route in enumerate(routes):
            dropped, low, a, b = kept[4 * i + 1 : 4 * i + 5]
            scaled = grad[route.tokens].to(b.dtype)
            if route.scaling != 1:
                scaled = scaled * route.scaling
            low_grad = torch.mm(scaled, b)
            found += (
                torch.mm(low_grad.t(), dropped).to(route.dtype),
                torch.mm(scaled.t(), low).to(route.dtype),
            )
            if dtype is None:
                continue
            own = torch.mm(low_grad, a).to(route.dtype)
            if route.dropout:
                own *= kept[0][route.tokens]
            if route.tokens.start > end:
                parts.append(_nothing(route.tokens.start - end, own, dtype))
            parts.append(own.to(dtype))
            end = route.tokens.stop
        if dtype is None:
            return None, found
        if len(grad) > end:
            parts.append(_nothing(len(grad) - end, parts[0], dtype))
        return parts[0] if len(parts) == 1 else torch.cat(parts), found


def _nothing(num_tokens: int, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return like.new_zeros((num_tokens, like.shape[1]), dtype=dtype)


class Stacked:
    """All runs at once, as a batch of matrix products. For what `can_stack` allows."""

    @staticmethod
    def forward(
        x: torch.Tensor,
        y: torch.Tensor,
        routes: Sequence[Route],
        mask: torch.Tensor | None,
        weights: Sequence[torch.Tensor],
        autocast: torch.dtype | None,
    ) -> list[torch.Tensor | None]:
        """As `OneByOne.forward`."""
        num = len(routes)
        a, b = torch.stack(tuple(weights[::2])), torch.stack(tuple(weights[1::2]))
        dropped = x.view(num, -1, x.shape[-1]).to(a.dtype)
        if mask is not None:
            dropped = dropped * mask.view(dropped.shape)
        if autocast is not None:
            dropped, a, b = dropped.to(autocast), a.to(autocast), b.to(autocast)
        low = torch.bmm(dropped, a.transpose(1, 2))
        added = _scaled_in_place(torch.bmm(low, b.transpose(1, 2)), routes)
        place = y.view(added.shape)
        place += added
        return [mask, dropped, low, a, b]

    @staticmethod
    def backward(
        grad: torch.Tensor,
        routes: Sequence[Route],
        kept: Sequence[Any],
        dtype: torch.dtype | None,
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """As `OneByOne.backward`."""
        mask, dropped, low, a, b = kept
        scaled = grad.view(len(routes), -1, grad.shape[-1]).to(b.dtype)
        if any(route.scaling != 1 for route in routes):
            scaled = _scaled_in_place(scaled.clone(), routes)
        low_grad = torch.bmm(scaled, b)
        grad_a = torch.bmm(low_grad.transpose(1, 2), dropped).to(routes[0].dtype)
        grad_b = torch.bmm(scaled.transpose(1, 2), low).to(routes[0].dtype)
        found = [each for pair in zip(grad_a, grad_b, strict=True) for each in pair]
        if dtype is None:
            return None, found
        below = torch.bmm(low_grad, a).to(routes[0].dtype).view(len(grad), -1)
        if mask is not None:
            below *= mask
        return below.to(dtype), found


def _scaled_in_place(values: torch.Tensor, routes: Sequence[Route]) -> torch.Tensor:
    """Each run's (tokens, features) times its scaling: a number, which a tensor would round."""
    scalings = [route.scaling for route in routes]
    if len(set(scalings)) > 1:
        for own, scaling in zip(values, scalings, strict=True):
            own.mul_(scaling)
    elif scalings[0] != 1:
        values *= scalings[0]
    return values


class Grouped:
    """All runs at once, by grouped matrix products; of `OneByOne` it differs in last bits.

    For what `can_group` allows.
    """

    @staticmethod
    def forward(
        x: torch.Tensor,
        y: torch.Tensor,
        routes: Sequence[Route],
        mask: torch.Tensor | None,
        weights: Sequence[torch.Tensor],
        autocast: torch.dtype | None,
    ) -> list[torch.Tensor | None]:
        """As `OneByOne.forward`."""
        dtype = autocast or weights[0].dtype
        rank = _filled(max(len(a) for a in weights[::2]))
        scaling = x.new_tensor([route.scaling for route in routes], dtype=weights[0].dtype)
        a = torch.stack([F.pad(a, (0, 0, 0, rank - len(a))) for a in weights[::2]]).to(dtype)
        b = torch.stack([F.pad(b, (0, rank - b.shape[1])) for b in weights[1::2]])
        b = (b * scaling[:, None, None]).to(dtype)
        ends = torch.tensor([r.tokens.stop for r in routes], dtype=torch.int32).to(x.device)
        dropped = x.to(weights[0].dtype)
        if mask is not None:
            dropped = dropped * mask
        dropped = dropped.to(dtype)
        low = F.grouped_mm(dropped, a.transpose(1, 2), offs=ends)
        y += F.grouped_mm(low, b.transpose(1, 2), offs=ends)
        return [mask, dropped, low, a, b, scaling, ends]

    @staticmethod
    def backward(
        grad: torch.Tensor,
        routes: Sequence[Route],
        kept: Sequence[Any],
        dtype: torch.dtype | None,
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """As `OneByOne.backward`."""
        mask, dropped, low, a, b, scaling, ends = kept
        grad = grad.to(b.dtype).contiguous()
        low_grad = F.grouped_mm(grad, b, offs=ends)
        grad_a = F.grouped_mm(low_grad.t(), dropped, offs=ends)
        grad_b = F.grouped_mm(grad.t(), low, offs=ends).to(scaling.dtype)
        grad_b *= scaling[:, None, None]
        found: list[torch.Tensor] = []
        for i, route in enumerate(routes):
            found += (
                grad_a[i, : route.rank].to(route.dtype),
                grad_b[i, :, : route.rank].to(route.dtype),
            )
        if dtype is None:
            return None, found
        below = F.grouped_mm(low_grad, a, offs=ends).to(routes[0].dtype)
        if mask is not None:
            below *= mask
        return below.to(dtype), found


Way = type[OneByOne] | type[Stacked] | type[Grouped]


class Kernels:
    """Chooses how adapters are computed: as a batch if that gives the same bits; on a GPU, what is
    quickest there for layers of that size.

    Args:
        device: Of the layers.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._quickest: dict[Hashable, Way] = {}

    def choose(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        routes: Sequence[Route],
        mask: torch.Tensor | None,
        weights: Sequence[torch.Tensor],
        autocast: torch.dtype | None,
    ) -> Way:
        """The way for a layer; measured where it is not known yet. The arguments are those of
        `OneByOne.forward`, and stay as they are."""
        ways: list[Way] = [OneByOne]
        stacks = can_stack(x, routes)
        if self._device.type == "cpu":
            return Stacked if stacks and batch_rounds_alike(x, y, routes, autocast) else OneByOne
        if stacks:
            ways.append(Stacked)
        if can_group(x, y, routes, weights, autocast):
            ways.append(Grouped)
        if len(ways) == 1:
            return OneByOne
        rank = _filled(max(route.rank for route in routes))
        size = (len(routes), len(x).bit_length(), x.shape[1], y.shape[1], rank)
        key = (*size, autocast or weights[0].dtype, *ways)
        if key not in self._quickest:
            given = (x, y, routes, mask, weights, autocast)
            seconds = {way: self._measure(way, *given) for way in ways}
            self._quickest[key] = min(ways, key=lambda way: seconds[way])
            logger.info("adapters of size %s: %s", size, {
                way.__name__: f"{1000 * spent:.3f} ms" for way, spent in seconds.items()
            })  # fmt: skip
        return self._quickest[key]

    def _measure(self, way: Way, *given: Any) -> float:
        try:
            return self._seconds(way, *given)
        except (RuntimeError, NotImplementedError) as error:
            # Not all devices have kernels for it; where memory is short, one run after the other
            # needs less.
            logger.warning("adapters cannot be computed by %s: %s", way.__name__, error)
            return math.inf

    def _seconds(self, way: Way, x: torch.Tensor, y: torch.Tensor, *given: Any) -> float:
        """What both directions take; the least, since others may be at work."""
        scratch, grad, routes = y.clone(), y.clone(), given[0]
        taken: list[float] = []
        for _ in range(NUM_WARM_UP + NUM_TIMED):
            torch.cuda.synchronize(self._device)
            begin_s = time.perf_counter()
            way.backward(grad, routes, way.forward(x, scratch, *given), x.dtype)
            torch.cuda.synchronize(self._device)
            taken.append(time.perf_counter() - begin_s)
        return min(taken[NUM_WARM_UP:])


def can_stack(x: torch.Tensor, routes: Sequence[Route]) -> bool:
    """Whether `Stacked` can compute it: several runs of one size, without gaps."""
    first = routes[0]
    num_tokens = first.tokens.stop - first.tokens.start
    return (
        len(routes) > 1
        and len({(route.rank, route.dtype) for route in routes}) == 1
        and all(
            r.tokens == slice(i * num_tokens, (i + 1) * num_tokens) for i, r in enumerate(routes)
        )
        and len(x) == len(routes) * num_tokens
    )


def batch_rounds_alike(
    x: torch.Tensor, y: torch.Tensor, routes: Sequence[Route], autocast: torch.dtype | None
) -> bool:
    """Whether on CPUs the batch gives the bits of one product after the other, for such a layer.

    Args:
        x: As `OneByOne.forward`.
        y: Likewise.
        routes: Likewise; `can_stack` allows it.
        autocast: Likewise.
    """
    num, (num_tokens, features) = len(routes), x.shape
    size = (num, num_tokens // num, features, y.shape[1], routes[0].rank)
    return _try_batch(size, autocast or routes[0].dtype, torch.get_num_threads())


@cache
def _try_batch(size: tuple[int, int, int, int, int], dtype: torch.dtype, _: int) -> bool:
    num, num_tokens, num_in, num_out, rank = size
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    routes = [
        Route(slice(i * num_tokens, (i + 1) * num_tokens), rank, dtype, 1.0, 0.0, None)
        for i in range(num)
    ]
    weights = [drawn(*shape) for _ in routes for shape in ((rank, num_in), (num_out, rank))]
    x, grad = drawn(num * num_tokens, num_in), drawn(num * num_tokens, num_out)
    results = []
    for way in (OneByOne, Stacked):
        y = torch.zeros_like(grad)
        kept = way.forward(x, y, routes, None, weights, None)
        below, found = way.backward(grad, routes, kept, dtype)
        results.append([y, below, *found])
    return all(map(torch.equal, *results))


def can_group(
    x: torch.Tensor,
    y: torch.Tensor,
    routes: Sequence[Route],
    weights: Sequence[torch.Tensor],
    autocast: torch.dtype | None,
) -> bool:
    """Whether `Grouped` can compute it: bfloat16, in sizes whose rows are aligned, without gaps."""
    ends = [0, *(route.tokens.stop for route in routes)]
    return (
        hasattr(F, "grouped_mm")
        and len(routes) > 1
        and (autocast or weights[0].dtype) is torch.bfloat16
        and len({route.dtype for route in routes}) == 1
        and not any(size % ALIGNED_RANK for size in (x.shape[1], y.shape[1]))
        and ends[:-1] == [route.tokens.start for route in routes]
        and ends[-1] == len(x)
    )


def _filled(rank: int) -> int:
    return -(-rank // ALIGNED_RANK) * ALIGNED_RANK
