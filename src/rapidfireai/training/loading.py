"""Loads models by name, for users who give no `create_model`."""

from collections.abc import Mapping
from typing import Any

import transformers

from rapidfireai.core.spelling import did_you_mean
from rapidfireai.errors import ConfigError
from rapidfireai.training.config import as_json

_CLASSES: Mapping[str, tuple[str, str]] = {
    "causal_lm": ("AutoModelForCausalLM", "AutoTokenizer"),
    "seq2seq_lm": ("AutoModelForSeq2SeqLM", "AutoTokenizer"),
    "seq_cls": ("AutoModelForSequenceClassification", "AutoTokenizer"),
    "image_text_to_text": ("AutoModelForImageTextToText", "AutoProcessor"),
}
"""model_type -> the Auto classes of the model and of its tokenizer or processor."""


def load_by_name(model_config: dict[str, Any]) -> tuple[Any, Any]:
    """The `create_model` in force where the user gives none.

    Like TRL with a model's name, weights are loaded in float32 unless `model_kwargs` says
    otherwise; `dtype="auto"` takes the checkpoint's own.

    Args:
        model_config: model_name, and optionally model_type, model_kwargs, tokenizer and
            tokenizer_kwargs.

    Raises:
        ConfigError: There is no name, the type is unknown, or it cannot be loaded.
    """
    name = model_config.get("model_name")
    if not name:
        raise ConfigError(
            "there is no model: give run_fit(model='name or path'), "
            "RFModelConfig(model_name=...), or a create_model function"
        )
    model_type = model_config.get("model_type") or "causal_lm"
    if model_type not in _CLASSES:
        raise ConfigError(
            f"model_type={model_type!r} cannot be loaded; {did_you_mean(model_type, _CLASSES)} "
            "For others give a create_model function."
        )
    model_class, tokenizer_class = _CLASSES[model_type]
    kwargs = {"dtype": "float32", **(model_config.get("model_kwargs") or {})}
    if "torch_dtype" in kwargs:
        kwargs["dtype"] = kwargs.pop("torch_dtype")
    if model_type == "seq_cls":
        kwargs.setdefault("num_labels", 1)
    tokenizer_kwargs = model_config.get("tokenizer_kwargs") or {}
    return (
        _load(model_class, "model_name", name, kwargs),
        _load(
            tokenizer_class, "tokenizer", model_config.get("tokenizer") or name, tokenizer_kwargs
        ),
    )


def _load(auto_class: str, argument: str, name: Any, kwargs: Mapping[str, Any]) -> Any:
    try:
        return getattr(transformers, auto_class).from_pretrained(name, **kwargs)
    except (OSError, ValueError, TypeError, AttributeError, ImportError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"{argument}={str(name)!r} cannot be loaded: {auto_class}.from_pretrained with "
            f"{as_json(kwargs)} raised {type(error).__name__}: {first_line} Give the path of a "
            "folder, or a name on the hub that this machine can reach."
        ) from error
