"""The reference: plain TRL, one configuration alone in a process of its own.

Nothing of the engine is imported here. Processes are forked from a server that has done the slow
imports and nothing else, so that each starts as clean as a fresh interpreter.
"""

import gc
import hashlib
import importlib
import multiprocessing
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
import trl
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    LlamaForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from rapidfireai.testing.tiny import tiny_model, tiny_tokenizer

# TRL imports its trainers when they are first asked for, which every process would do anew.
for _name in ("SFT", "DPO", "KTO", "Reward", "GRPO", "RLOO", "Distillation"):
    getattr(trl, f"{_name}Trainer")

Row = tuple[int, dict[str, str]]

_CLOCKWORK = ("runtime", "per_second", "step_time", "preparation_time")


@dataclass(frozen=True)
class Case:
    """One configuration, as plain data."""

    trainer: str
    """Of TRL, such as "SFT"; or one of `OWN_TRAINERS`."""
    args: Mapping[str, Any]
    lora: Mapping[str, Any] | None
    """Arguments of the adapter's config; None trains all weights, or what the model brings."""
    trainer_kwargs: Mapping[str, Any] = field(default_factory=dict)
    made_kwargs: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    """Further ones that are made where they are used, since they cannot travel."""
    base_dropout: float = 0.1
    """Attention dropout of the base."""
    peft: str = "LoraConfig"
    """The config's class in `peft`."""
    classes: tuple[str, str] | None = None
    """"module:class" of the trainer and of its arguments; None where `trl` itself has them."""
    make_model: Callable[[], tuple[Any, Any]] | None = None
    """Makes model and tokenizer or processor; None makes the tiny Llama."""
    make_reference: Callable[[], Any] | None = None
    """Makes the reference model that plain TRL has to be given; the engine finds it itself."""

    @property
    def kwargs(self) -> dict[str, Any]:
        """All that goes to the trainer's constructor besides what every trainer is given."""
        return {**self.trainer_kwargs, **{name: make() for name, make in self.made_kwargs.items()}}


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


def teacher() -> Any:
    """A model to learn from."""
    return tiny_model(seed=99)


_NUM_LABELS = {"Reward": 1, "Classifier": 2}


def create_model(trainer: str, dropout: float = 0.1) -> Any:
    """The model that a trainer trains; the head of a reward model or classifier is random."""
    if trainer in _NUM_LABELS:
        config = tiny_model(dropout=dropout).config
        config.num_labels = _NUM_LABELS[trainer]
        return LlamaForSequenceClassification(config)
    return tiny_model(dropout=dropout)


class NoisyTrainer(Trainer):
    """A user's own: it draws random numbers for its loss and its data, and keeps a count."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.num_losses = 0

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        self.num_losses += model.training
        outputs = model(**inputs)
        loss = outputs.loss * (1 + 0.1 * torch.rand(()))
        return (loss, outputs) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return torch.utils.data.RandomSampler(train_dataset or self.train_dataset)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        super().log({**logs, "num_losses": self.num_losses}, *args, **kwargs)


class LoopTrainer(Trainer):
    """A user's own, with a loop that only tells the callbacks of its steps."""

    def train(self, *args: Any, **kwargs: Any) -> None:
        self.create_optimizer_and_scheduler(self.args.max_steps)
        self.state.max_steps = self.args.max_steps
        self.current_gradient_accumulation_steps = 1
        self.model.train()
        for _, batch in zip(range(self.args.max_steps), self.get_train_dataloader(), strict=False):
            loss = self.training_step(self.model, batch)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.state.global_step += 1
            self.log({"loss": float(loss)})
            self.callback_handler.on_step_end(self.args, self.state, self.control)


OWN_TRAINERS: Mapping[str, type[Trainer]] = {
    "Noisy": NoisyTrainer,
    "Loop": LoopTrainer,
    "Classifier": Trainer,
}


def own_trainer(
    config: Mapping[str, Any],
    *,
    model: Any,
    tokenizer: Any,
    train: Dataset,
    evaluation: Dataset | None,
    output_dir: str,
) -> Trainer:
    """One of `OWN_TRAINERS` over rows that it tokenises itself."""

    classifies = config["trainer"] == "Classifier"

    def tokenised_row(row: dict[str, Any]) -> dict[str, Any]:
        label = {"labels": len(row["completion"]) % 2} if classifies else {}
        return {**tokenizer(row["prompt"] + row["completion"]), **label}

    def tokenised(rows: Dataset) -> Dataset:
        return rows.map(tokenised_row, remove_columns=rows.column_names)

    if config["lora"] is not None:
        model = get_peft_model(model, LoraConfig(**config["lora"]))
    return OWN_TRAINERS[config["trainer"]](
        model=model,
        args=TrainingArguments(
            output_dir=output_dir,
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            save_strategy="no",
            report_to="none",
            **config["args"],
        ),
        train_dataset=tokenised(train),
        eval_dataset=None if evaluation is None else tokenised(evaluation),
        data_collator=DataCollatorWithPadding(tokenizer)
        if classifies
        else DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
    )


