"""From the arguments that a user set to the trainer's config object, for one run on one device."""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import peft
import torch
from transformers.training_args import OptimizerNames

from rapidfireai.core.events import Json
from rapidfireai.errors import ConfigError
from rapidfireai.training.config import CUSTOM, PeftSpec, RunConfig, as_json
from rapidfireai.training.registry import trainer_spec

_SAVING = ("save_strategy", "save_steps", "save_total_limit", "load_best_model_at_end")

# MLflow has a current run for each thread, and so for each of our runs.
_PROCESS_WIDE_TRACKERS = frozenset(
    {"all", "azure_ml", "clearml", "comet_ml", "dagshub", "dvclive", "flyte", "neptune"}
    | {"swanlab", "trackio", "wandb"}
)


def _is_on(value: Any) -> bool:
    return bool(value)


def _is_selective(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value.get("selective"))


def _logs_process_wide(value: Any) -> bool:
    names = {value} if isinstance(value, str) else set(value or ())
    return bool(names & _PROCESS_WIDE_TRACKERS)


REFUSED: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "enable_jit_checkpoint": (
        _is_on,
        "it installs a signal handler for the whole process; leave it out",
    ),
    "auto_find_batch_size": (
        _is_on,
        "it reacts to memory that other runs take; set per_device_train_batch_size",
    ),
    "use_vllm": (
        _is_on,
        "vLLM's weight sync merges the adapter into the base that other runs share; leave it out, "
        "generation then runs in transformers",
    ),
    "deepspeed": (_is_on, "a run trains on one device here; leave it out"),
    "fsdp": (_is_on, "a run trains on one device here; leave it out"),
    "use_liger_kernel": (
        _is_on,
        "it replaces functions of the model's module for the whole process, other runs' included; "
        'leave it out, or load the model with model_kwargs={"use_kernels": True}',
    ),
    "gradient_checkpointing_kwargs": (
        _is_selective,
        "TRL 1.16 hands `selective` to a method that transformers 5.23 does not call any more, so "
        "that the trainer fails alone as well; leave it out, all of a layer is recomputed then",
    ),
    "report_to": (
        _logs_process_wide,
        "its callback logs to one current run of the whole process, so that the metrics of several "
        'runs would mix; use "none", "tensorboard" or "mlflow" here, or run_fit(trackers=["wandb", '
        '"trackio"]), which keeps them apart; experiment.get_results() has all',
    ),
}
"""Options that cannot work beside other runs: what is refused of them, and why."""

_NEEDS_GPU: Mapping[str, str] = {
    "activation_offloading": "on a CPU there is no other memory that they could move to",
}
"""Options that nothing can be made of on a CPU, and why."""

_OPTIMIZER_PACKAGES: Mapping[str, tuple[str, str]] = {
    "adamw_torch_[48]bit": ("torchao", "torchao"),
    "adamw_anyprecision": ("torchdistx", "torchdistx"),
    "adamw_torch_xla": ("torch_xla", "torch_xla"),
    "adamw_torch_npu_fused": ("torch_npu", "torch_npu"),
    "apollo_*": ("apollo_torch", "apollo-torch"),
    "galore_*": ("galore_torch", "galore-torch"),
    "grokadamw": ("grokadamw", "grokadamw"),
    "schedule_free_*": ("schedulefree", "schedulefree"),
    "stable_adamw": ("optimi", "torch-optimi"),
    "*lomo": ("lomo_optim", "lomo-optim"),
    "*_8bit": ("bitsandbytes", "bitsandbytes"),
    "*_32bit": ("bitsandbytes", "bitsandbytes"),
    "rmsprop_bnb": ("bitsandbytes", "bitsandbytes"),
    "ademamix": ("bitsandbytes", "bitsandbytes"),
}
"""Names of `optim` -> the module that it needs, and what to install; the first that fits counts.

transformers asks for them only when the training begins."""


