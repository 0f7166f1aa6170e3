"""Where in its data a trainer stands, so that it finds its way back there.

transformers goes back to the middle of an epoch by skipping batches. That finds the same rows only
if the sampler draws the same order again, which depends on what it draws from: the process's
random generators (when grouping by length) or a generator of its own that moves on from epoch to
epoch (GRPO's). It knows the epoch only where the dataset has a length. And it cannot enter an epoch
behind rows that are no whole number of its batches, as a clone with another batch size has to.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.data_loader import skip_first_batches

from rapidfireai.core.fork import Frame, Standing, Walk
from rapidfireai.workers.process_state import RngState


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a trainer goes on, and how far it has to go."""

    written_at: int
    """Step that the trainer reads in the checkpoint that it goes on from."""
    step: int
    """Step that it goes on from, in its own count."""
    epoch: int
    offset: int
    """Rows of the epoch that lie before the first batch that is counted."""
    num_batches: int
    """Micro-batches of the epoch that are behind the trainer, after the offset."""
    rng: RngState | None
    """From when the epoch began; None if it begins now."""
    sampler: torch.Tensor | None
    """Likewise, of the sampler's own generator; None for samplers without one."""
    num_steps: int
    num_epochs: int
    schedule_start: int
    """Step at which the learning rate's schedule begins."""

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], step: int) -> "Place":
        """What `DataPosition.plain` gave at that step."""
        names = ("epoch", "offset", "num_batches", "num_steps", "num_epochs", "schedule_start")
        return cls(
            written_at=step,
            step=step,
            rng=RngState.from_plain(plain["rng"]),
            sampler=plain["sampler"],
            **{name: plain[name] for name in names},
        )


Locate = Callable[[Walk], Place]
"""Tells a trainer that goes through its data in this way where it goes on."""


