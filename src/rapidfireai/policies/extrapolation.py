"""Where learning curves are going: forecasts with their uncertainty.

A run's cost after chunk t is y(t) = c + a g(t) + noise. The shape g is a power law that may begin
late, or one that falls slowly at first and then faster, as with a small learning rate:

    g(t) = max(t - s, 1)^-b         or        g(t) = 1 / (1 + (t / h)^k)

(The second is the Morgan-Mercer-Flodin curve, one of those by which Domhan, Springenberg and
Hutter, IJCAI 2015, extrapolate.) For a given shape and noise the model is linear in (c, a): with a
Gaussian prior the posterior is exact, and what is left is a sum over a grid of shapes and noises.
The priors of (c, a), of b and of the noise are estimated from all runs together (empirical Bayes):
what most runs of an experiment have in common is where a run with few chunks is expected to go.

No family has all curves, and a forecast that trusts its own too much loses the winner. So each is
also made from the first half of what is there, and is doubted by as much as that went wrong.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapidfireai.core.ids import RunId

Floats = NDArray[np.float64]

MIN_CHUNKS: Final = 3
"""Points that a forecast needs: the curve has three unknowns."""

# Shapes: G hypotheses of g, N of the noise, D draws.

_SLOPES: Final = np.geomspace(0.1, 2.0, 12)
_STEEPNESS: Final = np.array([1.0, 1.5, 2.0, 3.0])
_SHARES: Final = {"at once": 0.60, "slowly": 0.20, "late": 0.17, "never": 0.03}
"""How often a run begins to learn so, before anything is seen of it."""
_NUM_HALVES: Final = 12
_LONGEST_HALF: Final = 8.0
"""Times the run's length: what has its half there hardly learns until its end."""
_LATEST_START: Final = 2 / 3
"""Of the run: one that has not begun by then is not expected to any more."""
_STARTS_PER_CHUNK: Final = 4
_NUM_FUTURE_STARTS: Final = 6
_PSEUDO_RUNS: Final = 2.0
"""Weight of the vague prior beside that of the runs."""
_NOISES: Final = np.geomspace(1e-4, 0.3, 8)
"""Standard deviations around a curve, as shares of all curves' spread. Each run has its own: large
learning rates are noisier."""
_NUM_SWEEPS: Final = 2
_FIRST_DOUBT: Final = 0.4
"""Of forecasts, before any has been tried: see `Forecaster._tried`."""
_DOUBT_RUNS: Final = 2.0
"""Its weight beside that of the runs."""
_MOST_WRONG: Final = 9.0
"""That a single run counts for, squared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """Where one run's cost is going to be at its end."""

    mean: float
    sd: float
    draws: Floats
    """(D,)"""
    begun: float
    """Probability that it has begun to learn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Curve:
    y: Floats
    """Costs after chunks 1..n, without the last one where that stands apart."""
    num_chunks: int
    """Of the whole run."""

    @property
    def octaves_left(self) -> float:
        """How often the chunks so far double until the end."""
        return float(np.log2(self.num_chunks / len(self.y)))


@dataclass(frozen=True, slots=True)
class _Prior:
    mean: Floats
    """(2,), of (c, a)"""
    cov: Floats
    """(2, 2)"""
    slopes: Floats
    """Probability of each of `_SLOPES`."""
    scale: float
    """Of all curves."""
    noises: Floats
    """Probability of each of `_NOISES`, times the scale."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Posterior:
    """What is believed of one run; all are (N, G)."""

    shapes: "_Shapes"
    weight: Floats
    """Sums to 1."""
    c: Floats
    a: Floats
    """Means."""
    var_c: Floats
    var_a: Floats
    cov: Floats

    def expected(self, t: float) -> tuple[Floats, Floats]:
        """Mean and variance of the curve after chunk t by each hypothesis, (N, G)."""
        g = self.shapes.factor(np.array([t]))[:, 0]
        return self.c + g * self.a, self.var_c + g * (2 * self.cov + g * self.var_a)

    def moments(self, t: float) -> tuple[float, float]:
        """Mean and variance of the curve after chunk t."""
        means, variances = self.expected(t)
        mean = float((self.weight * means).sum())
        return mean, float((self.weight * (variances + (means - mean) ** 2)).sum())


