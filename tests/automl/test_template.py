"""Templates: record what the user set, check it at once, behave like plain values."""

import copy
import pickle
from typing import Any

import pytest

from rapidfireai.automl import List, Range, RFDPOConfig, RFLoraConfig, RFSFTConfig
from rapidfireai.automl.knobs import expand
from rapidfireai.errors import ConfigError, UnknownArgumentError


def test_records_only_what_was_set() -> None:
    config = RFSFTConfig(max_steps=3, learning_rate=1e-3)
    assert config.arguments == {"max_steps": 3, "learning_rate": 1e-3}
    assert list(config.arguments) == ["max_steps", "learning_rate"]
    assert config.notes == ()
    assert RFSFTConfig().arguments == {}


def test_attributes_read_what_was_set_or_the_default() -> None:
    config = RFSFTConfig(max_steps=3)
    assert config.max_steps == 3
    assert config.num_train_epochs == 3.0
    assert config.bf16 is None


def test_a_default_cannot_be_changed_by_accident() -> None:
    RFDPOConfig().loss_type.append("sft")
    assert RFDPOConfig().loss_type == ["sigmoid"]


def test_attributes_set_later_count_and_are_checked() -> None:
    config = RFDPOConfig(beta=0.1)
    config.label_smoothing = 0.5
    config.loss_weights = List([None, [0.8, 0.2]])
    assert config.arguments["label_smoothing"] == 0.5
    with pytest.raises(ConfigError, match=r"beta='0.1' \(str\)"):
        config.beta = "0.1"
    with pytest.raises(UnknownArgumentError, match="did you mean 'label_smoothing'"):
        config.label_smooting = 0.1
    assert "label_smooting" not in config.arguments
    assert config.beta == 0.1


def test_del_goes_back_to_the_default() -> None:
    config = RFSFTConfig(max_steps=3)
    del config.max_steps
    assert config.max_steps == -1
    assert config.arguments == {}
    with pytest.raises(AttributeError, match="RFSFTConfig: max_steps is not set"):
        del config.max_steps


def test_reading_an_unknown_attribute_names_the_nearest() -> None:
    with pytest.raises(AttributeError, match="RFSFTConfig has no learning_rat; did you mean"):
        _ = RFSFTConfig().learning_rat


@pytest.mark.parametrize(
    "twin",
    [
        lambda config: config.copy(),
        copy.copy,
        copy.deepcopy,
        lambda config: pickle.loads(pickle.dumps(config)),
    ],
    ids=["copy()", "copy.copy", "copy.deepcopy", "pickle"],
)
def test_copies_are_equal(twin: Any) -> None:
    config = RFSFTConfig(learning_rate=List([1e-3, 1e-4]), max_seq_length=64)
    assert twin(config) == config
    assert twin(config).notes == config.notes


def test_copy_is_independent() -> None:
    config = RFSFTConfig(model_init_kwargs={"a": 1})
    twin = config.copy()
    twin.max_steps = 5
    twin.model_init_kwargs["a"] = 2
    assert config.arguments == {"model_init_kwargs": {"a": 1}}


def test_equality_is_by_class_and_arguments() -> None:
    assert RFLoraConfig(r=8) == RFLoraConfig(r=8)
    assert RFLoraConfig(r=8) != RFLoraConfig(r=9)
    assert RFLoraConfig() != RFSFTConfig()
    assert RFLoraConfig() != 3
    with pytest.raises(TypeError, match="unhashable"):
        hash(RFLoraConfig())


def test_repr_can_be_read() -> None:
    config = RFLoraConfig(r=List([8, 16]), target_modules={"v_proj", "q_proj"})
    text = "RFLoraConfig(r=List([8, 16]), target_modules=['q_proj', 'v_proj'])"
    assert repr(config) == text


def test_completion_offers_the_arguments() -> None:
    assert {"learning_rate", "packing", "lora_rank", "copy"} <= set(dir(RFSFTConfig()))


