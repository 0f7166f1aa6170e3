"""The promise: interleaved with others, a run gives the very numbers that it gives alone."""

import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from rapidfireai import Experiment
from rapidfireai.automl import (
    RFDPOConfig,
    RFGRPOConfig,
    RFLoraConfig,
    RFModelConfig,
    RFSFTConfig,
)
from rapidfireai.core.events import MetricSource
from rapidfireai.store import SqliteStore
from rapidfireai.testing.tiny import sentence, tiny_model, tiny_tokenizer
from tests.training.solo import (
    Case,
    Outcome,
    early_stopping,
    exact_rows,
    solo_pool,
    train_alone,
    weights_hash,
    word_variety,
)

TEMPLATES: dict[str, type[Any]] = {"SFT": RFSFTConfig, "DPO": RFDPOConfig, "GRPO": RFGRPOConfig}


def rows(num_rows: int, seed: int) -> list[dict[str, Any]]:
    """Rows that SFT, DPO and GRPO can all train on."""
    rng = random.Random(seed)
    return [
        {
            "prompt": sentence(rng, 5),
            "completion": " " + sentence(rng, rng.randint(4, 9)),
            "chosen": " " + sentence(rng, rng.randint(4, 9)),
            "rejected": " " + sentence(rng, rng.randint(4, 9)),
        }
        for _ in range(num_rows)
    ]


def lora(r: int, **changes: Any) -> dict[str, Any]:
    return {
        "r": r,
        "lora_alpha": 2 * r,
        "lora_dropout": 0.1,
        "target_modules": ["q_proj", "v_proj", "up_proj"],
        "task_type": "CAUSAL_LM",
        **changes,
    }


def case(trainer: str, *, r: int | None = 4, **args: Any) -> Case:
    """Small steps with dropout on; GRPO with generations to match."""
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "max_steps": 8,
        "logging_steps": 1,
        "learning_rate": 5e-3,
        "max_length": 64,
    }
    kwargs: dict[str, Any] = {}
    if trainer == "GRPO":
        defaults.pop("max_length")
        defaults |= {"num_generations": 4, "max_completion_length": 8}
        kwargs["reward_funcs"] = word_variety
    if args.pop("early_stopping", False):
        kwargs["callbacks"] = early_stopping()
    return Case(
        trainer=trainer,
        args={**defaults, **args},
        lora=None if r is None else lora(r),
        trainer_kwargs=kwargs,
    )


class Crash(Exception):
    """What the failing neighbour raises."""


class CrashingReward:
    """Fails in the middle of a run."""

    __name__ = "crashing_reward"

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, completions: list[str], **_: Any) -> list[float]:
        self.calls += 1
        if self.calls == 3:
            raise Crash("the reward service is gone")
        return word_variety(completions)


@dataclass(frozen=True)
class Scenario:
    """Cases that train side by side."""

    cases: tuple[Case, ...]
    num_chunks: int = 4
    num_rows: int = 64
    eval_rows: int = 0
    failing: int | None = None
    """Index of the case that is meant to fail."""


