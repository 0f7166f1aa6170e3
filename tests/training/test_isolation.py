"""A run that breaks, diverges or writes where it must not fails alone."""

import math
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import TrainerCallback

from rapidfireai import Experiment, RFModelConfig, RFSFTConfig
from rapidfireai.core.events import MetricSource
from rapidfireai.store import SqliteStore
from rapidfireai.testing.tiny import text_rows, tiny_model, tiny_tokenizer
from rapidfireai.training.instrument import DIVERGENCE_PATIENCE


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def cell(frame: pd.DataFrame, row: int, column: str) -> Any:
    """One value of a table."""
    return frame[column].iloc[row]


def create_model(config: dict[str, Any]) -> tuple[Any, Any]:
    return tiny_model(), tiny_tokenizer()


def sft(*callbacks: TrainerCallback, **args: Any) -> RFModelConfig:
    return RFModelConfig(
        training_args=RFSFTConfig(
            **{
                "max_steps": 8,
                "per_device_train_batch_size": 4,
                "logging_steps": 1,
                "max_length": 64,
                "lora_rank": 4,
                "lora_dropout": 0.1,
                **args,
            }
        ),
        callbacks=list(callbacks),
    )


def train(folder: Path, *configs: RFModelConfig) -> Experiment:
    experiment = Experiment("isolation", experiment_path=folder)
    experiment.run_fit(list(configs), create_model, text_rows(), num_chunks=4)
    return experiment


def step_losses(experiment: Experiment, run_id: int) -> list[float]:
    with closing(SqliteStore(experiment.path / "experiment.db")) as store:
        rows = [r for r in store.metrics() if r.run_id == run_id and r.source is MetricSource.STEP]
    return [row.value for row in rows]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of a healthy run without neighbours."""
    torch.set_num_threads(1)
    return step_losses(train(tmp_path_factory.mktemp("alone"), sft()), 1)


class WritesToTheBase(TrainerCallback):
    """Changes a frozen weight at step 3, in one of the ways that trainers have."""

    def __init__(self, how: str) -> None:
        self.how = how

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step != 3:
            return
        weight = next(p for n, p in kwargs["model"].named_parameters() if "q_proj.base" in n)
        if self.how == "data":
            weight.data += 1
        elif self.how == "storage":
            weight.data = torch.zeros_like(weight)
        else:
            with torch.no_grad():
                weight.mul_(2)


@pytest.mark.parametrize("how", ["data", "storage", "in place"])
def test_a_write_to_the_shared_base_fails_its_run_and_no_other(
    how: str, tmp_path: Path, undisturbed: list[float]
) -> None:
    experiment = train(tmp_path, sft(), sft(WritesToTheBase(how)), sft())
    info = experiment.get_runs_info()
    assert list(info["status"]) == ["completed", "failed", "completed"]
    assert "SharedWeightsError: The run wrote to base weights" in cell(info, 1, "error")
    assert "share_base=False" in cell(info, 1, "error")
    # Its chunk's last step was trained and is not lost.
    assert len(step_losses(experiment, 2)) == cell(info, 1, "step") == 4
    assert step_losses(experiment, 1) == undisturbed
    assert step_losses(experiment, 3) == undisturbed


def test_a_run_with_a_base_of_its_own_may_write_to_it(
    tmp_path: Path, undisturbed: list[float]
) -> None:
    writer = sft(WritesToTheBase("data"))
    writer.share_base = False
    experiment = train(tmp_path, writer, sft())
    assert list(experiment.get_runs_info()["status"]) == ["completed"] * 2
    assert step_losses(experiment, 1)[3:] != undisturbed[3:]
    assert step_losses(experiment, 2) == undisturbed


class Raises(TrainerCallback):
    """Raises at step 3."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise self.error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no such\nrow"), "ValueError: no such"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory on cpu: a smaller per_dev"),
        (MemoryError(), "out of memory on cpu: a smaller per_device_train_batch_size"),
        (SystemExit(3), "SystemExit: 3"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_raising_run_keeps_its_traceback_and_what_it_learned(
    error: BaseException, line: str, tmp_path: Path, undisturbed: list[float]
) -> None:
    experiment = train(tmp_path, sft(), sft(Raises(error)))
    info = experiment.get_runs_info()
    assert list(info["status"]) == ["completed", "failed"]
    assert cell(info, 1, "error").startswith(line)
    assert "on_step_end" in cell(info, 1, "traceback")
    assert (Path(cell(info, 1, "path")) / "adapter_model.safetensors").exists()
    assert step_losses(experiment, 1) == undisturbed


class Poisons(TrainerCallback):
    """Turns the adapter into NaN after step 2."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            for parameter in kwargs["model"].parameters():
                if parameter.requires_grad:
                    parameter.data.fill_(math.nan)


def test_a_run_whose_loss_stays_nan_has_diverged(tmp_path: Path, undisturbed: list[float]) -> None:
    experiment = train(tmp_path, sft(Poisons()), sft())
    info = experiment.get_runs_info()
    assert list(info["status"]) == ["failed", "completed"]
    assert cell(info, 0, "error").startswith("DivergedError: the loss was not finite at 3 steps")
    losses = step_losses(experiment, 1)
    assert len(losses) == 2 + DIVERGENCE_PATIENCE
    assert [math.isnan(loss) for loss in losses] == [False] * 2 + [True] * DIVERGENCE_PATIENCE
    assert step_losses(experiment, 2) == undisturbed


def test_a_run_that_is_nan_at_its_end_has_diverged(tmp_path: Path) -> None:
    experiment = train(tmp_path, sft(Poisons(), max_steps=3))
    (run,) = experiment.get_runs_info().to_dict("records")
    assert run["status"] == "failed"
    assert "the loss of the last step, 3, is not finite" in run["error"]


def test_pauses_do_not_count_as_training_time(tmp_path: Path) -> None:
    experiment = train(tmp_path, sft(), sft(), sft())
    info: pd.DataFrame = experiment.get_runs_info()
    # What the trainer logged at its end, and the clock that stands still during pauses.
    logged: Mapping[int, float] = dict(zip(info["run_id"], info["train_runtime"], strict=True))
    active: Mapping[int, float] = dict(zip(info["run_id"], info["active_s"], strict=True))
    assert all(0 < logged[run] <= active[run] for run in logged)
    rate = info["train_steps_per_second"] * info["train_runtime"]
    assert all(abs(steps - 8) < 0.1 for steps in rate)