def own_config(case: Case) -> dict[str, Any]:
    """The case as a dictionary that `own_trainer` understands."""
    return {"trainer": case.trainer, "args": dict(case.args), "lora": case.lora,
            "seed": case.args["seed"]}  # fmt: skip


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


def _trl_trainer(case: Case, train: Dataset, evaluation: Dataset | None, folder: str) -> Trainer:
    given = {"seed": 42, "save_strategy": "no", "report_to": "none", **case.args}
    if not given.get("bf16") and not given.get("fp16"):
        given["bf16"] = False
    trainer_class, config_class = trl_classes(case)
    config = config_class(output_dir=folder, use_cpu=True, disable_tqdm=True, **given)
    set_seed(config.seed)
    model, tokenizer = made_model(case)
    kwargs = case.kwargs
    if case.make_reference is not None:
        model.delete_adapter("reference")  # the engine knows it by that name, TRL does not
        kwargs["ref_model"] = case.make_reference()
    elif case.lora is None and case.make_model is None and case.trainer in ("DPO", "KTO"):
        kwargs["ref_model"] = tiny_model(dropout=case.base_dropout)
    if case.lora is not None:
        kwargs["peft_config"] = getattr(peft, case.peft)(**case.lora)
    trainer: Trainer = trainer_class(
        model=model,
        args=config,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=tokenizer,
        **kwargs,
    )
    return trainer


def trl_classes(case: Case) -> tuple[Any, Any]:
    """TRL's trainer of the case, and the class of its arguments."""
    paths = case.classes or (f"trl:{case.trainer}Trainer", f"trl:{case.trainer}Config")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You are importing from 'trl.experimental'")
        trainer, config = (
            getattr(importlib.import_module(module), name)
            for module, _, name in (path.partition(":") for path in paths)
        )
    return trainer, config


def made_model(case: Case) -> tuple[Any, Any]:
    """Model and tokenizer of the case."""
    if case.make_model is not None:
        return case.make_model()
    return create_model(case.trainer, case.base_dropout), tiny_tokenizer()


def _trainer(case: Case, train: Dataset, evaluation: Dataset | None, folder: str) -> Trainer:
    if case.trainer not in OWN_TRAINERS:
        return _trl_trainer(case, train, evaluation, folder)
    set_seed(case.args["seed"])
    model = create_model(case.trainer)
    set_seed(case.args["seed"])  # whatever a random head has drawn
    return own_trainer(
        own_config(case),
        model=model,
        tokenizer=tiny_tokenizer(),
        train=train,
        evaluation=evaluation,
        output_dir=folder,
    )


def train_alone(
    case: Case,
    train: list[dict[str, Any]],
    eval_rows: list[dict[str, Any]],
    as_dataset: Callable[[list[dict[str, Any]]], Any] = Dataset.from_list,
) -> Outcome:
    """Train the case with plain TRL."""
    gc.freeze()  # a trainer collects garbage: not in what was imported before it
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        evaluation = as_dataset(eval_rows) if eval_rows else None
        trainer = _trainer(case, as_dataset(train), evaluation, folder)
        rows = _Rows()
        trainer.add_callback(rows)
        trainer.remove_callback(PrinterCallback)  # it takes values out of the rows that it prints
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


class SoloRuns:
    """Outcomes of `train_alone`, each distinct one trained once, in a fresh process."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._pool = ProcessPoolExecutor(max_workers=1, mp_context=context, max_tasks_per_child=1)
        self._futures: dict[str, Future[Outcome]] = {}

    def start(
        self,
        case: Case,
        train: list[dict[str, Any]],
        eval_rows: list[dict[str, Any]],
        as_dataset: Callable[[list[dict[str, Any]]], Any] = Dataset.from_list,
    ) -> Future[Outcome]:
        """Train the case in the background, unless that has been done."""
        given = (case, train, eval_rows, as_dataset)
        key = repr(given)
        if key not in self._futures:
            self._futures[key] = self._pool.submit(train_alone, *given)
        return self._futures[key]

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown(cancel_futures=True)
