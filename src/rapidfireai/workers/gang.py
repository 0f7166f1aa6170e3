"""Runs that share passes through their frozen base: what they ask for, and who answers.

A run that takes part computes all by itself but its backbone. There it hands out a `Forward` and
waits; with the answer it computes its own head and loss, and where it trains it hands out a
`Backward` and waits again.
A gang answers those that ask for the same base together, in one pass. A run that nobody shares
with is told to go through its own backbone, which gives the same numbers for less.

Which requests go together is a function of the requests alone, never of the time of day.
"""

import logging
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from rapidfireai.workers.adapters import adapter_dtype
from rapidfireai.workers.apart import rewind
from rapidfireai.workers.budget import TokenBudget
from rapidfireai.workers.fiber import Fiber
from rapidfireai.workers.peak import PeakMemory, free_bytes
from rapidfireai.workers.rows import Slice
from rapidfireai.workers.shared_backbone import SharedBackbone
from rapidfireai.workers.shared_weights import Base

logger = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True, eq=False)
class Forward:
    """A run waits for the hidden states of a micro-batch."""

    base: Base
    rows: Slice
    autocast: torch.dtype | None
    """As it is where the run's backbone is called."""
    checkpointing: bool
    rng: torch.Tensor | None
    """State of the generator that the run's dropout draws from; None if it has none."""
    trains: bool
    """Whether a `Backward` is to follow; else the run evaluates, or generates."""

    # The answer.
    hidden: torch.Tensor | None = None
    """The last hidden states; their gradient is to be filled in before a `Backward`, if any. None
    tells the run to compute them by itself, its backward pass as well."""
    rng_after: torch.Tensor | None = None
    error: BaseException | None = None
    """Why there are none, where that is not as usual."""
    is_answered: bool = False
    is_measured: bool = False
    """Whether a run that computes by itself is to hand out a `Backward` all the same, when it has
    done it."""
    seconds: float = 0.0
    """The run's part of the time since it began to wait for this answer, or for the backward's."""

    @property
    def num_tokens(self) -> int:
        """Tokens that the request puts into a pass, its own padding included."""
        return self.rows.num_tokens

    def leave_alone(self, *, measured: bool = False, error: BaseException | None = None) -> None:
        """Tell the run to go through its own backbone.

        Args:
            measured: Whether it is to come back when its backward pass is done.
            error: Why, where that is not as usual.
        """
        self.hidden, self.error, self.is_measured = None, error, measured
        self.is_answered = True


@dataclass(kw_only=True, slots=True, eq=False)
class Backward:
    """A run waits for its adapter's gradients; those of `forward.hidden` are there. Or it has
    computed all by itself, and tells so since that is measured."""

    forward: Forward
    error: BaseException | None = None
    """Why there are no gradients."""
    is_answered: bool = False


Request = Forward | Backward


