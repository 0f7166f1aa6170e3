"""Best of n: how much better replies get if a reward model picks one of several.

    python examples/best_of_n.py
    python examples/best_of_n.py --reward-model path/to/rewards --max-steps 200

First four LoRA configurations are trained with SFT. Then the two best each reply to held-out
questions, 1, 2, ... n times, and a reward model keeps the best reply. That is an evaluation, not a
training: TRL had a class for it once. For real models give --model, and as --reward-model one that
was trained for it, such as the result of examples/reward.py.
"""

# ruff: noqa: T201, TID253 - a program that prints, not a part of the package
import argparse
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rapidfireai import Experiment
from rapidfireai.automl import List, RFGridSearch, RFLoraConfig, RFModelConfig, RFSFTConfig


def main() -> None:
    """Train, then show the mean reward for each number of replies."""
    options = parse()
    rows = load_dataset(options.dataset, split="train").train_test_split(
        test_size=options.num_held_out, seed=0
    )
    config = RFModelConfig(
        model_name=options.model,
        peft_config=RFLoraConfig(r=List([8, 32]), lora_alpha=32, target_modules="all-linear"),
        training_args=RFSFTConfig(
            learning_rate=List([1e-3, 1e-4]),
            max_steps=options.max_steps,
            max_length=256,
            per_device_train_batch_size=2,
        ),
    )
    experiment = Experiment("best-of-n", experiment_path=options.experiment_path)
    experiment.run_fit(
        RFGridSearch(config),
        train_dataset=rows["train"],
        eval_dataset=rows["test"],
        num_chunks=options.num_chunks,
        seed=42,
    )
    runs = experiment.get_runs_info().sort_values("eval_loss")
    print(runs[["run_id", "status", "eval_loss", "path"]].to_string(index=False))
    judge = Judge(options.reward_model or options.model)
    questions = rows["test"]["instruction"]
    for run in runs.head(2).itertuples():
        rewards_QN = rewards(Path(run.path), questions, judge, options)
        best_N = rewards_QN.cummax(dim=1).values.mean(dim=0)
        told = "  ".join(f"best of {n}: {best:.3f}" for n, best in enumerate(best_N.tolist(), 1))
        print(f"run {run.run_id}  {told}")
    experiment.end()


class Judge:
    """A reward model.

    Args:
        name: Its name or folder.
    """

    def __init__(self, name: str) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(name)
        self._model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=1)
        self._model.config.pad_token_id = self._tokenizer.pad_token_id

    @torch.inference_mode()
    def score(self, texts: list[str]) -> torch.Tensor:
        """A reward for each text."""
        batch = self._tokenizer(texts, return_tensors="pt", padding=True, truncation=True)
        scores: torch.Tensor = self._model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).logits[:, 0]
        return scores


@torch.inference_mode()
def rewards(
    folder: Path, questions: list[str], judge: Judge, options: argparse.Namespace
) -> torch.Tensor:
    """The reward of each of n replies to each question, of shape (Q, N)."""
    torch.manual_seed(0)
    model: Any = AutoPeftModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    scores = []
    for question in questions:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        replies = model.generate(
            input_ids=prompt["input_ids"],
            attention_mask=prompt["attention_mask"],
            max_new_tokens=options.max_completion_length,
            do_sample=True,
            num_return_sequences=options.num_replies,
            pad_token_id=tokenizer.pad_token_id,
        )
        texts = tokenizer.batch_decode(
            replies[:, prompt["input_ids"].shape[1] :], skip_special_tokens=True
        )
        scores.append(judge.score([f"{question}\n{text}" for text in texts]))
    return torch.stack(scores)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--reward-model", help="default: the model with a random head, for trying")
    parser.add_argument("--dataset", default="databricks/databricks-dolly-15k")
    parser.add_argument("--num-replies", type=int, default=4, help="n")
    parser.add_argument("--max-steps", type=int, default=100, help="optimizer steps of each run")
    parser.add_argument("--max-completion-length", type=int, default=128, help="tokens of a reply")
    parser.add_argument("--num-chunks", type=int, default=4, help="how often runs are compared")
    parser.add_argument("--num-held-out", type=int, default=8, help="rows for comparing")
    parser.add_argument("--experiment-path", help="folder for all experiments")
    return parser.parse_args()


if __name__ == "__main__":
    main()
