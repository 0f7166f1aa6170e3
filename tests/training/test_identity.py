"""What makes a run the same when the script is run again."""

import enum
import functools
import random
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from transformers import EarlyStoppingCallback, TrainerCallback
from trl.rewards import get_soft_overlong_punishment

from rapidfireai.testing.tiny import text_rows, tiny_model, tiny_tokenizer
from rapidfireai.training.config import PeftSpec, RunConfig
from rapidfireai.training.identity import digest, run_identity

CONFIG = RunConfig(
    trainer_type="SFT",
    training_args={"learning_rate": 1e-4, "max_steps": 10},
    model={"model_name": "tiny"},
    peft=PeftSpec(method="LoraConfig", arguments={"r": 8, "target_modules": {"q_proj", "v_proj"}}),
)


def test_equal_configurations_are_one_and_others_are_not() -> None:
    assert run_identity(CONFIG, {}) == run_identity(replace(CONFIG), {})
    others = [
        replace(CONFIG, trainer_type="DPO"),
        replace(CONFIG, training_args={"learning_rate": 2e-4, "max_steps": 10}),
        replace(CONFIG, model={"model_name": "other"}),
        replace(CONFIG, peft=None),
        replace(CONFIG, peft=PeftSpec(method="LoraConfig", arguments={"r": 16})),
        replace(CONFIG, trainer_kwargs={"callbacks": []}),
        replace(CONFIG, formatting_func=str),
        replace(CONFIG, share_base=False),
    ]
    identities = {run_identity(config, {}) for config in [CONFIG, *others]}
    assert len(identities) == 1 + len(others)


def test_notes_do_not_count_and_surroundings_do() -> None:
    assert run_identity(replace(CONFIG, notes=("renamed",)), {}) == run_identity(CONFIG, {})
    assert run_identity(CONFIG, {"seed": 1}) != run_identity(CONFIG, {"seed": 2})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1e-4, 2e-4),
        (True, "True"),
        ([1, 2], [2, 1]),
        ({"a": 1}, {"a": 2}),
        ({1, 2}, {1, 3}),
        (torch.float16, torch.bfloat16),
        (torch.tensor([0.12345]), torch.tensor([0.12349])),
        (Path("/a"), Path("/b")),
        (LoraConfig(r=1), LoraConfig(r=2)),
    ],
)
def test_values(one: Any, other: Any) -> None:
    assert digest(one) == digest(one)
    assert digest(one) != digest(other)


def made(source: str, **names: Any) -> Any:
    """What `f` is after the source has been run: as in a REPL, without a source to be found."""
    namespace = {"__name__": "repl", **names}
    exec(source, namespace)
    return namespace["f"]


def first(completions: list[str], **_: Any) -> list[float]:
    return [len(text) for text in completions]


def second(completions: list[str], **_: Any) -> list[float]:
    return [len(text) / 2 for text in completions]


LIMIT = 5
CALLS = 0
SEEN: list[str] = []


def mentions() -> Any:
    return LIMIT, SEEN, first


def counts() -> None:
    global CALLS
    CALLS += 1
    SEEN.append("")


