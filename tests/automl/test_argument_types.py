"""Arguments of config classes: types are checked as TRL uses them."""

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pytest

from rapidfireai.automl import List, Range
from rapidfireai.automl.argument_types import Argument, arguments_of, describe, shown
from rapidfireai.errors import ConfigError
from tests.ids import plain


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Target:
    rate: float = 0.1
    steps: int = -1
    on: bool = False
    maybe: bool | None = None
    size: int | str | None = "auto"
    colour: Colour | str = "red"
    names: list[str] | None = None
    pair: tuple[float, float] | None = None
    weights: list[float] = field(default_factory=list)
    mode: Literal["a", "b"] = "a"
    space: str | Literal[False] | None = None
    options: dict[str, Any] | str | None = None
    function: Callable[[int], int] | None = None
    late: int = None  # type: ignore[assignment]  # PEFT writes it so
    derived: int = field(init=False, default=0)


ARGUMENTS = arguments_of(Target)


def double(value: int) -> int:
    return 2 * value


def test_arguments_are_the_fields_that_the_constructor_takes() -> None:
    assert list(ARGUMENTS) == [name for name in Target.__dataclass_fields__ if name != "derived"]
    assert ARGUMENTS["rate"].default == 0.1
    assert ARGUMENTS["weights"].default == []


@pytest.mark.parametrize(
    ("name", "value", "recorded"),
    [
        ("rate", 1, 1),
        ("rate", np.float32(0.5), 0.5),
        ("steps", np.int64(7), 7),
        ("maybe", None, None),
        ("size", 8, 8),
        ("size", "auto", "auto"),
        ("colour", "blue", "blue"),
        ("colour", Colour.BLUE, Colour.BLUE),
        ("names", ("a", "b"), ["a", "b"]),
        ("names", {"b", "a"}, ["a", "b"]),
        ("names", ["a"], ["a"]),
        ("pair", (0.0, 1.0), (0.0, 1.0)),
        ("weights", [1, 0.5], [1, 0.5]),
        ("mode", "b", "b"),
        ("space", False, False),
        ("options", {"a": [1]}, {"a": [1]}),
        ("options", '{"a": 1}', '{"a": 1}'),
        ("function", double, double),
        ("late", None, None),
        ("steps", List([1, 2]), List([1, 2])),
        ("rate", List([1, Range(0.1, 0.2)]), List([1, Range(0.1, 0.2)])),
        ("rate", Range(1, 5, dtype="int"), Range(1, 5, dtype="int")),
        ("steps", List([np.int64(3)]), List([3])),
        ("names", List([("a",), None]), List([["a"], None])),
        ("names", ["a", List(["b", "c"])], ["a", List(["b", "c"])]),
    ],
    ids=plain,
)
def test_accepts(name: str, value: Any, recorded: Any) -> None:
    checked = ARGUMENTS[name].checked(value, "Target")
    assert checked == recorded
    assert type(checked) is type(recorded)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rate", "1e-4", r"rate='1e-4' \(str\) is not possible; allowed: float; write the number "),
        ("rate", [0.1, 0.2], r"allowed: float; to try several values write List\(\[0.1, 0.2\]\)"),
        ("rate", None, r"rate=None \(NoneType\) is not possible; allowed: float"),
        ("rate", True, r"rate=True \(bool\) is not possible"),
        ("steps", 10.0, "allowed: int; write 10"),
        ("steps", 10.5, r"steps=10.5 \(float\) is not possible; allowed: int$"),
        ("steps", True, "allowed: int"),
        ("on", "True", "allowed: bool; write True without quotes"),
        ("on", 1, "allowed: bool"),
        ("maybe", "yes", "allowed: bool or None"),
        ("colour", "green", "colour='green' .* allowed: red, blue"),
        ("colour", 3, "allowed: one of 'red', 'blue' or str"),
        ("names", ["a", 3], r"allowed: list\[str\] or None"),
        ("names", "1", r"allowed: list\[str\] or None$"),
        ("mode", "c", "allowed: 'a' or 'b'"),
        ("space", True, "allowed: str or False or None"),
        ("late", "x", "allowed: int"),
        ("steps", List([1, "2"]), r"steps='2' \(str\) .*write the number without quotes: 2"),
        ("steps", List([1, List([2, 3.5])]), "steps=3.5"),
        ("steps", Range(0.5, 1.5), "steps=0.5"),
        ("rate", Range(0, 1), r"would draw whole numbers.*write Range\(0.0, 1.0\)"),
        ("names", ["a", List(["b", 3])], r"names=\['a', 3\]"),
    ],
    ids=plain,
)
def test_refuses(name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^Target: .*{message}"):
        ARGUMENTS[name].checked(value, "Target")


def test_words_of_its_own_replace_the_annotation() -> None:
    argument = Argument(name="f", annotation=Callable, says="a function of a row")
    with pytest.raises(ConfigError, match="allowed: a function of a row"):
        argument.checked(3, "Target")


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (int | None, "int or None"),
        (str | list[str], "str or list[str]"),
        (Literal["a", "b"] | bool, "'a' or 'b' or bool"),
    ],
    ids=str,
)
def test_describe(annotation: Any, text: str) -> None:
    assert describe(annotation) == text


def test_long_values_are_cut_in_messages() -> None:
    assert shown("x") == "'x'"
    assert len(shown("x" * 1000)) < 100


def test_values_of_several_lines_are_shown_in_one() -> None:
    value = np.eye(2)
    assert repr(value) == "array([[1., 0.],\n       [0., 1.]])"
    assert shown(value) == "array([[1., 0.], [0., 1.]])"
    with pytest.raises(ConfigError) as caught:
        ARGUMENTS["steps"].checked([value], "Target")
    assert "\n" not in str(caught.value)
