"""An experiment as a training leaves it behind, made without training anything."""

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from rapidfireai.core.events import (
    ChunkAssigned,
    ChunkFinished,
    Event,
    Json,
    MetricSource,
    RunCompleted,
    RunFailed,
    RunStarted,
    RunStopped,
    StepFinished,
)
from rapidfireai.core.ids import RunId, WorkerId
from rapidfireai.core.run import Run, apply
from rapidfireai.core.schema import Schema
from rapidfireai.paths import ExperimentFolder
from rapidfireai.store import ExperimentRecord, MetricRow, SqliteStore

BEGUN_S = 1_763_801_400.0
NUM_STEPS = 40

SCHEMAS: Mapping[str, Schema] = {
    "SFT": {
        "learning_rate": {"type": ["number"], "default": 2e-5, "allowed": "float"},
        "max_steps": {"type": ["integer"], "default": -1, "allowed": "int"},
        "packing": {"type": ["boolean"], "default": False, "allowed": "bool"},
        "lr_scheduler_type": {
            "type": ["null"], "enum": ["linear", "cosine"], "default": "linear",
            "allowed": "linear, cosine",
        },
    },
    "LoraConfig": {
        "r": {"type": ["integer"], "default": 8, "allowed": "int"},
        "lora_alpha": {"type": ["integer"], "default": 8, "allowed": "int"},
        "target_modules": {
            "type": ["array", "string", "null"], "default": None, "allowed": "list or str or None"
        },
    },
}  # fmt: skip


def config(learning_rate: float, r: int) -> dict[str, Json]:
    return {
        "trainer_type": "SFT",
        "training_args": {"learning_rate": learning_rate, "max_steps": NUM_STEPS},
        "peft": {"method": "LoraConfig", "r": r, "target_modules": ["q_proj", "v_proj"]},
        "model": {"model_name": "HuggingFaceTB/SmolLM2-135M-Instruct"},
    }


def events(run_id: RunId, num_chunks: int, loss: float, *end: Event) -> list[Event]:
    """A run's life: so many chunks of ten steps each, then its end."""
    worker = WorkerId(0)
    found: list[Event] = []
    for chunk in range(num_chunks):
        step, active_s = 10 * (chunk + 1), 5.0 * (chunk + 1)
        found.append(ChunkAssigned(run_id=run_id, worker_id=worker, chunk=chunk))
        if chunk == 0:
            found.append(RunStarted(run_id=run_id, num_steps=NUM_STEPS, num_chunks=4, resolved={}))
        found.append(
            StepFinished(run_id=run_id, step=step, loss=loss / (chunk + 1), active_s=active_s)
        )
        if chunk < 3:
            found.append(ChunkFinished(run_id=run_id, chunk=chunk, step=step, active_s=active_s))
    return [*found, *end]


def live(store: SqliteStore, run: Run, events: Sequence[Event]) -> Run:
    for number, event in enumerate(events):
        after = apply(run, event)
        store.record(run, event, after, BEGUN_S + number)
        run = after
    return run


def laboratory(root: Path, name: str = "lab") -> ExperimentFolder:
    """Four runs: completed, waiting, stopped as it did not learn, failed."""
    folder = ExperimentFolder.claim(root, name)
    ids = [RunId(number) for number in (1, 2, 3, 4)]
    configs = [config(rate, r) for rate in (1e-3, 1e-5) for r in (8, 32)]
    runs = [
        Run(id=i, name=f"run-{i}", config=one, identity=str(i), path=str(folder.final(i)))
        for i, one in zip(ids, configs, strict=True)
    ]
    one, two, three, four = ids
    with closing(SqliteStore(folder.store)) as store:
        store.create(
            ExperimentRecord(name=folder.name, created_s=BEGUN_S, seed=42, num_chunks=4), runs
        )
        for kind, schema in SCHEMAS.items():
            store.save_schema(kind, schema)
        lives = [
            events(one, 4, 2.5, RunCompleted(run_id=one, step=40, active_s=20.0)),
            events(two, 3, 2.75),
            events(three, 2, 4.0, RunStopped(run_id=three, reason="no progress", active_s=10.0)),
            events(
                four, 1, 3.5,
                ChunkAssigned(run_id=four, worker_id=WorkerId(0), chunk=1),
                RunFailed(
                    run_id=four, error="ValueError: out of luck",
                    traceback="Traceback (most recent call last):\nValueError: out of luck",
                    active_s=6.0,
                ),
            ),
        ]  # fmt: skip
        for run, life in zip(runs, lives, strict=True):
            live(store, run, life)
        store.save_progress(
            [],
            [
                MetricRow(
                    run_id=run_id,
                    source=source,
                    step=10,
                    name=metric,
                    value=value,
                    time_s=BEGUN_S,
                )
                for run_id, loss in ((one, 0.75), (two, 1.25), (three, 2.5), (four, 3.5))
                for source, metric, value in (
                    (MetricSource.CHUNK, "eval_loss", loss),
                    (MetricSource.LOG, "rewards/margins", -loss),
                )
            ],
        )
    for run_id in ids:
        write(folder.final(run_id) / "model.safetensors", 3000)
        (folder.final(run_id) / "trainer_state.json").write_text(json.dumps({"global_step": 40}))
        write(folder.run(run_id) / "checkpoints" / "checkpoint-40" / "optimizer.pt", 5000)
    return folder


def write(path: Path, num_bytes: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(num_bytes))


def stored(folder: ExperimentFolder) -> dict[int, Run]:
    with closing(SqliteStore(folder.store)) as store:
        return {run.id: run for run in store.runs()}


def change(folder: ExperimentFolder, run_id: int, **changes: Json) -> None:
    """Have the stored run otherwise, whatever the table of transitions says."""
    with closing(SqliteStore(folder.store)) as store:
        (run,) = (run for run in store.runs() if run.id == run_id)
        event = StepFinished(run_id=run.id, step=run.step, loss=1.0, active_s=1.0)
        store.record(run, event, replace(run, **changes), BEGUN_S)