class DataPosition:
    """Follows a trainer through its epochs.

    Args:
        trainer: One whose `train` has not been called; its `get_batch_samples` is wrapped.
        locate: Where the trainer goes on; None begins with the first epoch. What it raises comes
            out of the trainer's `train`.
    """

    def __init__(self, trainer: Any, locate: Locate | None = None) -> None:
        self._trainer = trainer
        self._place: Place | None = None
        """Where the trainer goes on, until it has got there."""
        self._goes_on = locate is not None
        self._schedule_start = 0
        self._iterator: Any = None
        self._epoch = -1
        self._offset = 0
        self._num_batches = 0
        """Micro-batches of the epoch that have been fetched, after the offset."""
        self._rng: RngState | None = None
        """From when the epoch began."""
        self._sampler_state: torch.Tensor | None = None
        """Likewise; None for samplers without a generator of their own."""
        self._rng_after_fetch: RngState | None = None
        self._frame: Frame | None = None
        """Of the epoch that the trainer enters in its middle."""
        self._follow()
        if locate is not None:
            self._lead(locate)

    @property
    def is_known(self) -> bool:
        """Whether the trainer fetches its data in the one way that can be followed."""
        return self._iterator is not None

    @property
    def is_settled(self) -> bool:
        """Whether the trainer is where its generators say: one that goes on from somewhere gets
        them back with its first batch."""
        return self.is_known and not self._goes_on

    def plain(self) -> dict[str, Any]:
        """In types that `torch.load(weights_only=True)` reads. At a step boundary."""
        assert self._rng is not None, "known from the first boundary on"
        generator = _sampler_generator(self._trainer)
        return {
            "epoch": self._epoch,
            "offset": self._offset,
            "num_batches": self._num_batches,
            "rng": self._rng.plain(),
            "sampler": self._sampler_state,
            "sampler_now": None if generator is None else generator.get_state(),
            "num_steps": self._trainer.state.max_steps,
            "num_epochs": self._trainer.state.num_train_epochs,
            "schedule_start": self._schedule_start,
        }

    def standing(self, *, completed: bool) -> Standing:
        """The same in plain numbers. At a step boundary, or after the training's end."""
        return Standing(
            step=self._trainer.state.global_step,
            epoch=self._epoch,
            offset=self._offset,
            num_batches=self._num_batches,
            walk=_walk(self._trainer, self._trainer.callback_handler.train_dataloader),
            schedule_start=self._schedule_start,
            completed=completed,
        )

    def _follow(self) -> None:
        trainer = self._trainer
        fetch = trainer.get_batch_samples

        def get_batch_samples(iterator: Any, *args: Any, **kwargs: Any) -> Any:
            # Iterators are made one an epoch, and draw nothing before their first batch.
            if iterator is not self._iterator:
                self._enter(iterator)
            batches, num_items = fetch(iterator, *args, **kwargs)
            self._num_batches += len(batches)
            self._goes_on = False
            if self._rng_after_fetch is not None:
                self._rng_after_fetch.restore()
                self._rng_after_fetch = None
            return batches, num_items

        trainer.get_batch_samples = get_batch_samples

    def _lead(self, locate: Locate) -> None:
        """Have the trainer's `train(resume_from_checkpoint=...)` go on where `locate` says."""
        trainer = self._trainer
        set_values, create_scheduler = trainer.set_initial_training_values, trainer.create_scheduler
        # There is no other way to say where, nor to enter an epoch in its middle.
        init_state, run_epoch = trainer._init_training_state, trainer._run_epoch  # noqa: SLF001

        def set_initial_training_values(args: Any, dataloader: Any) -> Any:
            values = list(set_values(args, dataloader))
            walk = _walk(trainer, dataloader)
            self._place = place = locate(walk)
            self._schedule_start = place.schedule_start
            self._frame = walk.frame(place.offset) if place.offset else None
            values[0], values[6] = place.num_epochs, place.num_steps
            return tuple(values)

        def init_training_state(*args: Any, **kwargs: Any) -> tuple[int, int]:
            init_state(*args, **kwargs)
            assert self._place is not None, "the training's values have been set"
            if trainer.state.global_step == self._place.written_at:
                trainer.state.global_step = self._place.step
            num_skipped = 0 if self._frame is None else self._frame.num_skipped
            return self._place.epoch, num_skipped + self._place.num_batches

        def create_rest_of_schedule(num_training_steps: int, *args: Any, **kwargs: Any) -> Any:
            return create_scheduler(num_training_steps - self._schedule_start, *args, **kwargs)

        def run_epoch_from_place(*args: Any, **kwargs: Any) -> Any:
            if self._frame is not None and self._place is not None:
                kwargs.update(self._entered_in_the_middle(**kwargs))
            return run_epoch(*args, **kwargs)

        trainer.set_initial_training_values = set_initial_training_values
        trainer.create_scheduler = create_rest_of_schedule
        trainer._init_training_state = init_training_state  # noqa: SLF001
        trainer._run_epoch = run_epoch_from_place  # noqa: SLF001

    def _entered_in_the_middle(
        self, *, train_dataloader: Any, epoch: int, **_: Any
    ) -> dict[str, Any]:
        """What `_run_epoch` is to be given for an epoch whose first rows are behind the trainer."""
        assert self._frame is not None, "for such an epoch only"
        assert self._place is not None, "likewise"
        sampler = train_dataloader.batch_sampler.sampler
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        rest = skip_first_batches(train_dataloader, 0)
        rest.batch_sampler.batch_sampler = _RestOfEpoch(
            sampler, _walk(self._trainer, train_dataloader), self._place.offset
        )
        return {"train_dataloader": rest, "steps_in_epoch": self._frame.num_batches}

    def _enter(self, iterator: Any) -> None:
        self._iterator = iterator
        generator = _sampler_generator(self._trainer)
        place, self._place = self._place, None
        if place is None:
            self._epoch += 1
            self._offset = self._num_batches = 0
        else:
            self._epoch, self._offset = place.epoch, place.offset
            self._num_batches = place.num_batches
            if generator is not None and place.sampler is not None:
                generator.set_state(place.sampler)
        self._sampler_state = None if generator is None else generator.get_state()
        self._rng = now = RngState.capture()
        if place is not None and place.rng is not None:
            # The order is drawn with the first batch. Right after that, transformers puts the
            # process's generators where they were at the step boundary; but at what it takes for
            # an epoch's beginning, it has done so before.
            self._rng = place.rng
            self._rng.restore()
            self._rng_after_fetch = now if place.offset and not self._skips(place) else None

    def _skips(self, place: Place) -> bool:
        """Whether transformers skips batches on its way to the place."""
        assert self._frame is not None, "there is an offset"
        return self._frame.num_skipped + place.num_batches > 0


