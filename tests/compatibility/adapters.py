"""Adapters and weights: what is trained of a model, and what of it the runs share."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from peft import EvaConfig, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from rapidfireai.testing.tiny import tiny_model, tiny_tokenizer
from tests.compatibility.trial import Trial, refused, small, twice
from tests.training.solo import Case

_LAYERS = {"target_modules": ["q_proj", "v_proj"]}
_RANK_2 = {**_LAYERS, "r": 2}

METHODS: Mapping[str, Mapping[str, Any]] = {
    "AdaLoraConfig": {**_LAYERS, "init_r": 4, "target_r": 2, "total_step": 2},
    "BOFTConfig": {**_LAYERS, "boft_block_size": 4},
    "BeftConfig": _LAYERS,
    "C3AConfig": {**_LAYERS, "block_size": 4},
    "CartridgeConfig": {"num_virtual_tokens": 4},
    "DeftConfig": _RANK_2,
    "DeloraConfig": _RANK_2,
    "FourierFTConfig": {**_LAYERS, "n_frequency": 8},
    "FrodConfig": _LAYERS,
    "GloraConfig": _RANK_2,
    "GraloraConfig": {**_LAYERS, "r": 4, "gralora_k": 2},
    "HRAConfig": _RANK_2,
    "HiraConfig": _RANK_2,
    "IA3Config": {
        "target_modules": ["k_proj", "v_proj", "down_proj"],
        "feedforward_modules": ["down_proj"],
    },
    "LNTuningConfig": {"target_modules": ["input_layernorm"]},
    "LilyConfig": _RANK_2,
    "LoHaConfig": _RANK_2,
    "LoKrConfig": _RANK_2,
    "MissConfig": _RANK_2,
    "OFTConfig": {**_LAYERS, "oft_block_size": 4},
    "OSFConfig": _LAYERS,
    "PeanutConfig": _RANK_2,
    "PrefixTuningConfig": {"num_virtual_tokens": 4},
    "PromptEncoderConfig": {"num_virtual_tokens": 4, "encoder_hidden_size": 16},
    "PromptTuningConfig": {"num_virtual_tokens": 4},
    "PsoftConfig": _RANK_2,
    "PveraConfig": _RANK_2,
    "RandLoraConfig": _RANK_2,
    "RoadConfig": {**_LAYERS, "group_size": 4},
    "ShadowConfig": {"r": 2},
    "ShiraConfig": _RANK_2,
    "SupertuningConfig": _LAYERS,
    "TinyLoraConfig": _RANK_2,
    "TrainableTokensConfig": {"token_indices": [5, 6, 7]},
    "UniLoraConfig": _RANK_2,
    "VBLoRAConfig": {**_LAYERS, "r": 2, "num_vectors": 8, "vector_length": 4, "topk": 2},
    "VeraConfig": _RANK_2,
    "WaveFTConfig": {**_LAYERS, "n_frequency": 8},
}
"""Class in `peft` -> arguments that fit the tiny model; LoRA itself has rows of its own."""

_REFUSED: Mapping[str, Mapping[str, Any]] = {
    "AdamssConfig": _RANK_2,
    "AdaptionPromptConfig": {"adapter_len": 4, "adapter_layers": 1},
    "CPTConfig": {
        "cpt_token_ids": [5, 6, 7],
        "cpt_mask": [1, 1, 1],
        "cpt_tokens_type_mask": [1, 2, 4],
    },
    "MultitaskPromptTuningConfig": {"num_virtual_tokens": 4, "num_tasks": 1},
    "PolyConfig": {**_RANK_2, "n_tasks": 1},
    "XLoraConfig": {"hidden_size": 32, "adapters": {}},
}

_LORA: Mapping[str, Mapping[str, Any]] = {
    "LoRA": {},
    "LoRA on all linear layers, rank 1": {"r": 1, "target_modules": "all-linear"},
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "PiSSA": {"init_lora_weights": "pissa"},
    "OLoRA": {"init_lora_weights": "olora"},
    "EVA": {"init_lora_weights": "eva", "eva_config": EvaConfig(rho=1.0)},
    "LoRA-GA": {"init_lora_weights": "lora_ga"},
    "LoRA, orthogonal": {"init_lora_weights": "orthogonal"},
    "LoRA with `modules_to_save`": {"modules_to_save": ["lm_head"]},
    "LoRA with `trainable_token_indices`": {"trainable_token_indices": [5, 6]},
    "LoRA with `rank_pattern`": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 2}},
    "LoRA with `bias`": {"bias": "all"},
}
"""What LoRA is called -> what makes it so."""

_PREFIXES = ("CartridgeConfig", "PrefixTuningConfig")
"""Methods that do not go with activation checkpointing, which is on by default."""

_EVERY_DAY = ("IA3Config", "PromptTuningConfig", "LNTuningConfig")


def adapted(method: str, arguments: Mapping[str, Any]) -> Case:
    """SFT of such an adapter."""
    lora = {**arguments, "task_type": "CAUSAL_LM"}
    return replace(small("SFT"), peft=method, lora=lora)


def _lora(**changes: Any) -> Case:
    plain = small("SFT")
    return replace(plain, lora={**(plain.lora or {}), **changes})


def _row(method: str) -> Trial:
    every_day, note = method in _EVERY_DAY, ""
    spec, group = adapted(method, METHODS[method]), "adapters" if every_day else "rare adapters"
    if method in _PREFIXES:
        group = "prefixes"
        spec = replace(spec, args={**spec.args, "gradient_checkpointing": False})
        note = "With `gradient_checkpointing=False`; refused without."
    return Trial(
        name=f"`{method}`",
        cases=(spec,),
        note=note,
        group=group,
        exam=not every_day,
    )


def brought_adapter() -> tuple[Any, Any]:
    """A PeftModel of the user's."""
    model = get_peft_model(tiny_model(), _adapter())
    return model, tiny_tokenizer()


