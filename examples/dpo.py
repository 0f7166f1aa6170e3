"""Direct preference optimization: three strengths of the tie to the reference model, compared.

    python examples/dpo.py
    python examples/dpo.py --model path/to/model --dataset path/to/folder/with/json --max-steps 200

The dataset needs the columns chosen and rejected, and prompt unless these two contain it. No
reference model is loaded: the base without its adapter is the reference.
"""

# ruff: noqa: T201, TID253 - a program that prints, not a part of the package
import argparse

from datasets import load_dataset

from rapidfireai import Experiment
from rapidfireai.automl import List, RFDPOConfig, RFGridSearch, RFLoraConfig, RFModelConfig


def main() -> None:
    """Train, then rank by how often the chosen reply is preferred."""
    options = parse()
    rows = load_dataset(options.dataset, split="train").train_test_split(
        test_size=options.num_held_out, seed=0
    )
    config = RFModelConfig(
        model_name=options.model,
        peft_config=RFLoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
        training_args=RFDPOConfig(
            beta=List([0.03, 0.1, 0.3]),
            learning_rate=1e-5,
            max_steps=options.max_steps,
            max_length=512,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
        ),
    )
    experiment = Experiment("dpo", experiment_path=options.experiment_path)
    experiment.run_fit(
        RFGridSearch(config),
        train_dataset=rows["train"],
        eval_dataset=rows["test"],
        num_chunks=options.num_chunks,
        seed=42,
    )
    metrics = ["eval_rewards/accuracies", "eval_rewards/margins"]
    runs = experiment.get_runs_info().sort_values(metrics, ascending=False)
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
