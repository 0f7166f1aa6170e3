"""What a run has learned, as a folder outside the experiment that plain `from_pretrained` loads."""

import os
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

from rapidfireai.control import open_store
from rapidfireai.core.ids import RunId
from rapidfireai.core.run import Run, RunStatus
from rapidfireai.core.spelling import did_you_mean
from rapidfireai.errors import ConfigError, ExperimentPathError
from rapidfireai.paths import ExperimentFolder
from rapidfireai.training.manifest import (
    checkpoints,
    checkpoints_folder,
    model_files,
    read_manifest,
)
from rapidfireai.training.output import write_config

ADAPTER_CONFIG: Final = "adapter_config.json"

_WEIGHTS: Final = ("*.safetensors", "*.safetensors.index.json", "*.bin", "adapter_*", "README.md")
"""Replaced when an adapter is merged."""

_ATTEMPTS: Final = 5
"""A run that trains replaces its checkpoints, also while one is being copied."""


def export(
    folder: ExperimentFolder,
    run_id: RunId,
    target: Path,
    *,
    merge: bool = False,
    base: str | None = None,
) -> int:
    """Write a run's model or adapter, tokenizer, trainer state and configuration to a folder.

    A run that has ended is taken as it ended; one that goes on, as its latest checkpoint has it.

    Args:
        folder: The experiment's.
        run_id: The run.
        target: Appears as a whole or not at all; must not exist, or be empty.
        merge: Write the full model, with the adapter in its weights.
        base: For `merge`: name or path of the base, if the adapter does not say or it has moved.

    Returns:
        The run's step.

    Raises:
        ConfigError: There is no such run, nothing of it is on disk, or it cannot be merged.
        ExperimentPathError: The target cannot be written.
    """
    with closing(open_store(folder)) as store:
        runs = {run.id: run for run in store.runs()}
    run = _existing(run_id, runs)
    if base is not None and not merge:
        raise ConfigError(f"base={base!r} is of use for merge only; give both or none")
    target = target.expanduser().absolute()
    with _appearing(target) as unfinished:
        step = _copy(folder, run, unfinished)
        if merge:
            _merge(run, unfinished, base)
    return step


def _existing(run_id: RunId, runs: dict[RunId, Run]) -> Run:
    if run_id not in runs:
        raise ConfigError(f"there is no run {run_id}; {did_you_mean(str(run_id), map(str, runs))}")
    run = runs[run_id]
    if run.status is RunStatus.DELETED:
        hint = "its files are gone" if run.purged else f"restore run {run.id} first"
        raise ConfigError(f"run {run.id} is deleted: {hint}")
    return run


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A folder to write to, which gets its name once all is written."""
    unfinished = target.with_name(f"{target.name}.unfinished")
    try:
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise ConfigError(f"{target} is there already; give a folder that is new or empty")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        yield unfinished
        os.replace(unfinished, target)
    except OSError as error:
        raise ExperimentPathError(
            f"{target} cannot be written: {error.strerror or error}"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _copy(folder: ExperimentFolder, run: Run, target: Path) -> int:
    final = folder.final(run.id)
    # One that goes on again after it had ended has such a folder, of an earlier step.
    if run.ended and final.is_dir():
        shutil.copytree(final, target, dirs_exist_ok=True)
        return run.step
    step = _copy_checkpoint(checkpoints_folder(folder.run(run.id)), target)
    if step is None:
        raise ConfigError(
            f"nothing of run {run.id} is on disk yet: it is {run.status} at step {run.step}; wait "
            "for its first checkpoint, or stop it"
        )
    write_config(target, {"config": run.config, "resolved": run.resolved})
    return step


def _copy_checkpoint(folder: Path, target: Path) -> int | None:
    """Copy the latest that is whole; returns its step, None if there is none."""
    for _ in range(_ATTEMPTS):
        for checkpoint in checkpoints(folder):
            try:
                shutil.copytree(checkpoint, target, dirs_exist_ok=True)
                step: int = read_manifest(target)["progress"]["step"]
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                _empty(target)
                continue
            for path in {*target.iterdir()} - {*model_files(target)}:
                path.unlink()
            return step
    return None


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _merge(run: Run, folder: Path, base: str | None) -> None:
    """Turn an exported adapter into the full model."""
    if not (folder / ADAPTER_CONFIG).exists():
        raise ConfigError(
            f"run {run.id} trained all weights and has no adapter to merge; export it without merge"
        )
    from peft import PeftConfig, PeftModel

    config = PeftConfig.from_pretrained(str(folder))
    name = base or config.base_model_name_or_path or run.config.get("model", {}).get("model_name")
    if not name:
        raise ConfigError(
            f"the adapter of run {run.id} does not say which base it belongs to; give its name or "
            "path: --base PATH, or base=..."
        )
    try:
        model = PeftModel.from_pretrained(_load_base(str(name), config.task_type), str(folder))
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"the base {name!r} of run {run.id} cannot be loaded, or does not fit the adapter: "
            f"{reason}; give another one: --base PATH, or base=..."
        ) from error
    if not hasattr(model, "merge_and_unload"):
        raise ConfigError(
            f"run {run.id} has an adapter of the kind {config.peft_type.value}, which is no change "
            "of weights and cannot be merged; export it without merge"
        )
    merged = model.merge_and_unload()
    for pattern in _WEIGHTS:
        for path in folder.glob(pattern):
            if path.name != "training_args.bin":
                path.unlink()
    merged.save_pretrained(str(folder))


def _load_base(name: str, task_type: str | None) -> Any:
    """A copy of our own, in the precision that it is stored in."""
    import transformers

    loaders = {
        "CAUSAL_LM": transformers.AutoModelForCausalLM,
        "SEQ_2_SEQ_LM": transformers.AutoModelForSeq2SeqLM,
        "SEQ_CLS": transformers.AutoModelForSequenceClassification,
        "TOKEN_CLS": transformers.AutoModelForTokenClassification,
    }
    # TRL trains language models, and an adapter's configuration may leave its task out.
    loader: Any = loaders.get(task_type or "CAUSAL_LM", transformers.AutoModelForCausalLM)
    further = {"num_labels": 1} if task_type == "SEQ_CLS" else {}
    return loader.from_pretrained(name, dtype="auto", **further)
