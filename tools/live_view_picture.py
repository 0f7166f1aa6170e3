"""Train four tiny configurations and draw docs/images/live-view.svg from what the terminal shows.

    PYTHONPATH=src python tools/live_view_picture.py

The picture has a frame from the middle of the training, and what is left when it is over. Speeds
and times are those of the machine at hand.
"""

import io
import os
import re
import sys
import tempfile
import warnings
from pathlib import Path

import rich
from rich.console import Console
from rich.text import Text

from rapidfireai import Experiment
from rapidfireai.automl import List, RFGridSearch, RFLoraConfig, RFModelConfig, RFSFTConfig
from rapidfireai.testing.tiny import instruction_rows, tiny_model, tiny_tokenizer

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "live-view.svg"
WIDTH, HEIGHT = 112, 24
MEANWHILE, AFTERWARDS = "# while the runs train", "# when they have ended"
# Where Rich goes back to draw the next frame over the one before.
BACK = re.compile(r"(?:\r?\x1b\[[0-9;?]*[A-HJKSTfhl])+")


class Terminal(io.StringIO):
    """Keeps what is written to it."""

    def isatty(self) -> bool:
        return True

    @property
    def frames(self) -> list[Text]:
        """What was to be seen, one frame after the other."""
        frames = [Text.from_ansi(frame) for frame in BACK.split(self.getvalue())]
        return [frame for frame in frames if frame.plain.strip()]


def train(folder: str) -> None:
    config = RFModelConfig(
        model_name="tiny",
        peft_config=RFLoraConfig(r=List([8, 32])),
        training_args=RFSFTConfig(
            learning_rate=List([3e-2, 3e-3]),
            max_steps=120,
            per_device_train_batch_size=8,
            logging_steps=1,
        ),
    )
    Experiment("live-view", experiment_path=folder).run_fit(
        RFGridSearch(config, trainer_type="SFT"),
        create_model=lambda config: (tiny_model(hidden_size=128), tiny_tokenizer()),
        train_dataset=instruction_rows(1024),
        eval_dataset=instruction_rows(32, seed=1),
        num_chunks=4,
    )


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    terminal = Terminal()
    rich.reconfigure(
        file=terminal,
        force_terminal=True,
        color_system="standard",
        width=WIDTH,
        height=HEIGHT,
        legacy_windows=False,
    )
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
        train(folder)
    *live, final = terminal.frames
    picture = Console(file=io.StringIO(), record=True, width=WIDTH, force_terminal=True)
    for title, frame in ((MEANWHILE, live[len(live) * 6 // 10]), (AFTERWARDS, final)):
        frame.rstrip()
        picture.print(Text(title, "dim"), frame, "", sep="\n")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    picture.save_svg(str(PICTURE), title="rapidfireai")
    sys.stdout.write(f"{PICTURE}\n")


if __name__ == "__main__":
    main()
