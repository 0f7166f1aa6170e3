"""An experiment to be told of, made without training anything, and what its store holds."""

import math
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from rapidfireai.core.events import (
    ChunkAssigned,
    ChunkFinished,
    Event,
    MetricsLogged,
    MetricSource,
    RunCloned,
    RunCompleted,
    RunDeleted,
    RunFailed,
    RunInterrupted,
    RunPruned,
    RunRecovered,
    RunResumed,
    RunStarted,
    StepFinished,
)
from rapidfireai.core.ids import RunId, WorkerId
from rapidfireai.core.run import Run, apply
from rapidfireai.paths import ExperimentFolder
from rapidfireai.store import ExperimentRecord, Recorder, SqliteStore
from rapidfireai.tracking._protocol import STATUS, STATUS_CODES
from tests.commandline.laboratory import config

BEGUN_S = 1_763_801_400.25

Series = Mapping[tuple[str, int], float]
"""Values of a run by name and step."""


class SteadyClock:
    """Goes on by a tenth of a second whenever it is asked."""

    def __init__(self) -> None:
        self._now_s = BEGUN_S

    def now(self) -> float:
        self._now_s += 0.1
        return self._now_s


@dataclass
class Story:
    """An experiment whose runs live as they are told to."""

    folder: ExperimentFolder
    clock: SteadyClock = field(default_factory=SteadyClock)

    @classmethod
    def begin(cls, root: Path, num_runs: int = 3, name: str = "story") -> "Story":
        folder = ExperimentFolder.claim(root, name)
        runs = [
            Run(
                id=RunId(number),
                name=f"run-{number}",
                config=config(10.0**-number, 2**number),
                path=str(folder.final(RunId(number))),
            )
            for number in range(1, num_runs + 1)
        ]
        with closing(SqliteStore(folder.store)) as store:
            store.create(
                ExperimentRecord(name=folder.name, created_s=BEGUN_S, seed=42, num_chunks=4), runs
            )
        return cls(folder)

    def happen(self, *events: Event) -> None:
        """Events as the engine would have recorded them."""
        with closing(SqliteStore(self.folder.store)) as store:
            runs = {run.id: run for run in store.runs()}
            recorder = Recorder(store, self.clock)
            for event in events:
                before = runs.get(event.run_id)
                if before is None:
                    assert isinstance(event, RunCloned)
                    before = clone(runs[event.parent_id], event.run_id)
                    runs[event.run_id] = apply(before, event)
                    recorder.add_run(before, event, runs[event.run_id])
                    continue
                runs[event.run_id] = apply(before, event)
                recorder.on_event(before, event, runs[event.run_id])
            recorder.flush()

    def train(self, run_id: int, first: int, last: int, chunk: int = 0) -> None:
        """A chunk of steps, each logged; the last one evaluated."""
        number, worker = RunId(run_id), WorkerId(0)
        self.happen(ChunkAssigned(run_id=number, worker_id=worker, chunk=chunk))
        if chunk == 0:
            self.happen(RunStarted(run_id=number, num_steps=40, num_chunks=4, resolved={}))
        self.happen(*(event for step in range(first, last + 1) for event in steps(number, step)))
        self.happen(
            measured(number, last, MetricSource.CHUNK, eval_loss=run_id / last),
            measured(number, last, MetricSource.DEVICE, host_memory_gib=1.5),
            ChunkFinished(run_id=number, chunk=chunk, step=last, active_s=float(last)),
        )

    def tell_all(self) -> None:
        """What can happen to runs."""
        self.train(1, 1, 10)
        self.tell_rest()

    def tell_rest(self) -> None:
        """After a chunk of run 1: it completes, one fails and goes on, one is cloned."""
        one, two, three, four = (RunId(number) for number in (1, 2, 3, 4))
        again = ChunkAssigned(run_id=one, worker_id=WorkerId(0), chunk=1)
        self.train(2, 1, 10)
        self.happen(RunCloned(run_id=four, parent_id=two))
        self.train(4, 1, 5)
        self.happen(
            again,
            measured(one, 11, MetricSource.LOG, **{"loss": math.nan, "odd name (%)": 1.0}),
            measured(one, 12, MetricSource.LOG, loss=math.inf),
            RunCompleted(run_id=one, step=12, active_s=12.0),
            replace(again, run_id=two),
            RunFailed(run_id=two, error="ValueError: no", traceback="...", active_s=11.0),
            RunResumed(run_id=two),
            RunPruned(run_id=four, reason="no progress", active_s=5.0),
            RunDeleted(run_id=four, undo_until_s=BEGUN_S + 600),
        )
        self.train(2, 11, 20, chunk=1)
        self.train(3, 1, 10)
        # As a process leaves it that was asked to end, and the next one takes it up.
        self.happen(
            RunInterrupted(run_id=three, reason="Ctrl-C", active_s=10.0),
            RunRecovered(run_id=three, step=8, chunks_done=0, active_s=8.0),
        )
        self.train(3, 9, 20, chunk=1)

    def held(self) -> dict[str, Series]:
        """What the store holds of each run that has begun, as trackers are told it."""
        with closing(SqliteStore(self.folder.store)) as store:
            runs = {run.id: run for run in store.runs()}
            found: dict[str, dict[tuple[str, int], float]] = {}
            now = {run_id: replace(_unborn(run)) for run_id, run in runs.items()}
            for row in store.events():
                before = now[row.event.run_id]
                after = now[before.id] = apply(before, row.event)
                series = found.setdefault(after.name, {})
                if after.status is not before.status:
                    series[STATUS, row.seq] = STATUS_CODES[after.status]
            for value in store.metrics():
                name = f"{value.source}/{value.name}"
                found[runs[value.run_id].name][name, value.step] = value.value
            return dict(found)

    def runs(self) -> dict[str, Run]:
        """The runs by name."""
        with closing(SqliteStore(self.folder.store)) as store:
            return {run.name: run for run in store.runs()}


def clone(parent: Run, run_id: RunId) -> Run:
    return Run(
        id=run_id,
        name=f"run-{run_id}",
        config=config(0.5, 4),
        path=parent.path,
        modified={"training_args.learning_rate": [0.01, 0.5]},
    )


def steps(run_id: RunId, step: int) -> list[Event]:
    loss = run_id + 1 / 3**step
    return [
        StepFinished(run_id=run_id, step=step, loss=loss, active_s=float(step)),
        measured(run_id, step, MetricSource.LOG, loss=loss, grad_norm=1 / step),
    ]


def measured(run_id: RunId, step: int, source: MetricSource, **values: float) -> MetricsLogged:
    return MetricsLogged(run_id=run_id, step=step, source=source, values=values)


def _unborn(run: Run) -> Run:
    return Run(id=run.id, name=run.name, config=run.config, path=run.path)
