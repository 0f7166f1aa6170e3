"""What a base has computed for batches, kept for whoever brings the same batch again.

Knows neither models nor trainers: whoever keeps something here answers for its key holding all
that decides about the numbers.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import ModelOutput


@dataclass(frozen=True, slots=True)
class _Kept:
    kind: type[ModelOutput]
    tensors: Mapping[str, torch.Tensor]

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors.values())


class KeptOutputs:
    """Outputs by their keys, in host memory; the one that was asked for longest ago leaves first.

    Used by one thread at a time.

    Args:
        max_bytes: Of all that is kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        self.num_bytes = 0
        """Of all that is kept at the moment."""

    def get(self, key: bytes, device: torch.device) -> ModelOutput | None:
        """A copy of the output on the device; None if it is not there."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        self._kept.move_to_end(key)
        return kept.kind(**{n: t.to(device, copy=True) for n, t in kept.tensors.items()})

    def put(self, key: bytes, output: ModelOutput) -> None:
        """Keep a copy, unless it holds more than tensors, or more than there is room for."""
        values = dict(output.items())
        if not all(isinstance(value, torch.Tensor) for value in values.values()):
            return
        copies = {n: v.detach().to("cpu", copy=True) for n, v in values.items()}
        kept = _Kept(type(output), copies)
        self._drop(key)
        if kept.num_bytes > self._max_bytes:
            return
        self._kept[key] = kept
        self.num_bytes += kept.num_bytes
        while self.num_bytes > self._max_bytes:
            self._drop(next(iter(self._kept)))

    def clear(self) -> None:
        """Forget everything: what it was computed with cannot be trusted any more."""
        self._kept.clear()
        self.num_bytes = 0

    def _drop(self, key: bytes) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self.num_bytes -= kept.num_bytes


def digest(values: Mapping[str, Any]) -> bytes | None:
    """A key for arguments of a call: equal only for the same numbers in the same layout.

    Returns:
        None if one of them is neither a tensor nor a plain value.
    """
    result = hashlib.blake2b()
    for name in sorted(values):
        value = values[name]
        if isinstance(value, torch.Tensor):
            layout = (name, value.dtype, tuple(value.shape), value.stride())
            result.update(repr(layout).encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            result.update(flat.view(torch.uint8).numpy().data)
        elif value is None or isinstance(value, bool | int | float | str | torch.dtype):
            result.update(repr((name, value)).encode())
        else:
            return None
    return result.digest()
