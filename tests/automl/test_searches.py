"""Searches: which runs come out, in which order, and what is refused."""

import subprocess
import sys
from typing import Any

import pytest

from rapidfireai.automl import (
    List,
    Range,
    RFDPOConfig,
    RFGridSearch,
    RFGRPOConfig,
    RFLoraConfig,
    RFModelConfig,
    RFRandomSearch,
    RFSFTConfig,
    as_run_configs,
)
from rapidfireai.errors import ConfigError, UnknownArgumentError
from rapidfireai.training.config import RunConfig


def to_row(row: Any) -> dict[str, Any]:
    return dict(row)


def to_text(row: Any) -> str:
    return str(row)


def score(pair: Any) -> dict[str, float]:
    return {}


def sft(**arguments: Any) -> RFModelConfig:
    return RFModelConfig(training_args=RFSFTConfig(**arguments))


def steps(runs: list[RunConfig]) -> list[Any]:
    return [run.training_args.get("max_steps") for run in runs]


def test_the_program_of_the_readme() -> None:
    runs = RFGridSearch(
        configs=List(
            [
                RFModelConfig(
                    model_name="m",
                    peft_config=RFLoraConfig(r=8, lora_alpha=16, target_modules=["q_proj"]),
                    training_args=RFSFTConfig(learning_rate=1e-3, max_steps=128, fp16=True),
                ),
                RFModelConfig(
                    model_name="m",
                    peft_config=RFLoraConfig(r=32, lora_alpha=64, target_modules=["q_proj"]),
                    training_args=RFSFTConfig(learning_rate=1e-4, max_steps=128, fp16=True),
                    formatting_func=to_row,
                ),
            ]
        ),
        trainer_type="SFT",
    ).get_runs(42)
    assert [run.training_args["learning_rate"] for run in runs] == [1e-3, 1e-4]
    assert [run.peft.arguments["r"] for run in runs if run.peft] == [8, 32]
    assert [run.formatting_func for run in runs] == [None, to_row]
    assert [run.notes for run in runs] == [(), ()]


def test_lists_count_in_every_place() -> None:
    config = RFModelConfig(
        model_name=List(["a", "b"]),
        peft_config=List([RFLoraConfig(r=List([8, 16])), None]),
        training_args=RFSFTConfig(max_steps=List([1, 2])),
        model_kwargs={"attn_implementation": List(["sdpa", "eager"])},
        tokenizer_kwargs=List([{"padding_side": List(["left", "right"])}, {}]),
        formatting_func=List([to_row, to_text]),
        callbacks=List([[], [object]]),
    )
    runs = RFGridSearch(config).get_runs(0)
    assert len(runs) == 2 * 3 * 2 * 2 * 3 * 2 * 2
    assert all(runs.index(run) == index for index, run in enumerate(runs))
    assert not any(run.notes for run in runs)


