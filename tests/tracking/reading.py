"""What trackers hold of an experiment, asked through their own libraries."""

import json
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rapidfireai.tracking import MLflow, Settings, TensorBoard, Trackio, WandB
from rapidfireai.tracking._protocol import STATUS
from rapidfireai.tracking.mlflow import metric_key


@dataclass
class Told:
    """What a tracker knows of a run."""

    points: list[tuple[str, int, float]] = field(default_factory=list)
    """Name, step and value in the order in which the tracker has them."""
    parameters: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    status: str | None = None
    """As the tracker's own API calls it."""


def told(settings: Settings, experiment: str) -> dict[str, Told]:
    """All that the tracker holds, by the names of the runs."""
    read: Mapping[type, Callable[[Any, str], dict[str, Told]]] = {
        MLflow: _mlflow,
        TensorBoard: _tensorboard,
        Trackio: _trackio,
        WandB: _wandb,
    }
    return read[type(settings)](settings, experiment)


def _mlflow(settings: MLflow, experiment: str) -> dict[str, Told]:
    assert settings.tracking_uri is not None
    client = mlflow_client(settings.tracking_uri)
    found = client.get_experiment_by_name(settings.experiment or experiment)
    assert found is not None
    runs: dict[str, Told] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stored = client.search_runs([found.experiment_id])
    for run in stored:
        assert run.info.run_name not in runs, "a run is there twice"
        one = runs[run.info.run_name] = Told(status=run.info.status)
        one.parameters = dict(run.data.params)
        one.state = {
            name.removeprefix("rapidfireai."): value for name, value in run.data.tags.items()
        }
        one.points = [
            (metric.key, metric.step, _mlflow_value(metric.value))
            for name in run.data.metrics
            for metric in client.get_metric_history(run.info.run_id, name)
        ]
    return runs


def mlflow_client(uri: str) -> Any:
    """A client, whose libraries' warnings among each other are none of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=uri)
        client.search_experiments()  # makes the tables
    return client


def _mlflow_value(value: float) -> float:
    # MLflow's own stores keep infinities as the largest numbers.
    return math.copysign(math.inf, value) if abs(value) > 1.7e308 else value


def _tensorboard(settings: TensorBoard, experiment: str) -> dict[str, Told]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert settings.log_dir is not None
    runs: dict[str, Told] = {}
    for folder in (Path(settings.log_dir) / experiment).iterdir():
        events = EventAccumulator(str(folder), {"scalars": 0, "tensors": 0}).Reload()
        one = runs[folder.name] = Told()
        for tag in events.Tags()["scalars"]:
            one.points += [(tag, event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["tensors"]:
            text = events.Tensors(tag)[-1].tensor_proto.string_val[0].decode()
            table = dict(line[2:-2].split(" | ", 1) for line in text.splitlines()[2:])
            if tag.startswith("rapidfireai/config"):
                one.parameters = table
            else:
                one.state = table
    return runs


def _trackio(settings: Trackio, experiment: str) -> dict[str, Told]:
    from trackio import Api
    from trackio.sqlite_storage import SQLiteStorage

    runs: dict[str, Told] = {}
    project = settings.project or experiment
    for run in Api().runs(project):
        assert run.name not in runs, "a run is there twice"
        one = runs[run.name] = Told()
        config = run.config or {}
        one.state = {
            name.removeprefix("rapidfireai."): value
            for name, value in config.items()
            if name.startswith("rapidfireai.")
        }
        one.parameters = {
            name: value for name, value in config.items() if not name.startswith("rapidfireai.")
        }
        for row in SQLiteStorage.get_logs(project, run.name, run_id=run.id):
            one.points += [
                (name, row["step"], float(value))
                for name, value in row.items()
                if name not in ("step", "timestamp") and value is not None
            ]
    return runs


def _wandb(settings: WandB, experiment: str) -> dict[str, Told]:
    """The files that `wandb sync` reads; W&B's API knows what a server has only."""
    from wandb.proto.wandb_internal_pb2 import Record

    from rapidfireai.tracking.wandb import _LogFile

    assert settings.directory is not None
    runs: dict[str, Told] = defaultdict(Told)
    rows: dict[str, set[int]] = defaultdict(set)
    for file in sorted(Path(settings.directory).glob("wandb/*run-*-*/*.wandb")):
        name = ""
        for body in _LogFile(file)._new_records():
            record = Record.FromString(body)
            if record.HasField("run"):
                name = record.run.display_name
                assert record.run.run_group == experiment
            for item in record.config.update:
                runs[name].parameters[item.key] = json.loads(item.value_json)
            for item in record.summary.update:
                key = item.nested_key[0] if item.nested_key else item.key
                if key.startswith("rapidfireai."):
                    runs[name].state[key.removeprefix("rapidfireai.")] = json.loads(item.value_json)
            if record.HasField("history"):
                row = {
                    item.nested_key[0]: json.loads(item.value_json) for item in record.history.item
                }
                assert row["_step"] not in rows[name], "W&B drops a row whose number it has had"
                rows[name].add(row["_step"])
                runs[name].points += [
                    (key, row["event" if key == STATUS else "step"], _wandb_value(value))
                    for key, value in row.items()
                    if key not in ("step", "event") and not key.startswith("_")
                ]
    return dict(runs)


def _wandb_value(value: Any) -> float:
    with suppress(TypeError, ValueError):
        return float(value)
    raise AssertionError(f"{value!r} is no number")


def stored_name(settings: Settings, name: str) -> str:
    """A metric's name as the tracker has it."""
    return metric_key(name) if isinstance(settings, MLflow) else name
