"""Whose rows are in a pass, and where: several runs' batches as one sequence of tokens.

What is frozen in a decoder treats each token alike, but for attention. So the rows of all runs go
through it one behind the other, as one row of tokens: nobody's batch is padded to another's width,
and matrix products work on all of them at once. Where a run's own share has to be told apart - in
its adapter, and in attention - it is taken out again in the shape that it has alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from transformers.cache_utils import Cache

MIN_TOKENS = 16
"""Matrix products of fewer rows round otherwise: their libraries have kernels of their own for
them. From here on, a row's product does not depend on how many others there are (seen on one CPU
thread in float32, for up to 1,536 features)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """One run's rows in a pass. `B` rows of `L` tokens, padding included."""

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
    def width(self) -> int:
        """L"""
        return self.input_ids.shape[1]

    @property
    def num_tokens(self) -> int:
        """B times L"""
        return self.input_ids.numel()


@dataclass(frozen=True, slots=True)
class Place:
    """A run's rows among a pass's tokens."""

    part: Slice
    tokens: slice
    kept: torch.Tensor | None
    """Which of the B times L tokens are in the pass; None for all of them."""
    lengths: torch.Tensor | None
    """(B,) tokens of each row that are in the pass; None where `kept` is."""

    def pack(self, values: torch.Tensor) -> torch.Tensor:
        """(B, L, ...) as (tokens, ...)."""
        flat = values.reshape(-1, *values.shape[2:])
        return flat if self.kept is None else flat[self.kept]

    def unpack(self, values: torch.Tensor) -> torch.Tensor:
        """(tokens, ...) as (B, L, ...): a view, or where padding was left out, zeros there."""
        shape = (self.part.num_rows, self.part.width, *values.shape[1:])
        if self.kept is None:
            return values.view(shape)
        whole = values.new_zeros((self.part.num_tokens, *values.shape[1:]))
        whole[self.kept] = values
        return whole.view(shape)


class Plan:
    """The pass in progress; all layers look at the same plan."""

    def __init__(self) -> None:
        self.leaves_out_padding = False
        """Whether tokens that are masked are not in the pass."""
        self.places: Sequence[Place] = ()
        self.generators: Sequence[torch.Generator] = ()
        self.num_tokens = 0
        """In the pass: the runs' own, and some of nobody's behind them."""

    def begin(self, slices: Sequence[Slice], *, leave_out_padding: bool = False) -> None:
        """The next pass is of these."""
        self.leaves_out_padding = leave_out_padding
        self.places = list(self._placed(slices))
        self.generators = [s.generator for s in slices if s.generator is not None]
        self.num_tokens = max(MIN_TOKENS, self.num_own) if slices else 0

    @property
    def num_own(self) -> int:
        """Tokens of runs."""
        return self.places[-1].tokens.stop if self.places else 0

    @property
    def generates(self) -> bool:
        """Whether the pass is of one token of each text."""
        return bool(self.places) and self.places[0].part.cache is not None

    @property
    def sizes(self) -> list[int]:
        """Tokens of each run."""
        return [place.tokens.stop - place.tokens.start for place in self.places]

    def inputs(self) -> dict[str, Any]:
        """What the backbone is called with: each is (1, tokens)."""
        ids = [place.pack(place.part.input_ids) for place in self.places]
        positions = [place.pack(_positions(place.part)) for place in self.places]
        blank = self.num_tokens - self.num_own
        return {
            "input_ids": nn.functional.pad(torch.cat(ids), (0, blank))[None],
            "position_ids": nn.functional.pad(torch.cat(positions), (0, blank))[None],
            # Attention goes by each run's own mask. This one says that positions that start anew
            # are no sign of texts packed into one row.
            "attention_mask": ids[0].new_ones((1, self.num_tokens)),
        }

    def _placed(self, slices: Sequence[Slice]) -> Iterator[Place]:
        begin = 0
        for part in slices:
            kept = lengths = None
            num_tokens = part.num_tokens
            if self.leaves_out_padding:
                mask = part.attention_mask
                if mask is None:
                    mask = torch.ones_like(part.input_ids)
                lengths = mask.sum(-1, dtype=torch.int32)
                kept = mask.reshape(-1).nonzero().squeeze(-1)
                num_tokens = len(kept)
            yield Place(part, slice(begin, begin + num_tokens), kept, lengths)
            begin += num_tokens


def _positions(part: Slice) -> torch.Tensor:
    if part.position_ids is not None:
        return part.position_ids
    each = torch.arange(part.width, device=part.input_ids.device)
    return each.expand(part.num_rows, -1)
