"""A reward model: which of two replies is better, learned at two ranks and two learning rates.

    python examples/reward.py
    python examples/reward.py --model path/to/model --dataset path/to/folder/with/json

For a real model give --model and more --max-steps. The dataset needs the columns chosen and
rejected, and prompt unless these two contain it. The model gets a new head with one output, which
is trained in full (modules_to_save); all runs share what is below it.
"""

# ruff: noqa: T201, TID253 - a program that prints, not a part of the package
import argparse

from datasets import load_dataset

from rapidfireai import Experiment
from rapidfireai.automl import List, RFGridSearch, RFLoraConfig, RFModelConfig, RFRewardConfig


def main() -> None:
    """Train, then rank by how often the chosen reply gets the higher reward."""
    options = parse()
    rows = load_dataset(options.dataset, split="train").train_test_split(
        test_size=options.num_held_out, seed=0
    )
    config = RFModelConfig(
        model_name=options.model,
        peft_config=RFLoraConfig(
            r=List([8, 32]),
            lora_alpha=32,
            target_modules="all-linear",
            task_type="SEQ_CLS",
            modules_to_save=["score"],
        ),
        training_args=RFRewardConfig(
            learning_rate=List([1e-3, 1e-4]),
            max_steps=options.max_steps,
            max_length=512,
            per_device_train_batch_size=4,
        ),
    )
    experiment = Experiment("reward", experiment_path=options.experiment_path)
    experiment.run_fit(
        RFGridSearch(config),
        train_dataset=rows["train"],
        eval_dataset=rows["test"],
        num_chunks=options.num_chunks,
        seed=42,
    )
    metrics = ["eval_accuracy", "eval_loss"]
    runs = experiment.get_runs_info().sort_values(metrics[0], ascending=False)
    print(runs[["run_id", "status", *metrics, "path"]].to_string(index=False))
    experiment.end()


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--dataset", default="trl-lib/ultrafeedback_binarized")
    parser.add_argument("--max-steps", type=int, default=100, help="optimizer steps of each run")
    parser.add_argument("--num-chunks", type=int, default=4, help="how often runs are compared")
    parser.add_argument("--num-held-out", type=int, default=32, help="rows for comparing")
    parser.add_argument("--experiment-path", help="folder for all experiments")
    return parser.parse_args()


if __name__ == "__main__":
    main()
