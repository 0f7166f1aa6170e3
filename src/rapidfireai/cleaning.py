"""What an experiment keeps on disk and could do without, and its removal."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from rapidfireai.control import open_store, purge
from rapidfireai.core.clock import SystemClock
from rapidfireai.core.ids import RunId
from rapidfireai.core.run import Run, RunStatus
from rapidfireai.paths import ExperimentFolder
from rapidfireai.training.manifest import checkpoints_folder, completed_folder


class Kind(StrEnum):
    """Why something can go."""

    DELETED = "deleted run"
    CHECKPOINTS = "checkpoints of a completed run"
    """Its model stays in `final`; a warm-started clone of it begins with its last checkpoint."""
    DATA = "prepared data"
    PAUSED = "paused runs"
    LEFT_OVER = "left over"
    """Half-written by a process that was killed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Waste:
    """Something that can go."""

    kind: Kind
    path: Path
    num_bytes: int
    run_id: RunId | None = None
    remark: str = ""
    """What is lost with it, for people."""


def find_waste(folder: ExperimentFolder) -> list[Waste]:
    """All that can go, the largest first.

    Raises:
        ConfigError: The experiment has no runs yet.
        StoreError: Its store cannot be read.
    """
    with closing(open_store(folder)) as store:
        runs = store.runs()
    found = [waste for run in runs for waste in _of_run(folder, run)]
    for kind, path in ((Kind.DATA, folder.data), (Kind.PAUSED, folder.paused)):
        if path.exists():
            found.append(Waste(kind=kind, path=path, num_bytes=size_of(path)))
    covered = [waste.path for waste in found]
    found += (
        Waste(kind=Kind.LEFT_OVER, path=path, num_bytes=size_of(path))
        for path in _left_overs(folder)
        if not any(path.is_relative_to(larger) for larger in covered)
    )
    return sorted(found, key=lambda waste: -waste.num_bytes)


def clean(folder: ExperimentFolder, wastes: Sequence[Waste]) -> None:
    """Remove what `find_waste` has found.

    Args:
        folder: The experiment's.
        wastes: All of it, or some.

    Raises:
        ExperimentBusyError: A process trains the experiment; nothing has been removed.
        OSError: Something cannot be removed.
    """
    with folder.locked(), closing(open_store(folder)) as store:
        runs = {run.id: run for run in store.runs()}
        for waste in wastes:
            run = None if waste.run_id is None else runs[waste.run_id]
            if run is not None and not _is_still(waste, run):
                continue
            if run is not None and waste.kind is Kind.DELETED and not run.purged:
                purge(folder, store, run)
            if waste.path.is_dir():
                shutil.rmtree(waste.path)
            else:
                waste.path.unlink(missing_ok=True)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder; what vanishes meanwhile counts nothing."""
    if not path.is_dir() or path.is_symlink():
        try:
            return path.lstat().st_size
        except FileNotFoundError:
            return 0
    inner = (Path(root) / name for root, _, names in os.walk(path) for name in names)
    return sum(map(size_of, inner))


def _of_run(folder: ExperimentFolder, run: Run) -> Iterator[Waste]:
    path = folder.run(run.id)
    if run.status is RunStatus.DELETED and path.exists():
        remark = "" if run.purged else _undo(run)
        yield Waste(
            kind=Kind.DELETED, path=path, num_bytes=size_of(path), run_id=run.id, remark=remark
        )
    if run.status is RunStatus.COMPLETED and folder.final(run.id).exists():
        for kept, remark in (
            (checkpoints_folder(path), "its model stays"),
            (completed_folder(path), "its model stays; warm-started clones begin with this"),
        ):
            if kept.exists():
                yield Waste(
                    kind=Kind.CHECKPOINTS,
                    path=kept,
                    num_bytes=size_of(kept),
                    run_id=run.id,
                    remark=remark,
                )


def _undo(run: Run) -> str:
    now_s = SystemClock().now()
    if run.undo_until_s is None or run.undo_until_s <= now_s:
        return "can be restored no more"
    until = datetime.fromtimestamp(run.undo_until_s, UTC).astimezone()
    return f"can be restored until {until:%H:%M}"


def _is_still(waste: Waste, run: Run) -> bool:
    """Somebody may have restored the run, or resumed it, since the waste was found."""
    if waste.kind is Kind.DELETED:
        return run.status is RunStatus.DELETED
    return waste.kind is not Kind.CHECKPOINTS or run.status is RunStatus.COMPLETED


def _left_overs(folder: ExperimentFolder) -> Iterator[Path]:
    for path in sorted(folder.path.rglob("*.unfinished*")):
        if not any(parent.suffix == ".unfinished" for parent in path.parents):
            yield path
    for path in sorted(folder.path.rglob("*.replaced")):
        # Without what was to replace it, it is all that there is.
        if path.with_name(path.name.removesuffix(".replaced")).exists():
            yield path