class _RestOfEpoch:
    """Batches of row numbers, as a data loader takes them, of an epoch behind its first rows.

    Args:
        sampler: Of single rows.
        walk: How batches are made of them.
        offset: Rows that are left out. Empty batches stand for them, which are skipped.
    """

    def __init__(self, sampler: Any, walk: Walk, offset: int) -> None:
        self._sampler = sampler
        self._walk = walk
        self._offset = offset

    def __iter__(self) -> Iterator[list[int]]:
        walk = self._walk
        for _ in range(walk.frame(self._offset).num_skipped):
            yield []
        rest = _order(self._sampler)[self._offset :]
        for start in range(0, len(rest), walk.group):
            group = rest[start : start + walk.group]
            if len(group) < walk.group and walk.drops_last:
                return
            for _ in range(walk.repeats):
                yield [row for row in group for _ in range(walk.copies)]

    def __len__(self) -> int:
        return self._walk.frame(self._offset).num_batches


def _order(sampler: Any) -> list[int]:
    """The rows of an epoch, each once, as the sampler draws them now."""
    if _repeats(sampler):
        sampler = copy.copy(sampler)  # with the same generator
        sampler.batch_size = sampler.mini_repeat_count = sampler.repeat_count = 1
    return list(sampler)


def _repeats(sampler: Any) -> bool:
    """Whether it is TRL's sampler that gives the prompts of a generation batch several times."""
    return type(sampler).__name__ == "RepeatSampler"


def _walk(trainer: Any, dataloader: Any) -> Walk:
    """How the trainer goes through an epoch of its data."""
    batch_sampler = getattr(dataloader, "batch_sampler", None)
    sampler = getattr(batch_sampler, "sampler", None)
    try:
        num_batches: int | None = len(dataloader)
    except TypeError:
        num_batches = None
    batch_size = trainer.args.train_batch_size
    accumulation = trainer.args.gradient_accumulation_steps
    order = type(batch_sampler if sampler is None else sampler).__name__
    if num_batches is not None and sampler is not None and _repeats(sampler):
        return Walk(
            num_rows=sampler.num_samples,
            group=sampler.batch_size,
            repeats=sampler.repeat_count,
            copies=sampler.mini_repeat_count,
            batch_size=batch_size,
            accumulation=accumulation,
            drops_last=True,
            order=order,
        )
    return Walk(
        num_rows=None if num_batches is None else trainer.num_examples(dataloader),
        group=getattr(batch_sampler, "batch_size", None) or batch_size,
        batch_size=batch_size,
        accumulation=accumulation,
        drops_last=bool(getattr(batch_sampler, "drop_last", False)),
        order=order,
    )


def _sampler_generator(trainer: Any) -> torch.Generator | None:
    """The generator of the training data's sampler, if it has one of its own."""
    dataloader = trainer.callback_handler.train_dataloader
    sampler = getattr(getattr(dataloader, "batch_sampler", None), "sampler", None)
    generator = getattr(sampler, "generator", None)
    return generator if isinstance(generator, torch.Generator) else None
