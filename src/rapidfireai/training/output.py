"""What an ended run leaves behind: a folder that plain `from_pretrained` loads."""

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

from rapidfireai.core.events import Json

CONFIG_FILE = "run_config.json"


def save_run(trainer: Any, folder: Path, config: dict[str, Json]) -> None:
    """Write model or adapter, tokenizer, trainer state and configuration.

    The folder appears as a whole or not at all; one that is there already is replaced.
    """
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    with warnings.catch_warnings():
        # PEFT cannot look up the base's configuration on the hub when offline, and says so.
        warnings.filterwarnings("ignore", category=UserWarning, module="peft")
        trainer.save_model(str(unfinished))
    trainer.state.save_to_json(str(unfinished / "trainer_state.json"))
    (unfinished / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(unfinished, folder)
