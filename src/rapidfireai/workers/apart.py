"""Attention in a pass of several runs' tokens: each run attends to its own rows, as it would alone.

To transformers this is an attention implementation like others, with masks of its own. Each run's
queries, keys and values are taken out of the pass in the shape that they have alone, and given to
the implementation that the base was loaded with, beside the mask that the run would have made. So
nothing is padded to others' widths, and nothing is rounded otherwise.

Where padding has been left out of a pass, all rows of all runs are sequences of one call instead.

A run that generates keeps its own cache of keys and values; what the model sees is all of them.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any, TypeGuard

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from rapidfireai.workers.rows import Place, Plan

varlen_attn: Callable[..., Any] | None
try:
    from torch.nn.attention import varlen
except ImportError:  # it came with torch 2.10
    varlen_attn = None
else:
    varlen_attn = varlen.varlen_attn

NAME = "rapidfireai_apart"
"""Of this attention implementation, for transformers."""

_LAYER_TYPES = {"full_attention", "sliding_attention"}

_MAX_HEAD_FEATURES = 256
"""Of a head, in flash attention."""


def why_not_apart(model: nn.Module) -> str | None:
    """Why the runs' tokens cannot be told apart in this model's attention; None if they can.

    Args:
        model: A decoder, with or without its head.
    """
    config: Any = model.config
    config, name = config.get_text_config(), type(model).__name__
    for module in model.modules():
        if (
            isinstance(module, nn.Embedding)
            and "attention_mask" in signature(module.forward).parameters
        ):
            return f"the positions of {name} come from the mask"
    if not getattr(model, "_supports_attention_backend", False):
        return f"{name} does not let its attention be exchanged"
    kinds = set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES
    if getattr(model, "_is_stateful", False) or kinds:
        what = ", ".join(sorted(kinds)) or "a state"
        return f"in {name} tokens meet outside of plain attention ({what})"
    for rope in _rope_types(config):
        if "dynamic" in rope or rope == "longrope":
            return f"its positions depend on the longest text in a pass (rope_type={rope!r})"
    if config._attn_implementation not in {"eager", *_masks()}:  # noqa: SLF001
        return f"attn_implementation={config._attn_implementation!r} is not known"  # noqa: SLF001
    return None


def _rope_types(config: Any) -> Iterator[str]:
    given = getattr(config, "rope_parameters", None) or {}
    for each in (given, *given.values()):
        if isinstance(each, dict) and "rope_type" in each:
            yield each["rope_type"]


def _masks() -> Mapping[str, Callable[..., Any]]:
    return AttentionMaskInterface()


class Apart:
    """Has a backbone attend to each run's rows apart from now on.

    Args:
        backbone: With a config of its own, all of whose layers have one attention implementation.
        plan: Of the passes through it.
    """

    def __init__(self, backbone: nn.Module, plan: Plan) -> None:
        configs = {
            id(module.config): module.config
            for module in backbone.modules()
            if hasattr(getattr(module, "config", None), "_attn_implementation")
        }
        config: Any = backbone.config
        self._plan = plan
        self._implementation: str = config._attn_implementation  # noqa: SLF001
        features = {getattr(module, "head_dim", None) for module in backbone.modules()} - {None}
        self._is_plain = (
            self._implementation == "sdpa"
            and bool(features)
            and all(isinstance(f, int) and f % 8 == 0 and f <= _MAX_HEAD_FEATURES for f in features)
        )
        for each in configs.values():
            each._attn_implementation = NAME  # type: ignore[union-attr]  # noqa: SLF001
            each._apart = self  # type: ignore[union-attr]  # noqa: SLF001

    def can_leave_out_padding(self, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether attention over sequences of different lengths is there for such passes.

        Args:
            dtype: In which matrices are multiplied.
            device: Of the backbone.
        """
        return (
            varlen_attn is not None
            and device.type == "cuda"
            and dtype in (torch.bfloat16, torch.float16)
            and torch.cuda.get_device_capability(device) >= (8, 0)
            and self._is_plain
        )

    def masks(self, **given: Any) -> "Masks":
        """Those that the runs would make, each for itself. Called by the model."""
        make, plan = _masks()[self._implementation], self._plan
        blocks: list[Block] = []
        for place in plan.places if not plan.leaves_out_padding else ():
            part = place.part
            mask = part.attention_mask
            shape = {
                "batch_size": part.num_rows,
                "q_length": part.width,
                "kv_length": part.num_cached + part.width,
                "q_offset": part.num_cached,
                "kv_offset": 0,
                "attention_mask": None if mask is None else mask.to(torch.bool),
            }
            block = Block(part.num_rows, part.width, make(**{**given, **shape}))
            if blocks and part.cache is None and blocks[-1].can_grow_by(block):
                blocks[-1] = blocks[-1].grown_by(block)
            else:
                blocks.append(block)
        return Masks(self, blocks, plan.places, plan.num_tokens - plan.num_own)

    def attention(self, module: nn.Module) -> Callable[..., Any]:
        """The implementation that the base was loaded with."""
        if self._implementation == "eager":  # which each model brings along
            return sys.modules[type(module).__module__].eager_attention_forward
        return AttentionInterface()[self._implementation]


