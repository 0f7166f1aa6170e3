"""Frozen matrix products of several runs' tokens that round as each run's own do.

Libraries choose their kernels by the size of a product, and some add up a row in another order when
there are more rows: with several threads, in bfloat16, in wide layers. Whether a layer is like that
is tried out, once for each size of layer. Where it is, each run's tokens are multiplied by
themselves, as they are alone; elsewhere those of all runs at once. So numbers never depend on the
company. On GPUs this is not attempted: too much there depends on the number of rows.
"""

from functools import cache

import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from rapidfireai.workers.rows import MIN_TOKENS, Plan

TRIED = (
    *range(MIN_TOKENS, 40), 44, 48, 52, 57, 61, 64, 67, 72, 80, 96, 100, 128, 160, 200, 256, 333,
    512, 2048,
)  # fmt: skip
"""Numbers of rows."""

REFERENCE = 640
"""The number of rows that all of them are compared with."""


class Product(nn.Module):
    """A frozen layer in a pass of several runs' tokens.

    Args:
        layer: Linear, or transformers' Conv1D.
        plan: Of the pass in progress.
    """

    def __init__(self, layer: nn.Module, plan: Plan) -> None:
        super().__init__()
        self.layer = layer
        self._plan = plan
        self._alike: dict[tuple[torch.dtype, int], bool] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` is (1, tokens, features), or without the 1."""
        if self._plan.generates or self._rounds_alike(x):
            y: torch.Tensor = self.layer(x)
            return y
        # As (tokens, features): parts of three dimensions would be taken for a batch of products.
        parts = x.flatten(0, -2).split(self._plan.sizes)
        return torch.cat([self.layer(own) for own in parts]).view(*x.shape[:-1], -1)

    def _rounds_alike(self, x: torch.Tensor) -> bool:
        is_cast = torch.is_autocast_enabled("cpu")
        key = (torch.get_autocast_dtype("cpu") if is_cast else x.dtype, torch.get_num_threads())
        if key not in self._alike:
            self._alike[key] = rounds_alike(self.layer, key[0])
        return self._alike[key]


def with_products(backbone: nn.Module, plan: Plan) -> None:
    """Put a `Product` in the place of each layer that multiplies."""
    layers = [(n, m) for n, m in backbone.named_modules() if isinstance(m, nn.Linear | Conv1D)]
    for name, layer in layers:
        parent, _, child = name.rpartition(".")
        setattr(backbone.get_submodule(parent), child, Product(layer, plan))


def rounds_alike(layer: nn.Module, dtype: torch.dtype) -> bool:
    """Whether a row's product, and its gradient, do not depend on how many rows there are.

    Args:
        layer: Whose product it is.
        dtype: In which it is computed.
    """
    weight, is_linear = layer.weight, isinstance(layer, nn.Linear)
    assert isinstance(weight, torch.Tensor)
    shape = tuple(weight.shape) if is_linear else tuple(weight.shape[::-1])
    return _try(shape, dtype, is_linear, layer.bias is not None, torch.get_num_threads())


@cache
def _try(
    shape: tuple[int, int], dtype: torch.dtype, is_linear: bool, has_bias: bool, _: int
) -> bool:
    """Of a weight (out, in), which lies the other way around if it is not linear's."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    weight = drawn(*shape) if is_linear else drawn(*reversed(shape)).t()
    bias = drawn(shape[0]) if has_bias else None
    x, grad = drawn(max(TRIED), shape[1]), drawn(max(TRIED), shape[0])

    def products(num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        return F.linear(x[:num_rows], weight, bias), grad[:num_rows] @ weight

    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        expected = products(REFERENCE)
        for num_rows in TRIED:
            compared = min(num_rows, REFERENCE)
            for one, other in zip(products(num_rows), expected, strict=True):
                if not torch.equal(one[:compared], other[:compared]):
                    return False
    return True
