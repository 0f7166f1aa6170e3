"""What a file asks for, and what it is told when that is not possible."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rapidfireai.automl import RFGridSearch, RFOptuna, RFRandomSearch
from rapidfireai.errors import ConfigError, RapidFireError, UnknownArgumentError
from rapidfireai.policies import MedianPolicy, ThresholdPolicy
from rapidfireai.recipe import Recipe, read
from rapidfireai.tracking import WandB
from rapidfireai.training.config import RunConfig

CODE = """
from transformers import TrainerCallback


class Stop(TrainerCallback):
    pass


class Environment:
    def reset(self, **row):
        return None


class Tracker:
    def on_event(self, event, run):
        pass


def brief(completions, **row):
    return [0.0 for _ in completions]


def loud(completions, **row):
    return [1.0 for _ in completions]


def look_up(word: str) -> str:
    return word
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "code_of_mine", raising=False)
    (tmp_path / "code_of_mine.py").write_text(CODE)
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    return tmp_path


def recipe(trainer: str = "SFT", **keys: Any) -> Recipe:
    given = {"model_name_or_path": "some/model", "dataset_name": "rows.jsonl", **keys}
    Path("lab.yaml").write_text(yaml.safe_dump({"trainer_type": trainer, **given}))
    return read(Path("lab.yaml"))


def configs(trainer: str = "SFT", **keys: Any) -> list[RunConfig]:
    return recipe(trainer, **keys).configs()


def test_lists_make_a_grid_in_the_order_of_the_file(place: Path) -> None:
    (place / "lab.yaml").write_text(
        "trainer_type: sft\nmodel_name_or_path: some/model\ndataset_name: rows.jsonl\n"
        "learning_rate: [1e-3, 1e-4]\nmax_steps: [2, 4]\nlr_scheduler_type: cosine\n"
    )
    found = read(place / "lab.yaml")
    assert isinstance(found.search, RFGridSearch)
    assert found.name == "lab"
    assert [dict(one.training_args) for one in found.configs()] == [
        {"learning_rate": rate, "max_steps": steps, "lr_scheduler_type": "cosine"}
        for rate in (1e-3, 1e-4)
        for steps in (2, 4)
    ]


def test_models_and_adapters_may_be_alternatives() -> None:
    found = configs(
        model_name_or_path=["one", "two"],
        use_peft=[True, False],
        lora_target_modules=[["q_proj"], ["q_proj", "v_proj"]],
        dtype=["float32", "bfloat16"],
    )
    assert len(found) == 2 * 3 * 2
    assert {one.model["model_name"] for one in found} == {"one", "two"}
    assert {one.model["model_kwargs"]["dtype"] for one in found} == {"float32", "bfloat16"}
    adapters = [one.peft and one.peft.arguments["target_modules"] for one in found]
    assert {str(targets) for targets in adapters} == {"q_proj", "['q_proj', 'v_proj']", "None"}