def test_order_is_that_of_the_signature_then_as_written() -> None:
    config = RFModelConfig(
        training_args=RFSFTConfig(max_steps=List([1, 2])),
        model_name=List(["a", "b"]),
    )
    runs = RFGridSearch(config).get_runs(0)
    assert [(run.model["model_name"], run.training_args["max_steps"]) for run in runs] == [
        ("a", 1), ("a", 2), ("b", 1), ("b", 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "configs",
    [
        sft(max_steps=List([1, 2])),
        [sft(max_steps=1), sft(max_steps=2)],
        (sft(max_steps=1), sft(max_steps=2)),
        List([sft(max_steps=1), sft(max_steps=2)]),
        [List([sft(max_steps=1)]), [sft(max_steps=2)]],
        RFSFTConfig(max_steps=List([1, 2])),
        [RFSFTConfig(max_steps=1), RFSFTConfig(max_steps=2)],
        {"training_args": RFSFTConfig(max_steps=List([1, 2]))},
        [{"training_args": {"max_steps": 1}}, {"training_args": RFSFTConfig(max_steps=2)}],
        {"training_args": {"max_steps": List([1, 2])}},
        [RFGridSearch(RFSFTConfig(max_steps=1)), RFSFTConfig(max_steps=2)],
    ],
    ids=repr,
)
def test_configs_may_be_written_in_many_ways(configs: Any) -> None:
    search = RFGridSearch(configs, trainer_type="SFT")
    assert steps(search.get_runs(0)) == [1, 2]
    assert search.get_runs(0) == search.get_runs(1)


def test_as_run_configs_takes_what_run_fit_may_get() -> None:
    one = RFGridSearch(RFSFTConfig(max_steps=1))
    two = RFRandomSearch(RFSFTConfig(max_steps=List([2, 3])), num_runs=2)
    assert steps(as_run_configs(one, 0)) == [1]
    assert sorted(steps(as_run_configs([one, two], 0))) == [1, 2, 3]
    assert sorted(steps(as_run_configs(List([one, [two, sft(max_steps=4)]]), 0))) == [1, 2, 3, 4]
    assert steps(as_run_configs(sft(max_steps=5), 0)) == [5]
    assert steps(as_run_configs({"training_args": RFSFTConfig(max_steps=6)}, 0)) == [6]
    assert steps(as_run_configs(RFSFTConfig(max_steps=7), 0)) == [7]


def test_trainers_may_differ() -> None:
    runs = as_run_configs([RFSFTConfig(), RFDPOConfig(), {"training_args": RFSFTConfig()}], 0)
    assert [run.trainer_type for run in runs] == ["SFT", "DPO", "SFT"]


def test_equal_configurations_are_kept_and_noted() -> None:
    runs = as_run_configs([RFSFTConfig(max_steps=List([1, 2, 1])), sft(max_steps=2)], 0)
    assert steps(runs) == [1, 2, 1, 2]
    assert [run.notes for run in runs] == [
        (),
        (),
        ("equal to configuration 1 of this search",),
        ("equal to configuration 2 of this search",),
    ]


def test_changes_after_the_search_was_made_count() -> None:
    training_args = RFSFTConfig(max_steps=1)
    search = RFGridSearch(training_args)
    training_args.max_steps = 2
    assert steps(search.get_runs(0)) == [2]


def test_random_search_is_seeded() -> None:
    space = RFSFTConfig(learning_rate=Range(1e-6, 1e-3, log=True), max_steps=Range(1, 100))
    search = RFRandomSearch(space, num_runs=8)
    assert search.get_runs(1) == search.get_runs(1)
    assert search.get_runs(1) != search.get_runs(2)
    fixed = RFRandomSearch(space, num_samples=8, seed=1)
    assert fixed.get_runs(2) == fixed.get_runs(3) == search.get_runs(1)
    for run in search.get_runs(1):
        assert 1e-6 <= run.training_args["learning_rate"] <= 1e-3
        assert isinstance(run.training_args["max_steps"], int)


def test_random_search_is_the_same_in_another_process() -> None:
    space = RFModelConfig(
        peft_config=RFLoraConfig(target_modules=List([{"a", "b"}, {"c", "d"}])),
        training_args=RFSFTConfig(learning_rate=Range(0.0, 1.0)),
    )
    here = RFRandomSearch(space, num_runs=3).get_runs(5)
    program = (
        "from rapidfireai.automl import *\n"
        f"print(RFRandomSearch({space!r}, num_runs=3).get_runs(5))\n"
    )
    there = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        check=True,
        capture_output=True,
        encoding="utf-8",
    )
    assert there.stdout.strip() == repr(here)


@pytest.mark.parametrize("num_runs", [1, 5, 6])
def test_random_search_repeats_nothing(num_runs: int) -> None:
    space = [sft(max_steps=List([1, 2, 1]), lora_rank=Range(4, 6)), sft(max_steps=1, lora_rank=4)]
    runs = RFRandomSearch(space, num_runs=num_runs).get_runs(0)
    assert len(runs) == num_runs
    assert all(runs.index(run) == index for index, run in enumerate(runs))


def test_random_search_in_a_large_space_with_few_distinct_points() -> None:
    space = RFSFTConfig(max_steps=List([1, 2] * 1000))
    assert sorted(steps(RFRandomSearch(space, num_runs=2).get_runs(0))) == [1, 2]
    with pytest.raises(ConfigError, match="only 2 distinct configurations"):
        RFRandomSearch(space, num_runs=3)


def test_every_point_of_a_small_space_can_be_drawn() -> None:
    search = RFRandomSearch(RFSFTConfig(max_steps=Range(1, 5)), num_runs=1)
    assert {steps(search.get_runs(seed))[0] for seed in range(100)} == {1, 2, 3, 4, 5}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "num_runs=None, num_samples=None: give one of them"),
        ({"num_runs": 1, "num_samples": 1}, "num_runs=1, num_samples=1: give one of them"),
        ({"num_runs": 0}, "num_runs=0 must be a whole number of at least 1"),
        ({"num_runs": True}, "num_runs=True must be a whole number"),
        ({"num_samples": "4"}, "num_runs='4' must be a whole number"),
        (
            {"num_runs": 4},
            "num_runs=4, but there are only 3 distinct configurations; give num_runs=3",
        ),
    ],
)
def test_random_search_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RFRandomSearch(RFSFTConfig(max_steps=List([1, 2, 3, 1])), **arguments)


def test_a_search_cannot_be_drawn_from() -> None:
    with pytest.raises(ConfigError, match=r"RFGridSearch\(.* cannot be drawn from; give its confi"):
        RFRandomSearch([RFGridSearch(RFSFTConfig())], num_runs=1)


