"""What a decision costs, and what the engine adds to each event.

    python -m benchmarks.scheduler

Nothing trains here: chunks end in simulated time.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from heapq import heappop, heappush
from pathlib import Path

from benchmarks._report import Report, Row, Spread, percentiles
from rapidfireai.core.clock import SystemClock
from rapidfireai.core.engine import Engine, Listener
from rapidfireai.core.events import Event
from rapidfireai.core.executor import Executor
from rapidfireai.core.ids import RunId, WorkerId
from rapidfireai.core.run import Run
from rapidfireai.core.scheduler import Assign, Snapshot, WaitingRun, WaitingRuns, schedule
from rapidfireai.store import ExperimentRecord, MemoryStore, Recorder, SqliteStore
from rapidfireai.testing.simulation import CommandDesk, FakeClock, SimulatedExecutor, queued_runs

NUM_CHUNKS = 4
NUM_STORED_RUNS = 100
"""A store's part does not depend on how many runs there are."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scheduler", description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the result there")
    options = parser.parse_args(arguments)
    num_runs, num_workers, repeats = options.runs, options.workers, options.repeats
    report = Report(
        title=f"Scheduler: {num_runs} runs, {num_workers} workers",
        rows=[
            *_decision_rows(num_runs, num_workers, repeats),
            *_engine_rows(num_runs, num_workers, repeats),
        ],
        settings={"chunks of each run": NUM_CHUNKS},
    )
    report.print()
    if options.json is not None:
        report.save(options.json)


def _decision_rows(num_runs: int, num_workers: int, repeats: int) -> list[Row]:
    first, one, file = [], [], []
    for seed in range(repeats):
        experiment = _Experiment(num_runs, num_workers, random.Random(seed))
        first.append(experiment.decide())
        while experiment.finish_next():
            one.append(experiment.decide())
        file += experiment.file_s
    return [
        Row(
            name="**decision, one worker idle, p50 / p95**",
            value=percentiles([1e6 * s for s in one], "µs"),
            goal="< 100 µs",
            note=f"{len(one)} decisions, as chunks end",
        ),
        Row(
            name="decision, all workers idle",
            value=Spread.of([1e6 * s for s in first]),
            unit="µs",
            note=f"the first one, {num_workers} orders",
        ),
        Row(
            name="take a run out and file it again, p50 / p95",
            value=percentiles([1e6 * s for s in file], "µs"),
        ),
    ]


class _Experiment:
    """Runs whose chunks end one by one; the scheduler alone, without an engine."""

    def __init__(self, num_runs: int, num_workers: int, rng: random.Random) -> None:
        self.file_s: list[float] = []
        """Seconds that it took to file a run that finished a chunk, and to take one out."""
        self._waiting = WaitingRuns(
            WaitingRun(run_id=RunId(i), chunks_done=0, remaining_s=float("inf"), holder=None)
            for i in range(num_runs)
        )
        self._pace_s = [rng.lognormvariate(0, 0.5) for _ in range(num_runs)]
        self._idle = tuple(WorkerId(i) for i in range(num_workers))
        self._ends: list[tuple[float, RunId, Assign]] = []
        self._now_s = 0.0

    def decide(self) -> float:
        """Give idle workers their orders; returns the seconds that the decision took."""
        begin = time.perf_counter()
        orders = schedule(Snapshot(waiting=self._waiting, idle=self._idle))
        took = time.perf_counter() - begin
        begin = time.perf_counter()
        for order in orders:
            self._waiting.discard(order.run_id)
        if len(orders) == 1 and self.file_s:
            self.file_s[-1] += time.perf_counter() - begin
        for order in orders:
            heappush(self._ends, (self._now_s + self._pace_s[order.run_id], order.run_id, order))
        busy = {order.worker_id for order in orders}
        self._idle = tuple(worker for worker in self._idle if worker not in busy)
        return took

    def finish_next(self) -> bool:
        """End the chunk that ends next; returns whether there was one."""
        if not self._ends:
            return False
        self._now_s, run_id, order = heappop(self._ends)
        self._idle = (*self._idle, order.worker_id)
        done = order.chunk + 1
        if done < NUM_CHUNKS:
            run = WaitingRun(
                run_id=run_id,
                chunks_done=done,
                remaining_s=self._pace_s[run_id] * (NUM_CHUNKS - done),
                holder=order.worker_id,
            )
            begin = time.perf_counter()
            self._waiting.add(run)
            self.file_s.append(time.perf_counter() - begin)
        return True


