"""Checkpoints as folders: where they are, and whether one is whole. Knows no torch."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from rapidfireai.core.events import Json

MANIFEST: Final = "manifest.json"
"""Names all files of a checkpoint with their digests; written last."""


_TO_GO_ON: Final = (
    "optimizer.*", "scheduler.pt", "scaler.pt", "rng_state*.pth", "engine_state.pt", MANIFEST,
)  # fmt: skip
"""Of a checkpoint: what only serves to continue the training."""


def checkpoints_folder(run_folder: Path) -> Path:
    """Of the checkpoints that the run itself is taken up from."""
    return run_folder / "checkpoints"


def completed_folder(run_folder: Path) -> Path:
    """Of the one that is written when the run has done its last step. The run itself is never taken
    up from there: there is nothing left for its trainer to do."""
    return run_folder / "completed"


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints by step, the latest first; not all need be whole."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.split("-")[1].isdigit()]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(checkpoint.name.split("-")[1])


def model_files(checkpoint: Path) -> list[Path]:
    """The files of a checkpoint without those that only serve to continue the training."""
    return sorted(
        path
        for path in checkpoint.iterdir()
        if not any(fnmatch(path.name, pattern) for pattern in _TO_GO_ON)
    )


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Let `target` be a second name of a file that nobody writes to, or else a copy of it."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def write_manifest(folder: Path, content: Mapping[str, Json]) -> None:
    """Declare the checkpoint in the folder whole.

    Args:
        folder: With all files.
        content: What is to be known of it besides.
    """
    content = {
        **content,
        "files": {path.name: _file_digest(path) for path in sorted(folder.iterdir())},
    }
    with (folder / MANIFEST).open("w") as file:
        json.dump({**content, "digest": _digest(content)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def read_manifest(folder: Path) -> Mapping[str, Json]:
    """Check a checkpoint, and return the content of its manifest.

    Raises:
        OSError: A file is missing.
        ValueError: A file is not what was written.
        KeyError: It is no manifest.
    """
    content: dict[str, Json] = json.loads((folder / MANIFEST).read_text())
    if content.pop("digest") != _digest(content):
        raise ValueError(f"{MANIFEST} has been changed")
    for name, digest in content["files"].items():
        if _file_digest(folder / name) != digest:
            raise ValueError(f"{name} has been changed")
    return content


def _digest(content: Mapping[str, Json]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