_COMPUTES_OTHERWISE = (
    "torch_compile",
    "use_liger_kernel",
    "activation_offloading",
    "neftune_noise_alpha",
    "full_determinism",
    "tf32",
    "packing",
    "padding_free",
    "deepspeed",
    "fsdp",
)
"""Options that change how a model computes, or the process around it, for one run only."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """The arguments in force for one run."""

    args: Any
    """The trainer's config object (a `transformers.TrainingArguments`); None for a configuration
    that only the user's `create_trainer` understands."""
    seed: int
    peft_config: Any
    """A PEFT config object of the run's own, or None."""
    private_base: str | None
    """Why the run needs base weights of its own; None if it shares them."""
    notes: tuple[str, ...]

    def computes_otherwise(self) -> Iterator[str]:
        """Options by which the run's model computes in another way than those of other runs, as
        `name=value`."""
        for option in _COMPUTES_OTHERWISE:
            # `fsdp` and `deepspeed` are empty where they are not used, `tf32` None.
            value = getattr(self.args, option, None)
            if value not in (None, False, "", [], {}) or (option == "tf32" and value is not None):
                yield f"{option}={value!r}"

    def to_json(self) -> dict[str, Json]:
        """All arguments in force, as JSON."""
        resolved: dict[str, Json] = {}
        if self.args is not None:
            resolved["training_args"] = as_json(self.args.to_dict())
        if self.peft_config is not None:
            resolved["peft_config"] = as_json(self.peft_config.to_dict())
        resolved["private_base"] = self.private_base
        return resolved


def resolve(
    config: RunConfig, *, device: torch.device, output_dir: Path, default_seed: int
) -> Resolved:
    """Build the trainer's arguments. To be called with the run's own process state in place.

    Raises:
        ConfigError: An argument is refused here, or by the trainer's own checks.
    """
    if config.trainer_type == CUSTOM:
        seed = (config.knobs or {}).get("seed", default_seed)
        _check_seed(seed)
        return Resolved(None, seed, None, None, config.notes)
    spec = trainer_spec(config.trainer_type)
    for name, (refuses, reason) in REFUSED.items():
        value = config.training_args.get(name)
        if refuses(value):
            raise ConfigError(f"{name}={value!r} cannot be used here: {reason}.")
    if config.training_args.get("use_cpu") and device.type != "cpu":
        raise ConfigError(
            f"use_cpu=True cannot be used here: the runs share weights on {device}. To train on "
            "the CPU, start Python with the environment variable CUDA_VISIBLE_DEVICES set to "
            "nothing."
        )
    for name, reason in _NEEDS_GPU.items():
        if device.type == "cpu" and config.training_args.get(name):
            raise ConfigError(
                f"{name}={config.training_args[name]!r} needs a GPU: {reason}; leave it out."
            )
    given, notes = _adapted(config, device, output_dir, default_seed)
    _check_seed(given["seed"])
    _check_amounts(given)
    config_class = spec.load_config()
    try:
        args = config_class(**given)
    except (ValueError, TypeError, ImportError, NotImplementedError) as error:
        raise ConfigError(
            f"{config_class.__name__} refuses the arguments {as_json(config.training_args)}: "
            f"{_one_line(error)}"
        ) from error
    use_one_gpu(args)
    _check_optimizer(OptimizerNames(args.optim).value)
    peft_config = None if config.peft is None else make_peft_config(config.peft)
    if config.peft is not None:
        _check_method(config.peft.method, config.trainer_type, args)
    private_base = _private_base(config, args)
    return Resolved(args, args.seed, peft_config, private_base, (*config.notes, *notes))


def use_one_gpu(args: Any) -> None:
    """Let a trainer use the device of its worker only.

    On a machine with several GPUs it would spread over all of them (`DataParallel`), and feed each
    with a batch of its own. transformers offers no public way to say otherwise.
    """
    args._n_gpu = min(args.n_gpu, 1)  # noqa: SLF001


def _check_seed(seed: object) -> None:
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise ConfigError(
            f"seed={seed!r} cannot be used; it has to be an integer from 0 to 2**32 - 1"
        )


def _check_amounts(given: Mapping[str, Any]) -> None:
    """Refuse amounts that train nothing, or that fail only when the training begins."""
    max_steps = given.get("max_steps", -1)
    if max_steps < 1 and max_steps != -1:
        raise ConfigError(
            f"max_steps={max_steps!r} cannot be used; give at least 1, or -1 to let "
            "num_train_epochs decide"
        )
    if max_steps == -1 and given.get("num_train_epochs", 1) <= 0:
        raise ConfigError(
            f"num_train_epochs={given['num_train_epochs']!r} trains nothing; give more than 0"
        )


def _check_optimizer(name: str) -> None:
    for pattern, (module, package) in _OPTIMIZER_PACKAGES.items():
        if fnmatch(name, pattern):
            if importlib.util.find_spec(module) is None:
                raise ConfigError(
                    f"optim={name!r} needs {package}, which is not installed: pip install "
                    f'{package}, or choose another such as "adamw_torch".'
                )
            return


