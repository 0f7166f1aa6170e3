"""How many tokens go into a shared pass: as many as pay, and as there is memory for.

What passes need is fitted to those that were seen: for one kind of pass, whose rows are all of one
width, bytes grow with the tokens along a line. Source: the memory model of mLoRA
(https://arxiv.org/abs/2312.02515), b0 + b1 * rows * width + b2 * rows * width^2, whose last two
terms are one for a fixed width.
"""

import statistics
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field

KNEE_TOKENS = 8192
"""Tokens in a pass above which sharing it saves no more: the GEMMs fill any device by then."""

NUM_REMEMBERED = 64
"""Passes of a kind that the line is drawn through."""

NUM_BEFORE_GROWTH = 32
"""Full passes after which a budget that had been cut is widened again, halfway to what failed."""


@dataclass(slots=True)
class MemoryLine:
    """Bytes that passes of one kind need, by their tokens."""

    seen: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=NUM_REMEMBERED))
    """Tokens and bytes of passes."""

    def tokens_within(self, num_bytes: int) -> int | None:
        """Tokens for which so many bytes suffice; None while nothing has been seen.

        The line is lifted so that no pass that was seen lies above it.
        """
        if not self.seen:
            return None
        tokens, needed = zip(*self.seen, strict=True)
        slope = max(b / t for t, b in self.seen)
        offset = 0.0
        if len(set(tokens)) > 1:
            fitted = statistics.linear_regression(tokens, needed)
            if fitted.slope > 0:
                slope = fitted.slope
                offset = max(b - slope * t for t, b in self.seen)
        return max(0, int((num_bytes - offset) / slope)) if slope else None


class TokenBudget:
    """Limits the tokens of shared passes; used by one thread.

    Args:
        max_tokens: That pay in one pass.
    """

    def __init__(self, max_tokens: int = KNEE_TOKENS) -> None:
        self._max_tokens = max_tokens
        self._cut: int | None = None
        """What is allowed since a pass ran out of memory."""
        self._failed = max_tokens
        """The smallest pass that ran out of memory."""
        self._num_full = 0
        self._lines: dict[Hashable, MemoryLine] = {}

    def limit(self, kind: Hashable, free_bytes: int | None = None) -> int:
        """Tokens that a pass of the kind may have; a run alone may have more.

        Args:
            kind: Of the pass, its width included.
            free_bytes: For the pass; None where nobody knows, as on a CPU.
        """
        limit = self._max_tokens if self._cut is None else self._cut
        line = self._lines.get(kind)
        if free_bytes is None or line is None:
            return limit
        within = line.tokens_within(free_bytes)
        return limit if within is None else min(limit, within)

    def passed(self, kind: Hashable, num_tokens: int, num_bytes: int | None = None) -> None:
        """A pass has been done, and needed so many bytes at its height."""
        if num_bytes is not None and num_bytes > 0:
            self._lines.setdefault(kind, MemoryLine()).seen.append((num_tokens, num_bytes))
        if self._cut is None or 2 * num_tokens < self._cut:
            return
        self._num_full += 1
        if self._num_full >= NUM_BEFORE_GROWTH:
            self._num_full = 0
            self._cut = (self._cut + self._failed) // 2

    def failed(self, num_tokens: int) -> None:
        """A pass of several runs ran out of memory."""
        self._cut, self._failed, self._num_full = num_tokens // 2, num_tokens, 0
