"""Where learning curves are going: forecasts with their uncertainty.

The model of a run's cost after chunk t is a power law that may begin late:

    y(t) = c + a                + noise    for t <= s
    y(t) = c + a (t - s)^-b     + noise    for t > s

For fixed (s, b) it is linear in (c, a): with a Gaussian prior the posterior is exact, and what is
left is a sum over a grid of (s, b). The prior of (c, a) and of b, and the noise, are estimated from
all runs together (empirical Bayes): what most runs of an experiment have in common is where a run
with few chunks is expected to go.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapidfireai.core.ids import RunId

Floats = NDArray[np.float64]

MIN_CHUNKS: Final = 3
"""Points that a forecast needs: the curve has three unknowns."""

# Shapes: H hypotheses (s, b), D draws.

_SLOPES: Final = np.geomspace(0.1, 2.0, 12)
_SHARES: Final = {"at once": 0.80, "late": 0.17, "never": 0.03}
"""How often a run begins to learn then, before anything is seen of it."""
_LATEST_START: Final = 2 / 3
"""Of the run: one that has not begun by then is not expected to any more."""
_STARTS_PER_CHUNK: Final = 4
_NUM_FUTURE_STARTS: Final = 6
_PSEUDO_RUNS: Final = 2.0
"""Weight of the vague prior beside that of the runs."""
_PSEUDO_POINTS: Final = 4.0
"""Likewise of the first guess of the noise."""
_NUM_SWEEPS: Final = 2
_DOUBT: Final = 0.05
"""Of the change that is still expected: a power law is a model."""


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


@dataclass(frozen=True, slots=True)
class _Prior:
    mean: Floats
    """(2,), of (c, a)"""
    cov: Floats
    """(2, 2)"""
    slopes: Floats
    """Probability of each of `_SLOPES`."""
    noise_sd: float


@dataclass(frozen=True, slots=True)
class _Posterior:
    weight: Floats
    """(H,), sums to 1"""
    mean: Floats
    """(H, 2), of (c, a)"""
    cov: Floats
    """(H, 2, 2)"""
    slope: NDArray[np.intp]
    """(H,), index into `_SLOPES`"""
    start: Floats
    """(H,)"""
    rss: float
    """Sum of squared residuals of the likeliest hypothesis."""
    at_end: Floats
    """(H,), the factor of `a` at the run's end."""
    at_now: Floats
    """(H,), and after its last chunk so far."""


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
        self._prior = _vague(list(self._curves.values()))
        for _ in range(_NUM_SWEEPS):
            self._posteriors = {run_id: _fit(c, self._prior) for run_id, c in self._curves.items()}
            self._prior = _pooled(
                list(self._curves.values()), list(self._posteriors.values()), self._vague
            )

    @property
    def _vague(self) -> _Prior:
        return _vague(list(self._curves.values()))

    @property
    def noise_sd(self) -> float:
        """Standard deviation of a chunk's cost around its curve."""
        return self._prior.noise_sd

    def forecast(self, run_id: RunId, num_draws: int, rng: np.random.Generator) -> Forecast:
        """Where a run is going to end.

        Args:
            run_id: The run's.
            num_draws: Draws from what is believed.
            rng: To draw with.
        """
        posterior = self._posteriors[run_id]
        factor = np.stack([np.ones_like(posterior.at_end), posterior.at_end], axis=1)
        means = np.einsum("hi,hi->h", factor, posterior.mean)
        change = posterior.mean[:, 1] * (posterior.at_now - posterior.at_end)
        variances = np.einsum("hi,hij,hj->h", factor, posterior.cov, factor)
        variances = variances + (_DOUBT * change) ** 2
        mean = float(posterior.weight @ means)
        variance = float(posterior.weight @ (variances + (means - mean) ** 2))
        chosen = rng.choice(len(means), size=num_draws, p=posterior.weight)
        noise = rng.standard_normal(num_draws)
        num_done = len(self._curves[run_id].y)
        return Forecast(
            mean=mean,
            sd=float(np.sqrt(variance)),
            draws=means[chosen] + noise * np.sqrt(variances[chosen]),
            begun=float(posterior.weight[posterior.start < num_done].sum()),
        )


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
        0.02 * scale,
    )


