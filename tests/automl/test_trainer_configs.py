"""Every trainer of the registry has its class of templates, with exactly TRL's arguments."""

import dataclasses
import os
import pickle
import pkgutil
import subprocess
import sys

import peft
import pytest
import trl
import trl.trainer

from rapidfireai import automl
from rapidfireai.automl import List, RFGridSearch, RFLoraConfig, RFSFTConfig
from rapidfireai.automl.argument_types import arguments_of
from rapidfireai.automl.peft_configs import PeftTemplate
from rapidfireai.automl.template import Template
from rapidfireai.automl.trainer_configs import TrainerTemplate
from rapidfireai.training.registry import TRAINERS

SHORT_LORA = {"lora_rank", "lora_alpha", "lora_dropout", "lora_target_modules"}

PEFT_CONFIGS = sorted(
    name
    for name, cls in vars(peft).items()
    if isinstance(cls, type)
    and issubclass(cls, peft.PeftConfig)
    and name not in ("PeftConfig", "PromptLearningConfig")  # bases without a method
)

every_trainer = pytest.mark.parametrize("name", TRAINERS)
every_peft = pytest.mark.parametrize("name", PEFT_CONFIGS)


@every_trainer
def test_trainer_template_has_exactly_the_arguments_of_trl(name: str) -> None:
    cls = getattr(automl, f"RF{name}Config")
    assert issubclass(cls, TrainerTemplate)
    assert cls.spec is TRAINERS[name]
    assert TrainerTemplate.classes[name] is cls
    fields = {
        field.name for field in dataclasses.fields(TRAINERS[name].load_config()) if field.init
    }
    assert set(cls().known_arguments()) == fields | SHORT_LORA
    assert not fields & SHORT_LORA
    assert cls.__doc__


@every_peft
def test_peft_template_has_exactly_the_arguments_of_peft(name: str) -> None:
    cls = getattr(automl, f"RF{name}")
    assert issubclass(cls, PeftTemplate)
    assert cls.method == name
    fields = {field.name for field in dataclasses.fields(getattr(peft, name)) if field.init}
    assert set(cls().known_arguments()) == fields


TEMPLATES = [
    *(f"RF{name}Config" for name in TRAINERS),
    *(f"RF{name}" for name in PEFT_CONFIGS),
]


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template(name: str) -> None:
    cls = getattr(automl, name)
    template: Template = cls()
    # Its own methods hide no argument.
    own = {attribute for attribute in dir(cls) if not attribute.startswith("_")}
    assert not own & set(template.known_arguments())
    # Every default passes its own check, so that it can be written down.
    for argument in template.known_arguments().values():
        assert argument.checked(argument.default, name) == argument.default
    assert pickle.loads(pickle.dumps(template)) == template


def test_automl_exports_every_template() -> None:
    exported = {name for name in automl.__all__ if issubclass_of(name, Template)}
    assert exported == {*TEMPLATES, "RFModelConfig"}


def issubclass_of(name: str, base: type) -> bool:
    value = getattr(automl, name)
    return isinstance(value, type) and issubclass(value, base)


def test_short_form_makes_an_adapter() -> None:
    assert RFSFTConfig(learning_rate=2e-4).lora is None
    config = RFSFTConfig(learning_rate=2e-4, lora_rank=List([8, 64]), lora_dropout=0.1)
    assert config.training_args == {"learning_rate": 2e-4}
    assert config.lora == RFLoraConfig(
        target_modules="all-linear", r=List([8, 64]), lora_dropout=0.1, task_type="CAUSAL_LM"
    )
    chosen = RFSFTConfig(lora_target_modules=["q_proj"], lora_alpha=4)
    assert chosen.lora == RFLoraConfig(
        r=8, target_modules=["q_proj"], lora_alpha=4, task_type="CAUSAL_LM"
    )
    ranks = RFGridSearch(RFSFTConfig(lora_rank=List([4, 16]))).get_runs(0)
    adapters = [run.peft.arguments for run in ranks if run.peft]
    assert [(a["r"], a["lora_alpha"]) for a in adapters] == [(4, 8), (16, 32)]
    assert automl.RFRewardConfig(lora_rank=4).lora == RFLoraConfig(
        r=4, target_modules="all-linear", lora_alpha=8, task_type="SEQ_CLS"
    )


