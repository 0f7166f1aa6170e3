"""The same winner for less: 12 LoRA configurations, with a policy and without.

    python -m benchmarks.policies

Learning rates over three decades and ranks from 4 to 64, on the tiny model and rows of its grammar.
The winner of each way is the run with the least evaluation loss, averaged over its last 4 chunks.
Both ways are compared by how the winner of the policy did where everything was run: the same
configuration has the same numbers there.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks._report import Report, Row
from rapidfireai import Experiment, List, RFGridSearch, RFLoraConfig, RFModelConfig, RFSFTConfig
from rapidfireai.report import Findings
from rapidfireai.testing.tiny import text_rows, tiny_model, tiny_tokenizer

LEARNING_RATES = [1e-5, 1e-4, 1e-3, 1e-2]
RANKS = [4, 16, 64]
GOAL = 0.45


def main(arguments: Sequence[str] | None = None) -> None:
    """Train both ways, print and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.policies", description=__doc__)
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--steps", type=int, default=96, help="of each configuration")
    parser.add_argument("--learning-rates", type=float, nargs="+", default=LEARNING_RATES)
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    parser.add_argument("--policy", default="auto")
    parser.add_argument("--html", type=Path, help="write the policy's report there")
    parser.add_argument("--json", type=Path, help="also write the result there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="policies-") as folder:
        everything = _trained("everything", Path(folder), options, policy=None)
        chosen = _trained("policy", Path(folder), options, policy=options.policy)
    report = Report(
        title=f"Policy {options.policy!r}: {len(everything.standings)} configurations",
        rows=_rows(everything, chosen),
        settings={
            "chunks": options.chunks,
            "steps of each": options.steps,
            "learning rates": options.learning_rates,
            "ranks": options.ranks,
        },
    )
    report.print()
    if options.json is not None:
        report.save(options.json)


def _trained(name: str, root: Path, options: argparse.Namespace, policy: Any) -> Findings:
    search = RFGridSearch(
        RFModelConfig(
            peft_config=RFLoraConfig(
                r=List(options.ranks), lora_alpha=32, target_modules=["q_proj", "v_proj"]
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
    experiment = Experiment(name, experiment_path=root)
    experiment.run_fit(
        search,
        lambda config: (tiny_model(), tiny_tokenizer()),
        text_rows(8 * options.steps),
        text_rows(64, seed=1),
        num_chunks=options.chunks,
        policy=policy,
    )
    html = options.html if policy is not None else None
    return experiment.report(html, "minimize:eval_loss")


def _rows(everything: Findings, chosen: Findings) -> list[Row]:
    best, winner = everything.standings[0], chosen.standings[0]
    there = next(s for s in everything.standings if s.run.id == winner.run.id)
    noise = 2 * ((best.error or 0.0) ** 2 + (there.error or 0.0) ** 2) ** 0.5
    return [
        Row(
            name="**winner with the policy, number where everything was run**",
            value=f"{there.place} of {len(everything.standings)}",
            goal="1, or within the noise",
            note=f"run {winner.run.id}; run {best.run.id} won",
        ),
        Row(
            name="its evaluation loss above the best, where everything was run",
            value=there.value - best.value,
            goal=f"<= {noise:.2g}",
            note="2 standard errors of the difference",
        ),
        Row(
            name="**steps, policy : everything**",
            value=chosen.num_steps / everything.num_steps,
            goal=f"<= {GOAL}",
            note=f"{chosen.num_steps} of {everything.num_steps}",
        ),
    ]


if __name__ == "__main__":
    main()
