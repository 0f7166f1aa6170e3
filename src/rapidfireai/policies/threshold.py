"""Prunes runs that are hopeless by themselves, whatever the others do."""

import math
from collections.abc import Sequence

from rapidfireai.core.commands import Command
from rapidfireai.errors import ConfigError
from rapidfireai.policies.arguments import at_least, number_or_none
from rapidfireai.policies.rounds import Round, RoundPolicy


class ThresholdPolicy(RoundPolicy):
    """Prunes runs that stay beyond a bound, are no longer numbers, or have stopped improving.

    Args:
        bound: The worst value that is put up with; None has no bound.
        patience: Chunks in a row for which a run has to be beyond it.
        stall: Chunks in a row without a new best after which a run is pruned; None waits forever.
        min_gain: By how much a new best has to be better than the one before.
        warm_up: Chunks that count neither for the bound nor as a stall.
        objective: See `RoundPolicy`.

    Raises:
        ConfigError: An argument cannot be used.
    """

    def __init__(
        self,
        *,
        bound: float | None = None,
        patience: int = 3,
        stall: int | None = None,
        min_gain: float = 0.0,
        warm_up: int = 1,
        objective: str | None = None,
    ) -> None:
        super().__init__(objective)
        self._bound = number_or_none("bound", bound)
        self._patience = at_least("patience", patience, 1)
        self._stall = None if stall is None else at_least("stall", stall, 1)
        gain = number_or_none("min_gain", min_gain)
        if gain is None or gain < 0:
            raise ConfigError(f"min_gain={min_gain!r} cannot be used; it has to be a number >= 0")
        self._min_gain = gain
        self._warm_up = at_least("warm_up", warm_up, 0)

    def judge(self, round: Round) -> list[Command]:
        """Prune what is beyond hope."""
        return [
            self.prune(run_id, why)
            for run_id in round.prunable()
            if (why := self._why(round.curves[run_id][: round.chunk])) is not None
        ]

    def _why(self, curve: Sequence[float]) -> str | None:
        chunk, last = len(curve), curve[-1]
        if not math.isfinite(last):
            return f"after chunk {chunk} it is {self.value(last)}"
        counted = curve[self._warm_up :]
        if self._bound is not None and len(counted) >= self._patience:
            bound = self._yardstick.objective.cost(self._bound)
            if all(cost > bound for cost in counted[-self._patience :]):
                return (
                    f"after chunk {chunk} it is {self.value(last)}, beyond {self._bound:.4g} for "
                    f"{self._patience} chunks"
                )
        if self._stall is not None and len(counted) > self._stall:
            before, after = counted[: -self._stall], counted[-self._stall :]
            if min(after) >= min(before) - self._min_gain:
                return (
                    f"after chunk {chunk} its best is {self.value(min(before))}, and no chunk of "
                    f"the last {self._stall} was better"
                )
        return None