_FUSED_HEAD = frozenset({"SFT", "DPO", "KTO", "GRPO", "RLOO"})
"""Trainers that take the loss from the hidden states, past the model's own head."""

_OWN_HEAD = frozenset({"AdaptionPromptConfig", "CPTConfig", "XLoraConfig"})
"""Methods whose models need what the model's own head gives."""

_PREFIXES = frozenset({"PrefixTuningConfig", "CartridgeConfig"})
"""Methods that put keys and values in front of each layer's own."""


def _check_method(method: str, trainer: str, args: Any) -> None:
    """Refuse what PEFT and TRL cannot do together, alone neither."""
    if method in _OWN_HEAD and trainer in _FUSED_HEAD:
        raise ConfigError(
            f"peft.{method} cannot be used here: {trainer} of TRL 1.16 takes the loss past the "
            "model's own head, which the method needs; use LoraConfig or PromptTuningConfig."
        )
    if method in _PREFIXES and args.gradient_checkpointing:
        raise ConfigError(
            f"peft.{method} cannot be used here: activation checkpointing, which is TRL's default, "
            "computes layers again without their prefix; set gradient_checkpointing=False."
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _adapted(
    config: RunConfig, device: torch.device, output_dir: Path, default_seed: int
) -> tuple[dict[str, Any], list[str]]:
    given = dict(config.training_args)
    notes = []
    if given.get("output_dir") is not None:
        notes.append(
            f"output_dir={given['output_dir']!r} is not used: every run writes to its own folder"
        )
    given["output_dir"] = str(output_dir)
    given.setdefault("seed", default_seed)
    # N progress bars would overwrite each other; progress is shown for all runs together.
    given.setdefault("disable_tqdm", True)
    if not any(given.get(name) for name in _SAVING):
        given["save_strategy"] = "no"
    if device.type == "cpu":
        given["use_cpu"] = True
        given.setdefault("dataloader_pin_memory", False)
        if not given.get("bf16") and not given.get("fp16"):
            if "bf16" not in given:
                notes.append("bf16 is off: its default needs a GPU (set bf16=True to have it here)")
            given["bf16"] = False
    return given, notes


_NO_TASK_IDS = (
    "its model needs task_ids with every batch, which TRL's trainers do not pass; use {}, or a "
    "trainer of your own that passes them (create_trainer)"
)

_PEFT_REFUSED: Mapping[str, str] = {
    "MultitaskPromptTuningConfig": _NO_TASK_IDS.format("PromptTuningConfig"),
    "PolyConfig": _NO_TASK_IDS.format("LoraConfig"),
}
"""Methods that fail at the first step, and why."""

_PEFT_PACKAGES: Mapping[str, tuple[str, str]] = {"AdamssConfig": ("sklearn", "scikit-learn")}
"""Method -> the module that it needs, and what to install."""


def make_peft_config(spec: PeftSpec) -> Any:
    """A new PEFT config object.

    Raises:
        ConfigError: PEFT refuses the arguments.
    """
    if spec.method in _PEFT_REFUSED:
        raise ConfigError(f"peft.{spec.method} cannot be used here: {_PEFT_REFUSED[spec.method]}.")
    package = _PEFT_PACKAGES.get(spec.method)
    if package is not None and importlib.util.find_spec(package[0]) is None:
        raise ConfigError(
            f"peft.{spec.method} needs {package[1]}, which is not installed: pip install "
            f"{package[1]}, or choose another such as LoraConfig."
        )
    cls = getattr(peft, spec.method)
    try:
        config = cls(**spec.arguments)
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(
            f"peft.{spec.method} refuses {as_json(spec.arguments)}: {_one_line(error)}"
        ) from error
    return config


_REWRITING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")


def _private_base(config: RunConfig, args: Any) -> str | None:
    """Why the run writes to the base's weights, or None if it does not."""
    if not config.share_base:
        return "share_base=False"
    for name in ("cast_lm_head_to_fp32", "use_transformers_continuous_batching"):
        if getattr(args, name, False):
            return f"{name} changes the base's weights"
    if getattr(args, "chat_template_path", None):
        return "chat_template_path may resize the base's embeddings"
    if config.peft is None:
        return None
    init = config.peft.arguments.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_REWRITING_INITS):
        return f"init_lora_weights={init!r} rewrites the base's weights"
    if config.peft.arguments.get("kasa_config") is not None:
        return "kasa_config truncates the base's weights"
    bias = config.peft.arguments.get("bias", "none")
    if bias != "none":
        return f"bias={bias!r} trains the base's biases"
    return None
