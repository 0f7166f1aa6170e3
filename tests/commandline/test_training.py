"""The verb `fit`: what it trains is what the same configurations train in Python."""

import json
import os
import signal
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from rapidfireai import Experiment, cli
from rapidfireai.automl import List, RFLoraConfig, RFModelConfig, RFSFTConfig
from rapidfireai.testing.tiny import instruction_rows, tiny_model, tiny_tokenizer

FILE = """
trainer_type: SFT
model_name_or_path: model
dataset_name: rows.jsonl
test_split_size: 0.25
use_peft: true
lora_r: 2
lora_target_modules: [q_proj, v_proj]
learning_rate: [1e-2, 1e-3]
max_steps: 4
per_device_train_batch_size: 2
num_chunks: 2
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RF_EXPERIMENT_PATH", str(tmp_path / "experiments"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    torch.set_num_threads(1)
    tiny_model(hidden_size=16, num_layers=1).save_pretrained("model")
    tiny_tokenizer().save_pretrained("model")
    instruction_rows(32).to_json("rows.jsonl")
    (tmp_path / "lab.yaml").write_text(FILE)
    return tmp_path


def adapters(experiment: Path) -> list[dict[str, torch.Tensor]]:
    files = sorted(experiment.glob("runs/*/final/adapter_model.safetensors"))
    return [load_file(file) for file in files]


def test_it_trains_what_the_same_lines_of_python_train(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["fit", "lab.yaml", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["experiment"] == "lab"
    assert [run["status"] for run in told["runs"]] == ["completed", "completed"]

    rows = datasets.load_dataset("json", data_files="rows.jsonl", split="train")
    parts = rows.train_test_split(test_size=0.25, seed=42)
    experiment = Experiment("python")
    experiment.run_fit(
        RFModelConfig(
            peft_config=RFLoraConfig(
                task_type="CAUSAL_LM",
                r=2,
                lora_alpha=32,
                lora_dropout=0.05,
                target_modules=["q_proj", "v_proj"],
            ),
            training_args=RFSFTConfig(
                learning_rate=List([1e-2, 1e-3]), max_steps=4, per_device_train_batch_size=2
            ),
        ),
        model="model",
        train_dataset=parts["train"],
        eval_dataset=parts["test"],
        num_chunks=2,
    )
    ours, theirs = adapters(Path(told["path"])), adapters(experiment.path)
    assert len(ours) == len(theirs) == 2
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_dry_run_shows_configurations_and_trains_nothing(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["fit", "lab.yaml", "--dry-run", "--set", "max_seq_length=64"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "lab: 2 configurations of SFT",
        "   learning_rate",
        "1           0.01",
        "2          0.001",
        "note: max_seq_length=64 became max_length=64",
        "--json shows all of each; without --dry-run they are trained",
    ]
    arguments = ["fit", "lab.yaml", "--dry-run", "--json", "--set", "learning_rate=[1, 2, 3]"]
    assert cli.main(arguments) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [one["training_args"]["learning_rate"] for one in shown] == [1, 2, 3]
    assert not (place / "experiments").exists()


def test_a_run_that_fails_is_told_by_the_status(place: Path) -> None:
    (place / "failing.py").write_text(
        "from transformers import TrainerCallback\n\n\n"
        "class Fails(TrainerCallback):\n"
        "    def on_step_end(self, args, state, control, **kwargs):\n"
        "        if args.learning_rate > 5e-3:\n"
        "            raise RuntimeError('out of luck')\n"
    )
    assert cli.main(["fit", "lab.yaml", "--set", "callbacks=[failing.Fails]"]) == 1
    runs = Experiment.find("lab").get_runs_info()
    assert list(runs["status"]) == ["failed", "completed"]


class Interrupts(TrainerCallback):
    """Ctrl-C, once."""

    def on_step_end(self, args: object, state: object, control: object, **kwargs: object) -> None:
        if not Path("interrupted").exists():
            Path("interrupted").touch()
            os.kill(os.getpid(), signal.SIGINT)


def test_interrupted_it_goes_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"{__name__}.Interrupts"
    arguments = ["fit", "lab.yaml", "--set", f"callbacks=[{name}]"]
    assert cli.main(arguments) == 130
    assert capsys.readouterr().err.endswith("\nstopped\n")
    runs = Experiment.find("lab").get_runs_info()
    assert "interrupted" in set(runs["status"])
    assert cli.main(arguments) == 0
    assert [path.name for path in (place / "experiments").iterdir()] == ["lab"]
    assert list(Experiment.find("lab").get_runs_info()["status"]) == ["completed", "completed"]


@pytest.mark.parametrize(
    "variables",
    [
        {"WORLD_SIZE": "2"},
        {"OMPI_COMM_WORLD_SIZE": "4"},
        {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "1"},
        {"ACCELERATE_USE_CPU": "False"},
    ],
)
def test_launchers_of_several_processes_are_refused(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["fit", "lab.yaml"]) == 1
    assert "without accelerate launch, torchrun or mpirun" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["gone.yaml"], "gone.yaml cannot be read"),
        (["lab.yaml", "--trainer", "dpo"], "contradicts --trainer dpo"),
        (["lab.yaml", "--set", "learning_rat=1"], "did you mean 'learning_rate'"),
        (["lab.yaml", "--set", "dataset_name=gone.csv"], "no file 'gone.csv'"),
        (["lab.yaml", "--set", "model_name_or_path=./gone"], "'./gone' cannot be loaded"),
        (["lab.yaml", "--set", "report_to=wandb"], "report_to='wandb' cannot be used here"),
        (["lab.yaml", "--set", "num_chunks=0"], "num_chunks=0"),
    ],
)
def test_what_cannot_work_is_one_line(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["fit", *arguments]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("rapidfireai: error: ")
    assert told in error


def test_changes_that_cannot_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    for change in ("learning_rate", "learning_rate=[1"):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["fit", "lab.yaml", "--set", change])
    assert "KEY=VALUE" in capsys.readouterr().err
