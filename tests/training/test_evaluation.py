"""The evaluation at a chunk's end leaves no trace in the trainer."""

import copy
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from transformers import EarlyStoppingCallback, TrainerCallback

from rapidfireai.testing.tiny import prompt_rows, text_rows, tiny_model, tiny_tokenizer
from rapidfireai.training.evaluation import evaluate_quietly, numbers
from rapidfireai.workers.process_state import ProcessState, RngState
from tests.training.solo import word_variety


@pytest.fixture(autouse=True)
def _own_process_state() -> Iterator[None]:
    torch.set_num_threads(1)
    with ProcessState():
        yield


class Recorder(TrainerCallback):
    """Counts what it is told."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.heard.append("evaluate")

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.heard.append("prediction step")

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.heard.append("log")
        control.should_training_stop = True


def build(kind: str, folder: Path, recorder: Recorder | None = None, **args: Any) -> Any:
    """A tiny trainer with dropout, two layers and an evaluation set or two."""
    given = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "logging_steps": 100,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **args,
    }
    kwargs: dict[str, Any] = {}
    rows: Callable[[int, int], Dataset] = text_rows
    if kind == "GRPO":
        given |= {"num_generations": 4, "max_completion_length": 8, "num_iterations": 2}
        kwargs["reward_funcs"] = word_variety
        rows = prompt_rows
    else:
        given["max_length"] = 32
    evaluation: Any = rows(8, 1)
    if kind == "SFT":
        evaluation = {"one": evaluation, "two": rows(6, 2)}
    return getattr(trl, f"{kind}Trainer")(
        model=tiny_model(),
        args=getattr(trl, f"{kind}Config")(**given),
        train_dataset=rows(16, 0),
        eval_dataset=evaluation,
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=2, lora_dropout=0.2, target_modules=["q_proj", "v_proj"]),
        callbacks=[recorder] if recorder else None,
        **kwargs,
    )


def before_each_step(trainer: Any, action: Callable[[], object]) -> None:
    """Call the action where chunks end: in front of `get_batch_samples`."""
    fetch = trainer.get_batch_samples

    def get_batch_samples(*args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step > 0:
            action()
        return fetch(*args, **kwargs)

    trainer.get_batch_samples = get_batch_samples


def plain(value: Any) -> Any:
    """A deep copy in which all that compares by identity or element by element is a list."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return [str(value.dtype), value.tolist()]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple) or type(value).__name__ == "deque":
        return [plain(item) for item in value]
    return copy.deepcopy(value)


def trace(trainer: Any) -> dict[str, Any]:
    """Everything that an evaluation could leave behind."""
    rng = RngState.capture()
    return {
        "rng": plain([rng.python, rng.numpy, rng.torch_cpu]),
        "control": dict(vars(trainer.control)),
        "state": plain({k: v for k, v in vars(trainer.state).items() if k != "log_history"}),
        "history": plain(trainer.state.log_history),
        "callbacks": list(trainer.callback_handler.callbacks),
        "eval_dataloader": trainer.callback_handler.eval_dataloader,
        "modes": [module.training for module in trainer.model.modules()],
        "in_train": trainer.is_in_train,
        "collected": plain(
            {
                name: value
                for name, value in vars(trainer).items()
                if name in ("_metrics", "_logs", "_total_train_tokens", "_step")
                or name in ("_buffered_inputs", "_current_train_step_time")
            }
        ),
        "weights": plain(dict(trainer.model.named_parameters())),
        "sync_gradients": trainer.accelerator.sync_gradients,
    }


EXPECTED = {
    "SFT": {"eval_one_loss", "eval_two_loss", "eval_mean_token_accuracy"},
    "GRPO": {"eval_loss", "eval_reward", "eval_completions/mean_length"},
}