class _Timed:
    """An executor that notes the time spent in it, which is not the engine's."""

    def __init__(self, executor: Executor) -> None:
        self.spent_s = 0.0
        self._executor = executor

    @property
    def workers(self) -> Sequence[WorkerId]:
        return self._executor.workers

    def assign(self, order: Assign) -> None:
        begin = time.perf_counter()
        self._executor.assign(order)
        self.spent_s += time.perf_counter() - begin

    def receive(self) -> Sequence[Event]:
        begin = time.perf_counter()
        events = self._executor.receive()
        self.spent_s += time.perf_counter() - begin
        return events

    def stop(self, run_id: RunId, reason: str) -> Sequence[Event]:
        return self._executor.stop(run_id, reason)

    def save(self, run_id: RunId) -> Sequence[Event]:
        return self._executor.save(run_id)

    def close(self) -> None:
        self._executor.close()


class _Count:
    """Counts events, and passes them on."""

    def __init__(self, record: Listener | None = None) -> None:
        self.num = 0
        self._record = record

    def on_event(self, before: Run, event: Event, after: Run) -> None:
        self.num += 1
        if self._record is not None:
            self._record.on_event(before, event, after)


def _engine_rows(num_runs: int, num_workers: int, repeats: int) -> list[Row]:
    arguments = {f"argument_{number}": number / 7 for number in range(100)}
    runs = [
        replace(run, config=arguments) for run in queued_runs(map(RunId, range(1, num_runs + 1)))
    ]
    few = runs[:NUM_STORED_RUNS]

    def in_memory() -> float:
        store = MemoryStore()
        store.create(_record(), few)
        return _per_event_s(few, num_workers, _Count(Recorder(store, SystemClock())))

    def in_sqlite() -> float:
        with (
            tempfile.TemporaryDirectory(prefix="scheduler-") as folder,
            closing(SqliteStore(Path(folder) / "experiment.db")) as store,
        ):
            store.create(_record(), few)
            return _per_event_s(few, num_workers, _Count(Recorder(store, SystemClock())))

    ways: dict[str, Callable[[], float]] = {
        "without a store": lambda: _per_event_s(runs, num_workers, _Count()),
        "with the store in memory": in_memory,
        "with the store in SQLite": in_sqlite,
    }
    return [
        Row(
            name=f"engine, an event, {name}",
            value=Spread.of([1e6 * way() for _ in range(repeats)]),
            unit="µs",
            note="average; a third are steps, which the store takes in batches",
        )
        for name, way in ways.items()
    ]


def _per_event_s(runs: Sequence[Run], num_workers: int, count: _Count) -> float:
    rng = random.Random(0)
    durations_s = {run.id: [rng.lognormvariate(0, 0.5)] * NUM_CHUNKS for run in runs}
    executor = _Timed(SimulatedExecutor(FakeClock(), num_workers, durations_s))
    engine = Engine(runs, executor, CommandDesk(count))
    begin = time.perf_counter()
    engine.run()
    return (time.perf_counter() - begin - executor.spent_s) / count.num


def _record() -> ExperimentRecord:
    return ExperimentRecord(
        name="benchmark", created_s=0.0, seed=0, num_chunks=NUM_CHUNKS, versions={}, settings={}
    )


if __name__ == "__main__":
    main()
