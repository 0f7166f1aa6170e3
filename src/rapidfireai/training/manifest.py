"""Checkpoints as folders: where they are, and whether one is whole. Knows no torch."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from rapidfireai.core.events import Json

MANIFEST: Final = "manifest.json"
"""Names all files of a checkpoint with their digests; written last."""


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
