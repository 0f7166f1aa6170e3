"""Whatever cannot work is one clear error before any training, and leaves nothing half-started."""

import logging
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import accelerate.state
import datasets
import numpy as np
import pytest
import torch
import transformers
import trl
from datasets import Dataset, DatasetDict
from transformers import Trainer

from rapidfireai import Experiment
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
)
from rapidfireai.errors import (
    ConfigError,
    CreateModelError,
    DatasetError,
    ExperimentPathError,
    RapidFireError,
    UnknownArgumentError,
)
from rapidfireai.testing.tiny import (
    instruction_rows,
    prompt_rows,
    text_rows,
    tiny_model,
    tiny_tokenizer,
)
from rapidfireai.training.registry import TRAINERS, TrainerSpec


def create_model(config: dict[str, Any]) -> tuple[Any, Any]:
    return tiny_model(), tiny_tokenizer()


def without_template(config: dict[str, Any]) -> tuple[Any, Any]:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    return tiny_model(), tokenizer


def raises(*_: Any, **__: Any) -> Any:
    raise KeyError("no_such_key")


def sft(**args: Any) -> RFSFTConfig:
    return RFSFTConfig(**{"max_steps": 2, "max_length": 32, "lora_rank": 2, **args})


def formatted(function: Callable[..., Any]) -> RFModelConfig:
    return RFModelConfig(training_args=sft(), formatting_func=function)


def reward(completions: list[str], **_: Any) -> list[float]:
    return [0.0] * len(completions)


class Locked:
    """A reward that cannot be copied."""

    __name__ = "locked"

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, completions: list[str], **_: Any) -> list[float]:
        return [0.0] * len(completions)


Use = Callable[[Path], object]


def fit(*args: Any, **kwargs: Any) -> Use:
    """A `run_fit` that would work but for what is given here."""
    names = ("config_group", "create_model", "train_dataset")
    given = {
        "config_group": sft(),
        "create_model": create_model,
        "train_dataset": text_rows(8),
        **dict(zip(names, args, strict=False)),
        **kwargs,
    }

    def use(root: Path) -> object:
        return Experiment("bad", experiment_path=root).run_fit(**given)

    return use


def later(make: Callable[[], Any]) -> Use:
    """A configuration that is refused when it is made, so that it is made in the test."""
    return lambda root: fit(make())(root)


