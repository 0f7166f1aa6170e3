"""Arguments that TRL, transformers or the incumbent knew and the tested versions do not.

One row per old name (looked up only where the config class does not have the name), one row per
value that means something else here. Checked against TRL 1.16, transformers 5.23 and PEFT 0.21.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rapidfireai.errors import ConfigError


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True)
class Renamed:
    """The argument lives on under another name."""

    new: str
    convert: Callable[[Any], Any] = _same
    """Old value -> new value."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """The argument does nothing any more; a note says why."""

    why: str
    harmless: tuple[Any, ...] | None = None
    """The values that may be dropped, others are refused; None: any."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The argument cannot be translated."""

    instead: str
    """What to use."""
    harmless: tuple[Any, ...] = ()
    """The values that ask for nothing."""


def _warmup_fraction(ratio: Any) -> Any:
    if isinstance(ratio, int | float) and not 0 <= ratio < 1:
        raise ConfigError(f"warmup_ratio={ratio!r} must be at least 0 and below 1")
    return ratio


_OWN_FOLDER = "every run has a folder of its own, chosen by the experiment"
_WHOLE_LENGTH = (
    "prompts and completions are not cut on their own any more; max_length, where the trainer has "
    "it, bounds both together"
)
_REF_ADAPTER = (
    "the reference is the adapter of that name of create_model's model, if it has one, or else the "
    "policy as it is at the start"
)
_BY_ITSELF = "TRL finds it out by itself"
_GONE = "transformers does not have it any more, and nothing takes its place"
_REF_MODEL = "load the reference model and give it as ref_model= to RFModelConfig"