def loaded_adapter(*, reference: bool = False) -> tuple[Any, Any]:
    """A PeftModel from an adapter that has been trained and saved before."""
    model = PeftModel.from_pretrained(tiny_model(), _saved_adapter(1), is_trainable=True)
    if reference:
        model.load_adapter(_saved_adapter(2), adapter_name="reference")
    return model, tiny_tokenizer()


def reference_model() -> Any:
    """The base with the reference adapter."""
    return PeftModel.from_pretrained(tiny_model(), _saved_adapter(2)).get_base_model()


def _adapter() -> LoraConfig:
    torch.manual_seed(5)
    return LoraConfig(**(small("SFT").lora or {}))


@cache
def _saved_adapter(seed: int) -> str:
    folder = tempfile.mkdtemp(prefix="adapter-")
    model = get_peft_model(tiny_model(), _adapter())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.05, generator=generator)
    model.save_pretrained(folder)
    return folder


@cache
def _saved_model() -> str:
    folder = tempfile.mkdtemp(prefix="model-")
    tiny_model().save_pretrained(folder)
    return folder


def quantized(**bits: Any) -> tuple[Any, Any]:
    """A base in fewer bits."""
    config = BitsAndBytesConfig(**bits)
    return (
        AutoModelForCausalLM.from_pretrained(_saved_model(), quantization_config=config),
        tiny_tokenizer(),
    )


def _brought(name: str, spec: Case, make: Callable[[], Any], note: str = "", **more: Any) -> Trial:
    """A model as `create_model` may bring it, trained with two learning rates."""
    first = replace(spec, make_model=make, **more)
    slower = {**first.args, "learning_rate": first.args["learning_rate"] / 2}
    return Trial(name=name, cases=(first, replace(first, args=slower)), note=note, exam=True)


_BY_SEED = "One base for each seed, since making an adapter draws random numbers."
_WHOLE = replace(small("SFT"), lora=None)

TRIALS = (
    *(Trial(name=name, cases=(_lora(**more),), group="adapters") for name, more in _LORA.items()),
    Trial(
        name="all weights",
        cases=twice(replace(_WHOLE, args={**_WHOLE.args, "learning_rate": 1e-3})),
        group="adapters",
    ),
    *map(_row, METHODS),
    *(refused(f"`{name}`", adapted(name, arguments)) for name, arguments in _REFUSED.items()),
    refused(
        "`PrefixTuningConfig` with activation checkpointing",
        adapted("PrefixTuningConfig", METHODS["PrefixTuningConfig"]),
    ),
    _brought("a `PeftModel` of one's own", _WHOLE, brought_adapter, _BY_SEED),
    _brought("an adapter that was trained before", _WHOLE, loaded_adapter, _BY_SEED),
    _brought(
        "DPO against a reference adapter",
        replace(small("DPO"), lora=None),
        partial(loaded_adapter, reference=True),
        "The adapter named `reference`.",
        make_reference=reference_model,
    ),
    _brought("4-bit base", small("SFT"), partial(quantized, load_in_4bit=True), "By bitsandbytes."),
    _brought("8-bit base", small("SFT"), partial(quantized, load_in_8bit=True), "By bitsandbytes."),
)
