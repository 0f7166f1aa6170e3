"""What an ended run leaves behind: a folder that plain `from_pretrained` loads."""

import json
import math
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rapidfireai.core.events import Json
from rapidfireai.faults import reach
from rapidfireai.training.manifest import link_or_copy, model_files

CONFIG_FILE = "run_config.json"


def save_run(
    trainer: Any, folder: Path, config: dict[str, Json], checkpoint: Path | None = None
) -> None:
    """Write model or adapter, tokenizer, trainer state and configuration.

    The folder appears as a whole or not at all. One that is there already is replaced, and kept
    until then.

    Args:
        trainer: Whose run has ended.
        folder: Where to.
        config: The run's configuration as given, and the arguments in force.
        checkpoint: One of the run as it is now, which holds all the rest already: its files are
            shared, where the file system can do that, instead of written once more.
    """
    unfinished = folder.with_name(folder.name + ".unfinished")
    replaced = folder.with_name(folder.name + ".replaced")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        reach("final.begun")
        if checkpoint is None:
            _write(trainer, unfinished)
        else:
            unfinished.mkdir(parents=True)
            for file in model_files(checkpoint):
                link_or_copy(file, unfinished / file.name)
        write_config(unfinished, config)
        reach("final.written")
    except BaseException:
        # On a full disk its own beginning may be what takes the room.
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        os.replace(folder, replaced)
    reach("final.replacing")
    os.replace(unfinished, folder)
    reach("final.renamed")
    shutil.rmtree(replaced, ignore_errors=True)


def _write(trainer: Any, folder: Path) -> None:
    with warnings.catch_warnings():
        # PEFT cannot look up the base's configuration on the hub when offline, and says so.
        warnings.filterwarnings("ignore", category=UserWarning, module="peft")
        trainer.save_model(str(folder))
    trainer.state.save_to_json(str(folder / "trainer_state.json"))


def write_config(folder: Path, config: Mapping[str, Json]) -> None:
    """Write the run's configuration as given, and the arguments in force."""
    text = json.dumps(_strict(config), indent=2, allow_nan=False)
    (folder / CONFIG_FILE).write_text(text + "\n")


def _strict(value: Json) -> Json:
    """The value without NaN and infinities, which JSON does not have: they become strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value
