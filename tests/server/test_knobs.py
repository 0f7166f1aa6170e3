"""What a clone may change, and what a warm start leaves to do."""

from dataclasses import replace
from typing import Any

import pytest

from rapidfireai.core.commands import Command, Verb
from rapidfireai.core.ids import RunId
from rapidfireai.core.run import Run
from rapidfireai.server.knobs import flat, forecast, knobs
from tests.server.laboratory import SCHEMAS, queued

PARENT: Run = replace(
    queued(1),
    step=10,
    num_steps=40,
    resolved={
        "training_args": {
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "num_train_epochs": 2,
            "max_steps": -1,
        },
    },
)


def clone(**modify: Any) -> Command:
    return Command(verb=Verb.CLONE, run_id=RunId(1), modify=modify, warm_start=True)


def test_the_form_has_all_that_may_be_changed() -> None:
    found = {knob.name: knob for knob in knobs(PARENT, SCHEMAS, {"peft.r": (8, 16)})}
    assert "training_args.output_dir" not in found
    assert next(iter(found)) == "training_args.learning_rate"
    rate = found["training_args.learning_rate"]
    assert (rate.value, rate.default, rate.type, rate.is_set) == (0.1, 2e-5, ("number",), True)
    assert found["training_args.lr_scheduler_type"].enum == ("linear", "cosine")
    assert found["training_args.max_steps"].is_set is False
    assert found["peft.r"].used == (8, 16)


def test_the_form_of_a_trainer_of_the_users_own() -> None:
    run = replace(queued(1), config={"trainer_type": "custom", "width": 3})
    assert [knob.name for knob in knobs(run, {}, {})] == ["width"]
    assert flat(run.config) == {"trainer_type": "custom", "width": 3}


@pytest.mark.parametrize(
    ("modify", "step", "num_steps", "remaining", "estimated"),
    [
        ({}, 10, 40, 30, False),
        ({"learning_rate": 0.5}, 10, 40, 30, False),
        ({"max_steps": 100}, 10, 100, 90, False),
        ({"max_steps": 5}, 10, 5, 0, False),
        ({"num_train_epochs": 4}, 10, 80, 70, True),
        ({"per_device_train_batch_size": 8}, 5, 20, 15, True),
        ({"per_device_train_batch_size": 2}, 20, 80, 60, True),
    ],
)
def test_what_a_warm_start_leaves_to_do(
    modify: dict[str, Any], step: int, num_steps: int, remaining: int, estimated: bool
) -> None:
    found = forecast(clone(**modify), PARENT, SCHEMAS)
    assert found is not None
    assert (found.step, found.num_steps, found.remaining_steps) == (step, num_steps, remaining)
    assert found.estimated is estimated
    assert ("nothing would remain" in found.text) is (remaining == 0)


def test_only_a_warm_start_has_a_forecast() -> None:
    assert forecast(replace(clone(), warm_start=False), PARENT, SCHEMAS) is None
    assert forecast(Command(verb=Verb.STOP, run_id=RunId(1)), PARENT, SCHEMAS) is None
