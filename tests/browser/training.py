"""What the browser looks at: experiments that a process of its own trains.

`python -m tests.browser.training NAME FOLDER` trains one of `EXPERIMENTS`.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from rapidfireai import Experiment
from rapidfireai.automl import List, RFGridSearch, RFLoraConfig, RFModelConfig, RFSFTConfig
from rapidfireai.testing.tiny import text_rows, tiny_model, tiny_tokenizer

FAILING_LEARNING_RATE = 0.5
FAILURE = "<b>no reward</b>: the server that judges completions does not answer"


class Judge(TrainerCallback):
    """A user's callback that raises in the run with the failing learning rate."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.learning_rate == FAILING_LEARNING_RATE and state.global_step == 30:
            raise ConnectionError(FAILURE)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """An experiment."""

    learning_rates: tuple[float, ...]
    ranks: tuple[int, ...] = (4,)
    batch_sizes: tuple[int, ...] = (4,)
    num_steps: int
    num_chunks: int = 4


EXPERIMENTS: Mapping[str, Setting] = {
    "long": Setting(learning_rates=(5e-3, 1e-3, 2e-4), num_steps=40_000, num_chunks=2000),
    "failing": Setting(learning_rates=(5e-3, FAILING_LEARNING_RATE), num_steps=60),
    "search": Setting(
        learning_rates=(1e-2, 3e-3, 1e-4), ranks=(2, 16), batch_sizes=(4, 8), num_steps=160
    ),
}


def create_model(config: Mapping[str, Any]) -> tuple[Any, Any]:
    return tiny_model(dropout=0.0), tiny_tokenizer()


def search(setting: Setting) -> RFGridSearch:
    """The configurations of a setting."""
    return RFGridSearch(
        RFModelConfig(
            model_name="tiny-llama",
            peft_config=RFLoraConfig(
                r=List(list(setting.ranks)), target_modules=["q_proj", "v_proj", "gate_proj"]
            ),
            training_args=RFSFTConfig(
                learning_rate=List(list(setting.learning_rates)),
                per_device_train_batch_size=List(list(setting.batch_sizes)),
                max_steps=setting.num_steps,
                max_length=32,
                logging_steps=5,
                warmup_steps=10,
                lr_scheduler_type="cosine",
            ),
            callbacks=[Judge()],
        ),
        trainer_type="SFT",
    )


def main(name: str, folder: Path) -> None:
    """Train an experiment."""
    torch.set_num_threads(1)
    setting = EXPERIMENTS[name]
    rows = text_rows(512)
    experiment = Experiment(name, experiment_path=folder)
    experiment.run_fit(
        search(setting),
        create_model,
        rows,
        eval_dataset=text_rows(16, seed=1),
        num_chunks=setting.num_chunks,
    )
    experiment.end()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
