"""One run's trainer in its fiber, from its first line to its last event."""

import copy
import gc
import logging
import math
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from rapidfireai.core.events import (
    ChunkFinished,
    Event,
    MetricsLogged,
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
)
from rapidfireai.training.forgotten import Forgotten
from rapidfireai.training.fused import FusedBackbone, why_sliced
from rapidfireai.training.generation import GenerationMetrics
from rapidfireai.training.instrument import Instrument
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
        self._fiber: Fiber[str, list[Event] | Request] = Fiber(self._train, f"run-{self._run_id}")
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
        """The model's own parameters and buffers, once they have been looked for."""
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
        return self._work(reason)

    def close(self) -> None:
        """Unwind the fiber."""
        if not self._fiber.done:
            self._state.enter()
            self._fiber.close()
            self._release()

    def own_tensors(self) -> Iterator[torch.Tensor]:
        """The run's tensors without the base's: weights, gradients, optimizer state, buffers."""
        if self._trainer is None:
            return
        if self._own is None:
            # Looked for once: modules are many, and a run keeps the parameters it begins with.
            shared = self._parts.base.storages()
            model = self._trainer.model
            self._own = [
                tensor
                for tensor in (*model.parameters(), *model.buffers())
                if tensor.untyped_storage().data_ptr() not in shared
            ]
        for tensor in self._own:
            yield tensor
            if tensor.grad is not None:
                yield tensor.grad
        yield from _state_tensors(self._trainer)

    def _work(self, stop: str | None) -> list[Event]:
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
        self._unsent = []
        notes, self._notes = self._notes, []
        instrument.stopwatch.stop()
        reason = self._fiber.pause([*notes, *events])
        # Not before: what a checkpoint holds must have been handed out.
        self._keep_told(events)
        if reason is not None:
            self._write_checkpoint(instrument)
            raise _Stop(reason)
        if self._checkpoints.is_due(instrument.progress) and _is_sound(events):
            self._write_checkpoint(instrument)
        instrument.stopwatch.start()

    def _keep_told(self, events: list[Event]) -> None:
        """Remember what the store may hold back, and policies have in mind, until a chunk ends."""
        if isinstance(events[-1], ChunkFinished):
            self._told.clear()
        else:
            self._told += (e for e in events if isinstance(e, StepFinished | MetricsLogged))

    def _write_checkpoint(self, instrument: Instrument) -> None:
        """Write the run down. If that cannot be done, it trains on: it has lost nothing yet."""
        assert self._forgotten is not None, "it comes with the instrument"
        assert self._position is not None, "likewise"
        if not self._position.is_known:
            return  # a loop of the trainer's own, which nobody can enter in the middle
        progress = instrument.progress
        state = RunState(
            trainer=self._trainer,
            forgotten=self._forgotten,
            position=self._position,
            told=self._told,
            progress=progress,
        )
        what = f"the checkpoint of run {self._run_id}"
        try:
            note = self._room.write(
                lambda: self._checkpoints.write(state), self._parts.spec.folder, what
            )
        except Exception as error:
            logger.warning("%s at step %d failed", what, progress.step, exc_info=True)
            note = f"at step {progress.step} no checkpoint could be written: {error}"
        self._note(note)

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

    def _join(self, resolved: Resolved) -> str | None:
        """Let the trainer share its passes, if that is wished and can be; a note of which."""
        if not self._parts.spec.fuse:
            return None
        reason = why_sliced(self._parts, resolved, self._trainer)
        if reason is not None:
            return f"time-sliced, not fused: {reason}"
        self._is_fused = True
        FusedBackbone(self._trainer, self._parts, self._ask, self._note)
        return "fused: shares its passes through the base with other runs"

    def _train(self, fiber: Fiber[str, list[Event] | Request]) -> list[Event]:
        """The fiber's body: the run from its first line to its last event."""
        resolved = None
        try:
            resolved = self._parts.spec.resolve()
            checkpoint = latest_checkpoint(self._parts.spec.checkpoints)
            try:
                instrument = self._run(resolved, checkpoint)
            except CannotResumeError as error:
                logger.warning("run %d starts over: %s", self._run_id, error)
                resolved = self._parts.spec.resolve()
                instrument = self._run(resolved, None)
            events = instrument.finish()
            self._parts.base.verify()
            self._save(resolved)
            return [
                *self._notes,
                *events,
                RunCompleted(
                    run_id=self._run_id, step=instrument.progress.step, active_s=self._active_s
                ),
            ]
        except _Stop as stop:
            return self._stopped(stop.reason, resolved)
        except FiberClosed:
            raise
        except BaseException as error:  # noqa: BLE001 - a failing run must not end the others
            return self._failed(error, resolved)

    def _run(self, resolved: Resolved, checkpoint: Checkpoint | None) -> Instrument:
        """Build the trainer and let it train to its end."""
        spec, step = self._parts.spec, 0 if checkpoint is None else checkpoint.progress.step
        clear_left_overs(spec.folder, spec.checkpoints, step)
        instrument = self._start(resolved, checkpoint)
        self._trainer.train(
            resume_from_checkpoint=None if checkpoint is None else str(checkpoint.folder)
        )
        return instrument

    def _start(self, resolved: Resolved, checkpoint: Checkpoint | None) -> Instrument:
        parts = self._parts
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
        self._resumption = None if checkpoint is None else Resumption(checkpoint)
        self._forgotten = Forgotten(self._trainer, parts.base.storages())
        self._checkpoints.begin(checkpoint)
        joined = self._join(resolved)
        self._instrument = Instrument(
            self._run_id,
            self._trainer,
            num_chunks=parts.spec.num_chunks,
            pause=self._pause,
            resolved=resolved.to_json(),
            notes=(*resolved.notes, *parts.notes, *([] if joined is None else [joined])),
            scoring=scoring,
            resumption=self._resumption,
        )
        self._position = DataPosition(
            self._trainer, None if self._resumption is None else self._resumption.position
        )
        if self._resumption is not None:
            self._resumption.prepare(self._trainer, self._forgotten)
        self._instrument.stopwatch.start()
        return self._instrument

    @property
    def _active_s(self) -> float:
        return 0.0 if self._instrument is None else self._instrument.stopwatch.read_s()

    def _save(self, resolved: Resolved | None) -> None:
        assert resolved is not None, "a trainer is built from resolved arguments"
        spec, trainer = self._parts.spec, self._trainer
        config = {"config": spec.config.to_json(), "resolved": resolved.to_json()}
        note = self._room.write(
            lambda: save_run(trainer, spec.final, config), spec.folder, f"run {self._run_id}"
        )
        self._note(note)

    def _stopped(self, reason: str, resolved: Resolved | None) -> list[Event]:
        try:
            self._save(resolved)
        except Exception as error:
            if not self._room.is_given_up():
                return self._failed(error, resolved)
            # The process has to end. The run goes on from its latest checkpoint.
            logger.warning("run %d could not be saved", self._run_id, exc_info=True)
        return [
            *self._notes,
            RunStopped(run_id=self._run_id, reason=reason, active_s=self._active_s),
        ]

    def _failed(self, error: BaseException, resolved: Resolved | None) -> list[Event]:
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
                self._save(resolved)
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


class _Stop(BaseException):
    """Unwinds a trainer that is to be stopped. Not an Exception, so that callbacks let it pass."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


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
