"""Knobs: what they accept, and how values that hold them are expanded, sampled and measured."""

import math
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from rapidfireai.automl import List, Range
from rapidfireai.automl.knobs import (
    Composite,
    covering,
    expand,
    expand_points,
    fresh,
    knobs_in,
    num_points,
    sample,
)
from rapidfireai.errors import ConfigError


class Pair(Composite):
    """The smallest composite."""

    def __init__(self, **parts: Any) -> None:
        self.held = parts

    def parts(self) -> Mapping[str, Any]:
        return self.held

    def with_parts(self, parts: Mapping[str, Any]) -> "Pair":
        return Pair(**parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pair) and other.held == self.held

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Pair({self.held})"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("ab", r"List\('ab'\): List takes a list"),
        ({"a": 1}, "List takes a list"),
        (3, r"List\(3\): List takes a list, as in List\(\[3, ...\]\)"),
        ([], r"List\(\[\]\) has no alternatives: give at least one"),
    ],
)
def test_list_refuses(values: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        List(values)


def test_list_takes_what_can_be_iterated() -> None:
    assert List((1, 2)) == List([1, 2]) == List(range(1, 3)) == List(x for x in (1, 2))
    assert repr(List((1, None))) == "List([1, None])"
    assert List([1]) != [1]


def test_list_turns_numpy_into_python_numbers() -> None:
    assert [type(value) for value in List(np.array([1, 2])).values] == [int, int]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": "1e-5", "end": 1.0}, "start must be a number, written without quotes"),
        ({"start": True, "end": 2}, "start must be a number"),
        ({"start": None, "end": 2}, "start must be a number"),
        ({"start": 0, "end": math.inf}, "end must be finite"),
        ({"start": 0, "end": math.nan}, "end must be finite"),
        ({"start": 2, "end": 1}, "start must be less than end"),
        ({"start": 1, "end": 1}, "start must be less than end"),
        ({"start": 0.0, "end": 1.0, "log": True}, "log=True needs a start above 0"),
        ({"start": 1, "end": 9, "log": True, "step": 2}, "log and step do not go together"),
        ({"start": 1, "end": 9, "step": 0}, "step must be above 0"),
        ({"start": 1, "end": 9, "step": 9}, "at most end - start"),
        ({"start": 1, "end": 9, "step": "2"}, "step must be a number"),
        ({"start": 1, "end": 9, "dtype": "double"}, 'dtype must be "int" or "float"'),
        ({"start": 1.5, "end": 9, "dtype": "int"}, 'dtype="int" needs whole numbers'),
    ],
)
def test_range_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Range(**arguments)


@pytest.mark.parametrize(
    ("knob", "points"),
    [
        (Range(1, 4), [1, 2, 3, 4]),
        (Range(8, 64, step=16), [8, 24, 40, 56]),
        (Range(1.0, 3.0, dtype="int"), [1, 2, 3]),
        (Range(*np.array([1, 3])), [1, 2, 3]),
        (Range(1, 4, log=True), [1, 2, 3, 4]),
        (Range(0.0, 0.3, step=0.1), [0.0, 0.1, 0.2, 0.3]),
        (Range(0, 1, "float", step=0.5), [0.0, 0.5, 1.0]),
    ],
    ids=repr,
)
def test_range_draws_exactly_its_points(knob: Range, points: list[float]) -> None:
    rng = random.Random(0)
    drawn = {knob.draw(rng) for _ in range(500)}
    assert sorted(drawn) == pytest.approx(points)
    assert list(knob.points() or ()) == pytest.approx(points)
    assert {type(value) for value in drawn} == {int if knob.whole else float}


def test_range_can_be_read() -> None:
    assert repr(Range(1, 8)) == "Range(1, 8)"
    assert repr(Range(1e-5, 1e-3, log=True)) == "Range(1e-05, 0.001, log=True)"
    assert repr(Range(0, 1, "float", step=0.5)) == "Range(0.0, 1.0, dtype='float', step=0.5)"


@pytest.mark.parametrize("knob", [Range(1e-5, 1e-2, log=True), Range(1, 1000, log=True)], ids=repr)
def test_log_range_draws_every_decade_equally_often(knob: Range) -> None:
    rng = random.Random(0)
    drawn = [knob.draw(rng) for _ in range(3000)]
    assert min(drawn) >= knob.start
    assert max(drawn) <= knob.end
    for decade in range(3):
        low = knob.start * 10**decade
        share = sum(low <= value < 10 * low for value in drawn) / len(drawn)
        assert share == pytest.approx(1 / 3, abs=0.05)