@dataclass(frozen=True, slots=True)
class Block:
    """Rows that attend in one call: a run's, or those of several runs that are as wide. Rows attend
    for themselves, so that nothing depends on how many there are."""

    num_rows: int
    width: int
    mask: Any
    """As the attention implementation wants it; None if it needs none."""

    @property
    def num_tokens(self) -> int:
        """Of all rows."""
        return self.num_rows * self.width

    def can_grow_by(self, other: "Block") -> bool:
        """Whether both can be one."""
        kinds = {type(self.mask), type(other.mask)}
        return self.width == other.width and (kinds == {type(None)} or kinds == {torch.Tensor})

    def grown_by(self, other: "Block") -> "Block":
        """Both as one."""
        mask = None if self.mask is None else torch.cat([self.mask, other.mask])
        return Block(self.num_rows + other.num_rows, self.width, mask)

    def rows(self, states: torch.Tensor) -> torch.Tensor:
        """(tokens, heads, features) as (rows, heads, width, features), with the strides that rows
        have in a batch of their own."""
        return states.view(self.num_rows, self.width, *states.shape[1:]).transpose(1, 2)


@dataclass(frozen=True)
class Masks:
    """What each layer of a pass is given as its mask. It may be computed again after the plan has
    moved on to another pass."""

    apart: Apart
    blocks: Sequence[Block]
    """None where padding is left out."""
    places: Sequence[Place]
    num_blank: int
    """Tokens of nobody, behind all others."""

    def attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor | Sequence[torch.Tensor],
        value: torch.Tensor | Sequence[torch.Tensor],
        **options: Any,
    ) -> torch.Tensor:
        """Attention over (1, heads, tokens, features), or for keys and values, over each run's
        (rows, heads, positions, features); gives (1, tokens, heads, features)."""
        attention, outputs = self.apart.attention(module), []
        queries, keys, values = (
            each if isinstance(each, Sequence) else by_block(each, self.blocks)
            for each in (query, key, value)
        )
        for q, k, v, block in zip(queries, keys, values, self.blocks, strict=True):
            output, _ = attention(module, q, k, v, block.mask, **options)
            outputs.append(output.reshape(-1, *output.shape[2:]))
        if self.num_blank:
            outputs.append(outputs[0].new_zeros((self.num_blank, *outputs[0].shape[1:])))
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs))[None]

    def attend_in_sequences(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """The same where padding is left out: all rows are sequences of one call.

        Args:
            query: (1, heads, tokens, features), as `key` and `value`, which may have fewer heads.
            key: As query.
            value: As query.
            scale: Of the scores.
            window: Positions that a token sees, its own included; None for all before it.
        """
        ends, longest = self._sequences
        q, k, v = (states[0].transpose(0, 1).contiguous() for states in (query, key, value))
        seen = -1 if window is None else window - 1
        assert varlen_attn is not None, "it is there where padding is left out"
        output: torch.Tensor = varlen_attn(
            q, k, v, ends, ends, longest, longest,
            scale=scale, window_size=(seen, 0), enable_gqa=q.shape[1] != k.shape[1],
        )  # fmt: skip
        return output[None]

    @property
    def leaves_out_padding(self) -> bool:
        """Whether the pass has only tokens that nobody masks."""
        return not self.blocks

    @cached_property
    def _sequences(self) -> tuple[torch.Tensor, int]:
        """Where sequences end, from 0 on, and how long one is at most."""
        lengths = torch.cat([place.lengths for place in self.places if place.lengths is not None])
        blank = lengths.new_tensor([self.num_blank])
        ends = torch.cat([lengths, blank]).cumsum(0, dtype=torch.int32)
        longest = max(self.num_blank, *(place.part.width for place in self.places))
        return nn.functional.pad(ends, (1, 0)), longest


def by_block(states: torch.Tensor, blocks: Sequence[Block]) -> list[torch.Tensor]:
    """(1, heads, tokens, features) as each block's (rows, heads, width, features)."""
    flat = states.transpose(1, 2)[0]
    num_tokens = [block.num_tokens for block in blocks]
    if num_tokens == [len(flat)]:
        return [blocks[0].rows(flat)]
    # One node of autograd for all of them.
    each = flat.split([*num_tokens, len(flat) - sum(num_tokens)])
    return [block.rows(own) for block, own in zip(blocks, each, strict=False)]


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: Any,
    value: Any,
    attention_mask: Masks,
    position_ids: torch.Tensor | None = None,  # of the pass: they are no business of attention
    **options: Any,
) -> tuple[torch.Tensor, None]:
    masks = attention_mask
    if masks.leaves_out_padding:
        scale, window = options.get("scaling"), options.get("sliding_window")
        return masks.attend_in_sequences(query, key, value, scale, window), None
    return masks.attend(module, query, key, value, **options), None


def _make_masks(*, config: Any, **given: Any) -> Masks:
    apart: Apart = config._apart  # noqa: SLF001
    return apart.masks(config=config, **given)


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _make_masks)


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


def joint_cache(plan: Plan) -> Cache:
    """One cache that reads from and writes to those of all runs in the pass; they are plain."""
    caches = [place.part.cache for place in plan.places if place.part.cache is not None]
    layers = zip(*(cache.layers for cache in caches), strict=True)
    return Cache(layers=[_JointLayer(each, plan) for each in layers])


class _JointLayer(DynamicLayer):
    def __init__(self, layers: Sequence[DynamicLayer], plan: Plan) -> None:
        super().__init__()
        self._layers = layers
        self._blocks = [Block(p.part.num_rows, p.part.width, None) for p in plan.places]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Any, Any]:
        """Give each run's layer its tokens (1, heads, tokens, features), and read all of them: for
        each run (rows, heads, positions, features)."""
        updated = [
            layer.update(own_keys, own_values)
            for layer, own_keys, own_values in zip(
                self._layers,
                by_block(key_states, self._blocks),
                by_block(value_states, self._blocks),
                strict=True,
            )
        ]
        return [keys for keys, _ in updated], [values for _, values in updated]

    def get_seq_length(self) -> int:
        """Of no use: each run's mask knows how long its own rows are."""
        return 0
