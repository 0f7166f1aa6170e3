"""A run on disk in the middle of its training, such that it goes on bit for bit.

A checkpoint is the trainer's own (`Trainer._save_checkpoint`'s layout, so that plain transformers
resumes from it too), plus what the trainer keeps in attributes and forgets: sums behind the next
log row, TRL's metrics, completions that were generated and not trained on yet. It is written under
another name, its manifest last, and then renamed: a folder without a matching manifest is none.
"""

import hashlib
import json
import logging
import os
import shutil
import time
import warnings
from collections import deque
from collections.abc import Mapping, MutableMapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from rapidfireai.workers.process_state import RngState

logger = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
_EXTRAS = "engine_state.pt"
_COST_FACTOR = 50
"""A checkpoint may cost a fiftieth of the training between two, which is 2 %."""

_KEPT = 2
"""Checkpoints of a run on disk: the latest, and the one before for when that turns out broken."""

_FORGOTTEN = (
    # transformers: what `train` resets although a checkpoint is given.
    "_tr_loss",
    "_total_loss_scalar",
    "_globalstep_last_logged",
    "_initial_global_step",
    "_initial_num_input_tokens_seen",
    "current_flos",
    # TRL: metrics since the last log row, and texts for `log_completions`.
    "_metrics",
    "_logs",
    "_total_train_tokens",
    # GRPO and RLOO: where in a generation batch the run stands.
    "_step",
    "_buffered_inputs",
    "_last_loaded_step",
    "_last_world_entropy",
    "_entropy_window_stats",
)
"""Attributes of trainers that decide about the numbers to come."""


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


def save_checkpoint(trainer: Any, folder: Path, progress: Progress) -> Checkpoint:
    """Write the run down, as it stands at a step boundary.

    Args:
        trainer: Paused in front of `get_batch_samples`, with its process state in place.
        folder: Of all the run's checkpoints.
        progress: How far the run is.

    Raises:
        OSError: It cannot be written. The checkpoints before it are as they were.
    """
    target = folder / f"checkpoint-{progress.step}"
    unfinished = folder / f"{target.name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    _write_trainer(trainer, unfinished)
    extras = {name: _plain(getattr(trainer, name)) for name in _FORGOTTEN if name in vars(trainer)}
    torch.save({"attributes": extras, "rng": RngState.capture().plain()}, unfinished / _EXTRAS)
    manifest = {
        "progress": asdict(progress),
        "files": {path.name: _digest(path) for path in sorted(unfinished.iterdir())},
    }
    _write_synced(unfinished / _MANIFEST, json.dumps(manifest, indent=1))
    shutil.rmtree(target, ignore_errors=True)
    os.replace(unfinished, target)
    for old in _folders(folder)[_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return Checkpoint(folder=target, progress=progress)


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The latest that is whole; None if there is none."""
    for candidate in _folders(folder):
        try:
            manifest = json.loads((candidate / _MANIFEST).read_text())
            if all(_digest(candidate / name) == d for name, d in manifest["files"].items()):
                return Checkpoint(folder=candidate, progress=Progress(**manifest["progress"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("checkpoint %s cannot be read: %s", candidate, error)
            continue
        logger.warning("checkpoint %s is damaged; the one before it is used", candidate)
    return None


class CheckpointPace:
    """Writes checkpoints as often as that costs little.

    Args:
        folder: Of all the run's checkpoints.
        every_s: Seconds of training between two, at least.
    """

    def __init__(self, folder: Path, every_s: float) -> None:
        self._folder = folder
        self._every_s = every_s
        self._cost_s = 0.0
        self._last: Progress | None = None

    def at_boundary(self, trainer: Any, progress: Progress) -> None:
        """Write one if it is due: the run has trained 50 times as long as the last one took."""
        if self._last is None:
            # What the run goes on from is on disk already.
            self._last = progress
        due_s = max(self._every_s, _COST_FACTOR * self._cost_s)
        if progress.step > self._last.step and progress.active_s - self._last.active_s >= due_s:
            self.write(trainer, progress)

    def write(self, trainer: Any, progress: Progress) -> None:
        """Write one now; see `save_checkpoint`."""
        begin = time.perf_counter()
        save_checkpoint(trainer, self._folder, progress)
        self._cost_s = time.perf_counter() - begin
        self._last = progress


class Resumption:
    """Puts back what `Trainer.train(resume_from_checkpoint=...)` leaves out.

    To be applied in the trainer's first call of `get_batch_samples`: `train` has reset the
    attributes by then, and has drawn random numbers that the run had drawn before.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        saved = torch.load(checkpoint.folder / _EXTRAS, weights_only=True)
        self._attributes: dict[str, Any] = saved["attributes"]
        self._rng = RngState.from_plain(saved["rng"])
        self.progress = checkpoint.progress

    def apply(self, trainer: Any) -> None:
        """Restore the attributes and the random generators."""
        for name, value in self._attributes.items():
            _restore(vars(trainer), name, value)
        self._rng.restore()


def _write_trainer(trainer: Any, folder: Path) -> None:
    """The parts of `Trainer._save_checkpoint` that do not choose folders or delete any."""
    with warnings.catch_warnings():
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


def _folders(folder: Path) -> list[Path]:
    """Checkpoints by step, the latest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.split("-")[1].isdigit()]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]), reverse=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_synced(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _plain(value: Any) -> Any:
    """The value in types that `torch.load(weights_only=True)` accepts."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | deque):
        return [_plain(item) for item in value]
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    return value


def _restore(target: MutableMapping[str, Any], name: str, saved: Any) -> None:
    """Set `target[name]`; containers keep their type (a deque its length) and get new contents."""
    present = target.get(name) if name in target else _default(target, name)
    if isinstance(present, MutableMapping) and isinstance(saved, dict):
        for key in [key for key in present if key not in saved]:
            del present[key]
        for key, value in saved.items():
            _restore(present, key, value)
    elif isinstance(present, deque):
        present.clear()
        present.extend(saved)
    else:
        target[name] = saved


def _default(target: MutableMapping[str, Any], name: str) -> Any:
    factory = getattr(target, "default_factory", None)
    if factory is None:
        return None
    target[name] = factory()
    return target[name]
