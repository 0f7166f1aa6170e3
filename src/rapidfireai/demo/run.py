"""What `rapidfireai demo` does, through the public API only: train, rank, ask.

Shapes: T tokens.
"""

import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapidfireai.demo.dataset import Questions, Row, standard_library
from rapidfireai.paths import home

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from rapidfireai import Experiment

MAX_LENGTH = 128
"""Tokens of a question with its answer; the questions are made to fit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How much the demo does."""

    num_steps: int = 12
    """Optimizer steps of each of the four runs, each on 4 questions."""
    num_chunks: int = 4
    num_measured: int = 16
    """Held-out questions that the loss is measured on, at the end of every chunk."""
    num_asked: int = 4
    """Further held-out questions, for the base model and the best run to answer."""
    max_new_tokens: int = 40


QUICK = Plan(num_steps=2, num_chunks=2, num_measured=4, num_asked=1)


def main(*, quick: bool = False, cache: Path | None = None) -> None:
    """Trains, ranks and asks, and prints all of it.

    Args:
        quick: Do only as much as shows that everything works.
        cache: Folder for the converted model. None: `models` below $RF_HOME (~/rapidfireai).

    Raises:
        RapidFireError: A folder cannot be written, or all runs failed.
        ModuleNotFoundError: What the demo needs is not installed; the message has the pip line.
    """
    import transformers
    from rich.console import Console

    from rapidfireai.demo.model import NAME, smollm2

    transformers.logging.disable_progress_bar()
    # PEFT 0.21 asks for transformers' former name of activation checkpointing.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    console = Console(highlight=False, soft_wrap=True)
    cache = cache or home() / "models"
    console.print(f"Model: {NAME}, converted once and kept in {cache}")
    run(smollm2(cache), standard_library(), QUICK if quick else Plan(), console)


def run(folder: Path, questions: Questions, plan: Plan, console: "Console") -> None:
    """Trains four configurations of the model in `folder`, ranks them, and asks the best one."""
    measured = questions.held_out[: plan.num_measured]
    asked = questions.held_out[plan.num_measured :][: plan.num_asked]
    console.print(
        f"Training 4 configurations at once on questions about Python's standard library, "
        f"{plan.num_steps} steps each;\n"
        f"the loss on {len(measured)} held-out questions is measured after each chunk.\n"
    )
    begin = time.monotonic()
    experiment = train(folder, questions.train, measured, plan)
    seconds = time.monotonic() - begin
    best = experiment.best("eval_loss")

    tuned, tokenizer = load(folder, best["path"])
    with tuned.disable_adapter():
        base_loss = held_out_loss(tuned, tokenizer, measured)
    console.print(f"\n[bold]Ranking by held-out loss[/], after {seconds / 60:.1f} minutes:\n")
    console.print(ranking(experiment, base_loss))
    console.print(f"\n[bold]Held-out questions[/], base model against run {best['run_id']}:")
    for row in asked:
        with tuned.disable_adapter():
            before = answer(tuned, tokenizer, row["instruction"], plan.max_new_tokens)
        after = answer(tuned, tokenizer, row["instruction"], plan.max_new_tokens)
        texts = {"asked": row["instruction"], "docs": row["response"], "base": before}
        console.print()
        for label, text in {**texts, f"run {best['run_id']}": after}.items():
            console.print(f"{label:>6}  {text}", markup=False)
    console.print(f"\nAll runs, their adapters and the log are in {experiment.path}")
    experiment.end()


