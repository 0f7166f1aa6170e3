"""Where in its data a trainer stands, so that it finds its way back there.

transformers goes back to the middle of an epoch by skipping batches. That finds the same rows only
if the sampler draws the same order again, which depends on what it draws from: the process's
random generators (when grouping by length) or a generator of its own that moves on from epoch to
epoch (GRPO's). And it knows the epoch only where the dataset has a length.
"""

from collections.abc import Mapping
from typing import Any

import torch

from rapidfireai.workers.process_state import RngState


class DataPosition:
    """Follows a trainer through its epochs.

    Args:
        trainer: One whose `train` has not been called; its `get_batch_samples` is wrapped.
        resumed: What `plain` gave when the run was written down; None begins with the first epoch.
    """

    def __init__(self, trainer: Any, resumed: Mapping[str, Any] | None = None) -> None:
        self._trainer = trainer
        self._resumed = resumed
        self._iterator: Any = None
        self._epoch = -1
        self._num_batches = 0
        """Micro-batches of the epoch that have been fetched."""
        self._rng: RngState | None = None
        """From when the epoch began."""
        self._sampler_state: torch.Tensor | None = None
        """Likewise; None for samplers without a generator of their own."""
        self._attach()

    @property
    def is_known(self) -> bool:
        """Whether the trainer fetches its data in the one way that can be followed."""
        return self._iterator is not None

    def plain(self) -> dict[str, Any]:
        """In types that `torch.load(weights_only=True)` reads. At a step boundary."""
        assert self._rng is not None, "known from the first boundary on"
        return {
            "epoch": self._epoch,
            "num_batches": self._num_batches,
            "rng": self._rng.plain(),
            "sampler": self._sampler_state,
        }

    def _attach(self) -> None:
        trainer = self._trainer
        fetch = trainer.get_batch_samples

        def get_batch_samples(iterator: Any, *args: Any, **kwargs: Any) -> Any:
            # Iterators are made one an epoch, and draw nothing before their first batch.
            if iterator is not self._iterator:
                self._enter(iterator)
            batches, num_items = fetch(iterator, *args, **kwargs)
            self._num_batches += len(batches)
            return batches, num_items

        trainer.get_batch_samples = get_batch_samples
        if self._resumed is not None:
            init_state = trainer._init_training_state  # noqa: SLF001 - the only way to say where
            place = (self._resumed["epoch"], self._resumed["num_batches"])

            def init_training_state(*args: Any, **kwargs: Any) -> tuple[int, int]:
                init_state(*args, **kwargs)
                return place

            trainer._init_training_state = init_training_state  # noqa: SLF001

    def _enter(self, iterator: Any) -> None:
        self._iterator = iterator
        generator = _sampler_generator(self._trainer)
        if self._resumed is not None:
            resumed, self._resumed = self._resumed, None
            self._epoch, self._num_batches = resumed["epoch"], resumed["num_batches"]
            self._rng = RngState.from_plain(resumed["rng"])
            self._sampler_state = resumed["sampler"]
            # The order is drawn with the first batch. Right after that, transformers puts the
            # process's generators where they were at the step boundary.
            self._rng.restore()
            if generator is not None and self._sampler_state is not None:
                generator.set_state(self._sampler_state)
            return
        self._epoch += 1
        self._num_batches = 0
        self._rng = RngState.capture()
        self._sampler_state = None if generator is None else generator.get_state()


def _sampler_generator(trainer: Any) -> torch.Generator | None:
    """The generator of the training data's sampler, if it has one of its own."""
    dataloader = trainer.callback_handler.train_dataloader
    sampler = getattr(getattr(dataloader, "batch_sampler", None), "sampler", None)
    generator = getattr(sampler, "generator", None)
    return generator if isinstance(generator, torch.Generator) else None
