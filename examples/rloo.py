"""REINFORCE with a leave-one-out baseline: two numbers of replies per prompt, two temperatures.

    python examples/rloo.py
    python examples/rloo.py --model path/to/model --dataset path/to/json --subset default

For a real model give --model, more --max-steps and a longer --max-completion-length. The dataset
needs the columns question and answer, with the number wanted after "####" as in GSM8K.
"""

# ruff: noqa: T201, TID253 - a program that prints, not a part of the package
import argparse
import re
from typing import Any

from datasets import load_dataset

from rapidfireai import Experiment
from rapidfireai.automl import List, RFGridSearch, RFLoraConfig, RFModelConfig, RFRLOOConfig


def main() -> None:
    """Train, then rank by how often the number is right."""
    options = parse()
    config = RFModelConfig(
        model_name=options.model,
        peft_config=RFLoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
        training_args=RFRLOOConfig(
            learning_rate=1e-5,
            max_steps=options.max_steps,
            per_device_train_batch_size=8,
            num_generations=List([2, 4]),
            temperature=List([0.7, 1.0]),
            max_completion_length=options.max_completion_length,
            logging_steps=1,
        ),
        reward_funcs=[correct, brief],
    )
    experiment = Experiment("rloo", experiment_path=options.experiment_path)
    experiment.run_fit(
        RFGridSearch(config),
        train_dataset=load_dataset(options.dataset, options.subset, split="train"),
        num_chunks=options.num_chunks,
        seed=42,
    )
    metric = "rewards/correct/mean"
    runs = experiment.get_runs_info().sort_values(metric, ascending=False)
    print(runs[["run_id", "status", metric, "path"]].to_string(index=False))
    experiment.end()


def correct(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """1 for replies whose last number is the one wanted."""
    pairs = zip(completions, answer, strict=True)
    return [float(numbers(text_of(reply))[-1:] == numbers(wanted)[-1:]) for reply, wanted in pairs]


def brief(completions: list[Any], **_: Any) -> list[float]:
    """Up to 0.1 for replies that come to the point."""
    return [0.1 / (1 + len(text_of(reply)) / 200) for reply in completions]


def numbers(text: str) -> list[str]:
    """The numbers in it, without thousands separators."""
    return re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", ""))


def text_of(reply: Any) -> str:
    """A reply is a text, or a list of messages where prompts are."""
    return reply if isinstance(reply, str) else str(reply[-1]["content"])


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--dataset", default="openai/gsm8k")
    parser.add_argument("--subset", default="main", help="configuration of the dataset")
    parser.add_argument("--max-steps", type=int, default=100, help="optimizer steps of each run")
    parser.add_argument("--max-completion-length", type=int, default=256, help="tokens of a reply")
    parser.add_argument("--num-chunks", type=int, default=4, help="how often runs take turns")
    parser.add_argument("--experiment-path", help="folder for all experiments")
    return parser.parse_args()


if __name__ == "__main__":
    main()
