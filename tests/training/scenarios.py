"""Configurations that train side by side, and the data they train on."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rapidfireai.testing.tiny import sentence
from tests.training.solo import OWN_TRAINERS, Case, early_stopping, teacher, word_variety

GENERATING = ("GRPO", "RLOO", "Distillation")


def rows(num_rows: int, seed: int) -> list[dict[str, Any]]:
    """Rows that every trainer can train on."""
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


def case(trainer: str, *, r: int | None = 4, stops_early: bool = False, **args: Any) -> Case:
    """Small steps with dropout on, and generations to match."""
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "max_steps": 8,
        "logging_steps": 1,
        "learning_rate": 5e-3,
        "max_length": 64,
    }
    if trainer in GENERATING or trainer in OWN_TRAINERS:
        del defaults["max_length"]
    if trainer in GENERATING:
        defaults["max_completion_length"] = 8
    if trainer in ("GRPO", "RLOO"):
        defaults["num_generations"] = 4
    made: dict[str, Callable[[], Any]] = {}
    if trainer == "Distillation":
        made["teacher_model"] = teacher
    if stops_early:
        made["callbacks"] = early_stopping
    task = {"task_type": "SEQ_CLS"} if trainer == "Reward" else {}
    return Case(
        trainer=trainer,
        args={**defaults, **args},
        lora=None if r is None else lora(r, **task),
        trainer_kwargs={"reward_funcs": word_variety} if trainer in ("GRPO", "RLOO") else {},
        made_kwargs=made,
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
    num_eval_rows: int = 0
    failing: int | None = None
    """Index of the case that is meant to fail."""

    @property
    def train(self) -> list[dict[str, Any]]:
        return rows(self.num_rows, seed=0)

    @property
    def evaluation(self) -> list[dict[str, Any]]:
        return rows(self.num_eval_rows, seed=1)


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
        num_eval_rows=10,
    ),
    "rloo_kto_reward_and_distillation": Scenario(
        (
            case("RLOO", seed=1, max_steps=4, num_iterations=2, gradient_accumulation_steps=2),
            case("KTO", seed=2),
            case("Reward", seed=3, lr_scheduler_type="cosine"),
            case("Distillation", seed=4, max_steps=4),
            case("KTO", r=None, seed=5, max_steps=4, learning_rate=1e-4),
            case("Reward", r=None, seed=6, max_steps=4, learning_rate=1e-3),
        ),
        num_chunks=3,
        num_eval_rows=4,
    ),
    "trainers_of_the_users_own": Scenario(
        (
            case("Noisy", seed=1, eval_strategy="steps", eval_steps=3),
            case("Noisy", r=None, seed=2, learning_rate=1e-3, gradient_accumulation_steps=2),
            case("Loop", seed=3),
            case("SFT", seed=4),
        ),
        num_eval_rows=6,
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
        num_eval_rows=7,
    ),
    "own_evaluation_and_early_stopping": Scenario(
        (
            case("SFT", seed=1, eval_strategy="steps", eval_steps=2, save_strategy="steps",
                 save_steps=2, load_best_model_at_end=True, metric_for_best_model="eval_loss",
                 learning_rate=1.0, max_steps=12, stops_early=True),
            case("SFT", seed=2, eval_strategy="steps", eval_steps=3),
            case("SFT", seed=3, eval_strategy="epoch", max_steps=-1, num_train_epochs=1,
                 logging_steps=3),
            case("GRPO", seed=4, max_steps=4, eval_strategy="steps", eval_steps=2,
                 per_device_eval_batch_size=4),
        ),
        num_rows=32,
        num_eval_rows=8,
    ),
    "weights_that_an_optimizer_exchanges_for_evaluation": Scenario(
        (
            case("SFT", seed=1, optim="schedule_free_adamw", lr_scheduler_type="constant"),
            case("SFT", seed=2, optim="schedule_free_sgd", eval_strategy="steps", eval_steps=3,
                 gradient_accumulation_steps=2),
            case("DPO", r=None, seed=3, optim="schedule_free_radam", learning_rate=1e-4),
        ),
        num_eval_rows=6,
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
"""By what they show."""