CONFIGURATIONS: Mapping[str, tuple[Use, type[Exception], list[str]]] = {
    "unknown training argument": (
        later(lambda: RFSFTConfig(learning_rte=1e-3)),
        UnknownArgumentError,
        ["RFSFTConfig has no argument 'learning_rte'; did you mean 'learning_rate'?"],
    ),
    "unknown LoRA argument": (
        later(lambda: RFLoraConfig(rank_=8)),
        UnknownArgumentError,
        ["RFLoraConfig has no argument 'rank_'"],
    ),
    "unknown model argument": (
        later(lambda: RFModelConfig(training_args=sft(), formating_func=str)),
        UnknownArgumentError,
        ["RFModelConfig has no argument 'formating_func', and neither has the trainer of SFT"],
    ),
    "an argument that the engine owns": (
        later(lambda: RFModelConfig(training_args=sft(), train_dataset="data.jsonl")),
        ConfigError,
        ["train_dataset='data.jsonl' cannot be used; give it to run_fit(train_dataset=...)"],
    ),
    "wrong type": (
        later(lambda: RFSFTConfig(learning_rate="1e-3")),
        ConfigError,
        ["learning_rate='1e-3' (str) is not possible", "write the number without quotes: 1e-3"],
    ),
    "wrong type in a List": (
        later(lambda: RFSFTConfig(max_steps=List([1, "2"]))),
        ConfigError,
        ["max_steps='2' (str)"],
    ),
    "wrong type for LoRA": (
        later(lambda: RFLoraConfig(r=8.5)),
        ConfigError,
        ["r=8.5 (float)", "allowed: int"],
    ),
    "several values without List": (
        later(lambda: RFSFTConfig(learning_rate=[1e-3, 1e-4])),
        ConfigError,
        ["to try several values write List([0.001, 0.0001])"],
    ),
    "not one of the choices": (
        later(lambda: RFSFTConfig(optim="adamm")),
        ConfigError,
        ["optim='adamm' (str) is not possible; allowed: adamw_torch, "],
    ),
    "no reward": (
        fit(RFGRPOConfig(max_steps=1), train_dataset=prompt_rows(8)),
        ConfigError,
        ["GRPO needs reward_funcs or environment_factory; give it to RFModelConfig"],
    ),
    "a reward that cannot be copied": (
        fit(
            RFModelConfig(training_args=RFGRPOConfig(max_steps=1), reward_funcs=Locked()),
            train_dataset=prompt_rows(8),
        ),
        ConfigError,
        ["reward_funcs", "cannot be copied", "locks"],
    ),
    "an unknown trainer": (
        later(lambda: RFGridSearch([{"training_args": {}}], trainer_type="SFTT")),
        ConfigError,
        ["trainer_type='SFTT' is not known; did you mean 'SFT'?"],
    ),
    "a trainer that contradicts": (
        later(lambda: RFGridSearch([sft()], trainer_type="DPO")),
        ConfigError,
        ["trainer_type='DPO' contradicts training_args=RFSFTConfig(...)"],
    ),
    "no trainer": (
        fit(RFModelConfig(training_args={"max_steps": 1})),
        ConfigError,
        ["does not say which trainer", "RFSFTConfig(...)"],
    ),
    "a Range in a grid": (
        later(lambda: RFGridSearch([sft(learning_rate=Range(1e-4, 1e-3))])),
        ConfigError,
        ["Range"],
    ),
    "more runs than there are": (
        later(lambda: RFRandomSearch([sft(seed=List([1, 2]))], num_runs=3)),
        ConfigError,
        ["num_runs=3, but there are only 2 distinct configurations"],
    ),
    "no configuration": (fit(None), ConfigError, ["there is nothing to train", "RFGridSearch"]),
    "an empty list": (fit([]), ConfigError, ["there is nothing to train", "a configuration"]),
    "an empty search": (
        later(lambda: RFGridSearch([])),
        ConfigError,
        ["configs=[] is empty; give at least one: RFModelConfig(...)"],
    ),
    "something else": (fit("sft"), ConfigError, ["configs='sft' (str) is no configuration"]),
    "an option for the whole process": (
        fit(sft(report_to="wandb")),
        ConfigError,
        ["report_to='wandb' cannot be used here", "get_results()"],
    ),
    "what TRL refuses": (
        fit(sft(load_best_model_at_end=True)),
        ConfigError,
        ["SFTConfig refuses the arguments {", "requires the save and eval strategy to match"],
    ),
    "what PEFT refuses": (
        fit(
            RFModelConfig(
                training_args=RFSFTConfig(max_steps=1),
                peft_config=RFLoraConfig(layers_pattern="layers"),
            )
        ),
        ConfigError,
        ["peft.LoraConfig refuses {'layers_pattern': 'layers'}"],
    ),
    "the second of two": (
        fit([sft(), sft(load_best_model_at_end=True)]),
        ConfigError,
        ["requires the save and eval strategy to match"],
    ),
    "both forms of LoRA": (
        fit(RFModelConfig(training_args=sft(), peft_config=RFLoraConfig(r=1))),
        ConfigError,
        ["both describe the adapter"],
    ),
}