def test_expansion_keeps_class_and_notes() -> None:
    config = RFSFTConfig(max_seq_length=List([64, 128]), max_steps=List([1, 2]))
    leaves = expand(config)
    assert [(leaf.max_length, leaf.max_steps) for leaf in leaves] == [
        (64, 1), (64, 2), (128, 1), (128, 2),
    ]  # fmt: skip
    assert all(leaf.notes == config.notes for leaf in leaves)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learnin_rate": 1e-3}, "RFSFTConfig has no argument 'learnin_rate'; did you mean "),
        ({"Learning_Rate": 1e-3}, "did you mean 'learning_rate'"),
        ({"xyz": 1}, r"no argument 'xyz'; none of the \d+ that exist is similar"),
        ({"num_generations": 8}, "RFSFTConfig has no argument 'num_generations'"),
        ({"group_size": 8}, "RFSFTConfig has no argument 'group_size'"),
    ],
)
def test_unknown_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UnknownArgumentError, match=message):
        RFSFTConfig(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"learning_rate": "1e-4"},
            "allowed: float; numbers >= 0; write the number without quotes: 1e-4",
        ),
        ({"lr_scheduler_type": "cosin"}, "lr_scheduler_type='cosin' .* allowed: linear, cosine"),
        ({"optim": "adam8"}, "optim='adam8' .* allowed: .*adamw_8bit"),
        ({"eval_strategy": List(["steps", "chunk"])}, "eval_strategy='chunk' .*no, steps, epoch"),
        ({"save_strategy": List(["chunk", "no"])}, "save_strategy='chunk' .* allowed: no, steps"),
        ({"max_length": 10.0}, "allowed: int or None; numbers >= 1; write 10"),
        ({"packing": "True"}, "allowed: bool; write True without quotes"),
        ({"learning_rate": -1e-4}, r"learning_rate=-0.0001 .* numbers >= 0"),
        ({"learning_rate": Range(-1.0, 1.0)}, r"learning_rate=-1.0 .* numbers >= 0"),
        ({"adam_beta1": List([0.9, 1.0])}, "adam_beta1=1.0 .* numbers >= 0 and < 1"),
        ({"weight_decay": Range(0, 1)}, "would draw whole numbers"),
        (
            {"lora_rank": "8"},
            "lora_rank='8' .* allowed: int; numbers >= 1; write the number without quotes",
        ),
    ],
)
def test_wrong_types(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"RFSFTConfig: .*{message}"):
        RFSFTConfig(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": 1}},
        {"lr_scheduler_kwargs": '{"num_cycles": 1}'},
        {"optim": "adamw_8bit", "optim_target_modules": ["q_proj"]},
        {"optim_target_modules": "all-linear"},
        {"eval_strategy": "steps", "eval_steps": 4, "logging_steps": 1, "save_strategy": "best"},
        {"eval_steps": 0.1, "warmup_steps": 0.05},
        {"report_to": "none"},
        {"report_to": ["tensorboard"]},
        {"report_to": ("tensorboard", "wandb")},
        {"include_num_input_tokens_seen": True},
        {"fsdp": True},
        {"fsdp": "full_shard auto_wrap", "fsdp_config": {"min_num_params": 1}},
        {"bf16": True, "fp16": False, "tf32": None},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
        {"accelerator_config": {"split_batches": True}},
        {"pad_to_multiple_of": "auto"},
        {"pad_to_multiple_of": 8},
        {"learning_rate": 1, "weight_decay": 0},
        {"learning_rate": Range(1e-5, 1e-3, log=True), "max_steps": Range(10, 20)},
        {"trackio_static_space_id": False},
    ],
    ids=repr,
)
def test_usual_ways_to_write_arguments(arguments: dict[str, Any]) -> None:
    assert list(RFSFTConfig(**arguments).arguments) == list(arguments)


def test_enum_members_are_taken() -> None:
    from transformers import SchedulerType

    assert RFSFTConfig(lr_scheduler_type=SchedulerType.COSINE).lr_scheduler_type == "cosine"
