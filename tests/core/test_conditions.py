import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapidfireai.core.conditions import Condition
from rapidfireai.errors import ConfigError, RapidFireError, UnknownArgumentError

RUN = {
    "id": 3,
    "status": "waiting",
    "step": 20,
    "eval_loss": 3.5,
    "nothing": None,
    "pinned": False,
    "rewards/margins": -0.5,
    "peft.r": 8,
    "target_modules": ["q_proj", "v_proj"],
    "diverged": float("nan"),
}


@pytest.mark.parametrize(
    "text",
    [
        "eval_loss > 3",
        "eval_loss > 3 and status == 'waiting'",
        "1 < step <= 20",
        "step in [10, 20]",
        "step not in (1, 2)",
        "status == \"stopped\" or id == 3",
        "not pinned",
        "pinned == False",
        "pinned is False",
        "rewards/margins > -1",
        "peft.r == 8",
        "'q_proj' in target_modules",
        "target_modules == ['q_proj', 'v_proj']",
        "nothing == None",
        "missing is None",
        "step != None",
        "step is not None",
        "diverged != diverged",
        "True",
        "  id == 3  ",
        "step == 20.0",
        # What is unknown decides nothing where something else does.
        "missing > 1 or step == 20",
        "not (missing > 1 and step == 1)",
    ],
)  # fmt: skip
def test_holds(text: str) -> None:
    assert Condition(text).holds(RUN)


@pytest.mark.parametrize(
    "text",
    [
        "eval_loss > 4",
        "1 < step < 20",
        "20 < step < 10",
        "pinned",
        "False",
        "missing > 3",
        "not missing > 3",
        "missing != 3",
        "missing in [1]",
        "missing not in [1]",
        "nothing < 1",
        "missing",
        "not missing",
        "diverged > 3",
        "diverged <= 3",
        "None > 1",
        "step == None",
        "missing > 1 and step == 20",
    ],
)
def test_does_not_hold(text: str) -> None:
    assert not Condition(text).holds(RUN)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "3",
        "'text'",
        "eval_loss >",
        "eval_loss = 3",
        "__import__('os').remove('x')",
        "f(step) > 1",
        "step + 1 > 2",
        "target_modules[0] == 'q_proj'",
        "[x for x in status]",
        "lambda: 1",
        "(x := 1) > 0",
        "f'{step}' == '20'",
        "step is id",
        "step ** 9 ** 9 > 1",
        "b'x' == status",
        "1j == step",
        "~step == 1",
        "step if pinned else id",
        "{'a': 1} == 1",
        "*step",
        "\0",
        "(" * 400 + "step" + ")" * 400,
        "-" * 900 + "1 > 2",
        "step == 1 or " * 100 + "pinned",
        "step > 1 # and so on\nimport os",
    ],
)
def test_what_is_not_of_the_language_is_refused_when_it_is_read(text: str) -> None:
    with pytest.raises(ConfigError, match="condition"):
        Condition(text)


@pytest.mark.parametrize("given", [None, 3, ["step > 1"]])
def test_other_things_than_text_are_refused(given: object) -> None:
    with pytest.raises(ConfigError, match="is no condition"):
        Condition(given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("status > 3", "'waiting' and 3 cannot be compared by size"),
        ("step in 3", "3 is no list to look for 20"),
        ("step in status", "'waiting' is no list"),
        ("step", "step is 20, which is neither true nor false"),
        ("target_modules < 3", "cannot be compared by size"),
    ],
)
def test_values_that_do_not_go_together_are_an_error(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Condition(text).holds(RUN)


def test_a_name_that_no_run_has_is_an_error_with_a_suggestion() -> None:
    Condition("eval_loss > 3 and rewards/margins < 1").check_names(RUN)
    with pytest.raises(UnknownArgumentError, match=r"no run has 'evalloss'.*mean 'eval_loss'\?"):
        Condition("evalloss > 3").check_names(RUN)


@given(st.text(max_size=60))
def test_any_text_is_understood_or_refused(text: str) -> None:
    try:
        condition = Condition(text)
        condition.check_names(RUN)
        condition.holds(RUN)
    except RapidFireError as error:
        assert str(error)


numbers = st.one_of(st.integers(-9, 9), st.floats(-9, 9, allow_nan=False))


@given(numbers, numbers, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]))
def test_comparisons_are_pythons(left: float, right: float, op: str) -> None:
    expected = eval(f"{left!r} {op} {right!r}")
    assert Condition(f"x {op} {right!r}").holds({"x": left}) is expected
    assert Condition(f"not x {op} {right!r}").holds({"x": left}) is not expected
