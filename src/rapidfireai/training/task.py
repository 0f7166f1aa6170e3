"""One run's trainer in its fiber, from its first line to its last event."""

import copy
import gc
import logging
import math
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rapidfireai.core.events import (
    ChunkFinished,
    Event,
    MetricsLogged,
    ModeChosen,
    PassMode,
    RunCompleted,
    RunFailed,
    RunNoted,
    RunStarted,
    RunStopped,
    StepFinished,
)
from rapidfireai.core.ids import RunId
from rapidfireai.errors import SharedWeightsError
from rapidfireai.store import Room
from rapidfireai.training.arguments import Resolved
from rapidfireai.training.build import RunParts
from rapidfireai.training.checkpoint import (
    CannotResumeError,
    Checkpoint,
    CheckpointPace,
    Resumption,
    RunState,
    Told,
    clear_left_overs,
    latest_checkpoint,
    save_checkpoint,
)
from rapidfireai.training.forgotten import Forgotten
from rapidfireai.training.fork import ForkedStart
from rapidfireai.training.fused import FusedBackbone, why_sliced
from rapidfireai.training.generation import GenerationMetrics
from rapidfireai.training.instrument import Instrument
from rapidfireai.training.manifest import completed_folder
from rapidfireai.training.output import save_run
from rapidfireai.training.position import DataPosition
from rapidfireai.workers.fiber import Fiber, FiberClosed
from rapidfireai.workers.gang import Backward, Forward, Request
from rapidfireai.workers.process_state import ProcessState
from rapidfireai.workers.task import Task

logger = logging.getLogger(__name__)