CALLS: Mapping[str, tuple[Use, type[Exception], list[str]]] = {
    "num_chunks=0": (fit(num_chunks=0), ConfigError, ["num_chunks=0", "an integer >= 1"]),
    "num_chunks='4'": (fit(num_chunks="4"), ConfigError, ["num_chunks='4'"]),
    "num_chunks=True": (fit(num_chunks=True), ConfigError, ["num_chunks=True"]),
    "seed=-1": (fit(seed=-1), ConfigError, ["seed=-1", ">= 0"]),
    "seed=1.5": (fit(seed=1.5), ConfigError, ["seed=1.5"]),
    "unknown argument": (
        fit(num_chunk=4),
        UnknownArgumentError,
        ["run_fit has no argument 'num_chunk'"],
    ),
    "two names for one": (
        fit(param_config=sft()),
        ConfigError,
        ["param_config and config_group mean the same"],
    ),
    "several GPUs": (fit(num_gpus=2), ConfigError, ["num_gpus=2", "one device"]),
    "memory limit": (
        fit(memory_limit_gib=-1),
        ConfigError,
        ["memory_limit_gib=-1", "a number >= 0"],
    ),
    "a policy that is none": (
        fit(policy="median"),
        ConfigError,
        ["'median'", "on_chunk()", "'auto'"],
    ),
    "a tracker that is none": (
        fit(trackers=["neptune"]),
        ConfigError,
        ["'neptune'", "allowed: mlflow, tensorboard, trackio, wandb", "installed: "],
    ),
    "mode": (
        lambda root: Experiment("bad", mode="evals", experiment_path=root),
        ConfigError,
        ["mode='evals' is not known"],
    ),
}

