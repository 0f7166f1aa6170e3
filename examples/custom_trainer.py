"""A trainer of your own: TRL's SFT with a penalty for overconfidence, at three strengths.

    python examples/custom_trainer.py
    python examples/custom_trainer.py --model path/to/model --dataset path/to/folder/with/json

For a real model give --model and more --max-steps. Any subclass of transformers.Trainer will do;
knobs that its config does not have travel in a dictionary, as `strength` does here.
"""

# ruff: noqa: T201, TID253 - a program that prints, not a part of the package
import argparse
from collections.abc import Mapping
from typing import Any

import torch
from datasets import load_dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from rapidfireai import Experiment
from rapidfireai.automl import List


class CalmTrainer(SFTTrainer):
    """Rewards the entropy of what the model predicts."""

    def __init__(self, *args: Any, strength: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._strength = strength

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss of SFT less the share of the entropy; the plain one in evaluations."""
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if not (model.training and self._strength):
            return loss
        log_probs_BTV = model(input_ids=inputs["input_ids"]).logits.log_softmax(dim=-1)
        entropy_BT = -(log_probs_BTV.exp() * log_probs_BTV).sum(dim=-1)
        return loss - self._strength * entropy_BT[inputs["labels"] != -100].mean()


def create_trainer(config: Mapping[str, Any], context: Any) -> SFTTrainer:
    """One run's trainer. The engine calls it, with the run's own configuration and parts."""
    return CalmTrainer(
        strength=config["strength"],
        model=context.model,
        args=SFTConfig(
            output_dir=context.output_dir,
            seed=context.seed,
            learning_rate=config["learning_rate"],
            max_steps=config["max_steps"],
            max_length=256,
            per_device_train_batch_size=2,
            report_to="none",
            disable_tqdm=True,
            bf16=torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=context.train_dataset,
        eval_dataset=context.eval_dataset,
        processing_class=context.tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
    )


def as_text(row: dict[str, Any]) -> dict[str, str]:
    """A row as SFT reads it."""
    return {"prompt": f"{row['instruction']}\n", "completion": row["response"]}


def main() -> None:
    """Train, then rank by the plain loss on held-out rows."""
    options = parse()
    rows = load_dataset(options.dataset, split="train")
    rows = rows.map(as_text, remove_columns=rows.column_names)
    parts = rows.train_test_split(test_size=options.num_held_out, seed=0)
    experiment = Experiment("custom", experiment_path=options.experiment_path)
    experiment.run_fit(
        {
            "strength": List([0.0, 0.01, 0.1]),
            "learning_rate": 2e-4,
            "max_steps": options.max_steps,
        },
        model=options.model,
        train_dataset=parts["train"],
        eval_dataset=parts["test"],
        num_chunks=options.num_chunks,
        seed=42,
        create_trainer=create_trainer,
    )
    runs = experiment.get_runs_info().sort_values("eval_loss")
    print(runs[["run_id", "status", "eval_loss", "path"]].to_string(index=False))
    experiment.end()


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--dataset", default="databricks/databricks-dolly-15k")
    parser.add_argument("--max-steps", type=int, default=100, help="optimizer steps of each run")
    parser.add_argument("--num-chunks", type=int, default=4, help="how often runs are compared")
    parser.add_argument("--num-held-out", type=int, default=32, help="rows for comparing")
    parser.add_argument("--experiment-path", help="folder for all experiments")
    return parser.parse_args()


if __name__ == "__main__":
    main()
