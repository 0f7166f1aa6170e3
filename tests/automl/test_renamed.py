"""Old arguments: each is translated with a note, or refused with what to use."""

import typing
from typing import Any

import pytest

from rapidfireai import automl
from rapidfireai.automl import (
    List,
    Range,
    RFDPOConfig,
    RFGRPOConfig,
    RFKTOConfig,
    RFLoraConfig,
    RFOnlineDPOConfig,
    RFORPOConfig,
    RFRLOOConfig,
    RFSFTConfig,
)
from rapidfireai.automl.renamed import OLD_NAMES, Dropped, Refused, Renamed
from rapidfireai.automl.template import Template
from rapidfireai.automl.trainer_configs import TrainerTemplate
from rapidfireai.errors import ConfigError, UnknownArgumentError

GONE_SINCE_TRANSFORMERS_4_57 = (
    "overwrite_output_dir per_gpu_train_batch_size per_gpu_eval_batch_size warmup_ratio "
    "logging_dir save_safetensors no_cuda use_mps_device jit_mode_eval fp16_opt_level "
    "half_precision_backend tpu_num_cores tpu_metrics_debug past_index fsdp_min_num_params "
    "fsdp_transformer_layer_cls_to_wrap adafactor group_by_length use_legacy_prediction_loop "
    "include_inputs_for_metrics fp16_backend push_to_hub_model_id push_to_hub_organization "
    "push_to_hub_token mp_parameters torchdynamo ray_scope include_tokens_per_second "
    "evaluation_strategy"
)

GONE_SINCE_TRL_0_21: dict[type[Template], str] = {
    RFSFTConfig: "max_seq_length",
    RFDPOConfig: "ref_model_init_kwargs model_adapter_name ref_adapter_name force_use_ref_model "
    "use_logits_to_keep padding_value label_pad_token_id max_prompt_length max_completion_length "
    "tools use_liger_loss base_model_attribute_name reference_free rpo_alpha generate_during_eval",
    RFGRPOConfig: "max_prompt_length vllm_guided_decoding_regex use_liger_loss "
    "wandb_log_unique_prompts group_size",
    RFKTOConfig: "max_prompt_length max_completion_length label_pad_token_id padding_value "
    "truncation_mode generate_during_eval is_encoder_decoder ref_model_init_kwargs "
    "use_liger_loss base_model_attribute_name",
    RFORPOConfig: "max_prompt_length label_pad_token_id truncation_mode",
    RFOnlineDPOConfig: "judge dataset_num_proc gpu_memory_utilization",
    RFRLOOConfig: "exp_name reward_model_path num_ppo_epochs whiten_rewards kl_coef cliprange "
    "rloo_k normalize_reward normalize_advantage token_level_kl",
}

CASES = [
    *((RFSFTConfig, name) for name in GONE_SINCE_TRANSFORMERS_4_57.split()),
    *((cls, name) for cls, names in GONE_SINCE_TRL_0_21.items() for name in names.split()),
]


@pytest.mark.parametrize(
    ("template", "name"), CASES, ids=lambda case: getattr(case, "__name__", case)
)
def test_every_argument_that_went_is_answered(template: type[Template], name: str) -> None:
    assert name not in template().known_arguments()
    row = OLD_NAMES[name]
    if isinstance(row, Renamed):
        assert row.new in template().known_arguments()


@pytest.mark.parametrize(
    ("template", "given", "expected"),
    [
        (RFSFTConfig, {"max_seq_length": 64}, {"max_length": 64}),
        (RFSFTConfig, {"max_seq_length": List([64, 128])}, {"max_length": List([64, 128])}),
        (RFSFTConfig, {"evaluation_strategy": "steps"}, {"eval_strategy": "steps"}),
        (RFSFTConfig, {"warmup_ratio": 0.1}, {"warmup_steps": 0.1}),
        (RFSFTConfig, {"warmup_ratio": Range(0.0, 0.2)}, {"warmup_steps": Range(0.0, 0.2)}),
        (RFSFTConfig, {"no_cuda": True}, {"use_cpu": True}),
        (RFSFTConfig, {"adafactor": True}, {"optim": "adafactor"}),
        (RFSFTConfig, {"adafactor": False}, {"optim": "adamw_torch_fused"}),
        (
            RFSFTConfig,
            {"group_by_length": List([True, False])},
            {"train_sampling_strategy": List(["group_by_length", "random"])},
        ),
        (
            RFSFTConfig,
            {"include_inputs_for_metrics": True},
            {"include_for_metrics": ["inputs"]},
        ),
        (RFSFTConfig, {"include_inputs_for_metrics": False}, {"include_for_metrics": []}),
        (RFSFTConfig, {"per_gpu_train_batch_size": 2}, {"per_device_train_batch_size": 2}),
        (RFGRPOConfig, {"group_size": 4}, {"num_generations": 4}),
        (RFRLOOConfig, {"rloo_k": 4, "kl_coef": 0.1}, {"num_generations": 4, "beta": 0.1}),
        (RFLoraConfig, {"lora_r": 4}, {"r": 4}),
        (RFLoraConfig, {"lora_rank": List([4, 8])}, {"r": List([4, 8])}),
    ],
    ids=repr,
)
def test_translated_with_a_note(
    template: type[Template], given: dict[str, Any], expected: dict[str, Any]
) -> None:
    config = template(**given)
    assert config.arguments == expected
    assert len(config.notes) == len(given)
    for name, note in zip(given, config.notes, strict=True):
        assert note.startswith(f"{name}=")
        assert "became" in note


