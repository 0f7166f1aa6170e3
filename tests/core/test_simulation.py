"""The simulated executor itself, and the policy on 1,000 runs and 64 workers in simulated time."""

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import pytest

from rapidfireai.core.engine import Engine
from rapidfireai.core.events import (
    ChunkAssigned,
    ChunkFinished,
    Event,
    RunCompleted,
    RunFailed,
    RunStarted,
    RunStopped,
    StepFinished,
)
from rapidfireai.core.ids import RunId, WorkerId
from rapidfireai.core.run import Run, RunStatus
from rapidfireai.core.scheduler import Assign
from rapidfireai.testing.simulation import CommandDesk, FakeClock, SimulatedExecutor, queued_runs

NUM_RUNS = 1_000
NUM_WORKERS = 64
NUM_CHUNKS = 4

ONE, TWO = RunId(1), RunId(2)


def order(run_id: RunId, worker_id: int = 0, chunk: int = 0) -> Assign:
    return Assign(run_id=run_id, worker_id=WorkerId(worker_id), chunk=chunk)


def test_fake_clock_only_goes_forward() -> None:
    clock = FakeClock(3.0)
    clock.advance_to(5.0)
    clock.advance_to(5.0)
    assert clock.now() == 5.0
    for bad in (4.9, math.nan):
        with pytest.raises(ValueError, match="a clock never goes back"):
            clock.advance_to(bad)
    assert clock.now() == 5.0


def test_reports_a_run_from_its_start_to_its_end() -> None:
    clock = FakeClock()
    executor = SimulatedExecutor(clock, 1, {ONE: [2.0, 3.0]})
    assert executor.receive() == ()

    executor.assign(order(ONE))
    assert executor.receive() == [
        RunStarted(run_id=ONE, num_steps=2, num_chunks=2, resolved={}),
        StepFinished(run_id=ONE, step=1, loss=1.0, active_s=2.0),
        ChunkFinished(run_id=ONE, chunk=0, step=1, active_s=2.0),
    ]
    assert clock.now() == 2.0

    clock.advance_to(10.0)
    executor.assign(order(ONE, chunk=1))
    assert executor.receive() == [
        StepFinished(run_id=ONE, step=2, loss=0.5, active_s=5.0),
        RunCompleted(run_id=ONE, step=2, active_s=5.0),
    ]
    assert clock.now() == 13.0
    assert executor.receive() == ()


def test_orders_end_by_time_and_equal_ones_as_given() -> None:
    executor = SimulatedExecutor(
        FakeClock(), 3, {RunId(n): [s] for n, s in ((3, 2), (1, 2), (2, 1))}
    )
    for worker_id, run_id in enumerate((3, 1, 2)):
        executor.assign(order(RunId(run_id), worker_id))
    assert [executor.receive()[0].run_id for _ in range(3)] == [2, 3, 1]


def test_runs_fail_at_the_end_of_the_chunk_they_are_told() -> None:
    clock = FakeClock()
    executor = SimulatedExecutor(clock, 1, {ONE: [2.0, 3.0]}, failures={ONE: 1})
    executor.assign(order(ONE))
    assert isinstance(executor.receive()[-1], ChunkFinished)
    executor.assign(order(ONE, chunk=1))
    assert executor.receive() == [
        RunFailed(run_id=ONE, error="told to fail at chunk 1", traceback="", active_s=5.0)
    ]
    assert clock.now() == 5.0


def test_stop_ends_a_run_in_the_middle_of_a_chunk_and_nothing_more_comes_of_it() -> None:
    clock = FakeClock()
    executor = SimulatedExecutor(clock, 2, {ONE: [5.0], TWO: [2.0]})
    executor.assign(order(ONE, 0))
    executor.assign(order(TWO, 1))
    executor.receive()
    assert executor.stop(ONE, "why") == (RunStopped(run_id=ONE, reason="why", active_s=2.0),)
    assert executor.stop(TWO, "why") == (RunStopped(run_id=TWO, reason="why", active_s=2.0),)
    assert executor.receive() == ()
    assert clock.now() == 2.0


def test_stop_frees_the_worker() -> None:
    executor = SimulatedExecutor(FakeClock(), 1, {ONE: [5.0], TWO: [2.0]})
    executor.assign(order(ONE))
    executor.stop(ONE, "why")
    executor.assign(order(TWO))
    assert executor.receive()[-1].run_id == TWO


def test_one_order_a_worker_and_a_run_at_a_time() -> None:
    executor = SimulatedExecutor(FakeClock(), 2, {ONE: [5.0], TWO: [2.0]})
    executor.assign(order(ONE, 0))
    with pytest.raises(AssertionError, match="worker 0 is busy"):
        executor.assign(order(TWO, 0))
    with pytest.raises(AssertionError, match="run 1 is running"):
        executor.assign(order(ONE, 1))


def test_close_abandons_open_orders() -> None:
    executor = SimulatedExecutor(FakeClock(), 1, {ONE: [5.0]})
    executor.assign(order(ONE))
    executor.close()
    executor.close()
    assert executor.receive() == ()


