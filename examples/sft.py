"""Supervised fine-tuning: four LoRA configurations, compared on held-out rows while they train.

    python examples/sft.py
    python examples/sft.py --model path/to/model --dataset path/to/folder/with/json --max-steps 200

The dataset needs columns that SFT knows, such as instruction and response; see docs/data.md.
"""

# ruff: noqa: T201, TID253 - a program that prints, not a part of the package
import argparse

from datasets import load_dataset

from rapidfireai import Experiment
from rapidfireai.automl import List, RFGridSearch, RFLoraConfig, RFModelConfig, RFSFTConfig


def main() -> None:
    """Train, then rank."""
    options = parse()
    rows = load_dataset(options.dataset, split="train").train_test_split(
        test_size=options.num_held_out, seed=0
    )
    config = RFModelConfig(
        model_name=options.model,
        peft_config=List(
            [
                RFLoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]),
                RFLoraConfig(r=32, lora_alpha=64, target_modules="all-linear"),
            ]
        ),
        training_args=RFSFTConfig(
            learning_rate=List([1e-3, 1e-4]),
            max_steps=options.max_steps,
            max_length=512,
            per_device_train_batch_size=4,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
        ),
    )
    experiment = Experiment("sft", experiment_path=options.experiment_path)
    experiment.run_fit(
        RFGridSearch(config),
        train_dataset=rows["train"],
        eval_dataset=rows["test"],
        num_chunks=options.num_chunks,
        seed=42,
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
