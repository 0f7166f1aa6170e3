"""The recommended policy: prunes what is not going to win, by extrapolating learning curves."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from rapidfireai.core.commands import Command
from rapidfireai.core.ids import RunId
from rapidfireai.core.run import RunStatus
from rapidfireai.policies.arguments import between
from rapidfireai.policies.extrapolation import MIN_CHUNKS, Floats, Forecast, Forecaster
from rapidfireai.policies.rounds import Round, RoundPolicy

_NUM_DRAWS: Final = 2000
_TOLERANCE_SD: Final = 0.5
"""In standard deviations of a chunk's noise: winning by less is not winning."""
_HYSTERESIS: Final = 2.5
"""A paused run is taken up again at so many times the risk at which it would be paused."""
_OUTLIER_SD: Final = 8.0
_MIN_RISE: Final = 0.2
"""Of what a run had gained, for its last point to stand apart."""


class CurvePolicy(RoundPolicy):
    """Trains the smallest set of runs that very probably holds the winner; `policy="auto"`.

    After each chunk every run's final value is forecast from its curve and those of the others,
    with uncertainty. Runs are paused, the least promising first, as long as the probability that
    any of the paused ones would have won by more than the noise stays below `risk`. Runs that have
    not begun to learn are forecast to begin, for two thirds of their length; runs that diverge are
    pruned. A paused run goes on where it is when the forecasts say so later: when the leader
    diverges, is stopped, or turns out to be worse. The last of all trains to its end.

    Args:
        risk: Probability of losing the winner that is put up with.
        objective: See `RoundPolicy`.

    Raises:
        ConfigError: An argument cannot be used.
    """

    def __init__(self, *, risk: float = 0.02, objective: str | None = None) -> None:
        super().__init__(objective)
        self._risk = between("risk", risk, 0, 0.5)

    def judge(self, round: Round) -> list[Command]:
        """Pause what is not needed any more, take up again what is."""
        candidates = _Candidates.of(round, self._counts(round))
        decisions = [
            self.prune(
                run_id,
                f"after chunk {round.chunk} it has diverged: "
                f"{self.value(round.curves[run_id][-1])}",
            )
            for run_id in round.prunable()
            if run_id in candidates.diverged
        ]
        if candidates.curves:
            decisions += self._choose(round, candidates)
        return decisions

    def _choose(self, round: Round, candidates: "_Candidates") -> list[Command]:
        beliefs = _Beliefs(candidates, round)
        paused = beliefs.dispensable(self._risk)
        missed = beliefs.needed(self._risk * _HYSTERESIS)
        decisions = [
            self.prune(run_id, beliefs.why(run_id, round, self.value))
            for run_id in round.prunable()
            if run_id in paused
        ]
        decisions += [
            self.resume(run_id, "now it may be the best: " + beliefs.why(run_id, round, self.value))
            for run_id in missed
            if self.has_pruned(round.runs[run_id])
        ]
        return decisions

    def _counts(self, round: Round) -> list[RunId]:
        """Runs that may still win."""
        return [
            run_id
            for run_id, run in round.runs.items()
            if run.unfinished or run.status is RunStatus.COMPLETED or self.has_pruned(run)
        ]


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Runs whose future is asked for, and those that have none."""

    curves: dict[RunId, Sequence[float]]
    """Without a last point that stands apart: it may be a spike."""
    diverged: frozenset[RunId]
    young: frozenset[RunId]
    """With too few chunks for a forecast."""

    @classmethod
    def of(cls, round: Round, run_ids: Iterable[RunId]) -> "_Candidates":
        curves: dict[RunId, Sequence[float]] = {}
        diverged, young = set(), set()
        noise = _noise(round.curves.values())
        for run_id in run_ids:
            curve = round.curves[run_id]
            if _has_diverged(curve, noise):
                diverged.add(run_id)
                continue
            calm = curve[:-1] if _rises(curve, noise) else curve
            if len(calm) < MIN_CHUNKS or not all(map(math.isfinite, calm)):
                young.add(run_id)
            else:
                curves[run_id] = calm
        return cls(curves, frozenset(diverged), frozenset(young))


class _Beliefs:
    """How every candidate may end, jointly."""

    def __init__(self, candidates: _Candidates, round: Round) -> None:
        rng = np.random.default_rng(round.chunk)
        known = {run_id: round.runs[run_id].num_chunks for run_id in candidates.curves}
        longest = max((num for num in known.values() if num), default=round.chunk)
        forecaster = Forecaster(
            candidates.curves, {run_id: num or longest for run_id, num in known.items()}
        )
        self._forecasts: dict[RunId, Forecast] = {
            run_id: forecaster.forecast(run_id, _NUM_DRAWS, rng)
            for run_id in sorted(candidates.curves)
        }
        self._tolerance = _TOLERANCE_SD * forecaster.noise_sd
        self._order, self._risks = self._by_need()
        self._has_young = bool(candidates.young)

    def dispensable(self, risk: float) -> set[RunId]:
        """The most runs without which the winner is lost with at most this probability."""
        return set(self._order[: self._num_dispensable(risk)])

    def needed(self, risk: float) -> list[RunId]:
        """The others, the most promising first."""
        return self._order[self._num_dispensable(risk) :][::-1]

    def why(self, run_id: RunId, round: Round, value: Callable[[float], str]) -> str:
        """What is believed of a run, in words."""
        own = self._forecasts[run_id]
        leader = min(self._forecasts, key=lambda other: (self._forecasts[other].mean, other))
        first = self._forecasts[leader]
        chance = float(np.mean(own.draws < first.draws - self._tolerance))
        late = "" if own.begun > 0.5 else ", not having begun to learn"
        return (
            f"after chunk {round.chunk} it is expected to end at {value(own.mean)} "
            f"± {own.sd:.2g}{late}, run {leader} at {value(first.mean)} ± {first.sd:.2g}; "
            f"it would win with a probability of {chance:.1%}"
        )

    def _num_dispensable(self, risk: float) -> int:
        beyond = np.flatnonzero(self._risks > risk)
        return int(beyond[0]) if len(beyond) else len(self._risks)

    def _by_need(self) -> tuple[list[RunId], Floats]:
        """The runs, the least needed first, and the risk of doing without the first 1, 2, ..."""
        ids = sorted(self._forecasts)
        draws = np.stack([self._forecasts[run_id].draws for run_id in ids])  # (R, D)
        if len(ids) == 1:
            return ids, np.empty(0)
        lowest_two = np.partition(draws, 1, axis=0)[:2]
        best_other = np.where(draws == lowest_two[0], lowest_two[1], lowest_two[0])
        wins = (draws < best_other - self._tolerance).mean(axis=1)
        means = np.array([self._forecasts[run_id].mean for run_id in ids])
        order = np.lexsort((-means, wins))
        ordered = draws[order]
        without = np.minimum.accumulate(ordered, axis=0)[:-1]
        left = np.minimum.accumulate(ordered[::-1], axis=0)[::-1][1:]
        risks = (without < left - self._tolerance).mean(axis=1)
        return [ids[i] for i in order], np.asarray(risks)


def _noise(curves: Iterable[Sequence[float]]) -> float:
    """A rough standard deviation of a chunk's noise: half of all second differences are below."""
    steps = [
        abs(a - 2 * b + c)
        for curve in curves
        for a, b, c in zip(curve, curve[1:], curve[2:], strict=False)
        if math.isfinite(a - 2 * b + c)
    ]
    # The median of |N(0, 6 sd^2)| is 0.6745 * sqrt(6) sd.
    return float(np.median(steps)) / (0.6745 * math.sqrt(6)) if steps else 0.0


def _rises(curve: Sequence[float], noise: float) -> bool:
    """Whether the last point stands apart from all before: a spike, or the begin of divergence."""
    if len(curve) < 2:
        return False
    last, before = curve[-1], [cost for cost in curve[:-1] if math.isfinite(cost)]
    if not math.isfinite(last):
        return True
    if not before:
        return False
    gained = max(before) - min(before)
    return last > min(before[-3:]) + max(_OUTLIER_SD * noise, _MIN_RISE * gained)


def _has_diverged(curve: Sequence[float], noise: float) -> bool:
    """Whether it has lost all that it had gained, and is not a number or did not come back at once.

    A large learning rate loses a part of it time and again, and may win nevertheless.
    """
    if not math.isfinite(curve[-1]):
        return True
    before = [cost for cost in curve[:-2] if math.isfinite(cost)]
    return bool(before) and min(curve[-2:]) > max(before) + _OUTLIER_SD * noise