@pytest.mark.parametrize(
    ("configs", "trainer_type", "message"),
    [
        (None, None, r"configs=None \(NoneType\) is no configuration; allowed: RFModelConfig"),
        ("SFT", None, "configs='SFT'"),
        ([], None, r"configs=\[\] is empty; give at least one"),
        ([sft(), 3], None, r"configs=3 \(int\) is no configuration"),
        (RFLoraConfig(), None, r"configs=RFLoraConfig\(\): give it to RFModelConfig\(peft"),
        ({"modelname": "m"}, "SFT", "did you mean 'model_name'"),
        ({3: "m"}, "SFT", "the keys of a configuration are argument names, not 3"),
        (sft(), "sft", "trainer_type='sft' is not known; did you mean 'SFT'"),
        (sft(), "AsyncGRPO", "not supported: .*use GRPO"),
        (sft(), "DPO", "contradicts training_args=RFSFTConfig"),
        (RFModelConfig(), None, "does not say which trainer"),
        (
            [sft(), sft(learning_rate=Range(1e-5, 1e-3))],
            None,
            r"configs\.training_args\.learning_rate is Range\(.*RFRandomSearch",
        ),
        (
            RFModelConfig(peft_config=List([RFLoraConfig(r=Range(1, 2))])),
            "SFT",
            r"configs\.peft_config\.r is Range",
        ),
    ],
    ids=repr,
)
def test_grid_search_refuses(configs: Any, trainer_type: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RFGridSearch(configs, trainer_type)


def test_configurations_of_the_incumbents_tutorials() -> None:
    lora = {"lora_alpha": 16, "lora_dropout": 0.05, "target_modules": ["q_proj"], "bias": "none"}
    adapters = List([RFLoraConfig(r=8, **lora), RFLoraConfig(r=32, **lora)])
    rest = {
        "model_name": "m",
        "peft_config": adapters,
        "model_type": "causal_lm",
        "model_kwargs": {"device_map": "auto", "torch_dtype": "auto", "use_cache": False},
    }
    supervised = [
        RFModelConfig(
            training_args=RFSFTConfig(
                learning_rate=rate,
                lr_scheduler_type="linear",
                per_device_train_batch_size=4,
                max_steps=128,
                gradient_accumulation_steps=1,
                logging_steps=2,
                eval_strategy="steps",
                eval_steps=4,
                bf16=True,
                save_strategy="chunk",
            ),
            formatting_func=to_row,
            compute_metrics=score,
            generation_config={"max_new_tokens": 256, "temperature": 0.6, "top_p": 0.9},
            **rest,
        )
        for rate in (1e-3, 1e-4)
    ]
    assert len(RFGridSearch(configs=List(supervised), trainer_type="SFT").get_runs(42)) == 4
    preferences = RFModelConfig(
        training_args=RFDPOConfig(
            beta=List([0.1, 0.2]),
            loss_type="sigmoid",
            model_adapter_name="default",
            ref_adapter_name="reference",
            force_use_ref_model=False,
            max_prompt_length=512,
            max_length=1024,
            optim="adamw_8bit",
        ),
        **rest,
    )
    runs = RFGridSearch(configs=preferences, trainer_type="DPO").get_runs(42)
    assert len(runs) == 4
    assert all(len(run.notes) == 4 for run in runs)
    rewards = [score, to_row, to_text, steps, sft]
    groups = RFModelConfig(
        training_args=RFGRPOConfig(
            num_generations=8,
            max_prompt_length=256,
            max_completion_length=256,
            beta=0,
            temperature=0.9,
        ),
        reward_funcs=rewards,
        **rest,
    )
    runs = RFGridSearch(configs=groups, trainer_type="GRPO").get_runs(42)
    assert [run.trainer_kwargs for run in runs] == [{"reward_funcs": rewards}] * 2


def test_dictionaries_for_create_trainer_are_expanded_and_not_read() -> None:
    runs = as_run_configs(
        {"rate": List([1, 2]), "anything": {"deep": [List(["a", "b"])]}}, 0, custom=True
    )
    assert [run.knobs for run in runs] == [
        {"rate": rate, "anything": {"deep": [letter]}} for rate in (1, 2) for letter in "ab"
    ]
    assert {run.trainer_type for run in runs} == {"custom"}
    drawn = RFRandomSearch({"rate": Range(0.0, 1.0)}, "custom", num_runs=3).get_runs(0)
    assert len({run.model["rate"] for run in drawn}) == 3


def test_templates_keep_their_trainer_beside_create_trainer() -> None:
    known, plain = as_run_configs([sft(max_steps=3), RFModelConfig("m")], 0, custom=True)
    assert (known.trainer_type, known.knobs) == ("SFT", None)
    assert (plain.trainer_type, plain.knobs) == ("custom", {"model_name": "m"})


def test_large_grids_are_quick() -> None:
    space = RFSFTConfig(max_steps=List(range(100)), seed=List(range(50)))
    assert len(RFGridSearch(space).get_runs(0)) == 5000


def test_unknown_names_stay_unknown_name_errors() -> None:
    with pytest.raises(UnknownArgumentError):
        RFGridSearch({"training_args": {"learnin_rate": 1}}, "SFT")


def test_importing_loads_no_library_and_is_quick() -> None:
    program = (
        "import sys\nfrom rapidfireai.automl import List, RFGridSearch, RFModelConfig, Range\n"
        "heavy = {'torch', 'trl', 'peft', 'transformers', 'datasets', 'numpy', 'typeguard'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
