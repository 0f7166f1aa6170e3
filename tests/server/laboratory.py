"""Experiments made by hand, and a server in this process to ask about them."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from rapidfireai.core.events import (
    ChunkAssigned,
    ChunkFinished,
    Event,
    MetricSource,
    RunCompleted,
    RunFailed,
    RunStarted,
)
from rapidfireai.core.ids import RunId, WorkerId
from rapidfireai.core.run import Run, apply
from rapidfireai.core.schema import Schema
from rapidfireai.paths import ExperimentFolder
from rapidfireai.server.app import Application, ServerSettings, create_app
from rapidfireai.store import ExperimentRecord, MetricRow, SqliteStore

TOKEN = "a-token-that-is-long-enough-for-a-test-0123"
HOST = "localhost:3000"
BEARER = {"Authorization": f"Bearer {TOKEN}"}

SCHEMAS: dict[str, Schema] = {
    "SFT": {
        "learning_rate": {"type": ["number"], "default": 2e-5, "allowed": "float"},
        "max_steps": {"type": ["integer"], "default": -1, "allowed": "int"},
        "num_train_epochs": {"type": ["number"], "default": 3.0, "allowed": "float"},
        "per_device_train_batch_size": {"type": ["integer"], "default": 8, "allowed": "int"},
        "lr_scheduler_type": {
            "type": [],
            "enum": ["linear", "cosine"],
            "default": "linear",
            "allowed": "one of 'linear', 'cosine'",
        },
        "hub_token": {"type": ["string", "null"], "default": None, "allowed": "str or None"},
        "output_dir": {"type": ["string"], "default": None, "allowed": "str"},
    },
    "LoraConfig": {"r": {"type": ["integer"], "default": 8, "allowed": "int"}},
}


class Laboratory:
    """An experiment that a test fills as training would.

    Args:
        root: Folder of all experiments.
        name: The experiment's.
        num_runs: Queued at first.
    """

    def __init__(self, root: Path, name: str = "first", num_runs: int = 3) -> None:
        self.folder = ExperimentFolder.claim(root, name)
        self.runs = {RunId(number): queued(number) for number in range(1, num_runs + 1)}
        self.now_s = 1_800_000_000.0
        self.store = SqliteStore(self.folder.store)
        self.store.create(
            ExperimentRecord(name=name, created_s=self.now_s, seed=42, num_chunks=4),
            list(self.runs.values()),
        )
        for kind, schema in SCHEMAS.items():
            self.store.save_schema(kind, schema)

    def send(self, *events: Event) -> None:
        """Record events, a second after one another."""
        for event in events:
            self.now_s += 1.0
            before = self.runs[event.run_id]
            self.runs[event.run_id] = after = apply(before, event)
            self.store.record(before, event, after, self.now_s)

    def train(self, run_id: int, losses: list[float], *, first: int | None = None) -> None:
        """Have a run train steps, within a chunk that has begun."""
        run = self.runs[RunId(run_id)]
        begin = run.step + 1 if first is None else first
        rows = []
        for step, loss in enumerate(losses, begin):
            self.now_s += 0.1
            rows.append(row(run_id, step, loss, self.now_s))
        after = replace(
            run, step=begin + len(losses) - 1, loss=losses[-1], active_s=run.active_s + len(losses)
        )
        self.runs[run.id] = after
        self.store.save_progress([after], rows)

    def log(self, run_id: int, step: int, source: MetricSource, **values: float) -> None:
        """Have a run measure something."""
        self.now_s += 0.1
        self.store.save_progress(
            [self.runs[RunId(run_id)]],
            [row(run_id, step, value, self.now_s, name, source) for name, value in values.items()],
        )

    def begin(self, run_id: int, chunk: int = 0, num_steps: int = 40) -> None:
        """Have a run begin a chunk."""
        run = RunId(run_id)
        self.send(ChunkAssigned(run_id=run, worker_id=WorkerId(0), chunk=chunk))
        if chunk == 0:
            self.send(
                RunStarted(
                    run_id=run,
                    num_steps=num_steps,
                    num_chunks=4,
                    resolved={
                        "training_args": {
                            "per_device_train_batch_size": 4,
                            "gradient_accumulation_steps": 2,
                            "num_train_epochs": 1.0,
                            "max_steps": -1,
                            "hub_token": "hf_abcdefghijklmnopqrstuv",
                        },
                    },
                )
            )

    def pause(self, run_id: int, chunk: int = 0) -> None:
        """Have a run end a chunk."""
        run = self.runs[RunId(run_id)]
        self.send(ChunkFinished(run_id=run.id, chunk=chunk, step=run.step, active_s=run.active_s))

    def fail(self, run_id: int) -> None:
        """Have a run raise."""
        run = self.runs[RunId(run_id)]
        self.send(
            RunFailed(
                run_id=run.id,
                error="ValueError: bad row",
                traceback="Traceback\nValueError: bad row",
                active_s=run.active_s,
            )
        )

    def complete(self, run_id: int) -> None:
        """Have a run do its last step."""
        run = self.runs[RunId(run_id)]
        self.send(RunCompleted(run_id=run.id, step=run.step, active_s=run.active_s))

    def close(self) -> None:
        self.store.close()


def queued(number: int) -> Run:
    """A run that has not begun."""
    return Run(
        id=RunId(number),
        name=f"run-{number}",
        config={
            "trainer_type": "SFT",
            "model": {"model_name": "tiny", "model_kwargs": {"api_key": "s3cret"}},
            "training_args": {
                "learning_rate": 10.0**-number,
                "hub_token": "hf_abcdefghijklmnopqrstuv",
            },
            "peft": {"method": "LoraConfig", "r": 8},
        },
        path=f"/experiments/first/runs/{number}/final",
    )


def row(
    run_id: int,
    step: int,
    value: float,
    time_s: float,
    name: str = "loss",
    source: MetricSource = MetricSource.STEP,
) -> MetricRow:
    return MetricRow(
        run_id=RunId(run_id), source=source, step=step, name=name, value=value, time_s=time_s
    )


def filled(root: Path, name: str = "first") -> Laboratory:
    """An experiment with a run that goes on, one that has failed, and one that is waiting."""
    lab = Laboratory(root, name)
    lab.begin(1)
    lab.train(1, [4.0 - 0.1 * step for step in range(10)])
    lab.log(1, 10, MetricSource.CHUNK, eval_loss=2.5)
    lab.log(1, 10, MetricSource.LOG, loss=3.5, num_tokens=1000.0)
    lab.log(1, 10, MetricSource.DEVICE, host_memory_gib=1.5)
    lab.pause(1)
    lab.begin(2)
    lab.train(2, [5.0, math.nan])
    lab.fail(2)
    lab.begin(3)
    lab.train(3, [3.0, 2.0])
    lab.log(3, 2, MetricSource.CHUNK, eval_loss=2.75)
    lab.pause(3)
    lab.folder.log.write_text("2026 INFO run 1 has begun\n2026 INFO run 2 failed\n")
    return lab


def application(root: Path, **settings: Any) -> Application:
    """A server's application for the experiments in a folder."""
    return create_app(
        ServerSettings(
            **{"root": root, "token": TOKEN, "host": "127.0.0.1", "port": 3000, **settings}
        )
    )


def client(
    app: Application, headers: Mapping[str, str] = BEARER, base: str = f"http://{HOST}"
) -> httpx.AsyncClient:
    """A client of that application, without a network."""
    transport = httpx.ASGITransport(app.asgi, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url=base, headers=dict(headers))


@contextmanager
def laboratory(root: Path, **arguments: Any) -> Iterator[Laboratory]:
    """An experiment of queued runs."""
    with closing(Laboratory(root, **arguments)) as lab:
        yield lab


def wait_until(condition: Any, timeout_s: float = 20.0) -> None:
    """Poll until it is so."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.01)
