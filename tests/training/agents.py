"""A game with tools, and a tiny model that has been taught to play it badly.

Nothing of the engine is imported here, so that plain TRL can train on it alone.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainerCallback,
    set_seed,
)
from trl.chat_template_utils import qwen2_5_chat_template

QUESTION = "Which door?"
LORA: Mapping[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
_SPECIAL = ("<pad>", "<|im_end|>", "<|im_start|>", "<tool_call>", "</tool_call>")


class Doors:
    """A treasure behind one of three doors."""

    def reset(self, treasure: int, **row: Any) -> str:
        """Hide the treasure."""
        self._treasure = treasure
        self._found = False
        return " There are three."

    def open_door(self, door: int) -> str:
        """Open a door.

        Args:
            door: Its number.

        Returns:
            What is behind it.
        """
        self._found = self._found or door == self._treasure
        return "gold" if door == self._treasure else "air"

    def get_reward(self) -> float:
        """1 if the treasure was found."""
        return float(self._found)


def open_door(door: int) -> str:
    """Open a door.

    Args:
        door: Its number.

    Returns:
        What is behind it.
    """
    return "gold" if door == 2 else "air"


def tried(completions: list[Any], **_: Any) -> list[float]:
    """The share of replies that used a tool."""
    return [float(any(m["role"] == "tool" for m in reply)) for reply in completions]


def found(completions: list[Any], **_: Any) -> list[float]:
    """1 where the tool answered with gold."""
    return [float(any(m.get("content") == "gold" for m in reply)) for reply in completions]


def rows(num: int = 16) -> Dataset:
    """Games; the treasure is behind door 2 more often than not."""
    return Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": QUESTION}], "treasure": 1 + n % 2}
            for n in range(num)
        ]
    )


def _call(door: int) -> dict[str, Any]:
    function = {"name": "open_door", "arguments": {"door": door}}
    calls = [{"type": "function", "function": function}]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def _conversations() -> list[list[dict[str, Any]]]:
    return [
        [
            {"role": "user", "content": QUESTION + hint},
            _call(door),
            {"role": "tool", "name": "open_door", "content": answer},
            {"role": "assistant", "content": "done"},
        ]
        for hint in ("", " There are three.")
        for door, answer in ((1, "air"), (2, "gold"), (3, "air"))
    ]


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[*_SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|im_end|>"
    )
    fast.chat_template = qwen2_5_chat_template
    texts = [
        fast.apply_chat_template(one, tools=[open_door], tokenize=False) for one in _conversations()
    ]
    tokenizer.train_from_iterator(texts * 2, trainer)
    trained = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|im_end|>"
    )
    trained.chat_template = qwen2_5_chat_template
    return trained


def teach(folder: Path, num_steps: int = 80) -> None:
    """Write a model that opens doors at random, and its tokenizer; untaught with 0 steps."""
    tokenizer = _tokenizer()
    torch.manual_seed(1)
    torch.set_num_threads(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    ids = tokenizer.apply_chat_template(
        _conversations(), tools=[open_door], padding=True, return_tensors="pt", return_dict=True
    )
    labels = ids["input_ids"].masked_fill(ids["attention_mask"] == 0, -100)
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    for row, line in zip(labels, ids["input_ids"], strict=True):
        # What the model says: from the third turn on, after the system's and the user's.
        row[: int((line == start).nonzero()[2])] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(num_steps):
        loss = model(**ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def arguments(**changes: Any) -> dict[str, Any]:
    """Of `GRPOConfig`, small."""
    return {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 64,
        "max_tool_calling_iterations": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "seed": 3,
        **changes,
    }


class _History(TrainerCallback):
    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rewards: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])
            self.rewards.append(
                {k: v for k, v in logs.items() if k.startswith(("rewards/", "tools/"))}
            )


def train_alone(
    model: Path, args: Mapping[str, Any], kwargs: Mapping[str, Any]
) -> tuple[list[float], list[dict[str, float]], dict[str, torch.Tensor]]:
    """Losses, rewards and adapter of plain TRL."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        config = trl.GRPOConfig(
            output_dir=folder, use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, **args
        )
        set_seed(config.seed)
        trainer = trl.GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(model, dtype="float32"),
            args=config,
            train_dataset=rows(),
            processing_class=AutoTokenizer.from_pretrained(model),
            peft_config=LoraConfig(**LORA),
            **kwargs,
        )
        history = _History()
        trainer.add_callback(history)
        trainer.train()
        weights = {
            name: parameter.detach().clone()
            for name, parameter in trainer.model.named_parameters()
            if parameter.requires_grad
        }
    return history.losses, history.rewards, weights
