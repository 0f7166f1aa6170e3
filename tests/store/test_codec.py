"""What is encoded comes back equal, in strict JSON; what is damaged or unknown is refused."""

import json
from dataclasses import replace
from types import MappingProxyType
from typing import NoReturn, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapidfireai.core.events import Event, Json, RunStarted
from rapidfireai.core.run import Run
from rapidfireai.errors import StoreError
from rapidfireai.store import _codec
from rapidfireai.testing.stores import EVENTS, FIRST, example_experiment, example_run

JSON_AND_ALL_FLOATS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text() | st.sampled_from(["$float", "$", "$$", "type"]), inner)
    ),
    max_leaves=12,
)


def strict(text: str) -> Json:
    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_examples_are_of_every_event_type() -> None:
    assert {type(event) for event in EVENTS} == set(get_args(Event))


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_event_comes_back(event: Event) -> None:
    encoded = strict(_codec.to_text(event))
    assert encoded["type"] == type(event).__name__
    assert repr(_codec.decode_event(encoded)) == repr(event)


def test_run_comes_back() -> None:
    run = example_run(FIRST)
    assert repr(_codec.decode_run(strict(_codec.to_text(run)))) == repr(run)


def test_experiment_comes_back() -> None:
    experiment = example_experiment()
    encoded = strict(_codec.to_text(experiment))
    assert repr(_codec.decode_experiment(encoded)) == repr(experiment)


@settings(deadline=None)  # The first example pays for imports on a busy machine.
@given(value=JSON_AND_ALL_FLOATS)
def test_every_value_comes_back(value: Json) -> None:
    event = RunStarted(run_id=FIRST, num_steps=1, num_chunks=1, resolved={"value": value})
    assert repr(_codec.decode_event(strict(_codec.to_text(event)))) == repr(event)


def test_encoding_shares_nothing_with_the_record() -> None:
    config: dict[str, Json] = {"list": [1]}
    encoded = _codec.encode(replace(example_run(FIRST), config=config))
    config["list"].append(2)
    assert encoded["config"] == {"list": [1]}


def test_decoding_shares_nothing_with_the_encoding() -> None:
    encoded = _codec.encode(replace(example_run(FIRST), config={"list": [1]}))
    run = _codec.decode_run(encoded)
    encoded["config"]["list"].append(2)
    assert run.config == {"list": [1]}


def test_any_mapping_is_taken() -> None:
    run = replace(example_run(FIRST), config=MappingProxyType({"lr": 0.1}))
    assert _codec.decode_run(_codec.encode(run)).config == {"lr": 0.1}


def test_what_json_does_not_have_is_named() -> None:
    run = replace(example_run(FIRST), config={"betas": [{"b": (0.9, 0.95)}]})
    with pytest.raises(StoreError, match=r"Run\.config\['betas'\]\[0\]\['b'\] is \(0\.9, 0\.95\)"):
        _codec.encode(run)


def test_key_that_is_no_string_is_named() -> None:
    run = replace(example_run(FIRST), config={"names": {1: "a"}})
    with pytest.raises(StoreError, match=r"Run\.config\['names'\] has the key 1, a int"):
        _codec.encode(run)


@pytest.mark.parametrize(
    "encoded", [{"type": "RunForgotten"}, {"type": None}, {"type": []}, {}, [], 1]
)
def test_unknown_type_is_refused(encoded: Json) -> None:
    with pytest.raises(StoreError, match=r"stored record is of the type .*, not of ChunkAssigned"):
        _codec.decode_event(encoded)


def test_event_is_no_run() -> None:
    with pytest.raises(StoreError, match="'RunNoted', not of Run"):
        _codec.decode_run({"type": "RunNoted", "run_id": 1, "note": "note"})


def test_unknown_field_is_refused() -> None:
    with pytest.raises(StoreError, match=r"has the unknown \['colour'\]"):
        _codec.decode_event({"type": "RunNoted", "run_id": 1, "note": "note", "colour": "red"})


def test_missing_field_is_refused() -> None:
    with pytest.raises(StoreError, match=r"stored RunNoted lacks \['note'\]"):
        _codec.decode_event({"type": "RunNoted", "run_id": 1})


def test_missing_field_with_a_default_gets_it() -> None:
    encoded = {"type": "Run", "id": 1, "name": "1", "config": {}, "path": "runs/1"}
    assert _codec.decode_run(encoded) == Run(id=FIRST, name="1", config={}, path="runs/1")


@pytest.mark.parametrize(
    ("field", "value"),
    [("status", "asleep"), ("notes", 5), ("loss", {"$float": "many"}), ("loss", {"$float": None})],
)
def test_damaged_field_is_refused(field: str, value: Json) -> None:
    encoded = {**_codec.encode(example_run(FIRST)), field: value}
    with pytest.raises(StoreError, match="stored Run is damaged"):
        _codec.decode_run(encoded)


def test_text_that_is_no_json_is_refused() -> None:
    with pytest.raises(StoreError, match="is not JSON"):
        _codec.from_text('{"type": ')
