"""What policies lose and save, on families of learning curves.

    python -m benchmarks.policies_sim

The engine and the policies are the real ones; only the runs are simulated. An experiment has 16
runs of 32 chunks, t = 1..32, each with

    loss(t) = c + a t^-b + noise,    c ~ U(1, 2), a ~ U(0.5, 3), b ~ U(0.2, 1.2), noise sd 0.03

10 % of the runs diverge: from a chunk on, drawn evenly, the loss grows by half of itself with each
chunk. 15 % are late bloomers: the loss stays at the begin of its curve, c + a, until t0, drawn
evenly from 30 to 60 % of the run, and is c + a (t - t0)^-b from one chunk after that on.

The winner of an experiment is, of the runs that were trained to their end, the one with the least
average loss over the last 4 chunks. Its regret is by how much its final loss, without the noise, is
above the least final loss of all runs. Compute is counted in chunks.
"""

import argparse
import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import optuna

from benchmarks._report import Report, Row
from rapidfireai.core.commands import Command, Verb
from rapidfireai.core.engine import Engine
from rapidfireai.core.events import ChunkFinished, Event, RunCompleted
from rapidfireai.core.ids import RunId
from rapidfireai.core.policy import Policy
from rapidfireai.core.run import Run, RunStatus
from rapidfireai.policies import (
    CurvePolicy,
    MedianPolicy,
    OptunaPruner,
    Round,
    RoundPolicy,
    SuccessiveHalving,
    ThresholdPolicy,
)
from rapidfireai.policies.objective import ranks
from rapidfireai.testing.simulation import CommandDesk, FakeClock, SimulatedExecutor, queued_runs

NUM_RUNS = 16
NUM_CHUNKS = 32
NOISE_SD = 0.03
DIVERGING = 0.10
LATE = 0.15
NUM_LAST = 4
"""Chunks over which the final loss of a run is averaged."""

GOAL_REGRET = 0.02


@dataclass(frozen=True, slots=True)
class Curve:
    """One simulated run."""

    clean: tuple[float, ...]
    """Loss after each chunk, without the noise."""
    noisy: tuple[float, ...]

    @classmethod
    def draw(cls, rng: random.Random) -> "Curve":
        """A run of the family."""
        c, a, b = rng.uniform(1, 2), rng.uniform(0.5, 3), rng.uniform(0.2, 1.2)
        kind, diverges_at = rng.random(), rng.randint(1, NUM_CHUNKS)
        start = rng.uniform(0.3, 0.6) * NUM_CHUNKS if DIVERGING <= kind < DIVERGING + LATE else 0.0
        clean = [c + a * max(t - start, 1.0) ** -b for t in range(1, NUM_CHUNKS + 1)]
        if kind < DIVERGING:
            for t in range(diverges_at, NUM_CHUNKS + 1):
                clean[t - 1] *= 1.5 ** (t - diverges_at + 1)
        noisy = [value + rng.gauss(0, NOISE_SD) for value in clean]
        return cls(tuple(clean), tuple(noisy))


def experiment(seed: int) -> dict[RunId, Curve]:
    """The runs of an experiment."""
    rng = random.Random(seed)
    return {RunId(number): Curve.draw(rng) for number in range(1, NUM_RUNS + 1)}


@dataclass(frozen=True, slots=True)
class Result:
    """How an experiment went."""

    regret: float
    saved: float
    """Share of the compute of running everything."""
    decisions: tuple[str, ...] = field(default=(), repr=False)


class _Count:
    """Counts the chunks that were trained."""

    def __init__(self) -> None:
        self.num_chunks = 0

    def on_event(self, before: Run, event: Event, after: Run) -> None:
        self.num_chunks += isinstance(event, ChunkFinished | RunCompleted)


def simulate(curves: Mapping[RunId, Curve], policies: Sequence[Policy]) -> Result:
    """Run an experiment under the engine."""
    executor = SimulatedExecutor(
        FakeClock(),
        1,
        {run_id: [1.0] * NUM_CHUNKS for run_id in curves},
        losses={run_id: curve.noisy for run_id, curve in curves.items()},
    )
    count, desk = _Count(), CommandDesk()
    engine = Engine(queued_runs(curves), executor, desk, [count], policies)
    engine.run()
    completed = {
        run.id: statistics.fmean(curves[run.id].noisy[-NUM_LAST:])
        for run in engine.runs
        if run.status is RunStatus.COMPLETED
    }
    best = min(curve.clean[-1] for curve in curves.values())
    regret = math.inf
    if completed:
        regret = curves[ranks(completed)[0]].clean[-1] - best
    return Result(
        regret,
        1 - count.num_chunks / (len(curves) * NUM_CHUNKS),
        tuple(f"{r.command} {r.command.reason}" for r in desk.commands.values()),
    )