@lru_cache(maxsize=256)
def _hypotheses(
    num_done: int, num_chunks: int
) -> tuple[Floats, NDArray[np.intp], Floats, Floats, Floats]:
    """Starts, slopes, prior weights (H,), factors (H, n), their sums and those of squares (2, H).

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
    slopes = np.tile(np.arange(len(_SLOPES)), len(starts))
    starts, weights = np.repeat(starts, len(_SLOPES)), np.repeat(weights, len(_SLOPES))
    g = _factor(np.arange(1, num_done + 1, dtype=np.float64), starts, slopes)
    return starts, slopes, weights, g, np.stack([g.sum(axis=1), (g * g).sum(axis=1)])


def _factor(t: Floats | float, start: Floats, slope: NDArray[np.intp]) -> Floats:
    """The factor of `a` after chunk t: (H,), or (H, n) for n chunks."""
    exponent = -_SLOPES[slope]
    if isinstance(t, np.ndarray):
        start, exponent = start[:, None], exponent[:, None]
    since = np.maximum(t - start, 1.0)
    return np.asarray(since**exponent)


def _fit(curve: _Curve, prior: _Prior) -> _Posterior:
    y, n = curve.y, len(curve.y)
    starts, slopes, weights, g, sums = _hypotheses(n, curve.num_chunks)
    precision = 1 / prior.noise_sd**2
    prior_precision = np.linalg.inv(prior.cov)
    a = np.empty((len(starts), 2, 2))
    a[:, 0, 0] = n
    a[:, 0, 1] = a[:, 1, 0] = sums[0]
    a[:, 1, 1] = sums[1]
    a = a * precision + prior_precision
    pull = np.stack([np.full(len(starts), y.sum()), g @ y], axis=1) * precision
    pull = pull + prior_precision @ prior.mean
    cov = _inverse(a)
    mean = np.einsum("hij,hj->hi", cov, pull)
    log_evidence = 0.5 * (np.einsum("hi,hi->h", mean, pull) - np.log(_determinant(a)))
    with np.errstate(divide="ignore"):
        log_weight = log_evidence + np.log(weights) + np.log(prior.slopes[slopes])
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    best = int(np.argmax(log_weight))
    residuals = y - mean[best, 0] - mean[best, 1] * g[best]
    return _Posterior(
        weight,
        mean,
        cov,
        slopes,
        starts,
        float(residuals @ residuals),
        _factor(float(curve.num_chunks), starts, slopes),
        _factor(float(n), starts, slopes),
    )


def _pooled(curves: Sequence[_Curve], posteriors: Sequence[_Posterior], vague: _Prior) -> _Prior:
    """The prior that the runs suggest, those that have begun to learn."""
    mean_sum = _PSEUDO_RUNS * vague.mean
    moment_sum = _PSEUDO_RUNS * (vague.cov + np.outer(vague.mean, vague.mean))
    slopes = _PSEUDO_RUNS * vague.slopes
    total = _PSEUDO_RUNS
    squares, points = _PSEUDO_POINTS * vague.noise_sd**2, _PSEUDO_POINTS
    for curve, posterior in zip(curves, posteriors, strict=True):
        n = len(curve.y)
        begun = posterior.weight * (posterior.start < n)
        share = float(begun.sum())
        total += share
        mean_sum = mean_sum + begun @ posterior.mean
        moments = posterior.cov + posterior.mean[:, :, None] * posterior.mean[:, None, :]
        moment_sum = moment_sum + np.einsum("h,hij->ij", begun, moments)
        slopes = slopes + np.bincount(posterior.slope, begun, minlength=len(_SLOPES))
        if n > MIN_CHUNKS:
            squares += posterior.rss
            points += n - MIN_CHUNKS
    mean = mean_sum / total
    cov = moment_sum / total - np.outer(mean, mean)
    return _Prior(mean, cov, slopes / slopes.sum(), float(np.sqrt(squares / points)))


def _determinant(a: Floats) -> Floats:
    return np.asarray(a[:, 0, 0] * a[:, 1, 1] - a[:, 0, 1] * a[:, 1, 0])


def _inverse(a: Floats) -> Floats:
    adjugate = np.empty_like(a)
    adjugate[:, 0, 0], adjugate[:, 1, 1] = a[:, 1, 1], a[:, 0, 0]
    adjugate[:, 0, 1], adjugate[:, 1, 0] = -a[:, 0, 1], -a[:, 1, 0]
    return np.asarray(adjugate / _determinant(a)[:, None, None])