class TrainingTask:
    """One run's trainer in its fiber; implements `workers.task.Task`.

    Args:
        parts: The run's own.
        room: How what is to be saved waits for room on the disk.
    """

    def __init__(self, parts: RunParts, room: Room | None = None) -> None:
        self._parts = parts
        self._room = room or Room()
        self._is_fused = False
        self._request: Request | None = None
        self._state = ProcessState()
        self._fiber: Fiber[_Asked, list[Event] | Request] = Fiber(
            self._train, f"run-{self._run_id}"
        )
        self._resolved: Resolved | None = None
        self._trainer: Any = None
        self._instrument: Instrument | None = None
        self._checkpoints = CheckpointPace(parts.spec.checkpoints, parts.spec.checkpoint_every_s)
        self._resumption: Resumption | None = None
        self._forgotten: Forgotten | None = None
        self._position: DataPosition | None = None
        self._begun = False
        self._told: list[Told] = []
        """What was handed out since the present chunk began."""
        self._notes: list[Event] = []
        """To be handed out with the next events."""
        self._own: list[torch.Tensor] | None = None
        """The models' own parameters and buffers, once they have been looked for."""
        self._saved: Path | None = None
        """Where the run was written to when that was last asked for."""
        self._unsent: list[Event] = []
        """Events on their way out; a failure right there must not lose them."""

    @property
    def _run_id(self) -> RunId:
        return self._parts.spec.run_id

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C arrived during the last step."""
        return self._fiber.interrupted

    @property
    def request(self) -> Request | None:
        """What the run waits for, in the middle of a step."""
        return self._request

    @property
    def is_fused(self) -> bool:
        """Whether the run asks for shared passes; known once its trainer stands."""
        return self._is_fused

    def resume(self) -> Sequence[Event]:
        """Train one step, or go on with it until the next request."""
        return self._work(None)

    def step_aside(self) -> None:
        """Give the process its state back, in the middle of a chunk."""
        self._state.leave()

    def take_over(self, other: Task) -> None:
        """Exchange the other's process state for this run's own."""
        if isinstance(other, TrainingTask):
            self._state.take_over(other._state)  # noqa: SLF001 - one of its own kind
        else:
            other.step_aside()

    def stop(self, reason: str) -> Sequence[Event]:
        """Save the run as it is and end it."""
        if not self._begun:
            # There is nothing to save, and resuming the fiber would begin the run.
            self._fiber.close()
            return [RunStopped(run_id=self._run_id, reason=reason, active_s=0.0)]
        return self._work(_Stop(reason))

    def save(self) -> Path | None:
        """Write the paused run down as it stands, and leave it as it is."""
        if not self._begun or self._fiber.done:
            return None
        self._saved, was_entered = None, self._state.entered
        self._state.enter()
        try:
            self._fiber.resume(_Save())
        finally:
            if not was_entered:
                self._state.leave()
        return self._saved

    def close(self) -> None:
        """Unwind the fiber."""
        if not self._fiber.done:
            self._state.enter()
            self._fiber.close()
            self._release()

    def own_tensors(self) -> Iterator[torch.Tensor]:
        """The run's tensors without those that runs share: weights, gradients, optimizer state,
        buffers, a reference model's."""
        if self._trainer is None:
            return
        if self._own is None:
            # Looked for once: modules are many, and a run keeps the parameters it begins with.
            given = _weights(self._parts.spec.config.trainer_kwargs.get("ref_model"))
            shared = self._parts.base.storages() | _addresses(given)
            models = [self._trainer.model]
            if self._parts.create_trainer is None:  # else its reference may be anybody's
                models.append(getattr(self._trainer, "ref_model", None))
            weights = [tensor for model in models for tensor in _weights(model)]
            self._own = [tensor for tensor in weights if not _addresses([tensor]) & shared]
        for tensor in self._own:
            yield tensor
            if tensor.grad is not None:
                yield tensor.grad
        yield from _state_tensors(self._trainer)

    def _work(self, stop: "_Stop | None") -> list[Event]:
        self._fiber.interrupted = False
        self._begun = True
        self._state.enter()
        handed = self._fiber.resume(stop)
        if isinstance(handed, Forward | Backward):
            self._request = handed
            return []
        self._request, events = None, handed
        if self._fiber.done:
            self._release()
        elif isinstance(events[-1], ChunkFinished):
            self._state.leave()
        # Within a chunk the run's state stays in place: only this run goes on from here, and
        # exchanging it costs more than the step of a small model.
        return events

    def _release(self) -> None:
        """Free what the run held on the device, now: a trainer is full of reference cycles."""
        self._instrument = self._trainer = self._own = self._request = None
        self._resumption = self._forgotten = self._position = None
        self._state.leave()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _pause(self, events: list[Event]) -> None:
        """Called in the fiber at every step boundary."""
        instrument = self._instrument
        assert instrument is not None, "only a trainer with its instrument pauses"
        self._unsent = events
        if isinstance(events[-1], RunStarted | ChunkFinished):
            self._parts.base.verify()
        elif self._is_fused:
            # Others go through the base before this chunk ends.
            self._parts.base.glance()
        if isinstance(events[-1], RunStarted) and self._resumption is not None:
            events = [*events, *self._resumption.told]
            self._note(self._resumption.note)
        self._unsent = []
        notes, self._notes = self._notes, []
        instrument.stopwatch.stop()
        request = self._fiber.pause([*notes, *events])
        # Not before: what a checkpoint holds must have been handed out.
        self._keep_told(events)
        while isinstance(request, _Save):
            self._saved = self._write_checkpoint(instrument)
            request = self._fiber.pause([])
        if request is not None:
            self._saved = self._write_checkpoint(instrument)
            raise request
        if self._checkpoints.is_due(instrument.progress) and _is_sound(events):
            self._write_checkpoint(instrument)
        instrument.stopwatch.start()

    def _keep_told(self, events: list[Event]) -> None:
        """Remember what the store may hold back, and policies have in mind, until a chunk ends."""
        if isinstance(events[-1], ChunkFinished):
            self._told.clear()
        else:
            self._told += (e for e in events if isinstance(e, StepFinished | MetricsLogged))

    def _write_checkpoint(self, instrument: Instrument) -> Path | None:
        """Write the run down, and return where. If that cannot be done, it trains on: it has lost
        nothing yet."""
        assert self._position is not None, "it comes with the instrument"
        if not self._position.is_known:
            return None  # a loop of the trainer's own, which nobody can enter in the middle
        if not self._position.is_settled:
            # It has just been taken up, and is what it was taken up from.
            latest = latest_checkpoint(self._parts.spec.checkpoints)
            return None if latest is None else latest.folder
        return self._write(instrument, self._checkpoints.write, completed=False)

    def _write_completed(self, instrument: Instrument) -> Path | None:
        """Write down what clones with more steps go on from, and return where."""
        assert self._position is not None, "it comes with the instrument"
        if not self._position.is_known:
            return None
        folder = completed_folder(self._parts.spec.folder)
        return self._write(instrument, lambda state: save_checkpoint(state, folder), completed=True)

    def _write(
        self, instrument: Instrument, write: Callable[[RunState], Checkpoint], *, completed: bool
    ) -> Path | None:
        assert self._forgotten is not None, "it comes with the instrument"
        assert self._position is not None, "likewise"
        state = RunState(
            trainer=self._trainer,
            forgotten=self._forgotten,
            position=self._position,
            told=self._told,
            progress=instrument.progress,
            completed=completed,
        )
        what, written = f"the checkpoint of run {self._run_id}", []
        try:
            note = self._room.write(
                lambda: written.append(write(state)), self._parts.spec.folder, what
            )
        except Exception as error:
            logger.warning("%s at step %d failed", what, state.progress.step, exc_info=True)
            note = f"at step {state.progress.step} no checkpoint could be written: {error}"
        self._note(note)
        return written[0].folder if written else None

    def _note(self, note: str | None) -> None:
        if note is not None:
            self._notes.append(RunNoted(run_id=self._run_id, note=note))

    def _ask(self, request: Request) -> None:
        """Called in the fiber, in the middle of a step: wait until a gang has answered."""
        instrument = self._instrument
        assert instrument is not None, "only a trainer with its instrument trains"
        instrument.stopwatch.stop()
        self._fiber.pause(request)
        forward = request.forward if isinstance(request, Backward) else request
        instrument.stopwatch.add(forward.seconds)
        instrument.stopwatch.start()

    def _join(self, resolved: Resolved) -> None:
        """Let the trainer share its passes, if that is wished and can be."""
        if self._parts.spec.fuse == "off":
            return
        reason = why_sliced(self._parts, resolved, self._trainer)
        mode = PassMode.FUSED if reason is None else PassMode.SLICED
        if reason is None:
            self._is_fused = True
            FusedBackbone(self._trainer, self._parts, self._ask, self._note)
            reason = "shares its passes through the base with other runs"
        wished = self._parts.spec.fuse == "on"
        self._notes.append(ModeChosen(run_id=self._run_id, mode=mode, reason=reason, wished=wished))

    def _train(self, fiber: "Fiber[_Asked, list[Event] | Request]") -> list[Event]:
        """The fiber's body: the run from its first line to its last event."""
        try:
            instrument = self._run_from_latest()
            events = instrument.finish()
            self._parts.base.verify()
            self._save(self._write_completed(instrument))
            return [
                *self._notes,
                *events,
                RunCompleted(
                    run_id=self._run_id, step=instrument.progress.step, active_s=self._active_s
                ),
            ]
        except _Stop as stop:
            # Whoever asked still holds it, and in its traceback all that the trainer's frames hold.
            stop.__traceback__ = None
            return self._stopped(stop.reason)
        except FiberClosed:
            raise
        except BaseException as error:  # noqa: BLE001 - a failing run must not end the others
            return self._failed(error)

    def _run_from_latest(self) -> Instrument:
        """Let the run train to its end: from its latest checkpoint, or from its parent's if it is a
        clone without any, or from the start."""
        spec = self._parts.spec
        self._resolved = spec.resolve()
        checkpoint = latest_checkpoint(spec.checkpoints)
        if checkpoint is not None:
            try:
                return self._run(self._resolved, Resumption(checkpoint), checkpoint)
            except CannotResumeError as error:
                logger.warning("run %d starts over: %s", self._run_id, error)
                self._resolved = spec.resolve()
        forked = None if spec.fork is None else ForkedStart(spec.fork)
        return self._run(self._resolved, forked, None)

    def _run(
        self, resolved: Resolved, resumption: Resumption | None, checkpoint: Checkpoint | None
    ) -> Instrument:
        """Build the trainer and let it train to its end.

        Args:
            resolved: The arguments in force.
            resumption: Of what the trainer goes on from; None begins at step 0.
            checkpoint: The run's own that it is taken up from.
        """
        step = 0 if checkpoint is None else checkpoint.progress.step
        clear_left_overs(self._parts.spec.folder, step)
        self._resumption = resumption
        self._checkpoints.begin(checkpoint)
        instrument = self._start(resolved)
        self._trainer.train(
            resume_from_checkpoint=None if resumption is None else str(resumption.folder)
        )
        return instrument

    def _start(self, resolved: Resolved) -> Instrument:
        parts, resumption = self._parts, self._resumption
        self._trainer = parts.build_trainer(resolved)
        config = parts.spec.config
        scoring = None
        if config.compute_metrics is not None and config.generation_config is not None:
            scoring = GenerationMetrics(
                config.compute_metrics,
                config.generation_config,
                copy.deepcopy(parts.base.tokenizer),
                parts.eval_dataset,
                resolved.seed,
            )
        self._forgotten = Forgotten(self._trainer, parts.base.storages())
        notes = () if parts.spec.fork is None else parts.spec.fork.notes
        self._join(resolved)
        self._instrument = Instrument(
            self._run_id,
            self._trainer,
            num_chunks=parts.spec.num_chunks,
            pause=self._pause,
            resolved=resolved.to_json(),
            notes=(*resolved.notes, *parts.notes, *notes),
            scoring=scoring,
            resumption=resumption,
        )
        self._position = DataPosition(
            self._trainer, None if resumption is None else resumption.locate
        )
        if resumption is not None:
            resumption.prepare(self._trainer, self._forgotten)
        self._instrument.stopwatch.start()
        return self._instrument

    @property
    def _active_s(self) -> float:
        return 0.0 if self._instrument is None else self._instrument.stopwatch.read_s()

    def _save(self, checkpoint: Path | None = None) -> None:
        """Write the run's folder.

        Args:
            checkpoint: Of the run as it is now, if it has just been written.
        """
        resolved = self._resolved
        assert resolved is not None, "a trainer is built from resolved arguments"
        spec, trainer = self._parts.spec, self._trainer
        config = {"config": spec.config.to_json(), "resolved": resolved.to_json()}
        note = self._room.write(
            lambda: save_run(trainer, spec.final, config, checkpoint),
            spec.folder,
            f"run {self._run_id}",
        )
        self._note(note)

    def _stopped(self, reason: str) -> list[Event]:
        try:
            self._save(self._saved)
        except Exception as error:
            if not self._room.is_given_up():
                return self._failed(error)
            # The process has to end. The run goes on from its latest checkpoint.
            logger.warning("run %d could not be saved", self._run_id, exc_info=True)
        return [
            *self._notes,
            RunStopped(run_id=self._run_id, reason=reason, active_s=self._active_s),
        ]

    def _failed(self, error: BaseException) -> list[Event]:
        events = self._unsent
        if self._instrument is not None:
            events = [*events, *self._instrument.take_events()]
        notes = []
        try:
            self._parts.base.verify()
        except SharedWeightsError as written:
            notes.append(str(written))
        if self._instrument is not None and self._instrument.progress.step > 0:
            try:
                self._save()
            except Exception as unsaved:
                notes.append(f"what it had learned could not be saved: {unsaved}")
                logger.exception("run %d could not be saved", self._run_id)
        failed = RunFailed(
            run_id=self._run_id,
            error=_one_line(error, self._parts.spec.device),
            traceback="".join(traceback.format_exception(error)),
            active_s=self._active_s,
            notes=tuple(notes),
        )
        events = [*self._notes, *events]
        return [*(event for event in events if not isinstance(event, ChunkFinished)), failed]