@pytest.mark.parametrize("kind", ["SFT", "GRPO"])
def test_in_the_middle_of_training_it_leaves_no_trace(kind: str, tmp_path: Path) -> None:
    recorder = Recorder()
    trainer = build(kind, tmp_path, recorder)
    measured: list[dict[str, float]] = []

    def check() -> None:
        trainer.model.train()
        next(trainer.model.modules()).training = False  # a mixture that nobody would guess
        before, control = trace(trainer), trainer.control
        first = evaluate_quietly(trainer)
        after = trace(trainer)
        assert after.keys() == before.keys()
        for name in before:
            assert after[name] == before[name], name
        assert trainer.control is control
        # Nothing has moved, so that the same comes out again, samples included.
        assert evaluate_quietly(trainer) == first
        trainer.model.train()
        measured.append(first)

    before_each_step(trainer, check)
    trainer.train()
    assert len(measured) == 3
    assert recorder.heard == ["log"]  # the trainer's own, at its end
    for metrics in measured:
        assert metrics.keys() >= EXPECTED[kind]
        assert not [name for name in metrics if "runtime" in name or "per_second" in name]
        assert "epoch" not in metrics
        assert all(isinstance(value, float) for value in metrics.values())


@pytest.mark.parametrize("kind", ["SFT", "GRPO"])
def test_training_goes_on_as_if_nothing_had_been(kind: str, tmp_path: Path) -> None:
    results = []
    for quiet in (False, True):
        with ProcessState():
            trainer = build(kind, tmp_path / str(quiet), logging_steps=1)
            if quiet:
                before_each_step(trainer, lambda trainer=trainer: evaluate_quietly(trainer))  # type: ignore[misc]
            trainer.train()
            history = [
                {k: v for k, v in row.items() if "time" not in k and "per_second" not in k}
                for row in trainer.state.log_history
            ]
            results.append((history, trace(trainer)["weights"], trace(trainer)["rng"]))
    assert results[0] == results[1]


def test_it_agrees_with_the_trainers_own_evaluation(tmp_path: Path) -> None:
    trainer = build("SFT", tmp_path)
    trainer.train()
    quiet = evaluate_quietly(trainer)
    own = trainer.evaluate()
    assert quiet == {name: own[name] for name in quiet}
    assert set(own) - set(quiet) == {
        "epoch",
        *(
            f"eval_{name}_{rate}"
            for name in ("one", "two")
            for rate in ("runtime", "samples_per_second", "steps_per_second")
        ),
    }


def test_after_training_it_casts_no_weights(tmp_path: Path) -> None:
    # With bf16_full_eval a trainer casts the whole model, base included, unless it is in training.
    trainer = build("SFT", tmp_path, bf16_full_eval=True, max_steps=1)
    trainer.train()
    assert not trainer.is_in_train
    evaluate_quietly(trainer)
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert not trainer.is_in_train


def test_an_error_leaves_no_trace_either(tmp_path: Path) -> None:
    trainer = build("SFT", tmp_path, max_steps=1)
    trainer.train()
    before = trace(trainer)

    def prediction_step(*args: Any, **kwargs: Any) -> Any:
        for draw in (random.random, np.random.random, lambda: torch.rand(())):
            draw()
        trainer.state.log_history.append({"loss": 1.0})
        raise RuntimeError("in the middle")

    trainer.prediction_step = prediction_step
    with pytest.raises(RuntimeError, match="in the middle"):
        evaluate_quietly(trainer)
    after = trace(trainer)
    for name in before:
        assert after[name] == before[name], name


def test_early_stopping_does_not_count_it(tmp_path: Path) -> None:
    trainer = build(
        "SFT",
        tmp_path,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_one_loss",
    )
    stopping = EarlyStoppingCallback(early_stopping_patience=1)
    trainer.add_callback(stopping)
    counted: list[int] = []

    def check() -> None:
        counter = stopping.early_stopping_patience_counter
        evaluate_quietly(trainer)
        counted.append(stopping.early_stopping_patience_counter - counter)

    before_each_step(trainer, check)
    trainer.train()
    assert counted == [0] * len(counted)
    assert len(counted) > 1


def test_numbers_are_numbers() -> None:
    assert numbers({"a": 1, "b": 0.5, "c": True, "d": "x", "e": None}) == {"a": 1.0, "b": 0.5}
