"""Checkpoints as folders: which there are, and whether one is whole. Knows no torch."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

MANIFEST: Final = "manifest.json"
"""Names all files of a checkpoint with their digests; written last."""


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints by step, the latest first; not all need be whole."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.split("-")[1].isdigit()]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]), reverse=True)


def read_manifest(folder: Path) -> Mapping[str, Any]:
    """Check a checkpoint, and return how far the run was: `step`, `chunks_done`, `active_s`.

    Raises:
        OSError: A file is missing.
        ValueError: A file is not what was written.
    """
    content = json.loads((folder / MANIFEST).read_text())
    text = json.dumps({key: content[key] for key in ("progress", "files")}, sort_keys=True)
    if content.get("digest") != hashlib.sha256(text.encode()).hexdigest():
        raise ValueError(f"{MANIFEST} has been changed")
    for name, digest in content["files"].items():
        with (folder / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise ValueError(f"{name} has been changed")
    progress: Mapping[str, Any] = content["progress"]
    return progress
