"""RFModelConfig: what it takes, and the run that it describes."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest

from rapidfireai.automl import (
    List,
    RFDistillationConfig,
    RFDPOConfig,
    RFGMPOConfig,
    RFGRPOConfig,
    RFIA3Config,
    RFLoraConfig,
    RFModelConfig,
    RFORPOConfig,
    RFRewardConfig,
    RFRLOOConfig,
    RFSFTConfig,
)
from rapidfireai.automl.resolve import run_config
from rapidfireai.errors import ConfigError, UnknownArgumentError
from rapidfireai.training.config import PeftSpec, RunConfig
from tests.ids import plain


def as_text(row: Any) -> str:
    return str(row)


def score(pair: Any) -> dict[str, float]:
    return {}


def reward(completions: Any, **columns: Any) -> list[float]:
    return [0.0 for _ in completions]


def test_a_whole_configuration() -> None:
    config = RFModelConfig(
        model_name=Path("some/model"),
        peft_config=RFLoraConfig(r=8, target_modules=["q_proj"]),
        training_args=RFSFTConfig(max_steps=3, save_strategy="chunk"),
        model_type="causal_lm",
        model_kwargs={"device_map": "auto"},
        tokenizer="some/tokenizer",
        tokenizer_kwargs={"padding_side": "left"},
        formatting_func=as_text,
        compute_metrics=score,
        generation_config={"max_new_tokens": 8, "max_input_length": 64},
        callbacks=[],
        share_base=False,
        num_gpus=1,
    )
    run = run_config(config)
    notes = run.notes
    assert run == RunConfig(
        trainer_type="SFT",
        training_args={"max_steps": 3},
        model={
            "model_name": "some/model",
            "model_type": "causal_lm",
            "model_kwargs": {"device_map": "auto"},
            "tokenizer": "some/tokenizer",
            "tokenizer_kwargs": {"padding_side": "left"},
        },
        peft=PeftSpec(method="LoraConfig", arguments={"r": 8, "target_modules": ["q_proj"]}),
        trainer_kwargs={"callbacks": []},
        formatting_func=as_text,
        compute_metrics=score,
        generation_config={"max_new_tokens": 8, "max_input_length": 64},
        share_base=False,
        notes=notes,
    )
    assert [note.split(" ")[0] for note in notes] == ["num_gpus=1", "save_strategy='chunk'"]


def model(**given: Any) -> dict[str, Any]:
    """What create_model gets: every key is there, whatever was given."""
    return {
        "model_name": None,
        "model_type": "causal_lm",
        "model_kwargs": {},
        "tokenizer": None,
        "tokenizer_kwargs": {},
        **given,
    }


def test_nothing_that_was_not_given_appears_in_the_arguments() -> None:
    run = run_config(RFModelConfig("m", training_args=RFSFTConfig()))
    assert run == RunConfig(trainer_type="SFT", training_args={}, model=model(model_name="m"))


def test_the_trainer_decides_on_the_kind_of_model() -> None:
    run = run_config(RFModelConfig("m", training_args=RFRewardConfig()))
    assert run.model == model(model_name="m", model_type="seq_cls")
    run = run_config(RFModelConfig("m", model_type="own", training_args=RFRewardConfig()))
    assert run.model == model(model_name="m", model_type="own")


def test_a_run_shares_no_container_with_its_configuration() -> None:
    rewards = [reward]
    config = RFModelConfig(training_args=RFGRPOConfig(generation_kwargs={}), reward_funcs=rewards)
    first, second = run_config(config), run_config(config)
    assert first == second
    assert first.trainer_kwargs["reward_funcs"] is not rewards
    assert first.trainer_kwargs["reward_funcs"] is not second.trainer_kwargs["reward_funcs"]
    assert first.training_args["generation_kwargs"] is not second.training_args["generation_kwargs"]


@pytest.mark.parametrize(
    ("config", "peft"),
    [
        ({}, None),
        ({"peft_config": None}, None),
        ({"peft_config": RFIA3Config()}, PeftSpec(method="IA3Config", arguments={})),
        ({"peft_config": {"r": 4}}, PeftSpec(method="LoraConfig", arguments={"r": 4})),
        (
            {"training_args": RFSFTConfig(lora_rank=64)},
            PeftSpec(
                method="LoraConfig",
                arguments={
                    "r": 64,
                    "target_modules": "all-linear",
                    "lora_alpha": 128,
                    "task_type": "CAUSAL_LM",
                },
            ),
        ),
    ],
    ids=plain,
)
def test_adapters(config: dict[str, Any], peft: PeftSpec | None) -> None:
    run = run_config(RFModelConfig(**{"training_args": RFSFTConfig(), **config}))
    assert run.peft == peft
    assert run.training_args == {}


def test_training_args_may_be_a_dict() -> None:
    config = RFModelConfig(training_args={"beta": 0.2}, callbacks=[])
    assert run_config(config, "DPO").training_args == {"beta": 0.2}
    assert run_config(RFModelConfig(), "SFT").training_args == {}


def test_model_init_kwargs_are_not_lost() -> None:
    training_args = RFSFTConfig(model_init_kwargs={"dtype": "bfloat16"})
    run = run_config(RFModelConfig("m", training_args=training_args))
    assert run.model == model(model_name="m", model_kwargs={"dtype": "bfloat16"})
    assert run.training_args == {}
    assert run.notes == ("model_init_kwargs became model_kwargs of the model",)


def test_compute_metrics_without_generation_is_trls_own() -> None:
    run = run_config(RFModelConfig(training_args=RFSFTConfig(), compute_metrics=score))
    assert run.compute_metrics is None
    assert run.trainer_kwargs == {"compute_metrics": score}
    assert "EvalPrediction" in run.notes[0]


def test_generation_config_object_is_taken() -> None:
    from transformers import GenerationConfig

    config = RFModelConfig(
        training_args=RFSFTConfig(),
        compute_metrics=score,
        generation_config=GenerationConfig(max_new_tokens=5),
    )
    assert run_config(config).generation_config == {"max_new_tokens": 5}


def test_experimental_trainers_are_noted() -> None:
    run = run_config(RFModelConfig(training_args=RFORPOConfig()))
    assert run.notes == ("ORPO is experimental in TRL: it may change in any release",)


@pytest.mark.parametrize(
    ("training_args", "given"),
    [
        (RFDPOConfig(), {"ref_model": object()}),
        (RFDistillationConfig(), {"teacher_model": "m", "tools": []}),
        (RFGRPOConfig(), {"reward_funcs": reward, "tools": [], "rollout_func": as_text}),
        (RFGRPOConfig(), {"environment_factory": object}),
        (RFRLOOConfig(), {"reward_funcs": [reward], "reward_processing_classes": None}),
        (RFGMPOConfig(), {"reward_funcs": [reward], "callbacks": []}),  # known to its base class
        (RFSFTConfig(), {"optimizer_cls_and_kwargs": (object, {}), "data_collator": as_text}),
    ],
    ids=plain,
)
def test_any_keyword_of_the_trainer_is_passed_on(training_args: Any, given: dict[str, Any]) -> None:
    assert run_config(RFModelConfig(training_args=training_args, **given)).trainer_kwargs == given


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reward_func": reward}, "neither has the trainer of GRPO; did you mean 'reward_funcs'"),
        ({"ref_model": object()}, "RFModelConfig has no argument 'ref_model'"),
        ({"model_nam": "m"}, "did you mean 'model_name'"),
    ],
)
def test_unknown_keywords(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UnknownArgumentError, match=message):
        RFModelConfig(training_args=RFGRPOConfig(), **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": object()}, "RFModelConfig: model=.* cannot be used; give model_name, or return"),
        ({"args": None}, "args=None cannot be used; give training_args"),
        ({"train_dataset": []}, r"give it to run_fit\(train_dataset=...\)"),
        ({"eval_dataset": []}, r"give it to run_fit\(eval_dataset=...\)"),
        ({"processing_class": 1}, "give tokenizer, or return the tokenizer from create_model"),
        ({"optimizers": (None, None)}, "choose with optim="),
        ({"quantization_config": {}}, r"model_kwargs=\{'quantization_config': ...\}"),
        ({"num_gpus": 2}, "num_gpus=2 is not possible: every run trains on one device"),
        ({"ref_model_name": "m"}, "give it as ref_model= to RFModelConfig; with a peft_config"),
        ({"ref_model_kwargs": {}}, "give it as ref_model= to RFModelConfig"),
        ({"create_model_fn": as_text}, r"give it to run_fit\(create_model=...\)"),
        ({"model_name": 3}, r"model_name=3 \(int\) is not possible; allowed: a name or path"),
        ({"peft_config": 8}, r"peft_config=8 .*allowed: RFLoraConfig\(...\) or another"),
        ({"peft_config": RFSFTConfig()}, r"peft_config=RFSFTConfig\(\) .* allowed: RFLoraConfig"),
        ({"peft_config": List([None, "lora"])}, "peft_config='lora'"),
        ({"training_args": RFLoraConfig()}, r"training_args=RFLoraConfig\(\) .* allowed: RFSFT"),
        ({"training_args": "SFT"}, r"training_args='SFT' .* allowed: RFSFTConfig\(...\)"),
        ({"model_kwargs": "auto"}, r"model_kwargs='auto' .* allowed: dict\[str, (typing.)?Any\]"),
        ({"formatting_func": "f"}, "formatting_func='f' .* allowed: a function of a row"),
        ({"compute_metrics": 3}, r"a function of \(predictions, references\)"),
        ({"generation_config": 8}, "generation_config=8"),
        (
            {"generation_config": {"max_new_token": 8}},
            "no entry 'max_new_token'; did you mean 'max",
        ),
        (
            {"generation_config": List([{}, {"temprature": List([0.1, 1.0])}])},
            "no entry 'temprature'; did you mean 'temperature'",
        ),
        ({"share_base": "no"}, "share_base='no' .* allowed: bool"),
    ],
    ids=plain,
)
def test_refused_at_construction(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RFModelConfig(**{"training_args": RFSFTConfig(), **arguments})


def test_objects_of_the_libraries_are_refused_with_the_class_to_use() -> None:
    import peft
    import trl

    with pytest.raises(ConfigError, match=r"allowed: RFLoraConfig\(...\)"):
        RFModelConfig(peft_config=peft.LoraConfig(r=8))
    with pytest.raises(ConfigError, match=r"allowed: RFSFTConfig\(...\)"):
        RFModelConfig(training_args=trl.SFTConfig(output_dir="x", bf16=False, use_cpu=True))


@pytest.mark.parametrize(
    ("config", "trainer_type", "message"),
    [
        (RFModelConfig(), None, "training_args=None does not say which trainer; use RFSFTConfig"),
        (RFModelConfig(training_args={"beta": 1}), None, "or trainer_type= with one of SFT, DPO"),
        (RFModelConfig(), "sft", "did you mean 'SFT'"),
        (
            RFModelConfig(training_args=RFSFTConfig()),
            "DPO",
            r"trainer_type='DPO' contradicts training_args=RFSFTConfig\(...\); .* use RFDPOConfig",
        ),
        (RFModelConfig(training_args={"betta": 1}), "DPO", "RFDPOConfig has no argument 'betta'"),
        (RFModelConfig(peft_config={"rr": 1}), "SFT", "RFLoraConfig has no argument 'rr'"),
        (RFModelConfig(callback=[]), "SFT", "did you mean 'callbacks'"),
        (
            RFModelConfig(peft_config=RFLoraConfig(), training_args=RFSFTConfig(lora_rank=8)),
            None,
            "both describe the adapter; give one of them",
        ),
        (
            RFModelConfig(training_args=RFSFTConfig(), generation_config={"top_p": 0.5}),
            None,
            r"generation_config=\{'top_p': 0.5\} has no use without compute_metrics",
        ),
        (
            RFModelConfig(training_args=RFGRPOConfig(), reward_funcs=reward, compute_metrics=score),
            None,
            "compute_metrics needs generation_config=.* with GRPO",
        ),
        (RFModelConfig(training_args=RFRLOOConfig()), None, "RLOO needs reward_funcs; give it to"),
        (
            RFModelConfig(training_args=RFGRPOConfig()),
            None,
            "GRPO needs reward_funcs or environment_factory; give it to RFModelConfig",
        ),
        (
            RFModelConfig(
                model_kwargs={"dtype": "float16"},
                training_args=RFSFTConfig(model_init_kwargs={"dtype": "auto"}),
            ),
            None,
            r"write it as model_kwargs=\{...\} of RFModelConfig",
        ),
    ],
    ids=plain,
)
def test_parts_that_do_not_fit(
    config: RFModelConfig, trainer_type: str | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_config(config, trainer_type)


def test_keywords_are_checked_against_every_trainer_that_may_come() -> None:
    both = List([RFSFTConfig(), RFGRPOConfig()])
    RFModelConfig(training_args=both, callbacks=[])
    with pytest.raises(UnknownArgumentError, match="neither has the trainer of SFT"):
        RFModelConfig(training_args=both, reward_funcs=[reward])


def test_attributes_set_later_count() -> None:
    training_args = RFSFTConfig()
    config = RFModelConfig(training_args=training_args)
    config.model_name = "m"
    config.callbacks = []
    training_args.max_steps = 7
    run = run_config(config)
    assert run.model == model(model_name="m")
    assert run.trainer_kwargs == {"callbacks": []}
    assert run.training_args == {"max_steps": 7}
    with pytest.raises(UnknownArgumentError, match="did you mean 'peft_config'"):
        config.peft_cofig = RFLoraConfig()
    with pytest.raises(ConfigError, match="model_kwargs=3"):
        config.model_kwargs = 3


def test_is_a_plain_value() -> None:
    config = RFModelConfig("m", training_args=RFSFTConfig(max_steps=2), formatting_func=as_text)
    twin = config.copy()
    twin.training_args.max_steps = 3
    assert config.training_args.max_steps == 2
    assert twin != config
    for same in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config)):
        assert same == config
    assert repr(config).startswith("RFModelConfig(model_name='m', training_args=RFSFTConfig(max_")
    assert config.share_base is True
    assert config.peft_config is None