OLD_NAMES: Mapping[str, Renamed | Dropped | Refused] = {
    # TRL
    "max_seq_length": Renamed("max_length"),
    "max_prompt_length": Dropped(_WHOLE_LENGTH),
    "max_completion_length": Dropped(_WHOLE_LENGTH),
    "truncation_mode": Dropped("this trainer always keeps the start"),
    "group_size": Renamed("num_generations"),
    "rloo_k": Renamed("num_generations"),
    "response_length": Renamed("max_completion_length"),
    "kl_coef": Renamed("beta"),
    "cliprange": Renamed("epsilon"),
    "num_ppo_epochs": Renamed("num_iterations"),
    "normalize_advantage": Renamed("normalize_advantages"),
    "token_level_kl": Dropped("TRL removed it", harmless=(False,)),
    "whiten_rewards": Dropped("TRL removed it", harmless=(False,)),
    "normalize_reward": Dropped("TRL removed it", harmless=(False,)),
    "exp_name": Renamed("run_name"),
    "reward_model_path": Refused("use reward_funcs=[...] of RFModelConfig"),
    "judge": Refused("use reward_funcs=[...] of RFModelConfig"),
    "model_adapter_name": Dropped(
        "TRL trains the adapter named 'default'", harmless=(None, "default")
    ),
    "ref_adapter_name": Dropped(_REF_ADAPTER, harmless=(None, "reference")),
    "force_use_ref_model": Dropped("a ref_model that is given is always used"),
    "ref_model_init_kwargs": Refused(_REF_MODEL),
    "rpo_alpha": Refused("use loss_type=['sigmoid', 'sft'] and loss_weights=[1.0, rpo_alpha]"),
    "reference_free": Dropped("the default", harmless=(False, None)),
    "generate_during_eval": Dropped("the default", harmless=(False, None)),
    "is_encoder_decoder": Dropped("only decoder models are trained", harmless=(False, None)),
    "tools": Refused("give a column `tools` in the dataset, or tools= of RFModelConfig (GRPO)"),
    "use_logits_to_keep": Dropped(_BY_ITSELF),
    "base_model_attribute_name": Dropped(_BY_ITSELF),
    "label_pad_token_id": Dropped(_BY_ITSELF),
    "padding_value": Dropped("padding uses the tokenizer's pad_token"),
    "use_liger_loss": Renamed("use_liger_kernel"),
    "use_liger": Renamed("use_liger_kernel"),
    "wandb_log_unique_prompts": Renamed("log_unique_prompts"),
    "vllm_guided_decoding_regex": Renamed("vllm_structured_outputs_regex"),
    "vllm_max_model_len": Renamed("vllm_max_model_length"),
    "gpu_memory_utilization": Renamed("vllm_gpu_memory_utilization"),
    "vllm_device": Dropped("vLLM runs on the trainer's device"),
    "dataset_num_proc": Dropped("this trainer prepares its data in one process"),
    "dataset_batch_size": Dropped(_BY_ITSELF),
    "num_of_sequences": Dropped(_BY_ITSELF),
    "chars_per_token": Dropped(_BY_ITSELF),
    # TRL's command line, for PEFT's LoraConfig
    "lora_rank": Renamed("r"),
    "lora_r": Renamed("r"),
    # transformers
    "per_gpu_train_batch_size": Renamed("per_device_train_batch_size"),
    "per_gpu_eval_batch_size": Renamed("per_device_eval_batch_size"),
    "evaluation_strategy": Renamed("eval_strategy"),
    "warmup_ratio": Renamed("warmup_steps", _warmup_fraction),
    "no_cuda": Renamed("use_cpu"),
    "adafactor": Renamed("optim", lambda on: "adafactor" if on else "adamw_torch_fused"),
    "group_by_length": Renamed(
        "train_sampling_strategy", lambda on: "group_by_length" if on else "random"
    ),
    "include_inputs_for_metrics": Renamed(
        "include_for_metrics", lambda on: ["inputs"] if on else []
    ),
    "include_tokens_per_second": Dropped("tokens per second are always measured"),
    "push_to_hub_token": Renamed("hub_token"),
    "push_to_hub_model_id": Renamed("hub_model_id"),
    "push_to_hub_organization": Refused('use hub_model_id="organization/name"'),
    "torchdynamo": Renamed("torch_compile_backend"),
    "xpu_backend": Renamed("ddp_backend"),
    "fp16_backend": Dropped("there is only torch's own"),
    "half_precision_backend": Dropped("there is only torch's own"),
    "fp16_opt_level": Dropped("it belonged to Apex"),
    "overwrite_output_dir": Dropped(_OWN_FOLDER),
    "logging_dir": Dropped(_OWN_FOLDER),
    "save_safetensors": Dropped("weights are always saved as safetensors"),
    "use_mps_device": Dropped("the devices of this machine are found"),
    "use_ipex": Dropped(_GONE),
    "jit_mode_eval": Dropped(_GONE),
    "tpu_num_cores": Dropped(_GONE),
    "tpu_metrics_debug": Dropped(_GONE),
    "use_legacy_prediction_loop": Dropped(_GONE),
    "ray_scope": Dropped(_GONE),
    "past_index": Dropped(_GONE, harmless=(-1,)),
    "mp_parameters": Dropped(_GONE, harmless=("",)),
    "fsdp_min_num_params": Refused("use fsdp_config={'min_num_params': ...}"),
    "fsdp_transformer_layer_cls_to_wrap": Refused(
        "use fsdp_config={'transformer_layer_cls_to_wrap': ...}"
    ),
    "split_batches": Refused("use accelerator_config={'split_batches': ...}"),
    "dispatch_batches": Refused("use accelerator_config={'dispatch_batches': ...}"),
    # What belongs elsewhere
    "tokenizer": Refused("give it to RFModelConfig(tokenizer=...), or return it from create_model"),
    "processing_class": Refused("return it from create_model"),
    "peft_config": Refused("give it to RFModelConfig(peft_config=...)"),
    "formatting_func": Refused("give it to RFModelConfig(formatting_func=...)"),
    "compute_metrics": Refused("give it to RFModelConfig(compute_metrics=...)"),
    "reward_funcs": Refused("give it to RFModelConfig(reward_funcs=...)"),
    "ref_model": Refused("give it to RFModelConfig(ref_model=...)"),
    "teacher_model": Refused("give it to RFModelConfig(teacher_model=...)"),
    "callbacks": Refused("give it to RFModelConfig(callbacks=[...])"),
    "model_name": Refused("give it to RFModelConfig(model_name=...)"),
    "torch_dtype": Refused("give it to RFModelConfig(model_kwargs={'dtype': ...})"),
    "dtype": Refused("give it to RFModelConfig(model_kwargs={'dtype': ...})"),
}

OLD_VALUES: Mapping[tuple[str, str], Dropped] = {
    ("save_strategy", "chunk"): Dropped("the engine saves every run's state by itself"),
}
"""Values of the incumbent that TRL does not know."""

_REF_MODEL_ANSWER = Refused(
    f"{_REF_MODEL}; with a peft_config none is needed: the base without adapter is the reference",
    harmless=(None,),
)

OLD_MODEL_NAMES: Mapping[str, Dropped | Refused] = {
    "ref_model_name": _REF_MODEL_ANSWER,
    "ref_model_type": _REF_MODEL_ANSWER,
    "ref_model_kwargs": _REF_MODEL_ANSWER,
    "num_gpus": Dropped("every run trains on one device, several per run come later", (1, None)),
    "param_config": Refused("write its entries as arguments of RFModelConfig"),
    "create_model_fn": Refused("give it to run_fit(create_model=...)"),
    "create_model": Refused("give it to run_fit(create_model=...)"),
}
"""Arguments of the incumbent's RFModelConfig, or of run_fit, that ours does not take."""
