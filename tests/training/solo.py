"""The reference: plain TRL, one configuration alone in a process of its own.

Nothing of the engine is imported here. Processes are forked from a server that has done the slow
imports and nothing else, so that each starts as clean as a fresh interpreter.
"""

import hashlib
import multiprocessing
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from safetensors import safe_open
from transformers import EarlyStoppingCallback, TrainerCallback, set_seed

from rapidfireai.testing.tiny import tiny_model, tiny_tokenizer

Row = tuple[int, dict[str, str]]

_CLOCKWORK = ("runtime", "per_second", "step_time", "preparation_time")


@dataclass(frozen=True)
class Case:
    """One configuration, as plain data."""

    trainer: str
    args: Mapping[str, Any]
    lora: Mapping[str, Any] | None
    trainer_kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """Everything that has to be equal to the last bit; floats in hexadecimal."""

    losses: list[str]
    rows: list[Row]
    weights: str


def word_variety(completions: list[str], **_: Any) -> list[float]:
    """A reward that depends on the completion alone."""
    return [len(set(completion)) / 10 for completion in completions]


def early_stopping() -> list[Any]:
    """Stops as soon as one evaluation is not better than the best before."""
    return [EarlyStoppingCallback(early_stopping_patience=1)]


def exact_rows(history: Sequence[Mapping[str, Any]]) -> list[Row]:
    """A trainer's log rows without what a clock had a hand in."""
    rows = []
    for entry in history:
        values = {
            name: float(value).hex()
            for name, value in sorted(entry.items())
            if name != "step" and not any(word in name for word in _CLOCKWORK)
        }
        rows.append((int(entry["step"]), values))
    return rows


def weights_hash(folder: Path) -> str:
    """Of all tensors in a saved model or adapter."""
    (file,) = folder.glob("*.safetensors")
    digest = hashlib.sha256()
    with safe_open(file, "pt") as tensors:
        for name in sorted(tensors.keys()):
            tensor = tensors.get_tensor(name)
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class _Rows(TrainerCallback):
    def __init__(self) -> None:
        self.history: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **kwargs: Any) -> None:
        self.history.append({**logs, "step": state.global_step})


def train_alone(
    case: Case, train: list[dict[str, Any]], eval_rows: list[dict[str, Any]]
) -> Outcome:
    """Train the case with plain TRL."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        given = {"seed": 42, "save_strategy": "no", "report_to": "none", **case.args}
        if not given.get("bf16") and not given.get("fp16"):
            given["bf16"] = False
        config = getattr(trl, f"{case.trainer}Config")(
            output_dir=folder, use_cpu=True, disable_tqdm=True, **given
        )
        set_seed(config.seed)
        rows = _Rows()
        kwargs: dict[str, Any] = dict(case.trainer_kwargs)
        kwargs["callbacks"] = [*kwargs.get("callbacks", []), rows]
        if case.lora is not None:
            kwargs["peft_config"] = LoraConfig(**case.lora)
        elif case.trainer == "DPO":
            kwargs["ref_model"] = tiny_model()
        trainer = getattr(trl, f"{case.trainer}Trainer")(
            model=tiny_model(),
            args=config,
            train_dataset=Dataset.from_list(train),
            eval_dataset=Dataset.from_list(eval_rows) if eval_rows else None,
            processing_class=tiny_tokenizer(),
            **kwargs,
        )
        losses: dict[int, float] = {}
        step = trainer.training_step

        def training_step(*args: Any, **kwargs: Any) -> Any:
            loss = step(*args, **kwargs)
            number = trainer.state.global_step + 1
            losses[number] = float(torch.tensor(losses.get(number, 0.0)) + loss)
            return loss

        trainer.training_step = training_step
        trainer.train()
        trainer.save_model(folder + "/final")
        return Outcome(
            losses=[losses[number].hex() for number in sorted(losses)],
            rows=exact_rows(rows.history),
            weights=weights_hash(Path(folder) / "final"),
        )


def solo_pool() -> ProcessPoolExecutor:
    """Processes for `train_alone`, a fresh one for each case."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return ProcessPoolExecutor(max_workers=1, mp_context=context, max_tasks_per_child=1)
