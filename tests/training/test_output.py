"""An ended run's folder is one that plain transformers and PEFT load."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from rapidfireai import Experiment
from rapidfireai.automl import RFLoraConfig, RFModelConfig, RFSFTConfig
from rapidfireai.core.commands import Command, Verb
from rapidfireai.core.run import Run
from rapidfireai.testing.tiny import text_rows, tiny_model, tiny_tokenizer
from rapidfireai.training import task
from rapidfireai.training.output import CONFIG_FILE, save_run

TEXT = "the cat sat on a mat"
ARGS = {"max_steps": 3, "learning_rate": 1e-2, "max_length": 32, "logging_steps": 1}


def logits(model: Any, tokenizer: Any) -> torch.Tensor:
    was_training = model.training
    model.eval()
    with torch.no_grad():
        result: torch.Tensor = model(**tokenizer(TEXT, return_tensors="pt")).logits
    model.train(was_training)
    return result


def strict_json(file: Path) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{file} holds {constant}, which is not JSON")

    return json.loads(file.read_text(), parse_constant=refuse)


class Raises(TrainerCallback):
    """Fails after the second step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            raise RuntimeError("enough")


class StopsTheFourth:
    """A policy that stops a run in the middle."""

    def on_chunk(self, run: Run, metrics: Any, runs: Sequence[Run]) -> Sequence[Command]:
        return [Command(verb=Verb.PRUNE, run_id=run.id, reason="enough")] if run.id == 4 else []


LORA, FULL, FAILED, STOPPED, WHOLE = 1, 2, 3, 4, 5
"""Ids of the runs."""


class Ended:
    """Runs that ended in all ways, and what they knew when they were saved."""

    def __init__(self, root: Path, base: Path) -> None:
        self.base = base
        self.trained: dict[str, torch.Tensor] = {}
        lora = RFLoraConfig(r=4, target_modules=["q_proj", "v_proj"])
        experiment = Experiment("output", experiment_path=root)

        def create_model(config: dict[str, Any]) -> tuple[Any, Any]:
            model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
            return model, AutoTokenizer.from_pretrained(base)

        def saved(trainer: Any, folder: Path, *rest: Any) -> None:
            self.trained[str(folder)] = logits(trainer.model, trainer.processing_class)
            save_run(trainer, folder, *rest)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(task, "save_run", saved)
            experiment.run_fit(
                [
                    RFModelConfig(peft_config=lora, training_args=RFSFTConfig(**ARGS)),
                    RFModelConfig(training_args=RFSFTConfig(**ARGS, max_grad_norm=float("inf"))),
                    RFModelConfig(
                        peft_config=lora, training_args=RFSFTConfig(**ARGS), callbacks=[Raises()]
                    ),
                    RFModelConfig(peft_config=lora, training_args=RFSFTConfig(**ARGS, seed=7)),
                    RFModelConfig(
                        peft_config=RFLoraConfig(
                            r=2, target_modules="all-linear", modules_to_save=["lm_head"]
                        ),
                        training_args=RFSFTConfig(**ARGS),
                    ),
                ],
                create_model,
                text_rows(32),
                num_chunks=3,
                policy=StopsTheFourth(),
            )
        self.info: pd.DataFrame = experiment.get_runs_info().set_index("run_id")

    def folder(self, run_id: int) -> Path:
        return Path(str(self.info.loc[run_id, "path"]))

    def logits(self, run_id: int) -> torch.Tensor:
        return self.trained[str(self.folder(run_id))]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ended]:
    torch.set_num_threads(1)
    base = tmp_path_factory.mktemp("base")
    tiny_model().save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    yield Ended(tmp_path_factory.mktemp("output"), base)


def test_all_ends_are_there(ended: Ended) -> None:
    assert list(ended.info["status"]) == [
        "completed", "completed", "failed", "pruned", "completed",
    ]  # fmt: skip
    assert list(ended.info["step"]) == [3, 3, 1, 1, 3]


@pytest.mark.parametrize("run_id", [LORA, FAILED, STOPPED, WHOLE])
def test_an_adapter_loads_onto_its_base(ended: Ended, run_id: int) -> None:
    base = AutoModelForCausalLM.from_pretrained(ended.base)
    tokenizer = AutoTokenizer.from_pretrained(ended.folder(run_id))
    before = logits(base, tokenizer)
    model = PeftModel.from_pretrained(base, ended.folder(run_id))
    assert torch.equal(logits(model, tokenizer), ended.logits(run_id))
    assert not torch.equal(logits(model, tokenizer), before)