class Watch:
    """Keeps count of who waits, who leads and who moved."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.waiting = Counter(run.chunks_done for run in runs)
        self.most = 0
        self.moves = 0

    def on_event(self, before: Run, event: Event, after: Run) -> None:
        if isinstance(event, ChunkAssigned):
            self.waiting[before.chunks_done] -= 1
            self.moves += before.worker_id not in (None, after.worker_id)
        elif after.status is RunStatus.WAITING:
            self.waiting[after.chunks_done] += 1
        self.most = max(self.most, after.chunks_done)

    @property
    def lead(self) -> int:
        """Chunks that the foremost run, ended ones included, leads the last waiting one by."""
        return self.most - min(
            (done for done, num in self.waiting.items() if num), default=self.most
        )


@dataclass(frozen=True)
class Outcome:
    makespan_s: float
    lead: int
    """The largest at any moment after scheduling."""
    moves: int


Durations = Sequence[Sequence[float]]
"""Seconds of each chunk of each run."""


def simulate(durations_s: Durations) -> Outcome:
    by_run = {RunId(number): chunks for number, chunks in enumerate(durations_s, 1)}
    clock = FakeClock()
    runs = queued_runs(by_run)
    watch = Watch(runs)
    engine = Engine(runs, SimulatedExecutor(clock, NUM_WORKERS, by_run), CommandDesk(watch))
    lead = 0
    while not engine.ended:
        engine.step()
        lead = max(lead, watch.lead)
    assert all(run.status is RunStatus.COMPLETED for run in engine.runs)
    return Outcome(makespan_s=clock.now(), lead=lead, moves=watch.moves)


def ideal_s(durations_s: Durations) -> float:
    """No schedule can be shorter: all work spread evenly, or the longest run without a pause."""
    totals = [sum(chunks) for chunks in durations_s]
    return max(sum(totals) / NUM_WORKERS, *totals)


def paces(rng: random.Random) -> list[float]:
    """Seconds a chunk for each run: the slowest is some 25 times as slow as the fastest."""
    return [rng.lognormvariate(0, 0.5) for _ in range(NUM_RUNS)]


def steady(rng: random.Random) -> Durations:
    """Every chunk of a run takes the same time."""
    return [[pace] * NUM_CHUNKS for pace in paces(rng)]


def jittered(rng: random.Random) -> Durations:
    """Chunks of one run differ by some 20 %."""
    return [[pace * rng.lognormvariate(0, 0.2) for _ in range(NUM_CHUNKS)] for pace in paces(rng)]


def mixed(rng: random.Random) -> Durations:
    """Runs of one to three epochs of two chunks, with jitter."""
    return [
        [pace * rng.lognormvariate(0, 0.2) for _ in range(rng.choice((2, 4, 6)))]
        for pace in paces(rng)
    ]


def with_giants(rng: random.Random, share: float, places: Sequence[int]) -> Durations:
    """A few runs take `share` of what the others' work takes when spread over all workers."""
    giant_s = share * sum(others := paces(rng)) / NUM_WORKERS
    return [
        [giant_s if number in places else pace] * NUM_CHUNKS for number, pace in enumerate(others)
    ]


def giants(rng: random.Random) -> Durations:
    """A few very long runs, anywhere, each 80 % of what all takes at best."""
    return with_giants(rng, 0.8, rng.sample(range(NUM_RUNS), 4))


def giants_first(rng: random.Random) -> Durations:
    """A few runs that alone take longer than everything else together, given first."""
    return with_giants(rng, 1.5, range(4))


@cache
def outcome(workload: Callable[[random.Random], Durations], seed: int) -> tuple[Durations, Outcome]:
    durations_s = workload(random.Random(seed))
    return durations_s, simulate(durations_s)


all_workloads = pytest.mark.parametrize(
    "workload", [steady, jittered, mixed, giants, giants_first], ids=lambda w: w.__name__
)
seeds = pytest.mark.parametrize("seed", [0, 1])


@all_workloads
@seeds
def test_nobody_ever_leads_a_waiting_run_by_more_than_one_chunk(
    workload: Callable[[random.Random], Durations], seed: int
) -> None:
    _, result = outcome(workload, seed)
    assert result.lead == 1


@all_workloads
@seeds
def test_makespan_is_within_5_percent_of_the_ideal(
    workload: Callable[[random.Random], Durations], seed: int
) -> None:
    durations_s, result = outcome(workload, seed)
    assert result.makespan_s >= ideal_s(durations_s) * (1 - 1e-9)
    assert result.makespan_s <= 1.05 * ideal_s(durations_s)


@seeds
def test_a_giant_found_late_costs_at_most_the_first_round_more(seed: int) -> None:
    """Nobody knows how long a run is before its first chunk, so it may be the last to start.

    It has started when all other first chunks have, at the latest after their sum over workers.
    """
    durations_s = with_giants(random.Random(seed), 1.5, range(NUM_RUNS - 4, NUM_RUNS))
    first_round_s = sum(chunks[0] for chunks in durations_s) / NUM_WORKERS
    assert simulate(durations_s).makespan_s <= ideal_s(durations_s) + first_round_s


@all_workloads
@seeds
def test_runs_rarely_move(workload: Callable[[random.Random], Durations], seed: int) -> None:
    """A run moves only when a worker has run out of its own before the round is over.

    After the first round, in which nothing moves, list scheduling has spread the work evenly, to
    within a chunk a worker, and where the chunks of a run all take the same time it stays so: at
    most one move a worker and round. With jitter a worker's round, a sum of `num_held` chunks,
    strays by the order of sqrt(num_held) chunks, which is what has to be moved.
    """
    durations_s, result = outcome(workload, seed)
    num_rounds = max(len(chunks) for chunks in durations_s)
    num_held = NUM_RUNS / NUM_WORKERS
    per_round = math.sqrt(num_held) if workload in (jittered, mixed) else 1
    assert result.moves <= NUM_WORKERS * (num_rounds - 1) * per_round
