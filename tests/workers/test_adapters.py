"""Adapters computed one after the other, and all at once."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from rapidfireai.workers import adapters
from rapidfireai.workers.adapters import (
    Grouped,
    Kernels,
    OneByOne,
    Route,
    Stacked,
    Way,
    batch_rounds_alike,
    can_group,
    can_stack,
    draw,
)

IN, OUT = 64, 96
RANKS = (4, 8, 16, 3)
NUM_TOKENS = (20, 7, 33, 1)


class Layer:
    """What a layer is given in a pass of four runs, every second of them with dropout."""

    def __init__(
        self,
        dtype: torch.dtype = torch.float32,
        ranks: tuple[int, ...] = RANKS,
        device: str = "cpu",
        num_tokens: tuple[int, ...] = NUM_TOKENS,
    ) -> None:
        torch.manual_seed(0)
        ends = torch.tensor(num_tokens[: len(ranks)]).cumsum(0).tolist()
        begins = [0, *ends[:-1]]
        self.dtype = dtype
        self.routes = [
            Route(
                slice(begin, end), rank, dtype, 0.5 * rank, 0.3 * (i % 2), torch.Generator(device)
            )
            for i, (begin, end, rank) in enumerate(zip(begins, ends, ranks, strict=True))
        ]
        self.weights = [
            0.1 * torch.randn(shape).to(device, dtype)
            for rank in ranks
            for shape in ((rank, IN), (OUT, rank))
        ]
        self.x = torch.randn(ends[-1], IN).to(device, dtype)
        self.y = torch.randn(ends[-1], OUT).to(device, dtype)
        self.grad = torch.randn(ends[-1], OUT).to(device, dtype)
        self.draw()

    def draw(self) -> None:
        """What dropout multiplies by."""
        self.mask = draw(self.x, self.routes)

    def compute(self, way: Way) -> list[torch.Tensor]:
        """The output, and the gradients."""
        y = self.y.clone()
        kept = way.forward(self.x, y, self.routes, self.mask, self.weights, None)
        below, found = way.backward(self.grad, self.routes, kept, self.dtype)
        assert below is not None
        return [y, below, *found]

    def as_float64(self) -> "Layer":
        """The same numbers."""
        wide = copy.copy(self)
        wide.dtype = torch.float64
        wide.routes = [replace(route, dtype=torch.float64) for route in self.routes]
        wide.x, wide.y, wide.grad = self.x.double(), self.y.double(), self.grad.double()
        wide.weights = [weight.double() for weight in self.weights]
        wide.mask = None if self.mask is None else self.mask.double()
        return wide

    def choose(self, kernels: Kernels) -> Way:
        return kernels.choose(self.x, self.y, self.routes, self.mask, self.weights, None)


ALIKE = (8, 8, 8)
"""Ranks of runs that bring as many tokens."""


@pytest.mark.parametrize("scalings", [(2.0, 2.0, 2.0), (1.0, 11.3137, 0.5)])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_as_a_batch_they_give_the_bits_of_one_after_the_other(
    num_threads: int, dtype: torch.dtype, dropout: float, scalings: tuple[float, ...]
) -> None:
    torch.set_num_threads(num_threads)
    layer = Layer(dtype, ALIKE, num_tokens=(24,) * 3)
    layer.routes = [
        replace(route, dropout=dropout, scaling=scaling)
        for route, scaling in zip(layer.routes, scalings, strict=True)
    ]
    layer.draw()
    assert can_stack(layer.x, layer.routes)
    assert batch_rounds_alike(layer.x, layer.y, layer.routes, None)
    assert layer.choose(Kernels(torch.device("cpu"))) is Stacked
    assert all(map(torch.equal, layer.compute(Stacked), layer.compute(OneByOne)))


def test_where_the_bits_of_a_batch_are_others_it_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = Layer(torch.float32, ALIKE, num_tokens=(25,) * 3)
    layer.routes = [replace(route, dropout=0.0) for route in layer.routes]
    layer.draw()
    own = torch.bmm
    with monkeypatch.context() as patch:
        patch.setattr(torch, "bmm", lambda a, b: own(a.flip(-1), b.flip(-2)))
        adapters._try_batch.cache_clear()
        assert layer.choose(Kernels(torch.device("cpu"))) is OneByOne
    adapters._try_batch.cache_clear()
    assert layer.choose(Kernels(torch.device("cpu"))) is Stacked


def test_only_runs_of_one_size_are_a_batch() -> None:
    layer = Layer(torch.float32, ALIKE, num_tokens=(24,) * 3)
    assert can_stack(layer.x, layer.routes)
    assert not can_stack(layer.x, layer.routes[:2]), "tokens of nobody"
    assert not can_stack(layer.x[:24], layer.routes[:1]), "one alone"
    layer.routes[2] = replace(layer.routes[2], rank=4)
    assert not can_stack(layer.x, layer.routes)
    uneven = Layer(torch.float32, ALIKE)
    assert not can_stack(uneven.x, uneven.routes)


def test_all_at_once_they_add_what_they_add_one_by_one() -> None:
    layer = Layer()
    assert [route.dropout > 0 for route in layer.routes] == [False, True] * 2
    before = [layer.x.clone(), *(weight.clone() for weight in layer.weights)]
    torch.testing.assert_close(layer.compute(Grouped), layer.compute(OneByOne))
    assert all(map(torch.equal, before, [layer.x, *layer.weights])), "what was given has changed"


def assert_as_near_as_can_be(way: Way, layer: Layer) -> None:
    """In bfloat16."""
    got, exact = layer.compute(way), layer.as_float64().compute(OneByOne)
    for one, other in zip(got, exact, strict=True):
        error = (one.double() - other).norm() / other.norm()
        assert error < torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("way", [OneByOne, Grouped])
def test_in_bfloat16_both_ways_are_as_near_as_that_can_be(way: Way) -> None:
    assert_as_near_as_can_be(way, Layer(torch.bfloat16))


def test_a_gap_between_runs_takes_no_gradient() -> None:
    layer = Layer()
    del layer.routes[1], layer.weights[2:4]
    y, below, *_ = layer.compute(OneByOne)
    assert torch.equal(y[20:27], layer.y[20:27])
    assert not below[20:27].any()
    assert below[:20].any(-1).all()
    assert below[27:].any(-1).all()


def groupable(layer: Layer) -> bool:
    return can_group(layer.x, layer.y, layer.routes, layer.weights, None)


def test_only_what_suits_grouped_products_goes_there() -> None:
    layer = Layer(torch.bfloat16)
    assert groupable(layer)
    assert not groupable(Layer(torch.float32))
    assert not groupable(Layer(torch.bfloat16, RANKS[:1])), "one alone"
    layer.x = layer.x[:, :-4]
    assert not groupable(layer), "rows that are not aligned"
    layer = Layer(torch.bfloat16)
    del layer.routes[1], layer.weights[2:4]
    assert not groupable(layer), "a run without an adapter there"


class Timed(Kernels):
    """Of a GPU, on which everything takes as long as it is told."""

    def __init__(self, seconds: dict[Way, float]) -> None:
        super().__init__(torch.device("cuda"))
        self.seconds = seconds
        self.asked: list[Way] = []

    def _seconds(self, way: Way, *given: Any) -> float:
        self.asked.append(way)
        if way not in self.seconds:
            raise RuntimeError("no kernel for this device")
        return self.seconds[way]


@pytest.mark.parametrize(
    ("seconds", "quickest"),
    [
        ({OneByOne: 1.0, Grouped: 2.0}, OneByOne),
        ({OneByOne: 2.0, Grouped: 1.0}, Grouped),
        ({OneByOne: 2.0}, OneByOne),
        ({Grouped: 2.0}, Grouped),
    ],
)
def test_on_a_gpu_each_size_is_measured_once(seconds: dict[Way, float], quickest: Way) -> None:
    kernels, layer = Timed(seconds), Layer(torch.bfloat16)
    assert [layer.choose(kernels) for _ in range(3)] == [quickest] * 3
    assert kernels.asked == [OneByOne, Grouped]
    Layer(torch.bfloat16, RANKS[:2]).choose(kernels)
    assert len(kernels.asked) == 4, "another size"
    even = Layer(torch.bfloat16, ALIKE, num_tokens=(24,) * 3)
    even.choose(kernels)
    assert kernels.asked[4:] == [OneByOne, Stacked, Grouped]


def test_on_a_cpu_bits_count() -> None:
    assert Layer(torch.bfloat16).choose(Kernels(torch.device("cpu"))) is OneByOne
