"""N configurations, one dataset and a `create_model`: checked together, then trained by turns."""

import copy
import gc
import inspect
import logging
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from rapidfireai.core.events import (
    ChunkFinished,
    Event,
    RunCompleted,
    RunFailed,
    RunStarted,
    RunStopped,
)
from rapidfireai.core.ids import RunId
from rapidfireai.errors import ConfigError, RapidFireError, SharedWeightsError
from rapidfireai.training.arguments import Resolved, resolve
from rapidfireai.training.config import RunConfig
from rapidfireai.training.data import AnyDataset, Formatter, check_dataset
from rapidfireai.training.instrument import Instrument
from rapidfireai.training.output import save_run
from rapidfireai.training.registry import trainer_spec
from rapidfireai.workers.fiber import Fiber, FiberClosed
from rapidfireai.workers.process_state import ProcessState
from rapidfireai.workers.shared_weights import Base, Bases, CreateModel

logger = logging.getLogger(__name__)


def default_device() -> torch.device:
    """The first CUDA device, or else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSpec:
    """A run as the training workload knows it."""

    run_id: RunId
    config: RunConfig
    folder: Path
    """The trainer's output folder."""
    final: Path
    """Where the ended run is saved."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingData:
    """What all runs train and are compared on."""

    train: AnyDataset
    eval: AnyDataset | Mapping[str, AnyDataset] | None = None

    def check(self) -> None:
        """Refuse what cannot be trained on.

        Raises:
            DatasetError: One of the datasets is no dataset, or empty.
        """
        check_dataset(self.train, "train_dataset")
        if isinstance(self.eval, Mapping):
            for name, dataset in self.eval.items():
                check_dataset(dataset, f"eval_dataset[{name!r}]")
        elif self.eval is not None:
            check_dataset(self.eval, "eval_dataset")


@dataclass(frozen=True, slots=True)
class _Prepared:
    """All that a run's trainer is built from."""

    base: Base
    train: AnyDataset
    eval: AnyDataset | dict[str, AnyDataset] | None
    notes: tuple[str, ...]