def test_adapters_in_full() -> None:
    found = configs(
        peft=[
            {"r": [4, 8], "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
            {"method": "LoHa", "r": 2, "target_modules": "all-linear"},
            {"method": "IA3Config"},
            None,
        ]
    )
    told = [(one.peft.method, one.peft.arguments.get("r")) if one.peft else None for one in found]
    assert told == [
        ("LoraConfig", 4),
        ("LoraConfig", 8),
        ("LoHaConfig", 2),
        ("IA3Config", None),
        None,
    ]
    assert found[0].peft is not None
    assert found[0].peft.arguments["target_modules"] == ["q_proj", "v_proj"]


def test_quantized_and_not() -> None:
    four, none = configs(use_peft=True, load_in_4bit=[True, False], bnb_4bit_quant_type="fp4")
    assert four.model["model_kwargs"]["quantization_config"]["bnb_4bit_quant_type"] == "fp4"
    assert none.model["model_kwargs"]["quantization_config"] is None


def test_ranges_are_drawn_from() -> None:
    keys: dict[str, Any] = {
        "learning_rate": {"range": [1e-5, 1e-3], "log": True},
        "max_steps": {"range": [2, 8]},
    }
    found = recipe(num_runs=5, **keys)
    assert isinstance(found.search, RFRandomSearch)
    drawn = [one.training_args for one in found.configs()]
    assert len(drawn) == 5
    assert all(1e-5 <= one["learning_rate"] <= 1e-3 and 2 <= one["max_steps"] <= 8 for one in drawn)
    with pytest.raises(ConfigError, match=r"lab\.yaml: Range.*give num_runs"):
        recipe(**keys)


def test_optuna_searches() -> None:
    search = recipe(
        learning_rate={"range": [1e-5, 1e-3]},
        optuna={"n_initial": 2, "budget": 4, "objective": "minimize:loss"},
    ).search
    assert isinstance(search, RFOptuna)
    assert (search.n_initial, search.budget) == (2, 4)


def test_what_goes_to_run_fit() -> None:
    found = recipe(
        num_chunks=2,
        fuse=True,
        memory_limit_gib=4,
        checkpoint_every_s=1.5,
        seed=7,
        policy=["auto", {"MedianPolicy": {}}, {"ThresholdPolicy": {"bound": 3.0}}],
        trackers=["code_of_mine.Tracker", "tensorboard", {"WandB": {"project": "mine"}}],
        env={"MY_VARIABLE": 1},
        experiment_name="named",
        experiment_path="there",
    )
    fit = dict(found.fit)
    assert "tool_timeout_s" not in fit
    auto, median, threshold = fit.pop("policy")
    tracker, by_name, with_settings = fit.pop("trackers")
    assert fit == {
        "num_chunks": 2,
        "fuse": "on",
        "memory_limit_gib": 4,
        "checkpoint_every_s": 1.5,
    }
    assert auto == "auto"
    assert isinstance(median, MedianPolicy)
    assert isinstance(threshold, ThresholdPolicy)
    assert type(tracker).__name__ == "Tracker"
    assert by_name == "tensorboard"
    assert with_settings == WandB(project="mine")
    assert (found.seed, found.env, found.name) == (7, {"MY_VARIABLE": "1"}, "named")
    assert found.path == "there"
    assert "seed" not in found.configs()[0].training_args


def test_several_seeds_are_several_runs() -> None:
    found = recipe(seed=[1, 2])
    assert found.seed == 42
    assert [one.training_args["seed"] for one in found.configs()] == [1, 2]


def test_code_of_ones_own() -> None:
    one, two = configs(
        "GRPO",
        reward_funcs=[["code_of_mine.brief"], ["code_of_mine.brief", "code_of_mine.loud"]],
        tools=["code_of_mine.look_up"],
        callbacks=["code_of_mine.Stop"],
        environment_factory="code_of_mine.Environment",
    )
    names = [[f.__name__ for f in each.trainer_kwargs["reward_funcs"]] for each in (one, two)]
    assert names == [["brief"], ["brief", "loud"]]
    assert [tool.__name__ for tool in one.trainer_kwargs["tools"]] == ["look_up"]
    assert [type(each).__name__ for each in one.trainer_kwargs["callbacks"]] == ["Stop"]
    assert one.trainer_kwargs["environment_factory"].__name__ == "Environment"


def test_names_of_older_versions_are_translated() -> None:
    (found,) = configs(max_seq_length=64, evaluation_strategy="no")
    assert found.training_args == {"max_length": 64, "eval_strategy": "no"}
    assert "max_seq_length=64 became max_length=64" in found.notes


def test_keys_given_beside_the_file_count() -> None:
    recipe(learning_rate=1e-3)
    found = read(Path("lab.yaml"), changes=[("learning_rate", [1e-4, 1e-5]), ("num_chunks", 2)])
    assert [one.training_args["learning_rate"] for one in found.configs()] == [1e-4, 1e-5]
    assert found.fit == {"num_chunks": 2}


@pytest.mark.parametrize(
    ("trainer", "keys", "told"),
    [
        ("SFT", {"learning_rat": 1}, "no key 'learning_rat'; did you mean 'learning_rate'"),
        ("SFT", {"num_chunk": 2}, "did you mean 'num_chunks'"),
        ("SFT", {"reward_funcs": ["a.b"]}, "no key 'reward_funcs'"),
        ("SFT", {"learning_rate": "fast"}, "learning_rate='fast'.*allowed: float"),
        ("SFT", {"max_steps": [4, 2.5]}, "max_steps=2.5"),
        ("SFT", {"num_chunks": [2, 4]}, "num_chunks is the same for all runs"),
        ("SFT", {"num_chunks": "many"}, "num_chunks='many'"),
        ("SFT", {"dataset_name": ["a", "b"]}, "dataset_name is the same for all runs"),
        ("SFT", {"dataset_name": "gone.jsonl"}, "no file 'gone.jsonl'"),
        ("SFT", {"dtype": "float8"}, "dtype='float8'.*'bfloat16'"),
        ("SFT", {"lora_r": 8}, "lora_r has no effect without use_peft: true"),
        ("SFT", {"peft": {"r": 8}, "lora_r": 8}, "leave out.*lora_r"),
        ("SFT", {"peft": {"rank": 8}}, "rank"),
        ("SFT", {"peft": {"method": "lorra"}}, "'lorra'.*did you mean 'lora'"),
        ("SFT", {"peft": {"method": {"list": ["lora", "loha"]}}}, "a list of adapters"),
        ("SFT", {"bnb_4bit_quant_type": "nf4"}, "no effect without load_in_4bit"),
        ("SFT", {"load_in_4bit": True, "load_in_8bit": True}, "give one of them"),
        ("SFT", {"load_in_4bit": True, "dtype": ["float16", "bfloat16"]}, "dtype takes no"),
        ("SFT", {"ignore_bias_buffers": True}, "leave it out"),
        ("SFT", {"num_runs": 2, "optuna": {}}, "give one of them"),
        ("SFT", {"num_runs": 2}, "only 1 distinct"),
        ("SFT", {"optuna": {"trials": 3}}, "n_initial"),
        ("SFT", {"policy": "medain"}, "medain"),
        ("SFT", {"policy": "MedianPolic"}, "did you mean 'MedianPolicy'"),
        ("SFT", {"policy": {"MedianPolicy": {"speed": 3}}}, "MedianPolicy refuses.*speed"),
        ("SFT", {"trackers": ["code_of_mine.Nothing"]}, "no 'Nothing'"),
        ("SFT", {"trackers": [{"WanB": {}}]}, "did you mean 'WandB'"),
        ("SFT", {"trackers": [{"WandB": {"projct": "a"}}]}, "WandB refuses.*projct"),
        ("SFT", {"callbacks": ["no_such_module.X"]}, "no_such_module"),
        ("SFT", {"compute_metrics": "score"}, "no dotted name"),
        ("SFT", {"model_init_kwargs": [{"a": 1}, {"b": 2}]}, "model_init_kwargs"),
        ("SFT", {"tokenizer": 3}, "tokenizer=3"),
        ("GRPO", {"reward_funcs": ["accuracy"]}, "'accuracy' is not known.*accuracy_reward"),
        ("GRPO", {}, "GRPO needs reward_funcs"),
        (
            "GRPO",
            {"reward_funcs": ["a.b"], "reward_model_name_or_path": ["x", "y"]},
            "reward_funcs",
        ),
        ("Sft2", {}, "trainer_type='Sft2'"),
        ("AsyncGRPO", {}, "use GRPO"),
    ],
)
def test_what_is_not_possible(trainer: str, keys: dict[str, Any], told: str) -> None:
    with pytest.raises(RapidFireError, match=told) as raised:
        configs(trainer, **keys)
    assert str(raised.value).startswith("lab.yaml: ")


def test_the_trainer_is_said_once(place: Path) -> None:
    file = place / "bare.yaml"
    file.write_text("model_name_or_path: some/model\ndataset_name: rows.jsonl\n")
    assert read(file, trainer="dpo").configs()[0].trainer_type == "DPO"
    with pytest.raises(ConfigError, match=r"nothing says which trainer.*SFT, DPO"):
        read(file)
    file.write_text("trainer_type: sft\nmodel_name_or_path: m\ndataset_name: rows.jsonl\n")
    assert read(file, trainer="SFT").configs()[0].trainer_type == "SFT"
    with pytest.raises(ConfigError, match="contradicts --trainer dpo"):
        read(file, trainer="dpo")


def test_errors_keep_their_class() -> None:
    with pytest.raises(UnknownArgumentError):
        configs(learning_rat=1)
