"""What the training benchmarks train: a model, rows and N configurations, however they are run."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from rapidfireai.demo.dataset import standard_library
from rapidfireai.testing.tiny import sentence, tiny_model, tiny_tokenizer

SEED = 42
TINY = "tiny"

LORA: Mapping[str, Any] = {
    "r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.1,
    "target_modules": ["q_proj", "v_proj"],
    "task_type": "CAUSAL_LM",
}

SHAPES: Mapping[str, Mapping[str, int]] = {
    "0.135B": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49_152,
    },
    "1.2B": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256,
    },
    "8B": {
        "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256,
    },
}  # fmt: skip
"""Those of SmolLM2-135M, Llama 3.2 1B and Llama 3.1 8B, which get random weights here."""


def llama(shape: str) -> LlamaConfig:
    """Of one of `SHAPES`; only the largest has a head of its own."""
    return LlamaConfig(**SHAPES[shape], pad_token_id=0, tie_word_embeddings=shape != "8B")


def variety(completions: list[str], **_: Any) -> list[float]:
    """A reward that is computed in no time."""
    return [len(set(completion)) / 10 for completion in completions]


@dataclass(frozen=True, kw_only=True)
class Case:
    """N LoRA configurations that differ in the learning rate.

    Every configuration trains one epoch of `num_steps` steps, so that it has `num_chunks` chunks.
    """

    model: str
    """`TINY`, one of `SHAPES`, or the folder of a model."""
    trainer: str = "SFT"
    """Or "DPO" or "GRPO"."""
    num_configs: int
    num_chunks: int
    num_steps: int
    """Optimizer steps of each configuration."""
    batch_size: int
    accumulation: int = 1
    """Micro-batches of a step."""
    max_length: int
    num_eval_rows: int = 0
    """Rows for an evaluation at the end of each chunk; 0 evaluates nothing."""
    data: Path | None = None
    """JSON lines with `question` and `answer`, instead of rows that ship with the package."""
    hidden_size: int = 32
    """Of `TINY`, as what follows."""
    num_layers: int = 2
    dropout: float = 0.1
    """Of the base itself."""
    num_words: int = 12
    """Of a row's text."""

    @property
    def device(self) -> torch.device:
        """Where everything is trained."""
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")

    @property
    def steps_per_chunk(self) -> int:
        """Optimizer steps of each chunk; the number of steps is a multiple of that of chunks."""
        return self.num_steps // self.num_chunks

    def create_model(self, model_config: dict[str, Any]) -> tuple[Any, Any]:
        """The base and its tokenizer, as `run_fit` wants them."""
        if self.model == TINY:
            model = tiny_model(
                hidden_size=self.hidden_size, num_layers=self.num_layers, dropout=self.dropout
            )
            return model, tiny_tokenizer()
        if self.model in SHAPES:
            torch.manual_seed(SEED)
            dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
            with torch.device(self.device):
                model = AutoModelForCausalLM.from_config(llama(self.model), dtype=dtype)
            return model, tiny_tokenizer()
        model = AutoModelForCausalLM.from_pretrained(self.model, dtype="float32")
        return model, AutoTokenizer.from_pretrained(self.model)

    def arguments(self, number: int) -> dict[str, Any]:
        """Arguments of TRL's config class for configuration `number`, counted from 0."""
        arguments: dict[str, Any] = {
            "learning_rate": 1e-4 * (number + 1),
            "max_steps": self.num_steps,
            "per_device_train_batch_size": self.batch_size,
            "gradient_accumulation_steps": self.accumulation,
            "max_length": self.max_length,
            "seed": SEED,
            "logging_steps": 10,
            "bf16": self.device.type == "cuda",
            "activation_checkpointing": False,
        }
        if self.trainer == "GRPO":
            # As many tokens are generated for each prompt as a row has in other trainers.
            arguments["max_completion_length"] = arguments.pop("max_length")
            arguments["num_generations"] = self.batch_size
        if self.num_eval_rows:
            # Both ways evaluate the same rows at the same steps.
            arguments |= {
                "eval_strategy": "steps",
                "eval_steps": self.steps_per_chunk,
                "per_device_eval_batch_size": self.batch_size,
            }
        return arguments

    def objects(self) -> dict[str, Any]:
        """What the trainer is given besides its arguments."""
        return {"reward_funcs": variety} if self.trainer == "GRPO" else {}

    def rows(self) -> tuple[Any, Any]:
        """Datasets to train and to evaluate on; None for the latter if nothing is evaluated."""
        num_train = self.num_steps * self.batch_size * self.accumulation
        texts = self._texts(num_train + self.num_eval_rows)
        train = self._dataset(texts[:num_train])
        return train, self._dataset(texts[num_train:]) if self.num_eval_rows else None

    def _dataset(self, texts: list[str]) -> Dataset:
        if self.trainer != "DPO":
            return Dataset.from_dict({"text" if self.trainer == "SFT" else "prompt": texts})
        # Whatever follows another text's first word is as good as any reply that is not wanted.
        words = [text.partition(" ") for text in texts]
        first, replies = [word for word, _, _ in words], [f" {reply}" for _, _, reply in words]
        rejected = [*replies[1:], *replies[:1]]
        return Dataset.from_dict({"prompt": first, "chosen": replies, "rejected": rejected})

    def _texts(self, num: int) -> list[str]:
        if self.data is not None:
            rows = [json.loads(line) for line in self.data.read_text().splitlines()]
            texts = [f"{row['question']}\n{row['answer']}" for row in rows]
        elif self.model == TINY or self.model in SHAPES:
            rng = random.Random(SEED)
            return [sentence(rng, self.num_words) for _ in range(num)]
        else:
            questions = standard_library(num_train=384, num_held_out=64, seed=SEED)
            texts = [f"{row['instruction']}\n{row['response']}" for row in questions.train]
        return [texts[i % len(texts)] for i in range(num)]
