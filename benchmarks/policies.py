"""The same winner for less: 12 LoRA configurations, with a policy and without.

    python -m benchmarks.policies

Learning rates over three decades and ranks from 4 to 64. The base is the tiny model, trained on
words at random; it is tuned on words of which each has its own few successors.

The winner of each way is the run with the least evaluation loss, averaged over its last 4 chunks.
Both ways are compared by how the winner of the policy did where everything was run: the same
configuration has the same numbers there. All of it is repeated with other data, other batches and
other initial adapters, since one repetition says little about a policy.
"""

import argparse
import copy
import math
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel

from benchmarks._report import Report, Row, Spread
from rapidfireai import Experiment, List, RFGridSearch, RFLoraConfig, RFModelConfig, RFSFTConfig
from rapidfireai.report import Findings, as_html
from rapidfireai.testing.tiny import WORDS, text_rows, tiny_model, tiny_tokenizer

LEARNING_RATES = [1e-5, 1e-4, 1e-3, 1e-2]
RANKS = [4, 16, 64]
GOAL = 0.45

NUM_PRETRAINING = 150
"""Steps; the loss then stands where words at random have it."""

NUM_WORDS = 16
"""In a row."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Train both ways, print and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.policies", description=__doc__)
    parser.add_argument("--chunks", type=int, default=32)
    parser.add_argument("--steps", type=int, default=256, help="of each configuration")
    parser.add_argument("--learning-rates", type=float, nargs="+", default=LEARNING_RATES)
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    parser.add_argument("--policy", default="auto")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--html", type=Path, help="write the first seed's report of the policy")
    parser.add_argument("--json", type=Path, help="also write the result there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    base, pairs = _pretrained(), []
    with tempfile.TemporaryDirectory(prefix="policies-") as folder:
        for seed in options.seeds:
            place = Path(folder) / str(seed)
            everything = _trained(base, place / "everything", options, seed, policy=None)
            chosen = _trained(base, place / "policy", options, seed, policy=options.policy)
            pairs.append(_Pair.of(everything, chosen))
            sys.stderr.write(f"seed {seed}: {pairs[-1]}\n")
            if options.html is not None and seed == options.seeds[0]:
                options.html.write_text(as_html(chosen, time.time()), encoding="utf-8")
    num_runs = len(options.learning_rates) * len(options.ranks)
    report = Report(
        title=f"Policy {options.policy!r}: {num_runs} configurations",
        rows=_rows(pairs),
        settings={
            "chunks": options.chunks,
            "steps of each": options.steps,
            "learning rates": options.learning_rates,
            "ranks": options.ranks,
            "seeds": options.seeds,
        },
    )
    report.print()
    if options.json is not None:
        report.save(options.json)


@dataclass(frozen=True)
class _Pair:
    """What came of the policy, beside running everything."""

    place: int
    """Of the policy's winner where everything was run."""
    regret: float
    """Its evaluation loss there, above the best's."""
    noise: float
    """Two standard errors of that difference."""
    steps: float
    """The policy's share of all steps."""

    @classmethod
    def of(cls, everything: Findings, chosen: Findings) -> "_Pair":
        best, winner = everything.standings[0], chosen.standings[0]
        there = next(s for s in everything.standings if s.run.id == winner.run.id)
        return cls(
            place=there.place,
            regret=there.value - best.value,
            noise=2 * math.hypot(best.error or 0.0, there.error or 0.0),
            steps=chosen.num_steps / everything.num_steps,
        )

    @property
    def is_good(self) -> bool:
        return self.regret <= self.noise


def _pretrained() -> PreTrainedModel:
    """The tiny model after it has learned what every text has in common, all weights trained."""
    model, tokenizer = tiny_model(dropout=0.0), tiny_tokenizer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rows = text_rows(8 * NUM_PRETRAINING, seed=0)
    for step in range(NUM_PRETRAINING):
        texts = list(rows[8 * step : 8 * step + 8]["text"])
        batch = tokenizer(texts, return_tensors="pt", padding=True)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def _rows_with_successors(num_rows: int, seed: int) -> Dataset:
    """Rows of words, each followed by one of three, likely, less likely and seldom."""
    fixed, rng = random.Random(0), random.Random(seed)
    successors = {word: fixed.sample(WORDS, 3) for word in WORDS}
    texts = []
    for _ in range(num_rows):
        words = [rng.choice(WORDS)]
        while len(words) < NUM_WORDS:
            words += rng.choices(successors[words[-1]], weights=(6, 3, 1))
        texts.append(" ".join(words))
    return Dataset.from_dict({"text": texts})


def _trained(
    base: PreTrainedModel, place: Path, options: argparse.Namespace, seed: int, policy: Any
) -> Findings:
    search = RFGridSearch(
        RFModelConfig(
            peft_config=RFLoraConfig(
                r=List(options.ranks), lora_alpha=32, target_modules="all-linear"
            ),
            training_args=RFSFTConfig(
                learning_rate=List(options.learning_rates),
                max_steps=options.steps,
                per_device_train_batch_size=8,
                lr_scheduler_type="constant",
                logging_steps=10,
                max_length=64,
            ),
        )
    )
    experiment = Experiment("policies", experiment_path=place)
    experiment.run_fit(
        search,
        lambda config: (copy.deepcopy(base), tiny_tokenizer()),
        _rows_with_successors(8 * options.steps, seed=2 * seed),
        _rows_with_successors(64, seed=2 * seed + 1),
        num_chunks=options.chunks,
        seed=seed,
        policy=policy,
    )
    return experiment.report(objective="minimize:eval_loss")


def _rows(pairs: Sequence[_Pair]) -> list[Row]:
    num_good = sum(pair.is_good for pair in pairs)
    return [
        Row(
            name="**the winner is the same, or as good within the noise**",
            value=f"{num_good} of {len(pairs)}",
            goal="all",
            note="places where everything was run: " + ", ".join(str(p.place) for p in pairs),
        ),
        Row(
            name="its evaluation loss above the best, where everything was run",
            value=Spread.of([pair.regret for pair in pairs]),
        ),
        Row(
            name="two standard errors of the difference",
            value=Spread.of([pair.noise for pair in pairs]),
        ),
        Row(
            name="**steps, policy : everything**",
            value=Spread.of([pair.steps for pair in pairs]),
            goal=f"<= {GOAL}",
        ),
    ]


if __name__ == "__main__":
    main()
