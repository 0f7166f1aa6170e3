"""Where the engine takes hold of a trainer: two methods wrapped on the instance and one callback.

A trainer is paused in front of `get_batch_samples`, which it calls once an optimizer step: the last
step's log, evaluation and save are done by then, and the next data is not fetched yet. Trainers
with a loop of their own that never call it are paused in `on_step_end` instead.

Nothing here changes what a trainer computes.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback

from rapidfireai.core.chunks import chunk_ends
from rapidfireai.core.events import (
    ChunkFinished,
    Event,
    Json,
    MetricsLogged,
    MetricSource,
    RunStarted,
    StepFinished,
)
from rapidfireai.core.ids import RunId
from rapidfireai.errors import DivergedError, NeverYieldedError
from rapidfireai.training.checkpoint import Progress, Resumption
from rapidfireai.training.evaluation import evaluate_quietly, numbers, scored, told_by_set
from rapidfireai.training.generation import GenerationMetrics
from rapidfireai.training.stopwatch import Stopwatch

Pause = Callable[[list[Event]], None]
"""Hands the events out and returns when the run goes on."""

DIVERGENCE_PATIENCE = 3
"""Steps in a row whose loss is not finite before a run counts as diverged. One alone may come from
a bad batch, which fp16's loss scaler skips; weights that have become NaN never recover."""


_SHOWING = frozenset({"PrinterCallback", "ProgressCallback", "NotebookProgressCallback"})
"""Callbacks by which transformers shows a trainer's progress. By name: the last needs IPython."""


