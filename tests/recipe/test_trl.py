"""A file for `trl sft --config` and its like means the same here: TRL's parser reads it as well."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
import yaml

from rapidfireai.recipe import read
from rapidfireai.training.arguments import resolve

FILES: dict[str, dict[str, Any]] = {
    "sft": {
        "model_name_or_path": "some/model",
        "model_revision": "v2",
        "dtype": "bfloat16",
        "attn_implementation": "eager",
        "dataset_name": "some/dataset",
        "learning_rate": 2.0e-4,
        "num_train_epochs": 1,
        "packing": True,
        "max_length": 128,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 8,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "eval_strategy": "steps",
        "eval_steps": 10,
        "logging_steps": 25,
        "report_to": "none",
        "bf16": False,
        "seed": 7,
        "output_dir": "out",
        "use_peft": True,
        "lora_r": 32,
        "lora_alpha": 16,
        "lora_target_modules": ["q_proj", "v_proj"],
        "use_rslora": True,
    },
    "dpo": {
        "model_name_or_path": "some/model",
        "dataset_name": "some/dataset",
        "loss_type": ["sigmoid", "sft"],
        "loss_weights": [1.0, 0.5],
        "beta": 0.05,
        "bf16": False,
        "use_peft": True,
        "lora_target_modules": ["all-linear"],
    },
    "grpo": {
        "model_name_or_path": "some/model",
        "dataset_name": "some/dataset",
        "reward_funcs": ["think_format_reward", "trl.rewards.accuracy_reward"],
        "reward_weights": [0.5, 1.0],
        "num_generations": 4,
        "per_device_train_batch_size": 4,
        "temperature": 0.7,
        "bf16": False,
    },
    "rloo": {
        "model_name_or_path": "some/model",
        "dataset_name": "some/dataset",
        "reward_funcs": ["get_soft_overlong_punishment"],
        "reward_model_name_or_path": "some/reward",
        "num_generations": 2,
        "per_device_train_batch_size": 4,
        "bf16": False,
    },
    "kto": {
        "model_name_or_path": "some/model",
        "datasets": [{"path": "some/dataset", "split": "train"}],
        "desirable_weight": 1.5,
        "bf16": False,
    },
    "reward": {
        "model_name_or_path": "some/model",
        "dataset_name": "some/dataset",
        "center_rewards_coefficient": 0.01,
        "bf16": False,
        "use_peft": True,
        "lora_task_type": "SEQ_CLS",
        "lora_modules_to_save": ["score"],
        "use_dora": True,
    },
    "distillation": {
        "model_name_or_path": "some/model",
        "teacher_model_name_or_path": "some/teacher",
        "dataset_name": "some/dataset",
        "bf16": False,
    },
}

OURS = ("output_dir", "disable_tqdm", "use_cpu", "save_strategy", "dataloader_pin_memory")
"""What the engine sets in every run; see docs/running.md. The model is loaded before the trainer
is built."""


@pytest.mark.parametrize("name", FILES)
def test_both_read_the_same(name: str, tmp_path: Path) -> None:
    file = tmp_path / f"{name}.yaml"
    file.write_text(yaml.safe_dump(FILES[name]))
    script = importlib.import_module(f"trl.scripts.{name}")
    _, arguments, model, _ = script.make_parser().parse_args_and_config(["--config", str(file)])

    recipe = read(file, trainer=name)
    (config,) = recipe.configs()
    resolved = resolve(
        config, device=torch.device("cpu"), output_dir=tmp_path, default_seed=recipe.seed
    )

    theirs, ours = arguments.to_dict(), resolved.args.to_dict()
    differing = {key for key in theirs if theirs[key] != ours[key]} - {*OURS}
    assert not differing, {key: (theirs[key], ours[key]) for key in differing}
    adapter = trl.get_peft_config(model)
    if adapter is None:
        assert resolved.peft_config is None
    else:
        assert adapter.to_dict() == resolved.peft_config.to_dict()
    assert config.model["model_name"] == model.model_name_or_path
    given = config.model["model_kwargs"]
    assert given.get("revision", "main") == model.model_revision
    assert given.get("dtype", "float32") == model.dtype
    assert given.get("attn_implementation") == model.attn_implementation


def test_rewards_are_those_of_trl(tmp_path: Path) -> None:
    found = {}
    for name in ("grpo", "rloo"):
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(FILES[name]))
        (config,) = read(file, trainer=name).configs()
        found[name] = config.trainer_kwargs["reward_funcs"]
    assert found["grpo"] == [trl.rewards.think_format_reward, trl.rewards.accuracy_reward]
    model, punishment = found["rloo"]
    assert model == "some/reward"
    assert punishment(completion_ids=[[0] * 1280]) == [-1.0]
    assert punishment(completion_ids=[[0] * 1024]) == [0.0]


def test_quantization_is_that_of_trl(tmp_path: Path) -> None:
    file = tmp_path / "qlora.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                **FILES["sft"],
                "load_in_4bit": True,
                "bnb_4bit_quant_type": "fp4",
                "use_bnb_nested_quant": True,
                "bnb_4bit_quant_storage": "bfloat16",
            }
        )
    )
    _, _, model, _ = trl.TrlParser(
        (trl.ScriptArguments, trl.SFTConfig, trl.ModelConfig, trl.DatasetMixtureConfig)
    ).parse_args_and_config(["--config", str(file)])
    (config,) = read(file, trainer="sft").configs()
    theirs = trl.get_quantization_config(model)
    assert theirs is not None
    ours = type(theirs)(**config.model["model_kwargs"]["quantization_config"])
    assert ours.to_dict() == theirs.to_dict()