DATASETS: Mapping[str, tuple[Use, type[Exception], list[str]]] = {
    "none": (fit(train_dataset=None), ConfigError, ["train_dataset is missing"]),
    "empty": (
        fit(train_dataset=Dataset.from_dict({"text": []})),
        DatasetError,
        ["train_dataset is empty; it needs at least one row"],
    ),
    "empty evaluation": (
        fit(eval_dataset=Dataset.from_dict({"text": []})),
        DatasetError,
        ["eval_dataset is empty"],
    ),
    "empty evaluation among several": (
        fit(eval_dataset={"good": text_rows(2), "bad": Dataset.from_dict({"text": []})}),
        DatasetError,
        ["eval_dataset['bad'] is empty"],
    ),
    "a list": (
        fit(train_dataset=[{"text": "a"}]),
        DatasetError,
        ["train_dataset is a list", "Dataset.from_list(rows)"],
    ),
    "a path": (fit(train_dataset="data.jsonl"), DatasetError, ["train_dataset is a str"]),
    "all splits": (
        fit(train_dataset=DatasetDict(train=text_rows(2))),
        DatasetError,
        ["train_dataset is a DatasetDict", "load_dataset(..., split=...)"],
    ),
    "unknown columns": (
        fit(train_dataset=Dataset.from_list([{"frage": "a", "antwort": "b"}])),
        DatasetError,
        ["has the columns antwort, frage; SFT reads one of: messages", "formatting_func"],
    ),
    "another trainer's columns": (
        fit(RFDPOConfig(max_steps=1), train_dataset=instruction_rows(4)),
        DatasetError,
        ["has the columns instruction, response; DPO reads one of: chosen + prompt + rejected"],
    ),
    "other columns for evaluation": (
        fit(eval_dataset=prompt_rows(4)),
        DatasetError,
        ["eval_dataset has the columns prompt; SFT reads"],
    ),
    "messages without a template": (
        fit(
            create_model=without_template,
            train_dataset=Dataset.from_list([{"messages": [{"role": "user", "content": "a"}]}]),
        ),
        DatasetError,
        ["holds chat messages, but the tokenizer has no chat template"],
    ),
    "formatting_func raises": (
        fit(formatted(raises)),
        DatasetError,
        [".raises raised KeyError: 'no_such_key' on a row of train_dataset with the columns"],
    ),
    "formatting_func raises in the middle": (
        fit(formatted(lambda row: {"text": row["text"] if len(row["text"]) < 50 else 1 // 0})),
        DatasetError,
        ["raised ZeroDivisionError"],
    ),
    "formatting_func drops columns": (
        fit(formatted(lambda row: {"prompt": row["text"]})),
        DatasetError,
        ["leaves train_dataset with the columns prompt; SFT reads one of", "Let it return one of"],
    ),
    "formatting_func returns a list": (
        fit(formatted(lambda row: [row["text"]])),
        DatasetError,
        ["returned a list for a row of train_dataset; it has to return a dict of columns or a"],
    ),
    "formatting_func is none": (
        later(lambda: RFModelConfig(training_args=sft(), formatting_func="text")),
        ConfigError,
        ["formatting_func='text' (str)", "a function of a row, or None"],
    ),
}

MODELS: Mapping[str, tuple[Use, type[Exception], list[str]]] = {
    "raises": (
        fit(create_model=raises),
        CreateModelError,
        ["create_model raised KeyError: 'no_such_key'", "call it once by hand"],
    ),
    "one value": (
        fit(create_model=lambda config: tiny_model()),
        CreateModelError,
        ["create_model returned one value, a LlamaForCausalLM; it has to return two values"],
    ),
    "three values": (
        fit(create_model=lambda config: (1, 2, 3)),
        CreateModelError,
        ["create_model returned 3 values"],
    ),
    "nothing": (fit(create_model=lambda config: None), CreateModelError, ["returned None"]),
    "not a model": (
        fit(create_model=lambda config: ("gpt2", tiny_tokenizer())),
        CreateModelError,
        ["returned a str as the model"],
    ),
    "no arguments": (fit(create_model=lambda: None), CreateModelError, ["raised TypeError"]),
    "no function": (
        fit(create_model="gpt2"),
        ConfigError,
        ["create_model='gpt2' has to be a function", "(model, tokenizer)"],
    ),
    "no model at all": (
        fit(create_model=None),
        RapidFireError,
        ["there is no model", "model_name", "create_model"],
    ),
}

NAMES = ["", ".", "..", "a/b", "/etc", "a\nb", " a", "-a", "a" * 101, "a:b", "a\0b"]


@pytest.fixture(autouse=True)
def _nothing_is_trained(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    torch.set_num_threads(1)
    if "trains" not in request.fixturenames:

        def train(self: Trainer, *args: Any, **kwargs: Any) -> None:
            raise AssertionError("training began")

        monkeypatch.setattr(Trainer, "train", train)


@pytest.fixture
def trains() -> None:
    """For tests in which something may be trained."""


def process() -> list[object]:
    """What one failed attempt must not change for the next, or for the user's own code."""
    states = (
        accelerate.state.PartialState,
        accelerate.state.AcceleratorState,
        accelerate.state.GradientState,
    )
    package = logging.getLogger("rapidfireai")
    return [
        random.getstate(),
        repr(np.random.get_state()),
        torch.get_rng_state().tolist(),
        [id(state._shared_state) for state in states],
        [dict(state._shared_state) for state in states],
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        transformers.logging.get_verbosity(),
        transformers.logging.is_progress_bar_enabled(),
        datasets.are_progress_bars_disabled(),
        datasets.is_caching_enabled(),
        list(package.handlers),
        package.level,
        [thread.name for thread in threading.enumerate() if thread.name.startswith("run-")],
    ]


@pytest.fixture
def _the_process_stays() -> Iterator[None]:
    before = process()
    yield
    assert process() == before


ALL = {
    f"{kind}: {name}": case
    for kind, cases in (
        ("configuration", CONFIGURATIONS),
        ("call", CALLS),
        ("dataset", DATASETS),
        ("create_model", MODELS),
    )
    for name, case in cases.items()
}


@pytest.mark.usefixtures("_the_process_stays")
@pytest.mark.parametrize("name", ALL)
def test_bad_input_is_one_clear_error(name: str, tmp_path: Path) -> None:
    use, error, parts = ALL[name]
    with pytest.raises(error) as caught:
        use(tmp_path)
    assert isinstance(caught.value, RapidFireError)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert_nothing_was_started(tmp_path)


def assert_nothing_was_started(root: Path) -> None:
    assert not list(root.rglob("*.db*"))
    assert not list(root.rglob("runs"))
    experiment = Experiment("bad", experiment_path=root)
    assert experiment.name == "bad"
    with pytest.raises(ConfigError, match="has no results yet"):
        experiment.get_results()


def test_of_several_configurations_the_guilty_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        fit([sft(), sft(), sft(load_best_model_at_end=True)])(tmp_path)
    assert caught.value.__notes__ == ["(configuration 3 of 3)"]


@pytest.mark.usefixtures("_the_process_stays")
@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_names_that_no_folder_can_have(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be used: it names a folder"):
        Experiment(name, experiment_path=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_the_process_stays")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ExperimentPathError) as caught:
        Experiment("bad", experiment_path=tmp_path / "file" / "experiments")
    message = str(caught.value)
    assert str(tmp_path / "file" / "experiments") in message
    assert "cannot be written: Not a directory" in message
    assert "experiment_path=" in message
    assert "RF_EXPERIMENT_PATH" in message
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.usefixtures("trains")
def test_after_a_refusal_the_same_experiment_can_train(tmp_path: Path) -> None:
    experiment = Experiment("bad", experiment_path=tmp_path)
    with pytest.raises(ConfigError):
        experiment.run_fit(sft(), create_model, text_rows(8), num_chunks=0)
    with pytest.raises(DatasetError):
        experiment.run_fit(formatted(raises), create_model, text_rows(8))
    experiment.run_fit(sft(), create_model, text_rows(8))
    assert experiment.name == "bad"
    assert list(experiment.get_runs_info()["status"]) == ["completed"]


class NeverYields(trl.SFTTrainer):
    """Trains in a loop of its own that tells nobody."""

    def train(self, *args: Any, **kwargs: Any) -> None:
        self.state.global_step = self.state.max_steps = 2


class NeverYieldsEither(Trainer):
    """Likewise, made by the user."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        for _ in range(2):
            self.state.global_step += 1
        return None


NEVER = (
    "NeverYieldedError: {}.train() returned without ever calling get_batch_samples() or "
    "on_step_end(), so it could not be paused and no other run got a turn."
)


@pytest.mark.usefixtures("trains")
class TestATrainerThatNeverYields:
    def test_fails_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(
            TRAINERS,
            "CPO",
            TrainerSpec(
                name="CPO",
                config="trl:SFTConfig",
                trainer=f"{__name__}:NeverYields",
                data_kind=TRAINERS["SFT"].data_kind,
            ),
        )
        never = RFModelConfig(training_args={"max_steps": 2, "lora_rank": 2})
        experiment = Experiment("never", experiment_path=tmp_path)
        experiment.run_fit(
            [sft(), RFGridSearch([never], trainer_type="CPO"), sft(seed=7)],
            create_model,
            text_rows(16),
        )
        info = experiment.get_runs_info()
        assert list(info["status"]) == ["completed", "failed", "completed"]
        error = str(info.loc[1, "error"])
        assert error.startswith(NEVER.format("NeverYields"))
        assert "self.callback_handler.on_step_end(" in error
        assert list(info["step"]) == [2, 0, 2]

    def test_made_by_create_trainer(self, tmp_path: Path) -> None:
        def create_trainer(config: Mapping[str, Any], context: Any) -> Trainer:
            args = transformers.TrainingArguments(
                output_dir=context.output_dir, use_cpu=True, report_to="none", disable_tqdm=True
            )
            return NeverYieldsEither(
                model=context.private_model(), args=args, train_dataset=context.train_dataset
            )

        experiment = Experiment("never", experiment_path=tmp_path)
        experiment.run_fit(
            {"anything": List([1, 2])}, create_model, text_rows(8), create_trainer=create_trainer
        )
        info = experiment.get_runs_info()
        assert list(info["status"]) == ["failed", "failed"]
        assert str(info.loc[0, "error"]).startswith(NEVER.format("NeverYieldsEither"))
