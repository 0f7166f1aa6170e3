"""Several runs' keys and values as one cache, for a pass that generates the next token of each.

Each run keeps its own cache, which grows by the token of this pass. What the model attends to is
all of them, one run's rows after the other's, padded on the right to one width.
"""

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer


def is_plain(cache: object) -> TypeGuard[DynamicCache]:
    """Whether all of the cache's layers keep every token that they were given, on the device, and
    were given some."""
    return (
        isinstance(cache, DynamicCache)
        and type(cache) is DynamicCache
        and not cache.offloading
        and all(type(layer) is DynamicLayer for layer in cache.layers)
        and cache.get_seq_length() > 0
    )


def rewind(cache: Cache, num_tokens: int) -> None:
    """Let the cache hold so many tokens again, after a pass that broke off half way."""
    for layer in cache.layers:
        if layer.get_seq_length() > num_tokens:
            layer.crop(num_tokens - layer.get_seq_length())


def joint_cache(caches: Sequence[Cache], rows: Sequence[slice], width: int, num_rows: int) -> Cache:
    """One cache that reads from and writes to several.

    Args:
        caches: Of the runs; plain.
        rows: Each run's, in a pass.
        width: Positions that all rows are padded to, that of the pass's own token included.
        num_rows: Of the pass; those that belong to no run attend to nothing that is kept.
    """
    layers = zip(*(cache.layers for cache in caches), strict=True)
    return Cache(layers=[_JointLayer(each, rows, width, num_rows) for each in layers])


class _JointLayer(DynamicLayer):
    def __init__(
        self, layers: Sequence[DynamicLayer], rows: Sequence[slice], width: int, num_rows: int
    ) -> None:
        super().__init__()
        self._layers = layers
        self._rows = rows
        self._width = width
        self._num_rows = num_rows

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Give each run's layer its rows (rows, heads, 1, features), and read all of them."""
        keys = key_states.new_zeros((self._num_rows, *self._shape(key_states)))
        values = value_states.new_zeros((self._num_rows, *self._shape(value_states)))
        for layer, rows in zip(self._layers, self._rows, strict=True):
            own_keys, own_values = layer.update(key_states[rows], value_states[rows])
            keys[rows, :, : own_keys.shape[2]] = own_keys
            values[rows, :, : own_values.shape[2]] = own_values
        return keys, values

    def _shape(self, states: torch.Tensor) -> tuple[int, int, int]:
        return states.shape[1], self._width, states.shape[3]

    def get_seq_length(self) -> int:
        """Positions before the pass's own, padding included."""
        return self._width - 1
