"""Lists are knobs where an argument takes none, and values where it does."""

from typing import Any

import pytest

from rapidfireai.automl import List, Range
from rapidfireai.automl.argument_types import Argument, arguments_of
from rapidfireai.errors import ConfigError
from rapidfireai.recipe.values import as_knob, takes_list
from rapidfireai.training.registry import TRAINERS

NUMBER = Argument(name="learning_rate", annotation=float)
COUNT = Argument(name="max_steps", annotation=int)
SWITCH = Argument(name="bf16", annotation=bool | None)
TARGETS = Argument(name="target_modules", annotation=str | list[str] | None)
LOSSES = Argument(name="loss_type", annotation=str | list[str])
SETTINGS = Argument(name="lr_scheduler_kwargs", annotation=dict[str, Any] | None)


@pytest.mark.parametrize(
    ("argument", "written", "meant"),
    [
        (NUMBER, 1e-4, 1e-4),
        (NUMBER, [1e-4, 3e-4], List([1e-4, 3e-4])),
        (NUMBER, {"list": [1e-4]}, List([1e-4])),
        (NUMBER, {"range": [0, 1]}, Range(0.0, 1.0, "float")),
        (NUMBER, {"range": [1e-5, 1e-3], "log": True}, Range(1e-5, 1e-3, "float", log=True)),
        (COUNT, {"range": [2, 8], "step": 2}, Range(2, 8, step=2)),
        (SWITCH, [True, False], List([True, False])),
        (SWITCH, "yes", True),
        (SWITCH, ["on", None], List([True, None])),
        (TARGETS, ["q_proj", "v_proj"], ["q_proj", "v_proj"]),
        (TARGETS, "all-linear", "all-linear"),
        (TARGETS, [["q_proj"], ["k_proj"]], List([["q_proj"], ["k_proj"]])),
        (TARGETS, ["all-linear", ["q_proj"]], List(["all-linear", ["q_proj"]])),
        (TARGETS, {"list": ["all-linear", "q_proj"]}, List(["all-linear", "q_proj"])),
        (LOSSES, ["sigmoid", "sft"], ["sigmoid", "sft"]),
        (LOSSES, {"list": ["sigmoid", "ipo"]}, List(["sigmoid", "ipo"])),
        (LOSSES, {"list": ["sigmoid", ["ipo", "sft"]]}, List(["sigmoid", ["ipo", "sft"]])),
        (SETTINGS, {"a": [1, 2]}, {"a": [1, 2]}),
        (SETTINGS, {"a": {"list": [1, 2]}}, {"a": List([1, 2])}),
        (SETTINGS, [{"a": 1}, {"a": 2}], List([{"a": 1}, {"a": 2}])),
    ],
)
def test_what_is_written_is_meant(argument: Argument, written: Any, meant: Any) -> None:
    assert as_knob(written, argument, "the file") == meant


@pytest.mark.parametrize(
    ("argument", "written", "told"),
    [
        (NUMBER, "fast", "learning_rate='fast'.*allowed: float"),
        (NUMBER, [1e-4, "fast"], "learning_rate='fast'"),
        (NUMBER, [], "learning_rate has \\[\\].*at least one"),
        (NUMBER, {"list": 3}, "give a list"),
        (NUMBER, {"range": [1]}, "\\[low, high\\]"),
        (NUMBER, {"range": [2, 1]}, "start must be less than end"),
        (NUMBER, {"rang": [1, 2]}, "learning_rate="),
        (COUNT, 1.5, "max_steps=1.5"),
        (COUNT, {"range": [0.5, 2]}, "max_steps"),
        (SWITCH, "maybe", "bf16='maybe'"),
        (TARGETS, [1, 2], "target_modules="),
    ],
)
def test_what_is_not_possible(argument: Argument, written: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        as_knob(written, argument, "the file")


def test_arguments_that_take_lists_are_known() -> None:
    """Those of all trainers, so that a new one is looked at: docs/yaml.md names them."""
    found = {
        name
        for spec in TRAINERS.values()
        for name, argument in arguments_of(spec.load_config()).items()
        if takes_list(argument)
    }
    assert found == {
        *("beta", "callbacks", "debug", "fsdp", "include_for_metrics", "label_names", "loss_type"),
        *("loss_weights", "optim_target_modules", "report_to", "reward_clip_range"),
        "reward_weights",
    }