class TopAfterFirstChunk(RoundPolicy):
    """Keeps the best few after one chunk. Source: Egele et al. 2023 (arXiv 2307.15422)."""

    def __init__(self, num_kept: int) -> None:
        super().__init__("minimize:eval_loss")
        self._num_kept = num_kept

    def judge(self, round: Round) -> list[Command]:
        """Keep the best."""
        kept = ranks(round.costs())[: self._num_kept] if round.chunk == 1 else round.fresh
        return [self.prune(r, "not among the best") for r in round.prunable() if r not in kept]


class RandomFew:
    """Keeps runs that are drawn before anything is known of them."""

    def __init__(self, num_kept: int, seed: int) -> None:
        self._num_kept = num_kept
        self._seed = seed

    def on_chunk(
        self, run: Run, metrics: Mapping[str, float], runs: Sequence[Run]
    ) -> Sequence[Command]:
        """Prune what was not drawn."""
        kept = random.Random(self._seed).sample([r.id for r in runs], self._num_kept)
        if run.id in kept:
            return []
        return [Command(verb=Verb.PRUNE, run_id=run.id, reason="not drawn")]


def _optuna_median() -> Policy:
    return OptunaPruner(
        optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=4),
        objective="minimize:eval_loss",
    )


WAYS: Mapping[str, Callable[[int], Sequence[Policy]]] = {
    "everything": lambda seed: [],
    "random 6 of 16": lambda seed: [RandomFew(6, seed)],
    "best 4 after one chunk": lambda seed: [TopAfterFirstChunk(4)],
    "ThresholdPolicy(stall=8)": lambda seed: [ThresholdPolicy(stall=8)],
    "MedianPolicy()": lambda seed: [MedianPolicy()],
    "SuccessiveHalving()": lambda seed: [SuccessiveHalving()],
    "SuccessiveHalving(first_rung=4, reduction_factor=2)": lambda seed: [
        SuccessiveHalving(first_rung=4, reduction_factor=2)
    ],
    "OptunaPruner(MedianPruner)": lambda seed: [_optuna_median()],
    "auto": lambda seed: [CurvePolicy()],
}


def one(name: str, seed: int) -> Result:
    """One experiment with one policy."""
    result = simulate(experiment(seed), WAYS[name](seed))
    return Result(result.regret, result.saved)


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate, print and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.policies_sim", description=__doc__)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--experiments", type=int, default=1000)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--json", type=Path, help="also write the result there")
    options = parser.parse_args(arguments)
    seeds = range(options.first_seed, options.first_seed + options.experiments)
    rows = []
    with ProcessPoolExecutor(options.jobs) as pool:
        for name in options.ways:
            results = list(pool.map(partial(one, name), seeds, chunksize=8))
            rows.append(_row(name, results))
    report = Report(
        title=f"Policies on {options.experiments} simulated experiments",
        rows=rows,
        settings={"seeds": f"{seeds[0]}..{seeds[-1]}"},
    )
    report.print()
    if options.json is not None:
        report.save(options.json)


def _row(name: str, results: Sequence[Result]) -> Row:
    good = sum(result.regret <= GOAL_REGRET for result in results) / len(results)
    saved = statistics.fmean(result.saved for result in results)
    regrets = sorted(result.regret for result in results)
    return Row(
        name=f"**{name}**" if name == "auto" else name,
        value=f"{good:.1%} good, {saved:.1%} saved",
        goal=">= 95 %, >= 60 %" if name == "auto" else "",
        note=(
            f"regret: mean {statistics.fmean(regrets):.4f}, "
            f"95th percentile {regrets[int(0.95 * len(regrets))]:.4f}, worst {regrets[-1]:.3f}"
        ),
    )


if __name__ == "__main__":
    main()
