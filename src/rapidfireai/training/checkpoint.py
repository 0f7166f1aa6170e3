"""A run on disk in the middle of its training, such that it goes on bit for bit.

A checkpoint is the trainer's own (`Trainer._save_checkpoint`'s layout, so that plain transformers
resumes from it too), plus what the trainer forgets, where in its data it stands, and what it
reported in its present chunk. It is written under another name, its manifest last, and then
renamed: a folder without a matching manifest is none.
"""

import logging
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from rapidfireai.core.events import MetricsLogged, MetricSource, StepFinished
from rapidfireai.core.fork import Standing, Walk
from rapidfireai.faults import reach
from rapidfireai.training.forgotten import Forgotten
from rapidfireai.training.manifest import (
    checkpoints,
    checkpoints_folder,
    completed_folder,
    link_or_copy,
    read_manifest,
    step_of,
    write_manifest,
)
from rapidfireai.training.position import DataPosition, Place

logger = logging.getLogger(__name__)

_ENGINE_STATE = "engine_state.pt"
_UNFINISHED = ".unfinished"

COST_FACTOR = 50
"""A checkpoint may cost a fiftieth of the training between two, which is 2 %."""

_KEPT = 2
"""Checkpoints of a run on disk: the latest, and the one before for when that turns out broken."""

Told = StepFinished | MetricsLogged
"""What a store may hold back for a while; see `store.Recorder`."""


class CannotResumeError(Exception):
    """The trainer's `train` does not go on from a checkpoint."""


class DamagedCheckpointError(ValueError):
    """A folder that is no complete checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a run was when it was written down."""

    step: int
    chunks_done: int
    active_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    progress: Progress
    standing: Standing
    """Where the run stood in its data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunState:
    """All of a run that is written down, as it stands at a step boundary or at its end."""

    trainer: Any
    """Paused in front of `get_batch_samples`, with its process state in place."""
    forgotten: Forgotten
    position: DataPosition
    told: Sequence[Told]
    """What the run has reported in its present chunk: the store may not have it all yet."""
    progress: Progress
    completed: bool = False
    """Whether the trainer's `train` has returned."""