SCENARIOS = {
    "sft_dpo_grpo_and_a_full_finetune": Scenario(
        (
            case("SFT", r=4, seed=1),
            case("DPO", r=8, seed=2),
            case("GRPO", r=4, seed=3, max_steps=5),
            case("GRPO", r=2, seed=4, max_steps=6, num_iterations=2, beta=0.02,
                 gradient_accumulation_steps=2),
            case("SFT", r=None, seed=5, learning_rate=1e-3),
            case("DPO", r=None, seed=6, learning_rate=1e-4),
        ),
        eval_rows=10,
    ),
    "bf16_beside_fp32": Scenario(
        (
            case("SFT", bf16=True, seed=1),
            case("SFT", seed=2, gradient_checkpointing=False),
            case("DPO", bf16=True, seed=3, max_steps=5),
            case("SFT", fp16=True, seed=4),
        ),
        num_chunks=2,
    ),
    "gradient_accumulation_1_3_4": Scenario(
        (
            case("SFT", seed=1),
            case("SFT", seed=1, gradient_accumulation_steps=3, per_device_train_batch_size=2),
            case("SFT", seed=2, gradient_accumulation_steps=4, per_device_train_batch_size=1),
        ),
        num_chunks=3,
    ),
    "several_epochs_over_ragged_data": Scenario(
        (
            case("SFT", seed=7, max_steps=-1, num_train_epochs=2),
            case("SFT", seed=8, max_steps=-1, num_train_epochs=3, per_device_train_batch_size=8,
                 lr_scheduler_type="cosine", warmup_steps=2),
            case("DPO", seed=9, max_steps=-1, num_train_epochs=2, gradient_accumulation_steps=2),
            case("SFT", seed=7, max_steps=11, max_grad_norm=0.1),
        ),
        num_chunks=5,
        num_rows=27,
        eval_rows=7,
    ),
    "own_evaluation_and_early_stopping": Scenario(
        (
            case("SFT", seed=1, eval_strategy="steps", eval_steps=2, save_strategy="steps",
                 save_steps=2, load_best_model_at_end=True, metric_for_best_model="eval_loss",
                 learning_rate=1.0, max_steps=12, early_stopping=True),
            case("SFT", seed=2, eval_strategy="steps", eval_steps=3),
            case("SFT", seed=3, eval_strategy="epoch", max_steps=-1, num_train_epochs=1,
                 logging_steps=3),
            case("GRPO", seed=4, max_steps=4, eval_strategy="steps", eval_steps=2,
                 per_device_eval_batch_size=4),
        ),
        num_rows=32,
        eval_rows=8,
    ),
    "a_crashing_neighbour": Scenario(
        (
            case("SFT", seed=1),
            Case("GRPO", case("GRPO", max_steps=6).args, lora(4),
                 {"reward_funcs": CrashingReward()}),
            case("DPO", seed=2),
        ),
        failing=1,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with solo_pool() as executor:
        yield executor


def train_together(scenario: Scenario, folder: Path) -> Experiment:
    configs = []
    for spec in scenario.cases:
        configs.append(
            RFModelConfig(
                model_name="tiny",
                peft_config=None if spec.lora is None else RFLoraConfig(**spec.lora),
                training_args=TEMPLATES[spec.trainer](**spec.args),
                **spec.trainer_kwargs,
            )
        )
    experiment = Experiment("exact", experiment_path=folder)
    experiment.run_fit(
        configs,
        create_model=lambda config: (tiny_model(), tiny_tokenizer()),
        train_dataset=Dataset.from_list(rows(scenario.num_rows, seed=0)),
        eval_dataset=Dataset.from_list(rows(scenario.eval_rows, seed=1))
        if scenario.eval_rows
        else None,
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


def merged(history: list[tuple[int, dict[str, str]]]) -> list[tuple[int, dict[str, str]]]:
    """Rows of one step as one: a step's log, its evaluation and the end's summary."""
    steps: dict[int, dict[str, str]] = {}
    for step, values in history:
        steps.setdefault(step, {}).update(values)
    return sorted(steps.items())


@pytest.mark.parametrize("name", SCENARIOS)
def test_interleaved_equals_solo(name: str, tmp_path: Path, pool: ProcessPoolExecutor) -> None:
    torch.set_num_threads(1)
    scenario = SCENARIOS[name]
    alone = {
        number: pool.submit(
            train_alone, spec, rows(scenario.num_rows, seed=0), rows(scenario.eval_rows, seed=1)
        )
        for number, spec in enumerate(scenario.cases)
        if number != scenario.failing
    }
    experiment = train_together(scenario, tmp_path)
    info = experiment.get_runs_info()
    for number in range(len(scenario.cases)):
        run = info.iloc[number]
        if number == scenario.failing:
            assert run["status"] == "failed"
            assert "Crash: the reward service is gone" in run["error"]
            continue
        assert run["status"] == "completed", run["error"]
        expected, got = alone[number].result(timeout=300), outcome(experiment, number + 1)
        assert got.losses == expected.losses, f"losses of {scenario.cases[number]}"
        assert got.rows == merged(expected.rows), f"log rows of {scenario.cases[number]}"
        assert got.weights == expected.weights, f"weights of {scenario.cases[number]}"
        assert run["chunks_done"] > 1, "never interleaved"
