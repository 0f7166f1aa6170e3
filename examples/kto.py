"""Kahneman-Tversky optimization: learning from replies that were liked or not, pair by pair or not.

    python examples/kto.py
    python examples/kto.py --model path/to/model --dataset path/to/folder/with/json --max-steps 200

For a real model give --model and more --max-steps. The dataset needs the columns prompt, completion
and label (true or false), or those of DPO, of which TRL makes two judgements each.
"""

# ruff: noqa: T201, TID253 - a program that prints, not a part of the package
import argparse

from datasets import load_dataset

from rapidfireai import Experiment
from rapidfireai.automl import List, RFGridSearch, RFKTOConfig, RFLoraConfig, RFModelConfig


def main() -> None:
    """Train, then rank by the loss on held-out judgements."""
    options = parse()
    rows = load_dataset(options.dataset, split="train").train_test_split(
        test_size=options.num_held_out, seed=0
    )
    config = RFModelConfig(
        model_name=options.model,
        peft_config=RFLoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
        training_args=RFKTOConfig(
            beta=List([0.05, 0.2]),
            # What was not liked counts more, or as much.
            desirable_weight=List([0.75, 1.0]),
            learning_rate=1e-5,
            max_steps=options.max_steps,
            max_length=512,
            per_device_train_batch_size=4,
        ),
    )
    experiment = Experiment("kto", experiment_path=options.experiment_path)
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
    parser.add_argument("--dataset", default="trl-lib/kto-mix-14k")
    parser.add_argument("--max-steps", type=int, default=100, help="optimizer steps of each run")
    parser.add_argument("--num-chunks", type=int, default=4, help="how often runs are compared")
    parser.add_argument("--num-held-out", type=int, default=32, help="rows for comparing")
    parser.add_argument("--experiment-path", help="folder for all experiments")
    return parser.parse_args()


if __name__ == "__main__":
    main()
