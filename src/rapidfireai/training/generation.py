"""Metrics over texts that the model generates for the evaluation set."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import set_seed

from rapidfireai.errors import ConfigError, DatasetError

ComputeMetrics = Callable[[tuple[list[str], list[str]]], Mapping[str, float]]
"""(predictions, references) -> metrics; the user's."""

_REFERENCES = ("completion", "chosen", "answer", "response", "solution", "output", "reference")


def prompt_and_reference(row: Mapping[str, Any]) -> tuple[Any, str]:
    """What to give the model, as text or messages, and the text to compare its reply with.

    Raises:
        DatasetError: The row has no prompt, or no reference.
    """
    if "prompt" not in row and row.get("messages"):
        *prompt, last = row["messages"]
        if last["role"] == "assistant" and prompt:
            return prompt, str(last["content"])
    elif "prompt" in row:
        for column in _REFERENCES:
            if row.get(column) is not None:
                return row["prompt"], _text(row[column])
    raise DatasetError(
        f"compute_metrics compares generated replies with references, but the eval_dataset's rows "
        f"have the columns {sorted(row)}; they need prompt and one of {', '.join(_REFERENCES)}, or "
        "messages that end with the assistant's."
    )


class GenerationMetrics:
    """Generates for each row of an evaluation set and scores the replies.

    Args:
        compute_metrics: (predictions, references) -> metrics.
        generation_config: Arguments of `generate`, and max_input_length (tokens),
            add_generation_prompt (default True) and truncation_side ("left" or "right").
        tokenizer: The run's own. Without a padding token it gets one, as TRL gives it one.
        rows: The evaluation set, or several by name.
        seed: Under which samples are drawn, the same at every evaluation.
    """

    def __init__(
        self,
        compute_metrics: ComputeMetrics,
        generation_config: Mapping[str, Any],
        tokenizer: Any,
        rows: Any,
        seed: int,
    ) -> None:
        options = dict(generation_config)
        self._compute = compute_metrics
        self._max_length = options.pop("max_input_length", None)
        self._add_prompt = options.pop("add_generation_prompt", True)
        self._truncation_side = options.pop("truncation_side", None) or "left"
        self._options = {"max_new_tokens": 128, "use_cache": True, **options}
        if "max_length" in options:
            self._options.pop("max_new_tokens")
        self._tokenizer = tokenizer
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._rows = rows
        self._seed = seed

    def score(self, trainer: Any, dataset: str | None, prefix: str) -> dict[str, float]:
        """The metrics, their names with the prefix.

        To be called where the trainer's random state may be disturbed.

        Args:
            trainer: Whose model generates.
            dataset: Which of several evaluation sets.
            prefix: Such as "eval".

        Raises:
            ConfigError: compute_metrics raised or returned something other than numbers by name.
        """
        rows = self._rows if dataset is None else self._rows[dataset]
        pairs = [prompt_and_reference(row) for row in rows]
        was_training = trainer.model.training
        trainer.model.eval()
        set_seed(self._seed)
        try:
            predictions = list(
                self._replies(trainer, [self._prompt_text(prompt) for prompt, _ in pairs])
            )
        finally:
            trainer.model.train(was_training)
        try:
            metrics = dict(self._compute((predictions, [reference for _, reference in pairs])))
            return {f"{prefix}_{name}": float(value) for name, value in metrics.items()}
        except Exception as error:
            raise ConfigError(
                f"compute_metrics failed with {type(error).__name__}: {error}. It is given "
                "(predictions, references), two lists of strings of the same length, and has to "
                "return a dict of numbers by name."
            ) from error

    def _prompt_text(self, prompt: Any) -> str:
        if isinstance(prompt, str):
            return prompt
        text: str = self._tokenizer.apply_chat_template(
            prompt, tokenize=False, add_generation_prompt=self._add_prompt
        )
        return text

    @torch.no_grad()
    def _replies(self, trainer: Any, prompts: Sequence[str]) -> Iterator[str]:
        tokenizer, size = self._tokenizer, trainer.args.per_device_eval_batch_size
        tokenizer.padding_side = "left"
        tokenizer.truncation_side = self._truncation_side
        for start in range(0, len(prompts), size):
            inputs = tokenizer(
                prompts[start : start + size],
                return_tensors="pt",
                padding=True,
                truncation=self._max_length is not None,
                max_length=self._max_length,
                # A chat template has put the special tokens in already.
                add_special_tokens=tokenizer.chat_template is None,
            )
            inputs.pop("token_type_ids", None)
            inputs = inputs.to(trainer.model.device)
            made = trainer.model.generate(**inputs, **self._options)
            yield from tokenizer.batch_decode(
                made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
            )


def _text(value: Any) -> str:
    """A reply as text; of a conversation the last message's."""
    if isinstance(value, list):
        return str(value[-1]["content"])
    return str(value)