def test_open_range_stays_inside_and_is_even() -> None:
    rng = random.Random(0)
    drawn = [Range(0.0, 2.0).draw(rng) for _ in range(2000)]
    assert all(0 <= value <= 2 for value in drawn)
    assert sum(drawn) / len(drawn) == pytest.approx(1.0, abs=0.05)
    assert Range(0.0, 2.0).points() is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, [3]),
        (List([1, 2]), [1, 2]),
        (List([List([1, 2]), 3]), [1, 2, 3]),
        ([List([1, 2]), "x"], [[1, "x"], [2, "x"]]),
        ((List([1, 2]),), [(1,), (2,)]),
        ({"a": {"b": List([1, 2])}}, [{"a": {"b": 1}}, {"a": {"b": 2}}]),
        (List([{"a": List([1, 2])}, {"a": 3}]), [{"a": 1}, {"a": 2}, {"a": 3}]),
        (Pair(x=List([1, 2])), [Pair(x=1), Pair(x=2)]),
        (List([Pair(x=[List([1, 2])]), None]), [Pair(x=[1]), Pair(x=[2]), None]),
        ({}, [{}]),
        ([], [[]]),
    ],
    ids=repr,
)
def test_expand_finds_lists_at_any_depth(value: Any, expected: list[Any]) -> None:
    assert expand(value) == expected
    assert num_points(value) == len(expected)


def test_what_was_written_first_varies_slowest() -> None:
    leaves = expand({"b": List([1, 2]), "a": List([1, 2, 3])})
    assert [(leaf["b"], leaf["a"]) for leaf in leaves] == [
        (1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3),
    ]  # fmt: skip


def test_expand_does_not_change_the_value() -> None:
    value = {"a": [List([1, 2])]}
    expand(value)
    assert value == {"a": [List([1, 2])]}


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (Range(1, 2), "the configuration is Range"),
        ({"a": [0, Range(1, 2)]}, r"a\[1\] is Range"),
        ({"a": {"b c": Range(1, 2)}}, r"a\['b c'\] is Range"),
        (List([1, Pair(x=Range(1, 2))]), "x is Range"),
    ],
    ids=repr,
)
def test_grid_refuses_a_range_and_says_where_it_is(value: Any, where: str) -> None:
    with pytest.raises(ConfigError, match=where) as caught:
        expand(value)
    assert "List([...])" in str(caught.value)
    assert "RFRandomSearch" in str(caught.value)


def test_sample_is_seeded_and_leaves_no_knob() -> None:
    value = Pair(
        x=List([1, List([2, {"y": Range(0.0, 1.0)}])]), z=(Range(1, 9), [List(["a", "b"])])
    )
    first = [sample(value, random.Random(seed)) for seed in range(20)]
    again = [sample(value, random.Random(seed)) for seed in range(20)]
    assert first == again
    assert any(one != first[0] for one in first)
    assert not any(list(knobs_in(one)) for one in first)


def test_num_points_and_expand_points_count_ranges() -> None:
    value = {"a": Range(1, 3), "b": List([0, 1])}
    assert num_points(value) == 6
    assert expand_points(value)[:3] == [{"a": 1, "b": 0}, {"a": 1, "b": 1}, {"a": 2, "b": 0}]
    assert num_points({"a": Range(0.0, 1.0), "b": List([0, 1])}) == math.inf


def test_covering_shows_every_alternative() -> None:
    value = {"a": List([1, 2, 3]), "b": [List(["x", "y"])], "c": Range(5, 9)}
    rows = covering(value)
    assert len(rows) == 3
    assert {row["a"] for row in rows} == {1, 2, 3}
    assert {row["b"][0] for row in rows} == {"x", "y"}
    assert {row["c"] for row in rows} == {5, 9}
    assert covering([]) == [[]]


def test_knobs_in_finds_inner_knobs() -> None:
    inner = Range(1, 2)
    outer = List([{"a": inner}, 3])
    assert list(knobs_in(Pair(x=outer))) == [outer, inner]


def test_fresh_copies_containers_and_shares_leaves() -> None:
    leaf = object()
    value: Any = {"a": [leaf], "b": Pair(x={"y": leaf})}
    copied: Any = fresh(value)
    assert copied == value
    assert copied is not value
    assert copied["a"] is not value["a"]
    assert copied["a"][0] is leaf
    assert copied["b"].held["x"] is not value["b"].held["x"]
