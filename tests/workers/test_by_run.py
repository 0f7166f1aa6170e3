"""Matrix products whose rows do not depend on how many there are."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from rapidfireai.workers import by_run
from rapidfireai.workers.by_run import Product, rounds_alike, with_products
from rapidfireai.workers.rows import Plan, Slice

WIDTHS = (20, 33, 17, 90)


@pytest.fixture
def plan() -> Plan:
    """A pass of runs with one row each."""
    plan = Plan()
    plan.begin([
        Slice(
            input_ids=torch.zeros((1, width), dtype=torch.long),
            attention_mask=None,
            position_ids=None,
            adapters={},
            generator=None,
        )
        for width in WIDTHS
    ])  # fmt: skip
    return plan


class Counted(nn.Linear):
    """Keeps how many rows it was given."""

    def __init__(self) -> None:
        super().__init__(24, 40)
        self.num_rows: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.num_rows.append(x.shape[-2])
        return super().forward(x)


@pytest.mark.parametrize("alike", [True, False])
def test_runs_are_multiplied_apart_only_where_that_makes_a_difference(
    alike: bool, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_run, "rounds_alike", lambda *args: alike)
    layer = Counted()
    product = Product(layer, plan)
    x = torch.randn(1, sum(WIDTHS), 24, requires_grad=True)
    y = product(x)
    assert layer.num_rows == ([sum(WIDTHS)] if alike else list(WIDTHS))
    torch.testing.assert_close(y, F.linear(x, layer.weight, layer.bias))
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand_as(x))
    assert torch.equal(product(x[0]), y[0]), "without the dimension of rows"


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64, 64), (172, 64), (576, 192), (1536, 576)])
def test_what_is_found_to_round_alike_does(
    shape: tuple[int, int], dtype: torch.dtype, num_threads: int
) -> None:
    torch.set_num_threads(num_threads)
    layer = nn.Linear(shape[1], shape[0], bias=False).to(dtype)
    if not rounds_alike(layer, dtype):
        return  # which is always on the safe side
    x = torch.randn(700, shape[1]).to(dtype)
    y = layer(x)
    for begin, num in ((0, 19), (41, 43), (100, 150), (3, 600)):
        assert torch.equal(layer(x[begin : begin + num]), y[begin : begin + num])


def test_layers_are_told_apart_that_do_not_round_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library whose products of up to 50 rows add up in another order."""

    def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return own(x.flip(-1), weight.flip(-1), bias) if len(x) <= 50 else own(x, weight, bias)

    own = F.linear
    assert rounds_alike(nn.Linear(33, 7), torch.float32)
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", linear)
        by_run._try.cache_clear()
        assert not rounds_alike(nn.Linear(33, 7), torch.float32)
    by_run._try.cache_clear()


def test_all_that_multiplies_is_replaced(plan: Plan) -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 8), "b": nn.ModuleList([Conv1D(8, 4), nn.SiLU()])})
    with_products(model, plan)
    kinds = {name: type(module) for name, module in model.named_modules() if name}
    assert kinds == {
        "a": Product, "a.layer": nn.Linear, "b": nn.ModuleList, "b.0": Product,
        "b.0.layer": Conv1D, "b.1": nn.SiLU,
    }  # fmt: skip
    assert rounds_alike(model["b"][0].layer, torch.float32) in (True, False)  # type: ignore[index]
