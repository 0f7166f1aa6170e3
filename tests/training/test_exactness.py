"""The promise: interleaved with others, a run gives the very numbers that it gives alone."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from transformers import Trainer, TrainerCallback

from rapidfireai import Experiment
from rapidfireai.automl import (
    List,
    RFCPOConfig,
    RFDistillationConfig,
    RFDPOConfig,
    RFGRPOConfig,
    RFKTOConfig,
    RFLoraConfig,
    RFModelConfig,
    RFORPOConfig,
    RFRewardConfig,
    RFRLOOConfig,
    RFSFTConfig,
)
from rapidfireai.core.events import MetricSource
from rapidfireai.store import SqliteStore
from rapidfireai.testing.tiny import tiny_model, tiny_tokenizer
from rapidfireai.training.context import TrainerContext
from tests.training.scenarios import SCENARIOS, Scenario, case
from tests.training.solo import (
    OWN_TRAINERS,
    Case,
    Outcome,
    Row,
    SoloRuns,
    create_model,
    exact_rows,
    own_config,
    own_trainer,
    weights_hash,
)

TEMPLATES: dict[str, type[Any]] = {
    "SFT": RFSFTConfig,
    "DPO": RFDPOConfig,
    "GRPO": RFGRPOConfig,
    "RLOO": RFRLOOConfig,
    "KTO": RFKTOConfig,
    "ORPO": RFORPOConfig,
    "CPO": RFCPOConfig,
    "Reward": RFRewardConfig,
    "Distillation": RFDistillationConfig,
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def solo() -> Iterator[SoloRuns]:
    runs = SoloRuns()
    yield runs
    runs.close()


def template(spec: Case) -> Any:
    """The case as a user of the engine writes it."""
    if spec.trainer in OWN_TRAINERS:
        return own_config(spec)
    return RFModelConfig(
        model_name="tiny",
        peft_config=None if spec.lora is None else RFLoraConfig(**spec.lora),
        training_args=TEMPLATES[spec.trainer](**spec.args),
        **spec.kwargs,
    )


def create_trainer(config: Mapping[str, Any], context: TrainerContext) -> Trainer:
    """The user's own trainers from dictionaries, and TRL's from the rest."""
    if "trainer" not in config:
        trainer: Trainer = getattr(trl, f"{config['trainer_type']}Trainer")(
            model=context.model,
            args=context.training_args,
            train_dataset=context.train_dataset,
            eval_dataset=context.eval_dataset,
            processing_class=context.tokenizer,
            peft_config=context.peft_config,
        )
        return trainer
    return own_trainer(
        config,
        model=context.private_model() if config["lora"] is None else context.model,
        tokenizer=context.tokenizer,
        train=context.train_dataset,
        evaluation=context.eval_dataset,
        output_dir=context.output_dir,
    )


def train_together(scenario: Scenario, folder: Path) -> Experiment:
    uses_own = any(spec.trainer in OWN_TRAINERS for spec in scenario.cases)
    experiment = Experiment("exact", experiment_path=folder)
    experiment.run_fit(
        [template(spec) for spec in scenario.cases],
        create_model=lambda config: (
            create_model("Reward" if config.get("model_type") == "seq_cls" else ""),
            tiny_tokenizer(),
        ),
        create_trainer=create_trainer if uses_own else None,
        train_dataset=Dataset.from_list(scenario.train),
        eval_dataset=Dataset.from_list(scenario.evaluation) if scenario.num_eval_rows else None,
        num_chunks=scenario.num_chunks,
    )
    return experiment


def outcome(experiment: Experiment, run_id: int) -> Outcome:
    """What the run left behind: the store's values and the weights in its folder."""
    store = SqliteStore(experiment.path / "experiment.db")
    run = store.runs()[run_id - 1]
    values = [row for row in store.metrics() if row.run_id == run_id]
    store.close()
    steps = [row for row in values if row.source is MetricSource.STEP]
    logged: dict[int, dict[str, Any]] = {}
    for row in values:
        if row.source is MetricSource.LOG:
            logged.setdefault(row.step, {"step": row.step})[row.name] = row.value
    return Outcome(
        losses=[row.value.hex() for row in sorted(steps, key=lambda row: row.step)],
        rows=exact_rows([logged[step] for step in sorted(logged)]),
        weights=weights_hash(Path(run.path)),
    )