class _Save:
    """Asks a paused run to write itself down, and to stay where it is."""


class _Stop(BaseException):
    """Unwinds a trainer that is to be stopped. Not an Exception, so that callbacks let it pass."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


_Asked = _Stop | _Save
"""What a paused run may be resumed with instead of going on."""


def _is_sound(events: list[Event]) -> bool:
    """Whether the last step's loss is a number: weights that are not must not replace good ones,
    and a run that was taken up would count its bad losses anew."""
    losses = [event.loss for event in events if isinstance(event, StepFinished)]
    return all(map(math.isfinite, losses))


def _one_line(error: BaseException, device: torch.device) -> str:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return (
            f"out of memory on {device}: a smaller per_device_train_batch_size (with more "
            "gradient_accumulation_steps), max_length or LoRA rank needs less"
        )
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _weights(model: Any) -> list[torch.Tensor]:
    """The model's parameters and buffers; none of what is no model, such as its name."""
    if not isinstance(model, torch.nn.Module):
        return []
    return [*model.parameters(), *model.buffers()]


def _addresses(tensors: Sequence[torch.Tensor]) -> set[int]:
    """Of their storages."""
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def _state_tensors(trainer: Any) -> Iterator[torch.Tensor]:
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    if optimizer is not None:
        yield from _tensors_in(list(optimizer.state.values()))
    # Completions that GRPO and RLOO generated and have not trained on yet.
    yield from _tensors_in(getattr(trainer, "_buffered_inputs", None))


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors_in(item)
