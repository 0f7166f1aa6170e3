"""Outputs that are kept come back to the last bit, within the room that there is for them."""

from typing import Any

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from rapidfireai.workers.kept_outputs import KeptOutputs, digest

CPU = torch.device("cpu")


def output(value: float, num: int = 4, **more: Any) -> BaseModelOutput:
    return BaseModelOutput(last_hidden_state=torch.full((num,), float(value)), **more)


def test_an_output_comes_back_as_a_copy() -> None:
    kept = KeptOutputs(100)
    given = output(0.1)
    kept.put(b"a", given)
    given.last_hidden_state.zero_()
    taken = kept.get(b"a", CPU)
    assert isinstance(taken, BaseModelOutput)
    assert torch.equal(taken.last_hidden_state, torch.full((4,), 0.1))
    taken.last_hidden_state.zero_()
    again = kept.get(b"a", CPU)
    assert again is not None
    assert torch.equal(again.last_hidden_state, torch.full((4,), 0.1))
    assert kept.get(b"b", CPU) is None


def test_what_was_asked_for_longest_ago_makes_room() -> None:
    kept = KeptOutputs(32)
    kept.put(b"a", output(1))
    kept.put(b"b", output(2))
    kept.get(b"a", CPU)
    kept.put(b"c", output(3))
    assert [key for key in (b"a", b"b", b"c") if kept.get(key, CPU)] == [b"a", b"c"]
    assert kept.num_bytes == 32
    kept.put(b"a", output(4))
    assert kept.num_bytes == 32
    kept.clear()
    assert kept.num_bytes == 0
    assert kept.get(b"a", CPU) is None


def test_what_does_not_fit_pushes_nobody_out() -> None:
    kept = KeptOutputs(32)
    kept.put(b"a", output(1))
    kept.put(b"b", output(2, num=9))
    assert kept.get(b"a", CPU) is not None
    assert kept.get(b"b", CPU) is None


def test_what_holds_more_than_tensors_is_not_kept() -> None:
    kept = KeptOutputs(100)
    kept.put(b"a", output(1, hidden_states=(torch.zeros(1),)))
    assert kept.num_bytes == 0


IDS = torch.arange(6).view(2, 3)


@pytest.mark.parametrize(
    "other",
    [
        {"ids": IDS, "flag": False},
        {"ids": IDS, "flag": None},
        {"ids": IDS},
        {"Ids": IDS, "flag": True},
        {"ids": IDS + 1, "flag": True},
        {"ids": IDS.view(3, 2), "flag": True},
        {"ids": IDS.int(), "flag": True},
        {"ids": IDS.t().contiguous().t(), "flag": True},
    ],
    ids=str,
)
def test_keys_differ_wherever_a_number_or_its_place_does(other: dict[str, Any]) -> None:
    key = digest({"flag": True, "ids": IDS})
    assert key is not None
    assert key == digest({"ids": IDS.clone(), "flag": True})
    assert key != digest(other)


@pytest.mark.parametrize(
    "tensor", [torch.tensor(1.5), torch.tensor([True]), torch.ones(3, dtype=torch.bfloat16)]
)
def test_tensors_of_any_kind_have_a_key(tensor: torch.Tensor) -> None:
    assert digest({"x": tensor}) != digest({"x": torch.zeros_like(tensor)})


def test_what_cannot_be_compared_has_no_key() -> None:
    assert digest({"cache": object()}) is None