@pytest.mark.parametrize("auto", [AutoPeftModelForCausalLM, AutoModelForCausalLM])
def test_an_adapter_finds_its_base_by_itself(ended: Ended, auto: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(ended.folder(LORA))
    model = auto.from_pretrained(ended.folder(LORA))
    assert torch.equal(logits(model, tokenizer), ended.logits(LORA))


def test_a_whole_model_loads_by_itself(ended: Ended) -> None:
    tokenizer = AutoTokenizer.from_pretrained(ended.folder(FULL))
    model = AutoModelForCausalLM.from_pretrained(ended.folder(FULL))
    assert torch.equal(logits(model, tokenizer), ended.logits(FULL))
    assert not (ended.folder(FULL) / "adapter_config.json").exists()


def test_the_tokenizer_is_the_runs(ended: Ended) -> None:
    tokenizer, original = AutoTokenizer.from_pretrained(ended.folder(LORA)), tiny_tokenizer()
    assert tokenizer(TEXT)["input_ids"] == original(TEXT)["input_ids"]
    assert tokenizer.chat_template == original.chat_template


def test_the_configuration_is_strict_json_as_given_and_as_resolved(ended: Ended) -> None:
    for run_id in ended.info.index:
        stored = strict_json(ended.folder(run_id) / CONFIG_FILE)
        assert stored["config"]["training_args"]["learning_rate"] == 1e-2
        assert stored["resolved"]["training_args"]["bf16"] is False
        assert "bf16" not in stored["config"]["training_args"]
        assert stored["resolved"]["training_args"]["seed"] == (7 if run_id == STOPPED else 42)
    full = strict_json(ended.folder(FULL) / CONFIG_FILE)
    assert full["resolved"]["training_args"]["max_grad_norm"] == "inf"
    assert full["config"]["peft"] is None
    lora = strict_json(ended.folder(LORA) / CONFIG_FILE)
    assert lora["config"]["peft"]["r"] == lora["resolved"]["peft_config"]["r"] == 4


def test_the_trainers_state_is_there(ended: Ended) -> None:
    state = json.loads((ended.folder(LORA) / "trainer_state.json").read_text())
    assert state["global_step"] == 3
    assert [row["step"] for row in state["log_history"] if "loss" in row] == [1, 2, 3]
    assert (
        json.loads((ended.folder(STOPPED) / "trainer_state.json").read_text())["global_step"]
        == ended.info.loc[STOPPED, "step"]
    )


def test_nothing_unfinished_is_left(ended: Ended) -> None:
    for run_id in ended.info.index:
        names = {path.name for path in ended.folder(run_id).parent.iterdir()}
        assert not {name for name in names if name.startswith("final.")}


class Dummy:
    """As much of a trainer as is saved."""

    class State:
        def save_to_json(self, file: str) -> None:
            Path(file).write_text("{}")

    state = State()

    def __init__(self, content: str) -> None:
        self.content = content

    def save_model(self, folder: str) -> None:
        Path(folder).mkdir(parents=True)
        (Path(folder) / "weights").write_text(self.content)


class Crash(BaseException):
    """The process dies here."""


STAGES = {
    "save_model": (Dummy, "save_model"),
    "save_to_json": (Dummy.State, "save_to_json"),
    "config": (json, "dumps"),
    "rename": (os, "replace"),
}


class TestAtomic:
    @pytest.mark.parametrize("stage", STAGES)
    def test_a_crash_leaves_no_final(
        self, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def crash(*args: Any, **kwargs: Any) -> None:
            raise Crash

        final = tmp_path / "runs" / "1" / "final"
        with monkeypatch.context() as patch:
            patch.setattr(*STAGES[stage], crash)
            with pytest.raises(Crash):
                save_run(Dummy("new"), final, {})
        assert not final.exists()
        save_run(Dummy("newer"), final, {})
        assert (final / "weights").read_text() == "newer"
        assert [path.name for path in final.parent.iterdir()] == ["final"]

    @pytest.mark.parametrize("stage", STAGES)
    def test_nor_does_it_harm_an_earlier_one(
        self, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def crash(*args: Any, **kwargs: Any) -> None:
            raise Crash

        final = tmp_path / "final"
        save_run(Dummy("old"), final, {})
        with monkeypatch.context() as patch:
            patch.setattr(*STAGES[stage], crash)
            with pytest.raises(Crash):
                save_run(Dummy("new"), final, {})
        assert (final / "weights").read_text() == "old"
        save_run(Dummy("newer"), final, {})
        assert (final / "weights").read_text() == "newer"
        assert [path.name for path in final.parent.iterdir()] == ["final"]


def test_what_json_does_not_have_is_written_as_text(tmp_path: Path) -> None:
    numbers = [float("nan"), float("inf"), -float("inf"), 0.5]
    save_run(Dummy(""), tmp_path / "final", {"deep": {"numbers": numbers}})
    assert strict_json(tmp_path / "final" / CONFIG_FILE) == {
        "deep": {"numbers": ["nan", "inf", "-inf", 0.5]}
    }


def test_a_peft_model_of_the_users_is_saved_as_an_adapter(tmp_path: Path) -> None:
    def create_model(config: dict[str, Any]) -> tuple[Any, Any]:
        adapter = LoraConfig(r=3, target_modules=["q_proj"], task_type="CAUSAL_LM")
        return get_peft_model(tiny_model(), adapter), tiny_tokenizer()

    experiment = Experiment("own-adapter", experiment_path=tmp_path)
    experiment.run_fit(RFSFTConfig(**ARGS), create_model, text_rows(16))
    (run,) = experiment.get_runs_info().to_dict("records")
    assert run["status"] == "completed", run["error"]
    assert not (Path(run["path"]) / "model.safetensors").exists()
    loaded = PeftModel.from_pretrained(tiny_model(), run["path"])
    assert loaded.peft_config["default"].r == 3
