"""Successive halving by pausing: most runs are paused early, and promoted when places get free."""

import math

from rapidfireai.core.commands import Command
from rapidfireai.core.ids import RunId
from rapidfireai.core.run import RunStatus
from rapidfireai.policies.arguments import at_least
from rapidfireai.policies.objective import ranks
from rapidfireai.policies.rounds import Round, RoundPolicy


class SuccessiveHalving(RoundPolicy):
    """At chunks 1, 3, 9, ... only the best third goes on; the rest are paused, not lost.

    A pruned run is promoted as soon as it belongs to the best of its rung after all: because a run
    before it failed, was stopped or deleted, or because more runs, as those of a search or clones,
    have come to the rung.

    Source: Li et al. 2020, ASHA, algorithm 2 (https://arxiv.org/abs/1810.05934). Changed: a rung is
    judged once all runs in training have come to it, since here they come at about the same time.

    Args:
        first_rung: Chunks after which runs are compared for the first time.
        reduction_factor: One of how many goes on; the next rung is as many times further.
        objective: See `RoundPolicy`.

    Raises:
        ConfigError: An argument cannot be used.
    """

    def __init__(
        self, *, first_rung: int = 1, reduction_factor: int = 3, objective: str | None = None
    ) -> None:
        super().__init__(objective)
        self._first_rung = at_least("first_rung", first_rung, 1)
        self._factor = at_least("reduction_factor", reduction_factor, 2)

    def judge(self, round: Round) -> list[Command]:
        """Pause who is not among the best of the rung, promote who is by now."""
        rungs = self._rungs(round.chunk)
        decisions = [command for rung in rungs for command in self._promotions(round, rung)]
        if round.chunk in rungs:
            decisions += self._pauses(round)
        return decisions

    def _rungs(self, chunk: int) -> list[int]:
        """The rungs that the first runs have come to."""
        rungs, rung = [], self._first_rung
        while rung <= chunk:
            rungs.append(rung)
            rung *= self._factor
        return rungs

    def _pauses(self, round: Round) -> list[Command]:
        order = self._order(round, round.chunk)
        places = self._places(len(order))
        decisions = []
        for run_id in round.prunable():
            place = order.index(run_id) + 1 if run_id in order else len(order) + 1
            if place <= places:
                continue
            reason = (
                f"at chunk {round.chunk} it is number {place} of {len(order)} with "
                f"{self.value(round.costs()[run_id])}; the best {places} go on"
            )
            decisions.append(self.prune(run_id, reason))
        return decisions

    def _promotions(self, round: Round, rung: int) -> list[Command]:
        order = self._order(round, rung)
        return [
            self.resume(
                run_id, f"it is among the best {self._places(len(order))} of chunk {rung} by now"
            )
            for run_id in order[: self._places(len(order))]
            if self.has_pruned(round.runs[run_id]) and len(round.curves[run_id]) == rung
        ]

    def _order(self, round: Round, rung: int) -> list[RunId]:
        """Who came to the rung and could go on, or did, from the best to the worst."""
        return ranks(
            {
                run_id: curve[rung - 1]
                for run_id, curve in round.curves.items()
                if len(curve) >= rung
                and math.isfinite(curve[rung - 1])
                and self._counts(round, run_id)
            }
        )

    def _counts(self, round: Round, run_id: RunId) -> bool:
        run = round.runs[run_id]
        return run.unfinished or run.status is RunStatus.COMPLETED or self.has_pruned(run)

    def _places(self, num_runs: int) -> int:
        return max(1, num_runs // self._factor)