def merged(history: list[Row]) -> list[Row]:
    """Rows of one step as one: a step's log, its evaluation and the end's summary."""
    steps: dict[int, dict[str, str]] = {}
    for step, values in history:
        steps.setdefault(step, {}).update(values)
    return sorted(steps.items())


def assert_equal_to_solo(scenario: Scenario, experiment: Experiment, solo: SoloRuns) -> None:
    info = experiment.get_runs_info()
    for number, spec in enumerate(scenario.cases):
        run = info.iloc[number]
        if number == scenario.failing:
            assert run["status"] == "failed"
            assert "Crash: the reward service is gone" in run["error"]
            continue
        assert run["status"] == "completed", run["traceback"]
        alone = solo.start(spec, scenario.train, scenario.evaluation)
        expected, got = alone.result(timeout=300), outcome(experiment, number + 1)
        assert got.losses == expected.losses, f"losses of {spec}"
        assert got.rows == merged(expected.rows), f"log rows of {spec}"
        assert got.weights == expected.weights, f"weights of {spec}"


def start_solo(scenario: Scenario, solo: SoloRuns) -> None:
    """Let the references train in the background."""
    for number, spec in enumerate(scenario.cases):
        if number != scenario.failing:
            solo.start(spec, scenario.train, scenario.evaluation)


@pytest.mark.parametrize("name", SCENARIOS)
def test_interleaved_equals_solo(name: str, tmp_path: Path, solo: SoloRuns) -> None:
    scenario = SCENARIOS[name]
    start_solo(scenario, solo)
    experiment = train_together(scenario, tmp_path)
    assert_equal_to_solo(scenario, experiment, solo)
    info = experiment.get_runs_info()
    assert (info["chunks_done"][info["status"] == "completed"] > 1).all(), "never interleaved"


def test_the_number_of_chunks_changes_no_number(tmp_path: Path, solo: SoloRuns) -> None:
    scenario = Scenario((case("SFT", seed=1), case("DPO", seed=2)))
    start_solo(scenario, solo)
    for num_chunks, expected in ((1, 1), (3, 3), (100, 8)):
        experiment = train_together(replace(scenario, num_chunks=num_chunks), tmp_path)
        assert_equal_to_solo(scenario, experiment, solo)
        assert list(experiment.get_runs_info()["chunks_done"]) == [expected] * 2


class StepCounter(TrainerCallback):
    """Counts the steps that it has seen, and says so in every log row."""

    def __init__(self) -> None:
        self.num_steps = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.num_steps += 1

    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **kwargs: Any) -> None:
        logs["steps_seen"] = self.num_steps


def test_callbacks_with_state_are_not_shared(tmp_path: Path) -> None:
    counter = StepCounter()
    config = RFModelConfig(
        training_args=RFSFTConfig(
            **{**case("SFT").args, "max_steps": 4, "learning_rate": List([1e-3, 1e-2])}
        ),
        peft_config=RFLoraConfig(r=4),
        callbacks=[counter],
    )
    experiment = Experiment("callbacks", experiment_path=tmp_path)
    experiment.run_fit(
        config,
        lambda config: (tiny_model(), tiny_tokenizer()),
        Dataset.from_list(Scenario(()).train),
        num_chunks=2,
    )
    seen = experiment.get_results().dropna(subset=["steps_seen"])
    assert sorted(set(seen["run_id"])) == [1, 2]
    assert list(seen["steps_seen"]) == list(seen["step"])
    assert counter.num_steps == 0