class Instrument:
    """Makes one trainer pausable and reports what it does.

    Args:
        run_id: Whose events these are.
        trainer: A built `transformers.Trainer` whose `train` has not been called.
        num_chunks: Chunks an epoch.
        pause: Called at every step boundary with what happened since the last.
        resolved: Goes into `RunStarted`.
        notes: Likewise.
        scoring: Metrics over generated texts, added to every evaluation.
        resumption: Of the checkpoint that the trainer goes on from; None begins at step 0.
    """

    def __init__(  # noqa: PLR0913 - parts of one run, each of its own origin
        self,
        run_id: RunId,
        trainer: Any,
        *,
        num_chunks: int,
        pause: Pause,
        resolved: dict[str, Json],
        notes: tuple[str, ...],
        scoring: GenerationMetrics | None = None,
        resumption: Resumption | None = None,
    ) -> None:
        self.stopwatch = Stopwatch()
        self._run_id = run_id
        self._trainer = trainer
        self._num_chunks = num_chunks
        self._pause = pause
        self._resolved = resolved
        self._notes = notes
        self._scoring = scoring
        self._resumption = resumption
        self._events: list[Event] = []
        self._losses: list[torch.Tensor] = []
        self._num_bad_losses = 0
        self._chunk_ends: tuple[int, ...] | None = None
        self._chunk = 0
        self._step = 0
        self._evaluated_at = -1
        self._by_set: dict[str, float] = {}
        """What was last measured on each of several evaluation sets."""
        self._fetches_batches = False
        self._attach()

    def _attach(self) -> None:
        trainer = self._trainer
        fetch, train_step = trainer.get_batch_samples, trainer.training_step

        def get_batch_samples(*args: Any, **kwargs: Any) -> Any:
            self._fetches_batches = True
            self._boundary()
            return fetch(*args, **kwargs)

        def training_step(*args: Any, **kwargs: Any) -> Any:
            loss = train_step(*args, **kwargs)
            self._losses.append(loss.detach())
            return loss

        trainer.get_batch_samples = get_batch_samples
        trainer.training_step = training_step
        if self._scoring is not None:
            trainer.evaluate = scored(trainer, self._scoring)
        if isinstance(trainer.eval_dataset, dict):
            trainer.evaluate = told_by_set(trainer, self._by_set)
        # Rows and progress of all runs are shown together; bars of each would tear that.
        for callback in list(trainer.callback_handler.callbacks):
            if type(callback).__name__ in _SHOWING:
                trainer.remove_callback(callback)
        trainer.add_callback(_Reporter(self))

    def finish(self) -> list[Event]:
        """After `train` has returned: the last step, the last evaluation and what is left to tell.

        Raises:
            NeverYieldedError: The trainer never offered a pause.
            DivergedError: The last loss is not finite.
        """
        if self._chunk_ends is None:
            raise NeverYieldedError(
                f"{type(self._trainer).__name__}.train() returned without ever calling "
                "get_batch_samples() or on_step_end(), so it could not be paused and no other run "
                "got a turn. A training loop of one's own has to call "
                "self.callback_handler.on_step_end(self.args, self.state, self.control) after each "
                "step."
            )
        if self._trainer.state.global_step > self._step:
            self._take_step()
        if self._num_bad_losses:
            raise DivergedError(f"the loss of the last step, {self._step}, is not finite")
        self._evaluate()
        return self.take_events()

    def take_events(self) -> list[Event]:
        """What happened and was not handed out yet."""
        events, self._events = self._events, []
        return events

    @property
    def progress(self) -> Progress:
        """How far the run is, at a boundary."""
        return Progress(step=self._step, chunks_done=self._chunk, active_s=self.stopwatch.read_s())

    def step_ended(self) -> None:
        """The trainer's `on_step_end`: a boundary for those that do not fetch batches."""
        if not self._fetches_batches:
            self._boundary()

    def evaluated(self) -> None:
        """The trainer evaluated by itself."""
        self._evaluated_at = self._trainer.state.global_step

    def logged(self, logs: dict[str, Any]) -> None:
        """The trainer logged a row."""
        if "train_runtime" in logs:
            self._correct_times(logs)
        self._report(MetricSource.LOG, self._trainer.state.global_step, numbers(logs))

    def _boundary(self) -> None:
        if self._chunk_ends is None:
            self._start()
        if self._trainer.state.global_step == self._step:
            return
        self._take_step()
        if self._step == self._chunk_ends_at:
            self._evaluate()
            self._emit(
                ChunkFinished(
                    run_id=self._run_id,
                    chunk=self._chunk,
                    step=self._step,
                    active_s=self.stopwatch.read_s(),
                )
            )
            self._chunk += 1
        self._pause(self.take_events())

    @property
    def _chunk_ends_at(self) -> int | None:
        """Step at which the present chunk ends; None in the last, which ends with `train`."""
        assert self._chunk_ends is not None, "known from the first boundary on"
        if self._chunk + 1 >= len(self._chunk_ends):
            return None
        return self._chunk_ends[self._chunk]

    def _start(self) -> None:
        num_steps = self._trainer.state.max_steps
        steps_per_epoch, samples_per_step, samples_per_epoch = _epoch(self._trainer)
        self._chunk_ends = chunk_ends(
            num_steps=num_steps,
            steps_per_epoch=steps_per_epoch,
            samples_per_step=samples_per_step,
            samples_per_epoch=samples_per_epoch,
            num_chunks=self._num_chunks,
        )
        progress = Progress(step=0, chunks_done=0, active_s=0.0)
        if self._resumption is not None:
            self._resumption.apply(self._trainer)
            progress = self._resumption.progress
        self._step = progress.step
        # Not the number that was saved: the chunks may have been cut differently then.
        self._chunk = sum(end <= progress.step for end in self._chunk_ends)
        self.stopwatch.reset(progress.active_s)
        self._emit(
            RunStarted(
                run_id=self._run_id,
                num_steps=num_steps,
                num_chunks=len(self._chunk_ends),
                resolved=self._resolved,
                notes=self._notes,
                step=progress.step,
                chunks_done=self._chunk,
                active_s=progress.active_s,
            )
        )
        self._pause(self.take_events())

    def _take_step(self) -> None:
        """Account for the steps done since the last boundary; normally one."""
        self._step = self._trainer.state.global_step
        # A step's loss is the sum over its micro-batches, each already divided by their number.
        # A loop of the trainer's own may have none to show.
        losses, self._losses = self._losses, []
        loss = float(torch.stack(losses).sum()) if losses else math.nan
        self._emit(
            StepFinished(
                run_id=self._run_id,
                step=self._step,
                loss=loss,
                active_s=self.stopwatch.read_s(),
            )
        )
        diverges = bool(losses) and not math.isfinite(loss)
        self._num_bad_losses = self._num_bad_losses + 1 if diverges else 0
        if self._num_bad_losses >= DIVERGENCE_PATIENCE:
            raise DivergedError(
                f"the loss was not finite at {self._num_bad_losses} steps in a row, up to step "
                f"{self._step}; a lower learning rate or gradient clipping (max_grad_norm) may help"
            )

    def _evaluate(self) -> None:
        """Evaluate at a chunk's end, unless the trainer just did or there is no dataset for it.

        With several datasets it is told by dataset also what the trainer measured.
        """
        if self._trainer.eval_dataset is None:
            return
        metrics: dict[str, float] = {}
        if self._evaluated_at != self._step:
            metrics = evaluate_quietly(self._trainer)
        if metrics or self._by_set:
            self._report(MetricSource.CHUNK, self._step, dict(self._by_set) or metrics)

    def _correct_times(self, logs: dict[str, Any]) -> None:
        """Take the pauses out of the totals that a trainer logs at its end."""
        active_s = self.stopwatch.read_s()
        factor = logs["train_runtime"] / active_s if active_s else 1.0
        corrected = {
            name: round(value * factor, 3) for name, value in logs.items() if "per_second" in name
        }
        corrected["train_runtime"] = round(active_s, 4)
        logs.update(corrected)
        self._trainer.state.log_history[-1].update(corrected)

    def _report(self, source: MetricSource, step: int, values: dict[str, float]) -> None:
        self._emit(MetricsLogged(run_id=self._run_id, step=step, source=source, values=values))

    def _emit(self, event: Event) -> None:
        self._events.append(event)


class _Reporter(TrainerCallback):
    """Passes a trainer's events on; added last, so that it sees what others left of a row."""

    def __init__(self, instrument: Instrument) -> None:
        self._instrument = instrument

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._instrument.step_ended()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._instrument.evaluated()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any
    ) -> None:
        self._instrument.logged(logs)


def _epoch(trainer: Any) -> tuple[int | None, int, int]:
    """Steps an epoch (None if nobody knows), samples a step, samples an epoch."""
    dataloader = trainer.callback_handler.train_dataloader
    try:
        num_batches = len(dataloader)
    except TypeError:
        return None, 1, 1
    accumulation = trainer.args.gradient_accumulation_steps
    batch_size = trainer.args.train_batch_size
    samples = trainer.num_examples(dataloader)
    if math.ceil(samples / batch_size) != num_batches:
        # The sampler repeats or drops rows, as GRPO's does: count batches instead.
        samples, batch_size = num_batches, 1
    return max(1, math.ceil(num_batches / accumulation)), batch_size * accumulation, samples
