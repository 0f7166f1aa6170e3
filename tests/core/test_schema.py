"""Which knobs a clone can change, by which names, to which values."""

from typing import Any

import pytest

from rapidfireai.core.schema import bounds_in_words, changed, changes, knobs_of, value_of
from rapidfireai.errors import ConfigError, UnknownArgumentError
from tests.commandline.laboratory import SCHEMAS, config

CONFIG = {
    **config(1e-3, 8),
    "trainer_kwargs": {"reward_funcs": ["mine.reward"], "num_items_in_batch": False},
}


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("learning_rate", "training_args.learning_rate"),
        ("training_args.learning_rate", "training_args.learning_rate"),
        ("r", "peft.r"),
        ("rank", "peft.r"),
        ("lora_rank", "peft.r"),
        ("peft.r", "peft.r"),
        ("peft_config.r", "peft.r"),
        ("alpha", "peft.lora_alpha"),
        ("lora_alpha", "peft.lora_alpha"),
        ("model_name", "model.model_name"),
    ],
)
def test_names(name: str, full: str) -> None:
    value = "other" if full == "model.model_name" else 4
    assert changes(CONFIG, {name: value}, SCHEMAS) == {full: value}
    assert value_of(changed(CONFIG, {full: value}), full, SCHEMAS) == value
    assert CONFIG["peft"]["r"] == 8 and CONFIG["training_args"]["learning_rate"] == 1e-3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("learning_rat", "did you mean 'learning_rate'"),
        ("peft.learning_rate", "there is no knob 'peft.learning_rate'"),
        ("training_args.r", "there is no knob"),
        ("", "there is no knob ''"),
    ],
)
def test_names_that_there_are_not(name: str, message: str) -> None:
    with pytest.raises(UnknownArgumentError, match=message):
        changes(CONFIG, {name: 1}, SCHEMAS)


@pytest.mark.parametrize("name", ["lora_rank", "peft.r", "alpha"])
def test_a_run_without_an_adapter_has_none_of_its_knobs(name: str) -> None:
    with pytest.raises(ConfigError, match="the run trains no adapter"):
        changes({**CONFIG, "peft": None}, {name: 1}, SCHEMAS)


def test_the_same_knob_under_two_names() -> None:
    with pytest.raises(ConfigError, match="given twice"):
        changes(CONFIG, {"r": 4, "lora_rank": 8}, SCHEMAS)


@pytest.mark.parametrize("modify", [None, [], "r=4"])
def test_other_things_than_a_dictionary(modify: Any) -> None:
    with pytest.raises(ConfigError, match="has to be a dictionary"):
        changes(CONFIG, modify, SCHEMAS)


@pytest.mark.parametrize(
    ("name", "value", "is_possible"),
    [
        ("learning_rate", 1, True),
        ("learning_rate", 1e-4, True),
        ("learning_rate", "1e-4", False),
        ("learning_rate", True, False),
        ("learning_rate", None, False),
        ("max_steps", 3, True),
        ("max_steps", 3.0, False),
        ("max_steps", True, False),
        ("packing", True, True),
        ("packing", 1, False),
        ("packing", "yes", False),
        ("lr_scheduler_type", "cosine", True),
        ("lr_scheduler_type", "cosin", False),
        ("lr_scheduler_type", None, True),
        ("target_modules", "all-linear", True),
        ("target_modules", ["q_proj"], True),
        ("target_modules", [object()], False),
        ("target_modules", None, True),
        ("target_modules", {"q_proj": 1}, False),
        ("model_name", "other", True),
        ("model_name", {"a": [1, None, True]}, True),
        ("model_name", print, False),
        ("model_name", {1: 2}, False),
        ("num_items_in_batch", True, True),
    ],
)
def test_values(name: str, value: Any, is_possible: bool) -> None:
    if is_possible:
        assert list(changes(CONFIG, {name: value}, SCHEMAS).values()) == [value]
    else:
        with pytest.raises(ConfigError, match=name):
            changes(CONFIG, {name: value}, SCHEMAS)


@pytest.mark.parametrize("name", ["reward_funcs", "trainer_kwargs.reward_funcs"])
def test_functions_are_inherited(name: str) -> None:
    assert "trainer_kwargs.reward_funcs" not in knobs_of(CONFIG, SCHEMAS)
    with pytest.raises(ConfigError, match=f"{name} cannot be modified: .* are inherited"):
        changes(CONFIG, {name: "other"}, SCHEMAS)


@pytest.mark.parametrize(
    ("bounds", "possible", "impossible", "words"),
    [
        ({"minimum": 0}, [0, 2, 0.5], [-1, -0.1, float("nan")], ">= 0"),
        ({"exclusiveMinimum": 0, "maximum": 1}, [0.1, 1], [0, 1.1], "> 0 and <= 1"),
        ({"minimum": 0, "exclusiveMaximum": 1}, [0, 0.9], [1, -1], ">= 0 and < 1"),
        ({}, [-1, 0.0, 1e9], [], ""),
    ],
)
def test_bounds(
    bounds: dict[str, float], possible: list[float], impossible: list[float], words: str
) -> None:
    known = {"type": ["number", "null"], "default": 1, "allowed": "float or None", **bounds}
    schemas = {"SFT": {"epsilon": known}}
    for value in (*possible, None):
        assert changes(CONFIG, {"epsilon": value}, schemas) == {"training_args.epsilon": value}
    for value in impossible:
        with pytest.raises(ConfigError, match=r"epsilon=.* is not possible"):
            changes(CONFIG, {"epsilon": value}, schemas)
    assert bounds_in_words(known) == words


def test_a_configuration_of_the_users_own_has_the_knobs_that_it_has() -> None:
    own = {"trainer_type": "custom", "lr": 0.1, "layers": 2}
    assert changes(own, {"lr": 0.2}, {}) == {"lr": 0.2}
    assert changed(own, {"lr": 0.2}) == {**own, "lr": 0.2}
    assert value_of(own, "lr", {}) == 0.1
    with pytest.raises(UnknownArgumentError, match="allowed: lr, layers"):
        changes(own, {"learning_rate": 0.2}, {})
    with pytest.raises(UnknownArgumentError, match="there is no knob 'trainer_type'"):
        changes(own, {"trainer_type": "SFT"}, {})


def test_values_that_are_not_set_are_the_defaults() -> None:
    assert value_of(CONFIG, "peft.lora_alpha", SCHEMAS) == 8
    assert value_of(CONFIG, "training_args.learning_rate", SCHEMAS) == 1e-3
    assert value_of({**CONFIG, "peft": None}, "peft.lora_alpha", SCHEMAS) is None