@pytest.mark.parametrize(
    ("cls", "arguments"),
    [
        (automl.RFDPOConfig, {"loss_type": "ipo"}),
        (automl.RFDPOConfig, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1, 0.5]}),
        (automl.RFGRPOConfig, {"scale_rewards": False}),
        (automl.RFGRPOConfig, {"scale_rewards": "batch"}),
        (automl.RFGMPOConfig, {"scale_rewards": True}),
        (automl.RFOnlineDPOConfig, {"beta": 0.1}),
        (automl.RFOnlineDPOConfig, {"beta": [0.1, 0.2]}),
        (automl.RFRLOOConfig, {"reward_clip_range": (-1.0, 1.0)}),
        (automl.RFLoraConfig, {"init_lora_weights": "pissa_niter_16"}),
        (automl.RFLoraConfig, {"init_lora_weights": False}),
        (automl.RFLoraConfig, {"target_modules": "all-linear", "bias": "lora_only"}),
        (automl.RFLoraConfig, {"target_modules": r".*\.q_proj", "task_type": "CAUSAL_LM"}),
        (automl.RFLoraConfig, {"target_modules": {"q_proj"}, "modules_to_save": ["lm_head"]}),
        (automl.RFLoraConfig, {"rank_pattern": {"q": 4}, "layers_to_transform": [0, 1]}),
        (automl.RFLoraConfig, {"layer_replication": [(0, 2), (1, 3)]}),
        (automl.RFLoraConfig, {"loftq_config": {"loftq_bits": 4}}),
        (automl.RFAdaLoraConfig, {"init_lora_weights": "pissa_niter_4", "total_step": 10}),
        (automl.RFPromptTuningConfig, {"prompt_tuning_init": "TEXT", "num_virtual_tokens": 4}),
    ],
    ids=repr,
)
def test_usual_ways_to_write_arguments(cls: type[Template], arguments: dict[str, object]) -> None:
    assert list(cls(**arguments).arguments) == list(arguments)


@pytest.mark.parametrize("name", PEFT_CONFIGS)
def test_peft_spec_names_the_class(name: str) -> None:
    template = getattr(automl, f"RF{name}")(base_model_name_or_path="m")
    spec = template.peft_spec()
    assert spec.method == name
    assert spec.arguments == {"base_model_name_or_path": "m"}


def test_registry_has_every_trainer_of_trl() -> None:
    stable = {name.removesuffix("Trainer") for name in dir(trl) if name.endswith("Trainer")}
    assert {name for name, spec in TRAINERS.items() if not spec.experimental} == stable


def test_arguments_are_read_once() -> None:
    config = TRAINERS["SFT"].load_config()
    assert arguments_of(config) is arguments_of(config)


def test_templates_can_be_built_without_a_gpu_and_without_warnings() -> None:
    program = (
        "import os, warnings; warnings.simplefilter('error')\n"
        "from rapidfireai import automl\n"
        "for name in automl.__all__:\n"
        "    if name.endswith('Config'): getattr(automl, name)()\n"
        "automl.RFORPOConfig(bf16=True, beta=0.2)\n"
        "assert 'TRL_EXPERIMENTAL_SILENCE' not in os.environ\n"
    )
    env = {name: value for name, value in os.environ.items() if "TRL" not in name}
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        encoding="utf-8",
        check=False,
        env={**env, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert result.returncode == 0, result.stderr


def test_no_experimental_trainer_is_forgotten() -> None:
    import trl.experimental

    packages = {module.name for module in pkgutil.iter_modules(trl.experimental.__path__)}
    known = {
        spec.trainer.split(":")[0].removeprefix("trl.experimental.")
        for spec in TRAINERS.values()
        if spec.experimental
    }
    refused = {"async_grpo", "async_distillation", "server_distillation"}
    no_trainer = {"harbor", "openreward", "merge_model_callback", "utils"}
    aliases = {"kto", "distillation"}  # of the stable trainers
    assert packages == known | refused | no_trainer | aliases
