"""Prunes runs that stay behind the middle of the others."""

import math
from collections.abc import Sequence

from rapidfireai.core.commands import Command
from rapidfireai.core.ids import RunId
from rapidfireai.policies.arguments import at_least
from rapidfireai.policies.objective import median
from rapidfireai.policies.rounds import Round, RoundPolicy


class MedianPolicy(RoundPolicy):
    """Prunes a run whose best so far is worse than the median of what the others averaged so far.

    A run that a median would end too early, as one that begins late, is lost with it: see
    `CurvePolicy`.

    Source: Golovin et al. 2017, Google Vizier, section 3.2.2 (https://doi.org/10.1145/3097983.3098043).
    Changed: all runs train at once, so the others are those that have got as far, whether they have
    ended or not; and the rule has to hold for `patience` chunks in a row.

    Args:
        warm_up: Chunks after which the first run may be pruned.
        min_peers: Other runs that have to have got as far.
        patience: Chunks in a row for which a run has to be behind.
        objective: See `RoundPolicy`.

    Raises:
        ConfigError: An argument cannot be used.
    """

    def __init__(
        self,
        *,
        warm_up: int = 4,
        min_peers: int = 3,
        patience: int = 2,
        objective: str | None = None,
    ) -> None:
        super().__init__(objective)
        self._warm_up = at_least("warm_up", warm_up, 1)
        self._min_peers = at_least("min_peers", min_peers, 1)
        self._patience = at_least("patience", patience, 1)

    def judge(self, round: Round) -> list[Command]:
        """Prune those that have been behind for long enough."""
        decisions = []
        for run_id in round.prunable():
            chunks = range(round.chunk, round.chunk - self._patience, -1)
            if chunks[-1] < self._warm_up or not all(
                self._is_behind(round, run_id, chunk) for chunk in chunks
            ):
                continue
            best = _best(round.curves[run_id], round.chunk)
            peers = self._peers(round, run_id, round.chunk)
            reason = (
                f"after chunk {round.chunk} its best, {self.value(best)}, is worse than "
                f"{self.value(median(peers))}, the median of {len(peers)} others"
            )
            decisions.append(self.prune(run_id, reason))
        return decisions

    def _is_behind(self, round: Round, run_id: RunId, chunk: int) -> bool:
        peers = self._peers(round, run_id, chunk)
        return len(peers) >= self._min_peers and not (
            _best(round.curves[run_id], chunk) <= median(peers)
        )

    def _peers(self, round: Round, run_id: RunId, chunk: int) -> list[float]:
        return [
            sum(curve[:chunk]) / chunk
            for other, curve in round.curves.items()
            if other != run_id and len(curve) >= chunk
        ]


def _best(curve: Sequence[float], chunk: int) -> float:
    return min((cost for cost in curve[:chunk] if not math.isnan(cost)), default=math.nan)