class TrainingWorkload:
    """Trains TRL configurations; implements `workers.task.Workload`.

    Args:
        runs: The runs.
        create_model: Model configuration -> (model, tokenizer).
        data: The datasets.
        num_chunks: Chunks an epoch.
        seed: For runs that set none.
        folder: For prepared data.
        device: Where runs train.
    """

    def __init__(  # noqa: PLR0913 - the facade's arguments, taken apart once
        self,
        runs: Sequence[RunSpec],
        create_model: CreateModel,
        data: TrainingData,
        *,
        num_chunks: int,
        seed: int,
        folder: Path,
        device: torch.device,
    ) -> None:
        self._runs = {run.run_id: run for run in runs}
        self.bases = Bases(create_model, device)
        self._data = data
        self.num_chunks = num_chunks
        self._seed = seed
        self._formatter = Formatter(folder)
        self.device = device
        self._prepared: dict[RunId, _Prepared] = {}

    def prepare(self) -> None:
        """Check every run as far as that goes without training, and load the bases.

        Raises:
            RapidFireError: A run cannot work; nothing has been trained.
        """
        self._data.check()
        for run in self._runs.values():
            with ProcessState():
                try:
                    resolved = self.resolve(run)
                    self._prepared[run.run_id] = self._prepare(run, resolved)
                except RapidFireError as error:
                    if len(self._runs) > 1:
                        error.add_note(f"(configuration {run.run_id} of {len(self._runs)})")
                    raise

    def task(self, run_id: RunId) -> "TrainingTask":
        """The task of a run."""
        return TrainingTask(self, self._runs[run_id])

    def resolve(self, run: RunSpec) -> Resolved:
        """The run's arguments in force, as new objects."""
        return resolve(
            run.config, device=self.device, output_dir=run.folder, default_seed=self._seed
        )

    def build_trainer(self, run: RunSpec, resolved: Resolved) -> tuple[Any, tuple[str, ...]]:
        """The run's trainer, ready to train, and the notes on how its data was prepared.

        To be called with the run's own process state in place, in the run's own thread.
        """
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        prepared = self._prepared[run.run_id]
        spec = trainer_spec(run.config.trainer_type)
        tunes_all = resolved.peft_config is None and not _has_adapters(prepared.base)
        model = prepared.base.clone(private=tunes_all or resolved.private_base is not None)
        # Callbacks, reward models and the like keep state: every run has its own.
        given = {name: _own(value) for name, value in run.config.trainer_kwargs.items()}
        trainer_class = spec.load_trainer()
        if tunes_all and "ref_model" in inspect.signature(trainer_class).parameters:
            given.setdefault("ref_model", prepared.base.clone(private=False))
        if resolved.peft_config is not None:
            given["peft_config"] = resolved.peft_config
        trainer = trainer_class(
            model=model,
            args=resolved.args,
            train_dataset=prepared.train,
            eval_dataset=prepared.eval,
            processing_class=copy.deepcopy(prepared.base.tokenizer),
            **given,
        )
        return trainer, prepared.notes

    def _prepare(self, run: RunSpec, resolved: Resolved) -> _Prepared:
        _check_trainer_kwargs(run.config)
        base = self.bases.get(run.config.model, resolved.args.seed)
        chat = getattr(base.tokenizer, "chat_template", None) is not None
        train, notes = self._formatter.format(
            self._data.train, "train_dataset", run.config, chat=chat
        )
        evaluation = self._data.eval
        if isinstance(evaluation, Mapping):
            evaluation = {
                name: self._formatter.format(
                    dataset, f"eval_dataset[{name!r}]", run.config, chat=chat
                )[0]
                for name, dataset in evaluation.items()
            }
        elif evaluation is not None:
            evaluation = self._formatter.format(evaluation, "eval_dataset", run.config, chat=chat)[
                0
            ]
        return _Prepared(base, train, evaluation, notes)