class Forecaster:
    """Forecasts of all curves together.

    Args:
        curves: Finite costs after each chunk, less being better; at least `MIN_CHUNKS` each.
        num_chunks: Of the whole run, for each curve.
    """

    def __init__(
        self, curves: Mapping[RunId, Sequence[float]], num_chunks: Mapping[RunId, int]
    ) -> None:
        self._curves = {
            run_id: _Curve(
                y=np.asarray(curve, dtype=np.float64),
                num_chunks=max(num_chunks[run_id], len(curve)),
            )
            for run_id, curve in curves.items()
        }
        vague = _vague(list(self._curves.values()))
        self._prior = vague
        for _ in range(_NUM_SWEEPS):
            self._posteriors = {run_id: _fit(c, self._prior) for run_id, c in self._curves.items()}
            self._prior = _pooled(
                list(self._curves.values()), list(self._posteriors.values()), vague
            )

        self._doubt = self._tried()

    @property
    def noise_sd(self) -> float:
        """Standard deviation of a chunk's cost around its curve, typically."""
        return self._prior.scale * float(np.exp(self._prior.noises @ np.log(_NOISES)))

    def forecast(self, run_id: RunId, num_draws: int, rng: np.random.Generator) -> Forecast:
        """Where a run is going to end.

        Args:
            run_id: The run's.
            num_draws: Draws from what is believed.
            rng: To draw with.
        """
        posterior, curve = self._posteriors[run_id], self._curves[run_id]
        doubt = (self._doubt * _pace(curve) * curve.octaves_left) ** 2
        means, variances = posterior.expected(curve.num_chunks)
        mean, variance = posterior.moments(curve.num_chunks)
        chosen = rng.choice(means.size, size=num_draws, p=posterior.weight.ravel())
        noise = rng.standard_normal(num_draws)
        has_begun = posterior.shapes.begin < len(curve.y)
        return Forecast(
            mean=mean,
            sd=float(np.sqrt(variance + doubt)),
            draws=means.ravel()[chosen] + noise * np.sqrt(variances.ravel()[chosen] + doubt),
            begun=float(posterior.weight.sum(axis=0)[has_begun].sum()),
        )

    def _tried(self) -> float:
        """How wrong forecasts are beyond what they own up to, as a share of a curve's pace.

        Each curve's first half is extrapolated to where it is now. What is found wrong there is
        expected of what is still to come: no family of curves has all of them.
        """
        total, weight = _DOUBT_RUNS * _FIRST_DOUBT**2, _DOUBT_RUNS
        for curve in self._curves.values():
            n, half = len(curve.y), max(MIN_CHUNKS, len(curve.y) // 2)
            if n == half:
                continue
            earlier = replace(curve, y=curve.y[:half])
            posterior = _fit(earlier, self._prior)
            mean, variance = posterior.moments(n)
            noise = float(posterior.weight.sum(axis=1) @ (self._prior.scale * _NOISES) ** 2)
            error = (curve.y[-1] - mean) ** 2
            octaves = float(np.log2(n / half))
            scale = (_pace(earlier) * octaves) ** 2
            # A look ahead that is short, or would have been uncertain anyway, says little.
            says = min(octaves, 1.0) * scale / (scale + variance + noise)
            if says > 0:
                wrong = (error - variance - noise) / scale
                total += says * float(np.clip(wrong, 0, _MOST_WRONG))
                weight += says
        return float(np.sqrt(total / weight))


def _pace(curve: _Curve) -> float:
    """By how much the cost changed in the latter half so far: while the chunks doubled."""
    half = max(len(curve.y) // 2, 1)
    return float(abs(curve.y[half - 1] - curve.y[-1]))


def _vague(curves: Sequence[_Curve]) -> _Prior:
    """What is believed before any curve is looked at closely: only its scale."""
    first = np.array([curve.y[0] for curve in curves])
    last = np.array([curve.y[-1] for curve in curves])
    everything = np.concatenate([curve.y for curve in curves])
    scale = float(max(first.max() - last.min(), everything.std(), 1e-9))
    drop = float(max(np.median(first - last), 0.1 * scale))
    mean = np.array([float(np.median(last)) - 0.25 * drop, 1.25 * drop])
    return _Prior(
        mean,
        np.diag([scale**2, (scale + drop) ** 2]),
        np.full(len(_SLOPES), 1 / len(_SLOPES)),
        scale,
        np.full(len(_NOISES), 1 / len(_NOISES)),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shapes:
    """All hypotheses of g, with their prior weights."""

    begin: Floats
    """(G,), the chunk from which on the cost falls; for slow ones h, where half of it is over."""
    exponent: Floats
    """(G,), b or k"""
    slope: NDArray[np.intp]
    """(G,), index into `_SLOPES`; len(_SLOPES) for slow ones."""
    weight: Floats
    """(G,), without that of the slope"""

    def factor(self, t: Floats) -> Floats:
        """g after chunks t, (n,): (G, n)."""
        begin, exponent = self.begin[:, None], self.exponent[:, None]
        slow = 1 / (1 + (t / np.maximum(begin, 1e-9)) ** exponent)
        power = np.maximum(t - begin, 1.0) ** -exponent
        return np.where(self.slope[:, None] == len(_SLOPES), slow, power)


@lru_cache(maxsize=256)
def _shapes(num_done: int, num_chunks: int) -> tuple[_Shapes, Floats]:
    """For a run after so many chunks of so many; with g after chunks 1..num_done, (G, num_done).

    A start beyond the end means never. Nobody changes what is returned.
    """
    latest = max(int(_LATEST_START * num_chunks), 1)
    # A run does not begin at a chunk's end: on a coarser grid its first drop would look too small.
    past = np.arange(_STARTS_PER_CHUNK, _STARTS_PER_CHUNK * min(num_done, latest + 1), dtype=float)
    past /= _STARTS_PER_CHUNK
    future = np.unique(
        np.linspace(num_done, latest, _NUM_FUTURE_STARTS).round()
        if num_done <= latest
        else np.empty(0)
    )
    late = _SHARES["late"] / latest
    starts = np.concatenate([[0.0], past, future, [float(num_chunks)]])
    weights = np.concatenate(
        [
            [_SHARES["at once"]],
            np.full(len(past), late / _STARTS_PER_CHUNK),
            np.full(len(future), late * (latest - num_done + 1) / max(len(future), 1)),
            [_SHARES["never"]],
        ]
    )
    halves = np.geomspace(1.0, _LONGEST_HALF * num_chunks, _NUM_HALVES)
    num_slow = len(halves) * len(_STEEPNESS)
    shapes = _Shapes(
        begin=np.concatenate([np.repeat(starts, len(_SLOPES)), np.repeat(halves, len(_STEEPNESS))]),
        exponent=np.concatenate([np.tile(_SLOPES, len(starts)), np.tile(_STEEPNESS, len(halves))]),
        slope=np.concatenate(
            [np.tile(np.arange(len(_SLOPES)), len(starts)), np.full(num_slow, len(_SLOPES))]
        ),
        weight=np.concatenate(
            [np.repeat(weights, len(_SLOPES)), np.full(num_slow, _SHARES["slowly"] / num_slow)]
        ),
    )
    return shapes, shapes.factor(np.arange(1, num_done + 1, dtype=np.float64))


def _fit(curve: _Curve, prior: _Prior) -> _Posterior:
    y, n = curve.y, len(curve.y)
    shapes, g = _shapes(n, curve.num_chunks)
    sum_g, sum_gg = g.sum(axis=1), (g * g).sum(axis=1)
    # Of what is left without the prior's mean, so that great values cancel nowhere.
    left = y - prior.mean[0] - prior.mean[1] * g
    noise_sd = prior.scale * _NOISES[:, None]
    precision = noise_sd**-2
    p = np.linalg.inv(prior.cov)
    # The posterior's precision [[cc, ca], [ca, aa]], and what pulls (c, a) from the prior's mean.
    cc, ca, aa = n * precision + p[0, 0], sum_g * precision + p[0, 1], sum_gg * precision + p[1, 1]
    pull_c, pull_a = left.sum(axis=1) * precision, (left * g).sum(axis=1) * precision
    determinant = cc * aa - ca * ca
    shift_c = (aa * pull_c - ca * pull_a) / determinant
    shift_a = (cc * pull_a - ca * pull_c) / determinant
    fit = shift_c * pull_c + shift_a * pull_a - (left * left).sum(axis=1) * precision
    log_evidence = 0.5 * (fit - np.log(determinant)) - n * np.log(noise_sd)
    # Slow ones have no slope.
    slopes = np.append(prior.slopes, 1.0)
    with np.errstate(divide="ignore"):
        log_shapes = np.log(shapes.weight * slopes[shapes.slope])
    log_weight = log_evidence + log_shapes + np.log(prior.noises[:, None])
    weight = np.exp(log_weight - log_weight.max())
    return _Posterior(
        shapes=shapes,
        weight=weight / weight.sum(),
        c=prior.mean[0] + shift_c,
        a=prior.mean[1] + shift_a,
        var_c=aa / determinant,
        var_a=cc / determinant,
        cov=-ca / determinant,
    )


def _pooled(curves: Sequence[_Curve], posteriors: Sequence[_Posterior], vague: _Prior) -> _Prior:
    """The prior that the runs suggest, those that have begun to learn."""
    mean_sum = _PSEUDO_RUNS * vague.mean
    moment_sum = _PSEUDO_RUNS * (vague.cov + np.outer(vague.mean, vague.mean))
    slopes, noises = _PSEUDO_RUNS * vague.slopes, _PSEUDO_RUNS * vague.noises
    total = _PSEUDO_RUNS
    for curve, posterior in zip(curves, posteriors, strict=True):
        c, a = posterior.c, posterior.a
        begun = posterior.weight * (posterior.shapes.begin < len(curve.y))
        total += float(begun.sum())
        mean_sum = mean_sum + np.array([(begun * c).sum(), (begun * a).sum()])
        mixed = (begun * (posterior.cov + c * a)).sum()
        moment_sum = moment_sum + np.array(
            [
                [(begun * (posterior.var_c + c * c)).sum(), mixed],
                [mixed, (begun * (posterior.var_a + a * a)).sum()],
            ]
        )
        of_slopes = np.bincount(posterior.shapes.slope, begun.sum(axis=0), len(_SLOPES) + 1)
        slopes = slopes + of_slopes[: len(_SLOPES)]
        noises = noises + posterior.weight.sum(axis=1)
    mean = mean_sum / total
    cov = moment_sum / total - np.outer(mean, mean)
    return _Prior(mean, cov, slopes / slopes.sum(), vague.scale, noises / noises.sum())
