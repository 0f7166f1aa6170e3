"""Agents under the engine: tools, environments and rollouts, exact; and what goes wrong in them."""

import asyncio
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from rapidfireai import Experiment, List, RFGRPOConfig, RFLoraConfig, RFModelConfig, RFRLOOConfig
from rapidfireai.errors import RewardError, UnknownArgumentError
from rapidfireai.training.rewards import checked_rewards
from rapidfireai.training.tools import TimeLimit, ToolTimeoutError, limited_tools
from tests.training import agents
from tests.training.agents import LORA, Doors, arguments, found, open_door, rows, tried


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def plain() -> Iterator[ProcessPoolExecutor]:
    """A process in which TRL trains, and nothing of the engine is loaded."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        yield pool


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, plain: ProcessPoolExecutor) -> Path:
    folder = tmp_path_factory.mktemp("agent")
    plain.submit(agents.teach, folder).result()
    return folder


def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
    """Two greedy tokens after each prompt, whatever they are."""
    tokenizer = trainer.processing_class
    texts = [tokenizer.apply_chat_template(p, add_generation_prompt=True) for p in prompts]
    ids = [text["input_ids"] if hasattr(text, "keys") else text for text in texts]
    tokens = torch.tensor(ids[0]).unsqueeze(0)
    with torch.no_grad():
        drawn = torch.multinomial(
            trainer.model(input_ids=tokens).logits[0, -1].softmax(-1), 2 * len(ids), True
        )
    completions = drawn.view(len(ids), 2).tolist()
    return {
        "prompt_ids": ids,
        "completion_ids": completions,
        "logprobs": None,
        "length": [float(sum(one)) for one in completions],
    }


def low(completions: list[Any], length: list[float], **_: Any) -> list[float]:
    """A reward by what the rollout has told."""
    return [-one / 100 for one in length]


WAYS: dict[str, dict[str, Any]] = {
    "tools": {"tools": [open_door], "reward_funcs": [found, tried]},
    "environment": {"environment_factory": Doors, "reward_funcs": [tried]},
    "environments": {"environment_factory": Doors},
    "rollout": {"rollout_func": rollout, "reward_funcs": [low]},
}


def config(args: dict[str, Any], **kwargs: Any) -> RFModelConfig:
    return RFModelConfig(
        peft_config=RFLoraConfig(**LORA), training_args=RFGRPOConfig(**args), **kwargs
    )


def fitted(root: Path, model: Path, configs: list[Any], **options: Any) -> Experiment:
    experiment = Experiment("agents", experiment_path=root)
    experiment.run_fit(configs, model=model, train_dataset=rows(), num_chunks=2, **options)
    return experiment


def adapter(run: Any) -> dict[str, torch.Tensor]:
    return load_file(Path(run.path) / "adapter_model.safetensors")


@pytest.mark.filterwarnings("ignore:You are using")
def test_agents_train_as_they_do_alone(
    model: Path, plain: ProcessPoolExecutor, tmp_path: Path
) -> None:
    args = arguments()
    alone = {
        way: plain.submit(agents.train_alone, model, args, kwargs) for way, kwargs in WAYS.items()
    }
    experiment = fitted(tmp_path, model, [config(args, **kwargs) for kwargs in WAYS.values()])
    runs, results = experiment.get_runs_info(), experiment.get_results()
    assert list(runs["status"]) == ["completed"] * len(WAYS), list(runs["traceback"])
    calls = 0.0
    for run, way in zip(runs.itertuples(), WAYS, strict=True):
        _, rewards, weights = alone[way].result()
        measured = results[(results["run_id"] == run.run_id) & results["reward"].notna()]
        for name in rewards[0]:
            assert measured[name].tolist() == [row[name] for row in rewards], (way, name)
        calls += sum(row.get("tools/call_frequency", 0.0) for row in rewards)
        ours = adapter(run)
        theirs = {name.replace(".default", ""): tensor for name, tensor in weights.items()}
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), way
    assert calls > 0, "no tool was called at all"
    assert "experimental in TRL" in str(runs["notes"][1])


def test_policies_and_exploration_are_compared_on_the_same_tasks(
    model: Path, tmp_path: Path
) -> None:
    args = arguments(
        max_steps=2,
        max_completion_length=16,
        per_device_train_batch_size=16,
        num_generations=List([4, 8, 16]),
        temperature=List([0.7, 1.2]),
        beta=List([0.0, 0.1]),
    )
    experiment = fitted(tmp_path, model, [config(args, **WAYS["tools"])])
    runs, results = experiment.get_runs_info(), experiment.get_results()
    assert list(runs["status"]) == ["completed"] * 12
    curves = results.pivot(index="step", columns="run_id", values="rewards/tried/mean").dropna()
    assert curves.shape == (2, 12)
    assert results["rewards/found/mean"].notna().sum() == 24
    ranked = experiment.report(objective="maximize:reward").standings
    assert sorted(standing.run.id for standing in ranked) == list(runs["run_id"])


def test_a_trainer_without_tools_says_so() -> None:
    with pytest.raises(UnknownArgumentError, match=r"no argument 'tools'.*RLOO"):
        RFModelConfig(training_args=RFRLOOConfig(), reward_funcs=[found], tools=[open_door])


# Reward functions


def raising(completions: list[Any], **_: Any) -> list[float]:
    raise KeyError("no such score")


def one_too_few(completions: list[Any], **_: Any) -> list[float]:
    return [0.0] * (len(completions) - 1)


async def one_too_many(completions: list[Any], **_: Any) -> list[float]:
    return [0.0] * (len(completions) + 1)


def in_words(completions: list[Any], **_: Any) -> list[Any]:
    return ["good"] * len(completions)


def a_number(completions: list[Any], **_: Any) -> float:
    return 1.0


class Scorer:
    """Has no name of its own."""

    def __call__(self, completions: list[Any], **_: Any) -> list[float]:
        return [0.0]


WRONG = (
    (raising, "the reward function 'raising' raised KeyError: 'no such score'"),
    (one_too_few, "'one_too_few' returned 3 rewards for 4 completions"),
    (one_too_many, "'one_too_many' returned 5 rewards for 4 completions"),
    (in_words, "'in_words' returned 'good' (str) among its rewards"),
    (a_number, "'a_number' returned 1.0 (float); it has to return a list"),
    (Scorer(), "'Scorer' returned 1 rewards for 4 completions"),
)


@pytest.mark.parametrize("trainer", [RFGRPOConfig, RFRLOOConfig])
def test_wrong_rewards_end_their_run_only(trainer: Any, model: Path, tmp_path: Path) -> None:
    args = {
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 4,
    }
    configs = [
        RFModelConfig(
            peft_config=RFLoraConfig(**LORA),
            training_args=trainer(**args),
            reward_funcs=[tried, function],
        )
        for function in (tried, *(function for function, _ in WRONG))
    ]
    runs = fitted(tmp_path, model, configs).get_runs_info()
    assert list(runs["status"]) == ["completed"] + ["failed"] * len(WRONG)
    for error, (_, told) in zip(runs["error"][1:], WRONG, strict=True):
        assert told in error
        assert error.startswith("RewardError")


def test_right_rewards_are_handed_on_as_they_are() -> None:
    given = torch.tensor([1.0, 2.0])
    seen: list[str] = []

    def tensors(completions: list[str], **_: Any) -> torch.Tensor:
        return given

    async def some(completions: list[str], **_: Any) -> list[float | None]:
        return [None, 0.5]

    module, name = torch.nn.Linear(1, 1), "some/model"
    checked = checked_rewards([tensors, some, module, name], lambda: seen.append("asked"))
    assert checked[0](completions=["a", "b"]) is given
    assert asyncio.run(checked[1](completions=["a", "b"])) == [None, 0.5]
    assert checked[2:] == [module, name]
    assert [one.__name__ for one in checked[:2]] == ["tensors", "some"]
    assert seen == ["asked", "asked"]
    with pytest.raises(RewardError, match="2 rewards for 1"):
        checked_rewards(tensors, lambda: None)(completions=["a"])


# Tools that hang


def waits(door: int) -> str:
    threading.Event().wait()
    return "air"


async def waits_too(door: int) -> str:
    await asyncio.Event().wait()
    return "air"


class Stuck(Doors):
    """Never answers."""

    def open_door(self, door: int) -> str:
        while True:
            pass


def disguised(function: Callable[..., Any]) -> Callable[..., Any]:
    """As the tool that the model knows."""
    function.__name__, function.__doc__ = "open_door", open_door.__doc__
    return function


disguised(Stuck.open_door)


def test_a_tool_that_hangs_ends_its_run_only(model: Path, tmp_path: Path) -> None:
    args = arguments(max_steps=3)
    hanging: list[dict[str, Any]] = [
        {"tools": [disguised(waits)], "reward_funcs": [tried]},
        {"tools": [disguised(waits_too)], "reward_funcs": [tried]},
        {"environment_factory": Stuck, "reward_funcs": [tried]},
    ]
    configs = [config(args, **kwargs) for kwargs in (WAYS["tools"], *hanging)]
    runs = fitted(tmp_path, model, configs, tool_timeout_s=1.0).get_runs_info()
    assert list(runs["status"]) == ["completed", "failed", "failed", "failed"]
    for error, name in zip(runs["error"][1:], ("waits", "waits_too", "Stuck"), strict=True):
        assert error.startswith(f"ToolTimeoutError: {name}")
        assert "took more than 1 s" in error
        assert "tool_timeout_s" in error


def test_limits_change_nothing_that_a_model_sees() -> None:
    from transformers.utils import get_json_schema

    limited = limited_tools(
        {"tools": [open_door], "environment_factory": {"doors": Doors}}, TimeLimit(5)
    )
    assert get_json_schema(limited["tools"][0]) == get_json_schema(open_door)
    environment = limited["environment_factory"]["doors"]()
    assert type(environment).__name__ == "Doors"
    assert isinstance(environment, Doors)
    assert get_json_schema(environment.open_door) == get_json_schema(Doors().open_door)
    assert environment.reset(treasure=2) == " There are three."
    assert (environment.open_door(2), environment.get_reward()) == ("gold", 1.0)
    assert type(limited["environment_factory"]["doors"]()) is type(environment)


def test_all_calls_come_from_one_thread() -> None:
    seen: list[int] = []

    class Keeper:
        def __init__(self) -> None:
            seen.append(threading.get_ident())

        def reset(self) -> None:
            self.look()  # one method calls another

        def look(self) -> None:
            seen.append(threading.get_ident())

        @staticmethod
        def aside() -> None:
            seen.append(threading.get_ident())

    environment: Any = TimeLimit(5).factory(Keeper)()
    environment.reset()
    environment.look()
    environment.aside()
    assert len(set(seen)) == 1
    assert len(seen) == 4
    assert seen[0] != threading.get_ident()


def test_what_a_tool_raises_is_its_own() -> None:
    def fails() -> None:
        raise TimeoutError("the service is slow")

    limit = TimeLimit(5)
    with pytest.raises(TimeoutError, match="the service is slow"):
        limit.tool(fails)()
    limit.check()


def test_after_one_call_that_hangs_none_is_begun() -> None:
    limit = TimeLimit(0.05)
    with pytest.raises(ToolTimeoutError, match=r"wait.* took more than 0\.05 s"):
        limit.call(threading.Event().wait)
    with pytest.raises(ToolTimeoutError):
        limit.call(pd.DataFrame)
    with pytest.raises(ToolTimeoutError):
        limit.check()


def test_without_a_limit_tools_are_what_they_were() -> None:
    given = {"tools": [open_door], "environment_factory": Doors}
    assert limited_tools(given, TimeLimit(None)) == given