class TrainingTask:
    """One run's trainer in its fiber; implements `workers.task.Task`."""

    def __init__(self, workload: TrainingWorkload, run: RunSpec) -> None:
        self._workload = workload
        self._run = run
        self._state = ProcessState()
        self._fiber: Fiber[str, list[Event]] = Fiber(self._train, f"run-{run.run_id}")
        self._instrument: Instrument | None = None

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C arrived during the last step."""
        return self._fiber.interrupted

    def resume(self) -> Sequence[Event]:
        """Train one step."""
        return self._work(None)

    def stop(self, reason: str) -> Sequence[Event]:
        """Save the run as it is and end it."""
        return self._work(reason)

    def close(self) -> None:
        """Unwind the fiber."""
        if not self._fiber.done:
            self._state.enter()
            self._fiber.close()
            self._release()

    def _work(self, stop: str | None) -> list[Event]:
        self._fiber.interrupted = False
        self._state.enter()
        events = self._fiber.resume(stop)
        if self._fiber.done:
            self._release()
        elif isinstance(events[-1], ChunkFinished):
            self._state.leave()
        # Within a chunk the run's state stays in place: only this run goes on from here, and
        # exchanging it costs more than the step of a small model.
        return events

    def _release(self) -> None:
        """Free what the run held on the device, now: a trainer is full of reference cycles."""
        self._instrument = None
        self._state.leave()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _pause(self, events: list[Event]) -> None:
        """Called in the fiber at every step boundary."""
        instrument = self._instrument
        assert instrument is not None, "only a trainer with its instrument pauses"
        if isinstance(events[-1], RunStarted | ChunkFinished):
            self._workload.bases.verify()
        instrument.stopwatch.stop()
        reason = self._fiber.pause(events)
        instrument.stopwatch.start()
        if reason is not None:
            raise _Stop(reason)

    def _train(self, fiber: Fiber[str, list[Event]]) -> list[Event]:
        """The fiber's body: the run from its first line to its last event."""
        run_id = self._run.run_id
        trainer, resolved = None, None
        try:
            resolved = self._workload.resolve(self._run)
            trainer = self._start(resolved)
            trainer.train()
            assert self._instrument is not None, "set with the trainer"
            events = self._instrument.finish()
            self._workload.bases.verify()
            self._save(trainer, resolved)
            return [
                *events,
                RunCompleted(run_id=run_id, step=self._instrument.step, active_s=self._active_s),
            ]
        except _Stop as stop:
            self._save(trainer, resolved)
            return [RunStopped(run_id=run_id, reason=stop.reason, active_s=self._active_s)]
        except FiberClosed:
            raise
        except BaseException as error:  # noqa: BLE001 - a failing run must not end the others
            return self._failed(error, trainer, resolved)

    def _start(self, resolved: Resolved) -> Any:
        trainer, notes = self._workload.build_trainer(self._run, resolved)
        self._instrument = Instrument(
            self._run.run_id,
            trainer,
            num_chunks=self._workload.num_chunks,
            pause=self._pause,
            resolved=resolved.to_json(),
            notes=(*resolved.notes, *notes),
        )
        self._instrument.stopwatch.start()
        return trainer

    @property
    def _active_s(self) -> float:
        return 0.0 if self._instrument is None else self._instrument.stopwatch.read_s()

    def _save(self, trainer: Any, resolved: Resolved | None) -> None:
        assert resolved is not None, "a trainer is built from resolved arguments"
        config = {"config": self._run.config.to_json(), "resolved": resolved.to_json()}
        save_run(trainer, self._run.final, config)

    def _failed(self, error: BaseException, trainer: Any, resolved: Resolved | None) -> list[Event]:
        events = [] if self._instrument is None else self._instrument.take_events()
        notes = []
        try:
            self._workload.bases.verify()
        except SharedWeightsError as written:
            notes.append(str(written))
        if self._instrument is not None and self._instrument.step > 0:
            try:
                self._save(trainer, resolved)
            except Exception as unsaved:
                notes.append(f"what it had learned could not be saved: {unsaved}")
                logger.exception("run %d could not be saved", self._run.run_id)
        failed = RunFailed(
            run_id=self._run.run_id,
            error=_one_line(error, self._workload.device),
            traceback="".join(traceback.format_exception(error)),
            active_s=self._active_s,
            notes=tuple(notes),
        )
        return [*(event for event in events if not isinstance(event, ChunkFinished)), failed]


class _Stop(BaseException):
    """Unwinds a trainer that is to be stopped. Not an Exception, so that callbacks let it pass."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def _one_line(error: BaseException, device: torch.device) -> str:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return (
            f"out of memory on {device}: a smaller per_device_train_batch_size (with more "
            "gradient_accumulation_steps), max_length or LoRA rank needs less"
        )
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _has_adapters(base: Base) -> bool:
    return isinstance(base.model, PeftModel)


def _own(value: Any) -> Any:
    """A copy for one run; models in it share their weights, since nobody trains them."""
    memo = {
        id(tensor): tensor
        for module in _modules(value)
        for tensor in (*module.parameters(), *module.buffers())
    }
    return copy.deepcopy(value, memo)


def _modules(value: Any) -> Iterator[torch.nn.Module]:
    if isinstance(value, torch.nn.Module):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _modules(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _modules(item)


def _check_trainer_kwargs(config: RunConfig) -> None:
    """Refuse what the trainer's constructor would only refuse once the others train."""
    given = config.trainer_kwargs
    for name, value in given.items():
        try:
            _own(value)
        except Exception as error:
            raise ConfigError(
                f"{name}={value!r} cannot be copied ({type(error).__name__}: {error}), but every "
                "run needs one of its own. Leave locks, files and connections out of it, or open "
                "them when training begins."
            ) from error