def kind_of(requests: Sequence[Forward]) -> str:
    """Which passes cost alike, for people to read as well: those whose runs bring as many tokens,
    up to the next power of two.

    Args:
        requests: That may share a pass.
    """
    first = requests[0]
    each = -(-_num_tokens(requests) // len(requests))
    precision = "" if first.autocast is None else f", {str(first.autocast).rpartition('.')[2]}"
    if first.rows.cache is not None:
        return f"{_next_power_of_two(each)} texts a batch{precision}, one token at a time"
    purpose = "" if first.trains else ", in evaluation"
    return f"{_next_power_of_two(each)} tokens a batch{precision}{purpose}"


@dataclass(slots=True)
class _Cohort:
    """Requests that go through the backbone together."""

    requests: list[Forward] = field(default_factory=list)
    num_tokens: int = 0


class Gang:
    """Answers the requests of runs; used by one thread, which runs no fiber meanwhile.

    Args:
        device: Where the bases are.
        budget: Of tokens in one pass, of several runs.
        peak: Of the device.
    """

    def __init__(
        self,
        device: torch.device,
        budget: TokenBudget | None = None,
        peak: PeakMemory | None = None,
    ) -> None:
        self._budget = budget or TokenBudget()
        # In a pass that generates memory goes into caches.
        self._generation = TokenBudget()
        self._peak = peak or PeakMemory(device)
        self._bytes_before = 0
        self.device = device
        self.num_splits = 0
        """How often a pass had to be split."""
        self._backbones: dict[int, SharedBackbone] = {}
        self._works: dict[int, BaseException | None] = {}
        """The bases through which a pass has gone, and those through which none can."""
        # In a thread of its own: the caller's grad mode, autocast and the like are not the runs'.
        self._fiber: Fiber[Callable[[], None], BaseException | None] | None = None

    def cohorts(self, requests: Sequence[Forward]) -> Iterator[list[Forward]]:
        """The requests that go together, in an order that follows from theirs."""
        groups: dict[object, list[_Cohort]] = {}
        free = free_bytes(self.device) if len(requests) > 1 else None
        for request in requests:
            kind = _kind(request)
            cohorts = groups.setdefault(kind, [_Cohort()])
            if cohorts[-1].requests and (
                cohorts[-1].num_tokens + request.num_tokens
                > self._budget_of(request).limit(kind, free)
            ):
                cohorts.append(_Cohort())
            cohorts[-1].requests.append(request)
            cohorts[-1].num_tokens += request.num_tokens
        for cohorts in groups.values():
            for cohort in cohorts:
                yield cohort.requests

    def forward(self, requests: Sequence[Forward], *, measured: bool = False) -> list[Forward]:
        """Answer requests that go together.

        Args:
            requests: From `cohorts`, or fewer.
            measured: Whether one that is left alone is to come back when it is done.

        Returns:
            The requests that have been answered. Where a pass of several cannot be done these are
            fewer, and the others are to be asked again once these have had their backward pass. One
            alone is left alone, unless it generates: a token of few texts alone is a matrix product
            of few rows, which would round otherwise.
        """
        answered = list(requests)
        base = id(requests[0].base.model)
        self._peak.begin("pass")
        self._bytes_before = self._peak.since("pass") or 0
        fewest = 2 if requests[0].rows.cache is None else 1
        while len(answered) >= fewest and self._works.get(base) is None:
            begin_s = time.perf_counter()
            error = self._call(partial(self._forward, answered))
            if error is None:
                self._works[base] = None
                _share_time(answered, begin_s)
                return answered
            self._backbone(answered[0]).forget()
            for request in answered:
                _rewind(request)
            if base not in self._works and not _is_out_of_memory(error):
                # Not what a run gave, but how the model computes.
                logger.warning("passes through this base cannot be shared: %r", error)
                self._works[base] = error
            if len(answered) == 1:
                answered[0].leave_alone(error=error)
                return answered
            answered = self._half(answered, error)
        for request in answered:
            request.leave_alone(measured=measured, error=self._works.get(base))
        return answered

    def backward(self, requests: Sequence[Forward], asking: Sequence[Backward]) -> None:
        """Do the backward pass of what `forward` answered.

        Args:
            requests: What it returned.
            asking: Of those whose runs have come to their backward pass.
        """
        if requests[0].hidden is None:  # they were left alone
            for backward in asking:
                backward.is_answered = True
            return
        if not asking:  # they evaluate or have failed
            self._backbone(requests[0]).forget()
            self._passed(requests)
            return
        begin_s = time.perf_counter()
        asked = {id(backward.forward): backward for backward in asking}
        backbone = self._backbone(requests[0])
        grads = [_gradient(request) if id(request) in asked else None for request in requests]
        error = self._call(lambda: backbone.backward(grads))
        backbone.forget()
        if error is not None:
            self._again([request for request in requests if id(request) in asked], asked, error)
        else:
            self._passed(requests)
        for backward in asking:
            backward.is_answered = True
        _share_time([backward.forward for backward in asking], begin_s)

    def close(self) -> None:
        """Let go of the backbones. Idempotent."""
        self._backbones.clear()
        if self._fiber is not None:
            self._fiber.close()
            self._fiber = None

    def _passed(self, requests: Sequence[Forward]) -> None:
        """Remember what a pass needed, from its beginning to its end."""
        most = self._peak.since("pass")
        num_bytes = None if most is None else most - self._bytes_before
        self._budget_of(requests[0]).passed(_kind(requests[0]), _num_tokens(requests), num_bytes)

    def _again(
        self, requests: list[Forward], asked: dict[int, Backward], error: BaseException
    ) -> None:
        """Repeat a backward pass that could not be done, with fewer runs at a time.

        No gradient has changed, and the runs' own parts of it are known.
        """
        if len(requests) == 1:
            asked[id(requests[0])].error = error
            return
        half = self._half(requests, error)
        for part in (half, requests[len(half) :]):
            grads = [_gradient(request) for request in part]
            again = self._call(partial(self._repeat, part, grads))
            self._backbone(part[0]).forget()
            if again is not None:
                self._again(part, asked, again)

    def _repeat(self, requests: list[Forward], grads: list[torch.Tensor | None]) -> None:
        backbone = self._backbone(requests[0])
        for request in requests:
            _rewind(request)
        backbone.forward(
            [request.rows for request in requests],
            trains=True,
            autocast=requests[0].autocast,
            checkpointing=any(request.checkpointing for request in requests),
        )
        backbone.backward(grads)

    def _half(self, requests: list[Forward], error: BaseException) -> list[Forward]:
        self.num_splits += 1
        logger.warning("a pass of %d runs failed, half of them go on: %s", len(requests), error)
        if _is_out_of_memory(error):
            self._budget_of(requests[0]).failed(_num_tokens(requests))
        return requests[: len(requests) // 2]

    def _budget_of(self, request: Forward) -> TokenBudget:
        return self._budget if request.rows.cache is None else self._generation

    def _forward(self, requests: list[Forward]) -> None:
        for request in requests:
            _rewind(request)
        hidden = self._backbone(requests[0]).forward(
            [request.rows for request in requests],
            trains=requests[0].trains,
            autocast=requests[0].autocast,
            checkpointing=any(request.checkpointing for request in requests),
        )
        for request, own in zip(requests, hidden, strict=True):
            generator = request.rows.generator
            request.hidden = own
            request.rng_after = None if generator is None else generator.get_state()
            request.is_answered = True

    def _backbone(self, request: Forward) -> SharedBackbone:
        key = id(request.base.model)
        if key not in self._backbones:
            tree = request.base.clone(private=False)
            self._backbones[key] = SharedBackbone(tree.base_model, self.device)  # type: ignore[arg-type]
        return self._backbones[key]

    def _call(self, job: Callable[[], None]) -> BaseException | None:
        """Do a job in the gang's own thread; what it raised."""
        if self._fiber is None:
            self._fiber = Fiber(self._serve, "gang")
            self._fiber.resume()
        return self._fiber.resume(job)

    def _serve(
        self, fiber: Fiber[Callable[[], None], BaseException | None]
    ) -> BaseException | None:
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        error: BaseException | None = None
        while True:
            job = fiber.pause(error)
            assert job is not None, "a gang's thread is woken with a job"
            error = None
            try:
                job()
            except BaseException as raised:  # noqa: BLE001 - the run that is to blame raises it
                # Its traceback holds the pass's tensors, for which there may be no room.
                error = raised.with_traceback(None)
            del job


def _kind(request: Forward) -> Hashable:
    """Requests of one kind may share a pass, if they are not too many."""
    return (
        id(request.base.model),
        request.trains,
        request.rows.cache is None,
        request.autocast,
        adapter_dtype(request.rows.adapters),
        request.rows.input_ids.dtype,
    )


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError)


def _next_power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _num_tokens(requests: Sequence[Forward]) -> int:
    return sum(request.num_tokens for request in requests)


def _rewind(request: Forward) -> None:
    """Back to where the run was when it asked."""
    if request.rows.cache is not None:
        rewind(request.rows.cache, request.rows.num_cached)
    if request.rows.generator is not None and request.rng is not None:
        request.rows.generator.set_state(request.rng)


def _gradient(request: Forward) -> torch.Tensor | None:
    assert request.hidden is not None, "it has been answered"
    return request.hidden.grad


def _share_time(requests: Sequence[Forward], begin_s: float) -> None:
    """Charge the time since then to the runs, by their tokens."""
    total = _num_tokens(requests)
    took_s = time.perf_counter() - begin_s
    for request in requests:
        request.seconds = took_s * request.num_tokens / total