def save_checkpoint(state: RunState, folder: Path) -> Checkpoint:
    """Write the run down.

    Args:
        folder: Of all the run's checkpoints.

    Raises:
        OSError: It cannot be written. The checkpoints before it are as they were.
        NotPlainError: The trainer keeps something that cannot be written down.
    """
    progress, standing = state.progress, state.position.standing(completed=state.completed)
    target = folder / f"checkpoint-{progress.step}"
    unfinished = folder / f"{target.name}{_UNFINISHED}"
    for left_over in folder.glob(f"*{_UNFINISHED}"):
        shutil.rmtree(left_over, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        reach("checkpoint.begun")
        _write_trainer(state.trainer, unfinished)
        reach("checkpoint.trainer_written")
        engine_state = {
            "forgotten": state.forgotten.take(),
            "position": state.position.plain(),
            "told": [_plain_event(event) for event in state.told],
        }
        torch.save(engine_state, unfinished / _ENGINE_STATE)
        reach("checkpoint.before_manifest")
        write_manifest(unfinished, {"progress": asdict(progress), "standing": standing.to_json()})
    except BaseException:
        # On a full disk its own beginning may be what takes the room.
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    reach("checkpoint.before_rename")
    shutil.rmtree(target, ignore_errors=True)
    os.replace(unfinished, target)
    reach("checkpoint.after_rename")
    for old in checkpoints(folder)[_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    reach("checkpoint.older_removed")
    return Checkpoint(folder=target, progress=progress, standing=standing)


def read_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in the folder, every file of it checked.

    Raises:
        DamagedCheckpointError: There is none, or it is not what was written.
    """
    try:
        content = read_manifest(folder)
        progress = Progress(**content["progress"])
        standing = Standing.from_json(content["standing"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(f"checkpoint {folder} is damaged: {error}") from error
    return Checkpoint(folder=folder, progress=progress, standing=standing)


def copy_checkpoint(source: Path, target: Path) -> Checkpoint:
    """Copy a complete checkpoint, such that the copy stays when the original is removed.

    The copy appears as a whole or not at all. It shares its files with the original where the file
    system can do that: no checkpoint is ever written to.

    Args:
        source: Folder of the checkpoint.
        target: Folder of the copy. One that is there already is replaced.

    Raises:
        DamagedCheckpointError: The source is no complete checkpoint, or was removed meanwhile.
        OSError: The copy cannot be written.
    """
    read_checkpoint(source)
    unfinished = target.with_name(target.name + _UNFINISHED)
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, unfinished, copy_function=link_or_copy)
        read_checkpoint(unfinished)
    except shutil.Error as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise DamagedCheckpointError(
            f"checkpoint {source} was removed while it was copied"
        ) from error
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    shutil.rmtree(target, ignore_errors=True)
    os.replace(unfinished, target)
    return read_checkpoint(target)


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The latest that is whole; None if there is none."""
    for candidate in checkpoints(folder):
        try:
            return read_checkpoint(candidate)
        except DamagedCheckpointError as error:
            logger.warning(
                "checkpoint %s is damaged, the one before it is used: %s",
                candidate,
                error.__cause__,
            )
    return None


def latest_state(run_folder: Path) -> Checkpoint | None:
    """What a clone of the run can go on from: the run's end if it has completed, else its latest
    checkpoint; None if there is none."""
    return latest_checkpoint(completed_folder(run_folder)) or latest_checkpoint(
        checkpoints_folder(run_folder)
    )


def clear_left_overs(run_folder: Path, step: int) -> None:
    """Remove what a process that was killed left behind and nobody needs.

    Args:
        run_folder: Where the run's trainer saves by itself. What it saved after `step` would take
            part in the choice of which ones are kept.
        step: At which the run is taken up.
    """
    later = [path for path in checkpoints(run_folder) if step_of(path) > step]
    unfinished = checkpoints_folder(run_folder).glob(f"*{_UNFINISHED}")
    for path in (*later, *unfinished, completed_folder(run_folder)):
        shutil.rmtree(path, ignore_errors=True)


class CheckpointPace:
    """Writes checkpoints as often as that costs little.

    Args:
        folder: Of all the run's checkpoints.
        every_s: Seconds of training between two, at least.
        clock: Seconds on any scale; tells what writing costs.
    """

    def __init__(
        self, folder: Path, every_s: float, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._folder = folder
        self._every_s = every_s
        self._clock = clock
        self._cost_s = 0.0
        self._since_s: float | None = None
        """Active seconds of the run when it was last written down, or taken up."""
        self._written: Checkpoint | None = None

    def begin(self, checkpoint: Checkpoint | None) -> None:
        """The run begins, or goes on from the checkpoint."""
        self._written = checkpoint
        self._since_s = 0.0 if checkpoint is None else checkpoint.progress.active_s

    def is_due(self, progress: Progress) -> bool:
        """Whether the run has trained 50 times as long as writing it down took."""
        assert self._since_s is not None, "the run has begun"
        due_s = max(self._every_s, COST_FACTOR * self._cost_s)
        return not self._is_written(progress) and progress.active_s - self._since_s >= due_s

    def write(self, state: RunState) -> Checkpoint:
        """Write the run down, unless it has been at this very step; see `save_checkpoint`."""
        if self._written is not None and self._is_written(state.progress):
            return self._written
        begin_s = self._clock()
        try:
            self._written = save_checkpoint(state, self._folder)
        finally:
            self._cost_s = self._clock() - begin_s
            self._since_s = state.progress.active_s
        return self._written

    def _is_written(self, progress: Progress) -> bool:
        return self._written is not None and self._written.progress.step == progress.step


class Resumption:
    """Puts back what `Trainer.train(resume_from_checkpoint=...)` leaves out."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.folder = checkpoint.folder
        """For `Trainer.train(resume_from_checkpoint=...)`."""
        self.progress = checkpoint.progress
        saved = torch.load(checkpoint.folder / _ENGINE_STATE, weights_only=True)
        self._position: Mapping[str, Any] = saved["position"]
        self.told = [_event(plain) for plain in saved["told"]]
        """What the run had reported in its chunk; to be reported again."""
        self.note: str | None = None
        """What is to be said about where the run goes on; known when it does."""
        self._forgotten: Mapping[str, Any] = saved["forgotten"]
        self._forgets: Forgotten | None = None
        self._args: dict[str, Any] = {}

    def locate(self, walk: Walk) -> Place:
        """Where the trainer goes on; for `DataPosition`."""
        return Place.from_plain(self._position, self.progress.step)

    def prepare(self, trainer: Any, forgotten: Forgotten) -> None:
        """Before the trainer's `train` is called."""
        self._forgets = forgotten
        # The evaluation before the first step has been done; and data has to be skipped.
        overridden = {"eval_on_start": False, "ignore_data_skip": False}
        self._args = {name: getattr(trainer.args, name) for name in overridden}
        vars(trainer.args).update(overridden)

    def apply(self, trainer: Any) -> None:
        """In the trainer's first call of `get_batch_samples`: `train` has reset it by then.

        Raises:
            CannotResumeError: The trainer has begun from the start.
        """
        assert self._forgets is not None, "it has been prepared"
        vars(trainer.args).update(self._args)
        if trainer.state.global_step != self.progress.step:
            raise CannotResumeError(
                f"{type(trainer).__name__}.train(resume_from_checkpoint=...) began at step "
                f"{trainer.state.global_step} instead of {self.progress.step}"
            )
        self._forgets.give(self._forgotten)


def _write_trainer(trainer: Any, folder: Path) -> None:
    """The parts of `Trainer._save_checkpoint` that do not choose folders or delete any."""
    with _without_model_card(trainer.model), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="peft")
        trainer.save_model(str(folder), _internal_call=True)
    trainer._save_optimizer_and_scheduler(str(folder))  # noqa: SLF001
    trainer._save_scaler(str(folder))  # noqa: SLF001
    trainer._save_rng_state(str(folder))  # noqa: SLF001
    state = trainer.state
    before = dict(state.stateful_callbacks)
    try:
        for callback in (*trainer.callback_handler.callbacks, trainer.control):
            name = type(callback).__name__
            if name in state.stateful_callbacks:
                state.stateful_callbacks[name] = callback.state()
        state.save_to_json(str(folder / "trainer_state.json"))
    finally:
        state.stateful_callbacks = before


@contextmanager
def _without_model_card(model: Any) -> Iterator[None]:
    """PEFT writes a README beside an adapter, which takes four times as long as the rest."""
    if not isinstance(model, PeftModel):
        yield
        return
    model.create_or_update_model_card = lambda output_dir: None
    try:
        yield
    finally:
        del model.create_or_update_model_card


def _plain_event(event: Told) -> dict[str, Any]:
    plain = asdict(event)
    if isinstance(event, MetricsLogged):
        plain["source"] = event.source.value
    return plain


def _event(plain: Mapping[str, Any]) -> Told:
    if "source" not in plain:
        return StepFinished(**plain)
    return MetricsLogged(**{**plain, "source": MetricSource(plain["source"])})