@pytest.mark.parametrize(
    ("template", "name", "value"),
    [
        (RFDPOConfig, "max_prompt_length", 512),
        (RFGRPOConfig, "max_prompt_length", List([128, 256])),
        (RFDPOConfig, "model_adapter_name", "default"),
        (RFDPOConfig, "ref_adapter_name", "reference"),
        (RFDPOConfig, "force_use_ref_model", False),
        (RFDPOConfig, "reference_free", False),
        (RFSFTConfig, "save_strategy", "chunk"),
        (RFSFTConfig, "overwrite_output_dir", True),
    ],
)
def test_left_out_with_a_note(template: type[Template], name: str, value: Any) -> None:
    config = template(**{name: value})
    assert config.arguments == {}
    (note,) = config.notes
    assert note.startswith(f"{name}={value!r} was left out: ")


def test_save_strategy_chunk_takes_back_an_earlier_choice() -> None:
    config = RFSFTConfig(save_strategy="steps")
    config.save_strategy = "chunk"
    assert config.arguments == {}


@pytest.mark.parametrize(
    ("template", "arguments", "message"),
    [
        (RFSFTConfig, {"warmup_ratio": 1.5}, "warmup_ratio=1.5 must be at least 0 and below 1"),
        (RFSFTConfig, {"warmup_ratio": "0.1"}, "warmup_steps='0.1' .* without quotes"),
        (RFSFTConfig, {"tokenizer": "t"}, r"RFModelConfig\(tokenizer=...\)"),
        (RFSFTConfig, {"torch_dtype": "auto"}, r"RFModelConfig\(model_kwargs="),
        (RFSFTConfig, {"fsdp_min_num_params": 1}, r"use fsdp_config=\{'min_num_params': ...\}"),
        (RFSFTConfig, {"past_index": 2}, "past_index=2 is not possible: .* leave it out"),
        (RFDPOConfig, {"rpo_alpha": 1.0}, r"use loss_type=\['sigmoid', 'sft'\]"),
        (RFDPOConfig, {"reference_free": True}, "reference_free=True is not possible"),
        (RFDPOConfig, {"model_adapter_name": "x"}, "TRL trains the adapter named 'default'"),
        (RFDPOConfig, {"ref_model_init_kwargs": {}}, "give it as ref_model= to RFModelConfig"),
        (RFGRPOConfig, {"reward_funcs": []}, r"give it to RFModelConfig\(reward_funcs=...\)"),
    ],
    ids=repr,
)
def test_refused_with_what_to_use(
    template: type[Template], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        template(**arguments)


def test_old_and_new_name_together_are_refused() -> None:
    for order in (("max_seq_length", "max_length"), ("max_length", "max_seq_length")):
        with pytest.raises(ConfigError, match="are the same argument; give max_length"):
            RFSFTConfig(**dict.fromkeys(order, 8))


def test_a_translation_that_the_trainer_does_not_know_is_unknown() -> None:
    with pytest.raises(UnknownArgumentError, match="RFDPOConfig has no argument 'rloo_k'"):
        RFDPOConfig(rloo_k=2)


@pytest.mark.parametrize("name", OLD_NAMES)
def test_every_row_is_of_use(name: str) -> None:
    templates: list[Template] = [cls() for cls in TrainerTemplate.classes.values()]
    templates.append(RFLoraConfig())
    without = [one for one in templates if name not in one.known_arguments()]
    assert without, "the argument is back everywhere: drop the row"
    row = OLD_NAMES[name]
    if isinstance(row, Renamed):
        assert any(row.new in one.known_arguments() for one in without)
    else:
        assert isinstance(row, Dropped | Refused)


def test_table_names_no_class_that_does_not_exist() -> None:
    hints = [row.instead for row in OLD_NAMES.values() if isinstance(row, Refused)]
    words = {word.split("(")[0] for hint in hints for word in hint.split() if word.startswith("RF")}
    assert words == {"RFModelConfig"}
    assert all(hasattr(automl, word) for word in words)


def test_row_kinds_are_told_apart() -> None:
    kinds = typing.get_args(Renamed | Dropped | Refused)
    assert {type(row) for row in OLD_NAMES.values()} == set(kinds)
