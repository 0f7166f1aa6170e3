"""What it means to go on from another run's checkpoint with other arguments, in plain numbers.

Where a run stands is counted in rows of its data, not in steps: a clone with another batch size
stands where a run of its own arguments would stand after the same rows. Of the epoch that it is in
the middle of, it goes on with exactly the next row, in batches of its own size; later epochs are
whole. Steps are counted as its own arguments count them.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum

from rapidfireai.core.events import Json
from rapidfireai.errors import ConfigError


class OptimizerState(StrEnum):
    """What becomes of the parent's optimizer state, such as Adam's moments."""

    KEEP = "keep"
    """The clone goes on with it; the optimizer's arguments are the clone's."""
    RESET = "reset"
    """The clone begins without any."""


class Schedule(StrEnum):
    """Where in its learning rate schedule a clone begins."""

    CONTINUE = "continue"
    """At its step, as if its own schedule had been in force from the beginning."""
    RESTART = "restart"
    """At the schedule's beginning, warm-up included, over the steps that remain."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Walk:
    """How a run goes through an epoch of its data.

    Trainers that generate fetch the prompts of a whole generation batch together and make several
    batches of them; for all others a group is a batch.
    """

    num_rows: int | None
    """Rows of the data; None for a stream, whose end nobody knows."""
    group: int
    """Rows that are fetched together, at least 1."""
    repeats: int = 1
    """Batches that are made of each group."""
    copies: int = 1
    """Samples that are made of each row."""
    batch_size: int
    """Samples in a batch."""
    accumulation: int
    """Batches in an optimizer step."""
    drops_last: bool = False
    """Whether a last group that is not full is left out."""
    order: str = ""
    """What decides about the order of the rows: the sampler's class."""

    @property
    def epoch_rows(self) -> int:
        """Rows that an epoch really uses, of data with a length."""
        assert self.num_rows is not None, "a stream has no epochs that could be counted"
        return self.num_rows - self.num_rows % self.group if self.drops_last else self.num_rows

    @property
    def epoch_steps(self) -> int:
        """Optimizer steps of a whole epoch."""
        return max(1, self.num_steps(self.epoch_rows))

    def num_batches(self, num_rows: int) -> int:
        """Batches that are made of so many rows at an epoch's end."""
        groups = num_rows // self.group if self.drops_last else -(-num_rows // self.group)
        return groups * self.repeats

    def num_steps(self, num_rows: int) -> int:
        """Optimizer steps over so many rows at an epoch's end; the last may be a smaller one."""
        return -(-self.num_batches(num_rows) // self.accumulation)

    def steps_behind(self, num_rows: int) -> int:
        """Whole steps that a run has done in an epoch after so many rows."""
        return num_rows // self.group * self.repeats // self.accumulation

    def rows_fetched(self, offset: int, num_batches: int) -> int:
        """Rows of an epoch that are behind a run: `offset`, then those of so many batches."""
        fetched = offset + -(-num_batches // self.repeats) * self.group
        return fetched if self.num_rows is None else min(fetched, self.num_rows)

    def takes_steps_like(self, other: "Walk") -> bool:
        """Whether both count the same steps over the same rows."""
        mine = self.group * self.accumulation * other.repeats
        if mine != other.group * other.accumulation * self.repeats:
            return False
        if self.drops_last or other.drops_last:
            return (self.group, self.drops_last) == (other.group, other.drops_last)
        return True

    def frame(self, offset: int) -> "Frame":
        """The epoch whose first `offset` rows are behind the run, as a whole one counts it."""
        assert self.num_rows is not None, "there is no way into the middle of a stream"
        rest = self.num_rows - offset
        num_skipped = (self.epoch_steps - self.num_steps(rest)) * self.accumulation
        return Frame(num_skipped=num_skipped, num_batches=num_skipped + self.num_batches(rest))


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """An epoch that begins behind its first rows."""

    num_skipped: int
    """Batches that stand for these rows; whole steps, so that those that follow are whole too."""
    num_batches: int
    """Batches of the epoch, with those."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """Where a run stands at a step boundary."""

    step: int
    epoch: int
    """Whole epochs behind it."""
    offset: int = 0
    """Rows of the present epoch that lie before the first batch that is counted: above 0 in a clone
    that entered the epoch in the middle."""
    num_batches: int
    """Batches of the present epoch that are behind it, after the offset."""
    walk: Walk
    schedule_start: int = 0
    """Step at which the schedule of its learning rate began."""
    completed: bool = False
    """Whether its training is over."""

    @property
    def consumed(self) -> int:
        """Rows of the present epoch that are behind it."""
        return self.walk.rows_fetched(self.offset, self.num_batches)

    def to_json(self) -> dict[str, Json]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, plain: Mapping[str, Json]) -> "Standing":
        """What `to_json` gave."""
        return cls(**{**plain, "walk": Walk(**plain["walk"])})


@dataclass(frozen=True, kw_only=True, slots=True)
class Length:
    """How long a run is to be, as its arguments say it."""

    max_steps: int
    """Decides if it is above 0."""
    num_epochs: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ForkPlan:
    """Where a clone begins and how far it has to go, in its own steps."""

    step: int
    num_steps: int
    """Of the whole run."""
    epoch: int
    offset: int
    """Rows of the epoch that the clone enters in its middle; the first batch comes after them."""
    num_batches: int
    """Batches of the epoch behind it, after the offset."""
    num_epochs: int
    """Epochs that it takes part in, those behind it included."""
    num_rows: int
    """Rows behind it, over all epochs; a row counts as often as it was used."""
    schedule_start: int
    """Step at which the learning rate's schedule begins."""
    renumbered: bool
    """Whether its steps are of another size than the parent's."""

    @property
    def remaining(self) -> int:
        """Steps that it has to train."""
        return self.num_steps - self.step

    def describe(self) -> str:
        """One line for people."""
        steps = "step remains" if self.remaining == 1 else "steps remain"
        return (
            f"starts at step {self.step} of {self.num_steps} with {self.num_rows} samples behind "
            f"it: {self.remaining} {steps}"
        )

    def to_json(self) -> dict[str, Json]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, plain: Mapping[str, Json]) -> "ForkPlan":
        """What `to_json` gave."""
        return cls(**plain)


def plan_fork(
    parent: Standing,
    walk: Walk,
    length: Length,
    *,
    schedule: Schedule = Schedule.CONTINUE,
    realigns: bool = False,
) -> ForkPlan:
    """Where a clone begins that goes through the data as `walk` says.

    Args:
        parent: Where the parent stands.
        walk: The clone's.
        length: The clone's.
        schedule: Where its learning rate's schedule begins.
        realigns: Whether it has to begin with a new group even if the parent is in the middle of
            one; the group's rows count as behind it.

    Raises:
        ConfigError: The parent's place cannot be found in the clone's data, or nothing remains to
            be trained.
    """
    if walk.num_rows != parent.walk.num_rows or walk.order != parent.walk.order:
        raise ConfigError(_other_data(parent.walk, walk))
    if walk != parent.walk or realigns:
        _check_can_be_entered(walk)
        offset, num_batches = parent.consumed, 0
    else:
        offset, num_batches = parent.offset, parent.num_batches
    epoch, renumbered = parent.epoch, not walk.takes_steps_like(parent.walk)
    if walk.num_rows is not None and num_batches >= walk.num_batches(walk.num_rows - offset):
        epoch, offset, num_batches = epoch + 1, 0, 0
    step = parent.step
    if renumbered:
        step = epoch * walk.epoch_steps + walk.steps_behind(offset)
    num_steps, num_epochs = _end(walk, length, step, (epoch, offset, num_batches))
    if num_steps <= step:
        raise ConfigError(_nothing_remains(length, step))
    start = step
    if schedule is Schedule.CONTINUE:
        start = parent.schedule_start
        if renumbered and start:
            start = start * step // parent.step
    before = 0 if walk.num_rows is None else epoch * walk.epoch_rows
    return ForkPlan(
        step=step,
        num_steps=num_steps,
        epoch=epoch,
        offset=offset,
        num_batches=num_batches,
        num_epochs=num_epochs,
        num_rows=before + walk.rows_fetched(offset, num_batches),
        schedule_start=start,
        renumbered=renumbered,
    )


def _end(walk: Walk, length: Length, step: int, place: tuple[int, int, int]) -> tuple[int, int]:
    """The last step, and the epochs that it takes to get there."""
    epoch, offset, num_batches = place
    if walk.num_rows is None:
        # As transformers has it for data without a length: it is read as often as it takes.
        return length.max_steps, 2**63 - 1
    behind = num_batches // walk.accumulation
    left = walk.num_steps(walk.num_rows - offset) - behind
    if length.max_steps > 0:
        beyond = max(0, length.max_steps - step - left)
        return length.max_steps, epoch + 1 + -(-beyond // walk.epoch_steps)
    whole = math.floor(length.num_epochs)
    # Of an epoch that is to be trained in part; rounded as transformers rounds it.
    part = math.ceil(length.num_epochs * walk.epoch_steps) - whole * walk.epoch_steps
    num_epochs = max(math.ceil(length.num_epochs), epoch + 1)
    if epoch < whole:
        return step + left + (whole - epoch - 1) * walk.epoch_steps + part, num_epochs
    if epoch == whole:
        return step + min(left, part - walk.steps_behind(offset) - behind), num_epochs
    return step, num_epochs


_KNOWN_ORDERS = ("SeedableRandomSampler", "RandomSampler", "SequentialSampler", "RepeatSampler")
"""Samplers whose order does not depend on the size of a batch."""


def _check_can_be_entered(walk: Walk) -> None:
    if walk.num_rows is None:
        raise ConfigError(
            "the data is a stream, in which only whole batches of the parent's size can be "
            "counted: leave per_device_train_batch_size and what belongs to it as the parent had "
            "them, or clone it without warm start"
        )
    if walk.order not in _KNOWN_ORDERS:
        raise ConfigError(
            f"the order of the data ({walk.order}) depends on the batch size, so that the parent's "
            "place in it would be lost: leave per_device_train_batch_size and "
            "gradient_accumulation_steps as the parent had them, or clone it without warm start"
        )


def _other_data(parent: Walk, walk: Walk) -> str:
    if walk.order != parent.order:
        changed = f"the data is drawn by {walk.order} instead of the parent's {parent.order}"
    else:
        changed = f"the data has {walk.num_rows} rows, and the parent's had {parent.num_rows}"
    return f"{changed}: the parent's place in it cannot be found; clone it without warm start"


def _nothing_remains(length: Length, step: int) -> str:
    if length.max_steps > 0:
        return (
            f"nothing remains to be trained: the clone would begin at step {step}, and "
            f"max_steps={length.max_steps}; give max_steps above {step}"
        )
    return (
        f"nothing remains to be trained: the clone would begin at step {step}, and "
        f"num_train_epochs={length.num_epochs:g} end there; give more num_train_epochs"
    )