class TestFunctions:
    def test_count_by_name_and_source(self) -> None:
        assert digest(first) == digest(first)
        assert digest(first) != digest(second)

    def test_an_edited_one_is_another(self, tmp_path: Path) -> None:
        identities = []
        for number in (1, 2, 2):
            file = tmp_path / "rewards.py"
            file.write_text(f"def reward(texts):\n    return [{number} for _ in texts]\n")
            module = types.ModuleType("rewards")
            module.__file__ = str(file)
            exec(compile(file.read_text(), file, "exec"), module.__dict__)
            identities.append(digest(module.__dict__["reward"]))
        assert identities[0] != identities[1]
        assert identities[1] == identities[2]

    def test_without_a_source_the_compiled_code_stands_for_it(self) -> None:
        code = "def f(x):\n    return [y + {} for y in x]"
        assert digest(made(code.format(1))) == digest(made(code.format(1)))
        assert digest(made(code.format(1))) != digest(made(code.format(2)))
        assert digest(made("def f(): return len")) != digest(made("def f(): return max"))
        kind = "class f:\n    def call(self):\n        return {}"
        assert digest(made(kind.format(1))) == digest(made(kind.format(1)))
        assert digest(made(kind.format(1))) != digest(made(kind.format(2)))

    def test_lambdas_count_by_the_lines_they_are_written_in(self) -> None:
        one: Callable[[], int] = lambda: 1  # noqa: E731
        other: Callable[[], int] = lambda: 2  # noqa: E731
        assert digest(one) == digest(one)
        assert digest(one) != digest(other)

    def test_what_they_captured_counts(self) -> None:
        def scaled(scale: float, function: Any) -> Any:
            def reward(texts: list[str]) -> list[float]:
                return [scale * value for value in function(texts)]

            return reward

        assert digest(scaled(1.0, first)) == digest(scaled(1.0, first))
        assert digest(scaled(1.0, first)) != digest(scaled(2.0, first))
        assert digest(scaled(1.0, first)) != digest(scaled(1.0, second))

    def test_defaults_and_partial_arguments_count(self) -> None:
        def with_default(scale: float) -> Any:
            def reward(texts: list[str], scale: float = scale, *, shift: float = scale) -> None:
                pass

            return reward

        assert digest(with_default(1.0)) == digest(with_default(1.0))
        assert digest(with_default(1.0)) != digest(with_default(2.0))
        one = functools.partial(first, scale=1)
        assert digest(one) == digest(functools.partial(first, scale=1))
        assert digest(one) != digest(functools.partial(first, scale=2))
        assert digest(one) != digest(functools.partial(second, scale=1))

    def test_constants_and_functions_of_their_module_count(self) -> None:
        code = "def f():\n    return LIMIT + helper()"

        def helper() -> int:
            return 1

        helper.__module__ = "repl"
        assert digest(made(code, LIMIT=5, helper=helper)) == digest(
            made(code, LIMIT=5, helper=helper)
        )
        assert digest(made(code, LIMIT=5, helper=helper)) != digest(
            made(code, LIMIT=6, helper=helper)
        )
        other = made("def f():\n    return 2")
        assert digest(made(code, LIMIT=5, helper=helper)) != digest(
            made(code, LIMIT=5, helper=other)
        )

    def test_what_they_count_in_does_not(self) -> None:
        num_calls = 0
        calls: list[int] = []

        def counting() -> None:
            nonlocal num_calls
            num_calls += 1
            calls.append(num_calls)

        before = [digest(function) for function in (counting, counts)]
        counting()
        counts()
        assert [digest(function) for function in (counting, counts)] == before

    def test_one_that_mentions_itself_or_what_is_not_there_yet(self) -> None:
        def ping(depth: int) -> int:
            return pong(depth - 1) if depth else 0

        assert digest(ping)

        def pong(depth: int) -> int:
            return ping(depth - 1) if depth else 1

        assert digest(ping) != digest(pong)

    def test_a_wrapped_one_counts_with_its_wrapper(self) -> None:
        def halved(function: Any) -> Any:
            @functools.wraps(function)
            def wrapper(*args: Any) -> list[float]:
                return [value / 2 for value in function(*args)]

            return wrapper

        assert digest(halved(first)) == digest(halved(first))
        assert len({digest(halved(first)), digest(halved(second)), digest(first)}) == 3

    def test_those_of_libraries_count_by_name_and_settings(self) -> None:
        one = get_soft_overlong_punishment(100, 20)
        assert digest(one) == digest(get_soft_overlong_punishment(100, 20))
        assert digest(one) != digest(get_soft_overlong_punishment(100, 30))
        assert digest(len) == digest(len)
        assert digest(len) != digest(max)


class Plain:
    """An object that prints with its address."""

    def __init__(self, weight: float, *, inner: Any = None) -> None:
        self.weight = weight
        self.inner = inner

    def __call__(self, texts: list[str]) -> list[float]:
        return [self.weight for _ in texts]

    def method(self) -> float:
        return self.weight


