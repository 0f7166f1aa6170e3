"""A model, a tokenizer and datasets small enough to train in milliseconds, made on the spot.

Everything is a function of its arguments alone: the same in every process, and the process's
random generators are left as they were.
"""

import random

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_SENTENCE = (
    "the cat sat on a mat and dog ran over big red hill with small blue bird while sun shines "
    "bright in sky near old town"
)
WORDS = tuple(_SENTENCE.split())

_CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tiny_model(
    *, hidden_size: int = 32, num_layers: int = 2, dropout: float = 0.1, seed: int = 1234
) -> LlamaForCausalLM:
    """A random Llama in fp32 for `tiny_tokenizer`; attention dropout is on unless told."""
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        attention_dropout=dropout,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    before = torch.get_rng_state()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    torch.set_rng_state(before)
    return model


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a chat template."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|end|>"
    )
    fast.chat_template = _CHAT_TEMPLATE
    return fast


def sentence(rng: random.Random, num_words: int) -> str:
    """Words at random."""
    return " ".join(rng.choice(WORDS) for _ in range(num_words))


def text_rows(num_rows: int = 64, seed: int = 0) -> Dataset:
    """Rows with `text`."""
    rng = random.Random(seed)
    return Dataset.from_list([{"text": sentence(rng, rng.randint(6, 16))} for _ in range(num_rows)])


def instruction_rows(num_rows: int = 64, seed: int = 0) -> Dataset:
    """Rows with `instruction` and `response`."""
    rng = random.Random(seed)
    return Dataset.from_list(
        [
            {"instruction": sentence(rng, 5), "response": sentence(rng, rng.randint(4, 9))}
            for _ in range(num_rows)
        ]
    )


def preference_rows(num_rows: int = 64, seed: int = 0) -> Dataset:
    """Rows with `prompt`, `chosen` and `rejected`."""
    rng = random.Random(seed)
    return Dataset.from_list(
        [
            {
                "prompt": sentence(rng, 5),
                "chosen": " " + sentence(rng, rng.randint(4, 9)),
                "rejected": " " + sentence(rng, rng.randint(4, 9)),
            }
            for _ in range(num_rows)
        ]
    )


def prompt_rows(num_rows: int = 64, seed: int = 0) -> Dataset:
    """Rows with `prompt`."""
    rng = random.Random(seed)
    return Dataset.from_list(
        [{"prompt": sentence(rng, rng.randint(3, 7))} for _ in range(num_rows)]
    )