def train(folder: Path, train_rows: list[Row], eval_rows: list[Row], plan: Plan) -> "Experiment":
    """Runs the experiment: two LoRA configurations, each with two learning rates."""
    from datasets import Dataset

    from rapidfireai import Experiment
    from rapidfireai.automl import List, RFGridSearch, RFLoraConfig, RFModelConfig, RFSFTConfig

    config = RFModelConfig(
        model_name=str(folder),
        peft_config=List(
            [
                RFLoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]),
                RFLoraConfig(r=32, lora_alpha=64, target_modules="all-linear"),
            ]
        ),
        training_args=RFSFTConfig(
            learning_rate=List([3e-3, 3e-4]),
            max_steps=plan.num_steps,
            max_length=MAX_LENGTH,
            per_device_train_batch_size=4,
            per_device_eval_batch_size=plan.num_measured,
            bf16=False,
            activation_checkpointing=False,
        ),
    )
    experiment = Experiment(experiment_name="demo")
    experiment.run_fit(
        RFGridSearch(configs=config, trainer_type="SFT"),
        create_model,
        Dataset.from_list(train_rows),
        Dataset.from_list(eval_rows),
        num_chunks=plan.num_chunks,
        seed=42,
    )
    return experiment


def create_model(model_config: dict[str, Any]) -> tuple[Any, Any]:
    """Loads the base; `Experiment` calls this once for all four runs."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = model_config["model_name"]
    return AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)


def load(folder: Path, adapter: str) -> tuple[Any, Any]:
    """A run as it was saved, on its base, and the tokenizer."""
    from peft import PeftModel

    base, tokenizer = create_model({"model_name": str(folder)})
    return PeftModel.from_pretrained(base, adapter).eval(), tokenizer


def held_out_loss(model: Any, tokenizer: Any, rows: list[Row]) -> float:
    """Mean negative log-likelihood of the answers' tokens, as the runs' `eval_loss` has it."""
    import torch

    total = 0.0
    num_tokens = 0
    for row in rows:
        prompt = [{"role": "user", "content": row["instruction"]}]
        completion = [{"role": "assistant", "content": row["response"]}]
        ids_1T = _encode(tokenizer, prompt + completion)["input_ids"][:, :MAX_LENGTH]
        num_prompt = _encode(tokenizer, prompt, add_generation_prompt=True)["input_ids"].shape[1]
        labels_1T = ids_1T.clone()
        labels_1T[:, :num_prompt] = -100
        num_answer = ids_1T.shape[1] - num_prompt
        with torch.inference_mode():
            total += model(input_ids=ids_1T, labels=labels_1T).loss.item() * num_answer
        num_tokens += num_answer
    return total / num_tokens


def answer(model: Any, tokenizer: Any, question: str, max_new_tokens: int) -> str:
    """The model's most likely answer, cut after `max_new_tokens`."""
    import torch

    prompt = [{"role": "user", "content": question}]
    inputs = _encode(tokenizer, prompt, add_generation_prompt=True)
    with torch.inference_mode():
        ids_1T = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    new_ids_T = ids_1T[0, inputs["input_ids"].shape[1] :]
    text = " ".join(tokenizer.decode(new_ids_T, skip_special_tokens=True).split())
    return text if new_ids_T[-1] == tokenizer.eos_token_id else f"{text} ..."


def ranking(experiment: "Experiment", base_loss: float) -> "Table":
    """The runs from best to worst, the losses on the way there, and the base model."""
    from rich.table import Table

    runs = experiment.get_runs_info().sort_values("eval_loss", na_position="last")
    results = experiment.get_results()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("", "LoRA", "learning rate", "on the way", "held-out loss"):
        table.add_column(title, no_wrap=True, justify="left" if title in ("", "LoRA") else "right")
    for run in runs.to_dict("records"):
        peft = run["config"]["peft"]
        targets = peft["target_modules"]
        losses = results.loc[results["run_id"] == run["run_id"], "eval_loss"].dropna()
        table.add_row(
            f"run {run['run_id']}",
            f"r={peft['r']} {targets if isinstance(targets, str) else ' '.join(targets)}",
            f"{run['config']['training_args']['learning_rate']:g}",
            " ".join(f"{loss:.2f}" for loss in losses[:-1]),
            f"{run['eval_loss']:.3f}" if run["status"] == "completed" else run["status"],
        )
    table.add_row("base", "", "", "", f"{base_loss:.3f}")
    return table


def _encode(tokenizer: Any, messages: list[dict[str, str]], **options: bool) -> Any:
    return tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True, **options)