class Derived(Plain):
    """One with a parent in the same module."""


@dataclass(slots=True)
class Settings:
    """One whose text leaves half of it out."""

    names: set[str] = field(default_factory=set)
    hidden: int = field(default=0, repr=False)


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class TestObjects:
    def test_count_by_class_and_attributes_not_by_address(self) -> None:
        assert digest(Plain(1.0)) == digest(Plain(1.0))
        assert digest(Plain(1.0)) != digest(Plain(2.0))
        assert digest(Plain(1.0)) != digest(Derived(1.0))
        assert digest(Plain(1.0, inner=Plain(2.0))) == digest(Plain(1.0, inner=Plain(2.0)))
        assert digest(Plain(1.0, inner=Plain(2.0))) != digest(Plain(1.0, inner=Plain(3.0)))
        assert digest(Plain(1.0).method) == digest(Plain(1.0).method)
        assert digest(Plain(1.0).method) != digest(Plain(2.0).method)

    def test_text_that_says_less_is_not_believed(self) -> None:
        assert digest(Settings({"a", "b"}, 1)) == digest(Settings({"b", "a"}, 1))
        assert digest(Settings({"a"}, 1)) != digest(Settings({"a"}, 2))
        assert digest(Colour.RED) != digest(Colour.BLUE)

    def test_callbacks(self) -> None:
        one = EarlyStoppingCallback(early_stopping_patience=1)
        assert digest(one) == digest(EarlyStoppingCallback(early_stopping_patience=1))
        assert digest(one) != digest(EarlyStoppingCallback(early_stopping_patience=2))
        assert digest(TrainerCallback()) == digest(TrainerCallback())

    def test_that_refer_to_each_other(self) -> None:
        def pair() -> Plain:
            one = Plain(1.0)
            one.inner = Plain(2.0, inner=one)
            return one

        assert digest(pair()) == digest(pair())

    def test_without_attributes(self) -> None:
        assert digest(object()) == digest(object())
        assert digest(random.Random(1)) == digest(random.Random(1))

    def test_models_count_by_their_layers_and_tokenizers_are_the_same_again(self) -> None:
        assert digest(tiny_model()) == digest(tiny_model(seed=5))
        assert digest(tiny_model()) != digest(tiny_model(num_layers=1))
        assert digest(tiny_tokenizer()) == digest(tiny_tokenizer())


class TestDatasets:
    def test_count_by_content(self) -> None:
        assert digest(text_rows()) == digest(text_rows())
        assert digest(text_rows()) != digest(text_rows(seed=1))
        assert digest(text_rows()) != digest(text_rows().select(range(10)))
        assert digest({"a": text_rows()}) != digest({"b": text_rows()})

    def test_streams_count_by_columns_and_first_rows(self) -> None:
        def stream(start: int, num_rows: int = 20) -> IterableDataset:
            rows = [{"text": str(number)} for number in range(start, start + num_rows)]
            return Dataset.from_list(rows).to_iterable_dataset()

        assert digest(stream(0)) == digest(stream(0))
        assert digest(stream(0)) != digest(stream(1))
        assert digest(stream(0)) == digest(stream(0, num_rows=30))


PROGRAM = """
import random
from tests.training import test_identity as t
print(t.digest([t.CONFIG, t.text_rows(), t.first, t.Plain(1.0), t.Settings({"a", "b", "c"}, 1),
    t.get_soft_overlong_punishment(100, 20), t.functools.partial(t.first, a={"x", "y"}),
    t.mentions, t.tiny_tokenizer(), t.LoraConfig(target_modules=["q_proj", "v_proj", "k"])]))
"""


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """The digest of the same things in another process, which hashes strings differently."""
    yield subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, encoding="utf-8", check=True
    ).stdout.strip()


def test_another_process_finds_the_same(elsewhere: str) -> None:
    namespace: dict[str, Any] = {"print": lambda text: namespace.update(printed=text)}
    exec(PROGRAM, namespace)
    assert namespace["printed"] == elsewhere
