"""`run_fit` from end to end: its short form, trainers of one's own, metrics, memory, background."""

import json
import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoTokenizer, Trainer, TrainerCallback

from rapidfireai import Experiment
from rapidfireai.automl import (
    List,
    RFGridSearch,
    RFKTOConfig,
    RFModelConfig,
    RFRewardConfig,
    RFSFTConfig,
    RFTPOConfig,
)
from rapidfireai.background import FitHandle
from rapidfireai.core.commands import Command, Verb
from rapidfireai.core.run import Run
from rapidfireai.errors import ConfigError, DatasetError
from rapidfireai.testing.tiny import (
    instruction_rows,
    preference_rows,
    prompt_rows,
    text_rows,
    tiny_model,
    tiny_tokenizer,
)
from rapidfireai.workers import memory


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model on disk, to be loaded by name."""
    folder = tmp_path_factory.mktemp("tiny-model")
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def cell(frame: pd.DataFrame, row: int, column: str) -> Any:
    """One value of a table."""
    return frame[column].iloc[row]


def create_model(config: dict[str, Any]) -> tuple[Any, Any]:
    return tiny_model(), tiny_tokenizer()


FULL = {"max_steps": 4, "per_device_train_batch_size": 4, "logging_steps": 1, "max_length": 64}
"""Arguments of a small full fine-tuning."""


def sft(**args: Any) -> RFSFTConfig:
    return RFSFTConfig(**{**FULL, "lora_rank": 4, **args})


def losses(experiment: Experiment) -> pd.Series:
    return experiment.get_results().dropna(subset=["loss"]).set_index(["run_id", "step"])["loss"]


def test_short_form_loads_the_model_by_name(tmp_path: Path, model_folder: Path) -> None:
    search = RFGridSearch([sft(learning_rate=List([1e-3, 1e-4]))])
    experiment = Experiment(search, experiment_path=tmp_path)
    assert experiment.run_fit(model=model_folder, train_dataset=text_rows()) is None
    info = experiment.get_runs_info()
    assert list(info["status"]) == ["completed", "completed"]
    assert cell(info, 0, "config")["model"]["model_name"] == str(model_folder)
    base = tiny_model()
    adapted = PeftModel.from_pretrained(base, cell(info, 0, "path"))
    assert adapted.peft_config["default"].r == 4
    assert AutoTokenizer.from_pretrained(cell(info, 0, "path")).eos_token == "<|end|>"


def test_a_reward_model_is_loaded_with_a_head_of_the_runs_seed(
    tmp_path: Path, model_folder: Path
) -> None:
    reward = RFRewardConfig(max_steps=2, per_device_train_batch_size=2, max_length=64, lora_rank=4,
                            seed=List([1, 1, 2]))  # fmt: skip
    experiment = Experiment("reward", experiment_path=tmp_path)
    experiment.run_fit(reward, model=model_folder, train_dataset=preference_rows())
    assert list(experiment.get_runs_info()["status"]) == ["completed"] * 3
    first = losses(experiment)[:, 1]
    assert first[1] == first[2]
    assert first[1] != first[3]


def test_the_incumbents_argument_names(tmp_path: Path) -> None:
    experiment = Experiment("names", mode="fit", experiment_path=tmp_path)
    experiment.run_fit(
        param_config=sft(),
        create_model_fn=create_model,
        train_dataset=text_rows(),
        eval_dataset=None,
        num_chunks=2,
        num_gpus=1,
        monte_carlo_simulations=10,
    )
    assert list(experiment.get_runs_info()["status"]) == ["completed"]
    with pytest.raises(ConfigError, match="param_config and config_group mean the same"):
        experiment.run_fit(sft(), create_model, text_rows(), param_config=sft())
    with pytest.raises(ConfigError, match="one device"):
        experiment.run_fit(sft(), create_model, text_rows(), num_gpus=2)


class CountingTrainer(Trainer):
    """A user's own trainer over rows that it tokenises itself."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls = getattr(self, "calls", 0) + 1
        loss: Any = super().compute_loss(model, inputs, *args, **kwargs)
        return loss


def own_trainer(config: Mapping[str, Any], context: Any) -> Trainer:
    from peft import get_peft_model
    from transformers import DataCollatorForLanguageModeling, TrainingArguments

    tokenizer = context.tokenizer
    rows = context.train_dataset.map(
        lambda row: tokenizer(row["text"]), remove_columns=context.train_dataset.column_names
    )
    model = context.model
    if config["adapter"]:
        model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"]))
    elif config.get("private"):
        model = context.private_model()
    return CountingTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=context.output_dir,
            learning_rate=config["learning_rate"],
            max_steps=6,
            per_device_train_batch_size=4,
            seed=context.seed,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=rows,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )


def test_create_trainer_builds_any_trainer(tmp_path: Path) -> None:
    made: list[Any] = []

    def create_trainer(config: Mapping[str, Any], context: Any) -> Trainer:
        made.append(own_trainer(config, context))
        return made[-1]

    loads = []

    def counted(config: dict[str, Any]) -> tuple[Any, Any]:
        loads.append(config)
        return tiny_model(), tiny_tokenizer()

    experiment = Experiment("own", experiment_path=tmp_path)
    experiment.run_fit(
        {"learning_rate": List([1e-3, 1e-2]), "adapter": List([True, False]), "private": True},
        counted,
        text_rows(),
        create_trainer=create_trainer,
        num_chunks=3,
    )
    info = experiment.get_runs_info()
    assert list(info["status"]) == ["completed"] * 4, list(info["error"])
    assert list(info["step"]) == [6] * 4
    assert list(info["num_chunks"]) == [3] * 4
    assert [trainer.calls for trainer in made] == [6] * 4
    assert len(loads) == 1
    assert losses(experiment)[1, 6] != losses(experiment)[3, 6]


def test_a_trainer_of_ones_own_uses_one_of_several_gpus(tmp_path: Path) -> None:
    made: list[Any] = []

    def create_trainer(config: Mapping[str, Any], context: Any) -> Trainer:
        trainer = own_trainer(config, context)
        # As both are on a machine with two GPUs, where transformers would use `DataParallel`.
        trainer.args._n_gpu = 2
        trainer._train_batch_size = trainer.args.train_batch_size
        made.append(trainer)
        return trainer

    experiment = Experiment("own", experiment_path=tmp_path)
    experiment.run_fit(
        {"learning_rate": 1e-3, "adapter": True},
        create_model,
        text_rows(),
        create_trainer=create_trainer,
    )
    info = experiment.get_runs_info()
    assert list(info["status"]) == ["completed"], list(info["error"])
    (trainer,) = made
    assert trainer.args.n_gpu == 1
    assert trainer._train_batch_size == trainer.state.train_batch_size == 4


@pytest.mark.parametrize(
    ("create", "message"),
    [
        (lambda config, context: None, "returned a NoneType; it has to return a transf"),
        (own_trainer, "without weights to train"),
    ],
)
def test_create_trainer_that_makes_no_trainer_fails_its_run(
    create: Any, message: str, tmp_path: Path
) -> None:
    experiment = Experiment("own", experiment_path=tmp_path)
    experiment.run_fit(
        {"learning_rate": 1e-3, "adapter": False}, create_model, text_rows(), create_trainer=create
    )
    (run,) = experiment.get_runs_info().to_dict("records")
    assert run["status"] == "failed"
    assert message in run["error"]


def test_dictionaries_of_ones_own_need_create_trainer(tmp_path: Path) -> None:
    search = RFGridSearch({"anything": List([1, 2])}, trainer_type="custom")
    assert [run.knobs for run in search.get_runs(0)] == [{"anything": 1}, {"anything": 2}]
    with pytest.raises(ConfigError, match="create_trainer"):
        Experiment("own", experiment_path=tmp_path).run_fit(search, create_model, text_rows())


def test_metrics_of_several_evaluation_sets_are_told_apart(tmp_path: Path) -> None:
    experiment = Experiment("sets", experiment_path=tmp_path)
    experiment.run_fit(
        [sft(seed=1), sft(seed=1, eval_strategy="steps", eval_steps=2)],
        create_model,
        text_rows(),
        {"one": text_rows(6, seed=1), "two": text_rows(5, seed=2)},
        num_chunks=2,
    )
    info = experiment.get_runs_info()
    assert list(info["status"]) == ["completed"] * 2, list(info["traceback"])
    table = experiment.get_results().to_dict("records")
    results = {(row["run_id"], row["step"]): row for row in table}
    # TRL logs a row for each set, here at the steps at which chunks end as well.
    state = json.loads((Path(cell(info, 1, "path")) / "trainer_state.json").read_text())
    rows = [row for row in state["log_history"] if "eval_entropy" in row]
    assert [row["step"] for row in rows] == [2, 2, 4, 4]
    for row, name in zip(rows, ("one", "two") * 2, strict=True):
        measured = results[2, row["step"]]
        assert measured[f"eval_{name}_loss"] == row[f"eval_{name}_loss"]
        for metric in ("entropy", "mean_token_accuracy", "num_tokens"):
            assert measured[f"eval_{name}_{metric}"] == row[f"eval_{metric}"]
    assert rows[0]["eval_entropy"] != rows[1]["eval_entropy"]
    # The first run has not evaluated by itself, and is the same up to the first evaluation.
    by_set = [name for name in map(str, table[0]) if name.startswith(("eval_one_", "eval_two_"))]
    timings = {"runtime", "samples_per_second", "steps_per_second"}
    by_set = [name for name in by_set if name.split("_", 2)[2] not in timings]
    assert len(by_set) == 2 * 4
    assert all(results[1, 2][name] == results[2, 2][name] for name in by_set)
    assert math.isnan(results[1, 4]["eval_entropy"])
    assert not math.isnan(results[1, 4]["eval_two_entropy"])


class TestGenerationMetrics:
    def compute(self, pair: tuple[Sequence[str], Sequence[str]]) -> dict[str, float]:
        predictions, references = pair
        assert len(predictions) == len(references) == 6
        assert all(isinstance(text, str) for text in (*predictions, *references))
        self.references = list(references)
        return {"length": sum(map(len, predictions)) / len(predictions)}

    def config(self, **args: Any) -> RFModelConfig:
        return RFModelConfig(
            training_args=sft(**args),
            compute_metrics=self.compute,
            generation_config={
                "max_new_tokens": 5,
                "do_sample": True,
                "temperature": 0.8,
                "max_input_length": 32,
            },
        )

    def test_scores_replies_at_each_chunk_and_own_evaluation(self, tmp_path: Path) -> None:
        rows = instruction_rows(6, seed=9)
        experiment = Experiment("metrics", experiment_path=tmp_path)
        experiment.run_fit(
            [self.config(), self.config(eval_strategy="steps", eval_steps=3)],
            create_model,
            instruction_rows(),
            rows,
            num_chunks=2,
        )
        info = experiment.get_runs_info()
        assert list(info["status"]) == ["completed"] * 2, list(info["traceback"])
        scores = experiment.get_results().dropna(subset=["eval_length"])
        assert list(scores[scores["run_id"] == 1]["step"]) == [2, 4]
        assert list(scores[scores["run_id"] == 2]["step"]) == [2, 3, 4]
        assert self.references == rows["response"]

    def test_do_not_change_what_is_trained(self, tmp_path: Path) -> None:
        trained = []
        for configs in ([self.config(), sft()], [sft(), self.config()]):
            experiment = Experiment("metrics", experiment_path=tmp_path)
            experiment.run_fit(
                configs, create_model, instruction_rows(), instruction_rows(6, seed=9)
            )
            trained.append(losses(experiment))
        assert list(trained[0][1]) == list(trained[0][2])
        assert list(trained[0]) == list(trained[1])

    def test_need_references(self, tmp_path: Path) -> None:
        experiment = Experiment("metrics", experiment_path=tmp_path)
        with pytest.raises(ConfigError, match="give run_fit\\(eval_dataset="):
            experiment.run_fit(self.config(), create_model, instruction_rows())
        with pytest.raises(DatasetError, match="they need prompt and one of completion"):
            experiment.run_fit(self.config(), create_model, text_rows(), text_rows(6))

    def test_a_failing_function_fails_the_run_alone(self, tmp_path: Path) -> None:
        broken = self.config()
        broken.compute_metrics = lambda pair: {"bleu": "high"}
        experiment = Experiment("metrics", experiment_path=tmp_path)
        experiment.run_fit(
            [broken, sft()], create_model, instruction_rows(), instruction_rows(6, seed=9)
        )
        info = experiment.get_runs_info()
        assert list(info["status"]) == ["failed", "completed"]
        assert "compute_metrics failed with ValueError" in cell(info, 0, "error")


def test_more_runs_than_fit_finish_with_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = [
        sft(lora_rank=8, learning_rate=5e-3, seed=seed, optim=optim)
        for seed, optim in ((1, "adamw_torch"), (2, "adafactor"), (3, "sgd"))
    ] + [RFSFTConfig(**FULL, seed=4)]
    moved: dict[str, int] = {}

    class Watched(memory.MemoryTiers):
        def close(self) -> None:
            moved[current] = self.num_moves
            super().close()

    monkeypatch.setattr(memory, "MemoryTiers", Watched)
    trained = {}
    for current, limit in (("roomy", None), ("tight", 0.0)):
        experiment = Experiment(current, experiment_path=tmp_path)
        experiment.run_fit(configs, create_model, text_rows(), memory_limit_gib=limit)
        assert list(experiment.get_runs_info()["status"]) == ["completed"] * 4
        trained[current] = list(losses(experiment))
        assert not (experiment.path / "paused").exists()
    assert trained["tight"] == trained["roomy"]
    assert moved["roomy"] == 0
    assert moved["tight"] >= 3 * 4 - 1


class PruneAfterFirstChunk:
    """A policy in ten lines."""

    def on_chunk(
        self, run: Run, metrics: Mapping[str, float], runs: Sequence[Run]
    ) -> Sequence[Command]:
        if run.id == 1 and metrics["loss"] > 0:
            return [
                Command(
                    verb=Verb.PRUNE, run_id=run.id, reason=f"loss {metrics['loss']:.2f} is above 0"
                )
            ]
        return []


def test_a_policy_prunes_a_run_and_what_it_learned_is_kept(tmp_path: Path) -> None:
    experiment = Experiment("policy", experiment_path=tmp_path)
    experiment.run_fit(
        [sft(), sft()], create_model, text_rows(), policy=PruneAfterFirstChunk(), num_chunks=2
    )
    info = experiment.get_runs_info()
    assert list(info["status"]) == ["pruned", "completed"]
    assert list(info["step"]) == [2, 4]
    assert "is above 0" in cell(info, 0, "notes")
    assert (Path(cell(info, 0, "path")) / "adapter_model.safetensors").exists()


def test_a_tracker_hears_of_everything_and_a_failing_one_harms_nothing(tmp_path: Path) -> None:
    heard: list[str] = []

    class Tracker:
        def on_event(self, before: Run, event: Any, after: Run) -> None:
            heard.append(type(event).__name__)
            raise RuntimeError("the tracking server is down")

    experiment = Experiment("tracker", experiment_path=tmp_path)
    experiment.run_fit(sft(), create_model, text_rows(), trackers=[Tracker()], num_chunks=2)
    assert list(experiment.get_runs_info()["status"]) == ["completed"]
    assert heard.count("StepFinished") == 4
    assert heard[-1] == "RunCompleted"


def test_background_returns_a_handle(tmp_path: Path) -> None:
    experiment = Experiment("background", experiment_path=tmp_path)
    handle = experiment.run_fit([sft(), sft()], create_model, text_rows(), background=True)
    assert isinstance(handle, FitHandle)
    assert set(handle.status()["status"]) <= {"queued", "running", "waiting", "completed"}
    assert handle.wait(timeout_s=120)
    assert handle.done
    assert list(handle.status()["status"]) == ["completed"] * 2


def test_background_can_be_cancelled_and_keeps_what_was_learned(tmp_path: Path) -> None:
    reached, go_on = threading.Event(), threading.Event()

    class Gate:
        def on_event(self, before: Run, event: Any, after: Run) -> None:
            if after.step == 2 and not reached.is_set():
                reached.set()
                go_on.wait(60)

    experiment = Experiment("background", experiment_path=tmp_path)
    handle = experiment.run_fit(
        [sft(max_steps=100), sft(max_steps=100)],
        create_model,
        text_rows(),
        background=True,
        trackers=[Gate()],
    )
    assert handle is not None
    assert reached.wait(60)
    with pytest.raises(ConfigError, match="trains in the background"):
        experiment.run_fit(sft(), create_model, text_rows())
    canceller = threading.Thread(target=experiment.cancel_current)
    canceller.start()
    while not handle._cancelled.is_set():
        pass
    go_on.set()
    canceller.join(60)
    info = experiment.get_runs_info()
    assert list(info["status"]) == ["stopped"] * 2
    assert (Path(cell(info, 0, "path")) / "adapter_model.safetensors").exists()
    experiment.end()


def test_prompt_rows_are_no_use_for_sft(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="has the columns prompt; SFT reads one of"):
        Experiment("bad", experiment_path=tmp_path).run_fit(sft(), create_model, prompt_rows())


def test_a_tracker_that_draws_random_numbers_changes_nothing(tmp_path: Path) -> None:
    class Tracker:
        def on_event(self, before: Run, event: Any, after: Run) -> None:
            torch.rand(3)

    trained = []
    for trackers in ([], [Tracker()]):
        experiment = Experiment("random", experiment_path=tmp_path)
        experiment.run_fit(
            sft(lora_dropout=0.1), create_model, text_rows(), trackers=trackers, num_chunks=2
        )
        trained.append(list(losses(experiment)))
    assert trained[0] == trained[1]


def test_a_stream_needs_max_steps(tmp_path: Path) -> None:
    stream = text_rows().to_iterable_dataset()
    experiment = Experiment("stream", experiment_path=tmp_path)
    with pytest.raises(ConfigError, match=r"set max_steps .* \(it is -1\)"):
        experiment.run_fit(sft(max_steps=-1), create_model, stream)
    experiment.run_fit(sft(), create_model, stream, num_chunks=2)
    (run,) = experiment.get_runs_info().to_dict("records")
    assert (run["status"], run["step"], run["num_chunks"]) == ("completed", 4, 2)


def test_a_failed_run_is_not_the_best(tmp_path: Path) -> None:
    class Raises(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 4:
                raise ValueError("out of luck")

    good = RFModelConfig(training_args=sft(learning_rate=1e-4))
    better = RFModelConfig(training_args=sft(learning_rate=1e-1), callbacks=[Raises()])
    experiment = Experiment("best", experiment_path=tmp_path)
    experiment.run_fit(
        [good, better], create_model, text_rows(), text_rows(8, seed=9), num_chunks=4
    )
    info = experiment.get_runs_info()
    assert info["eval_loss"].iloc[1] < info["eval_loss"].iloc[0]
    assert experiment.best("eval_loss")["run_id"] == 1


def test_kto_needs_labels_and_says_so(tmp_path: Path) -> None:
    rows = instruction_rows().rename_columns({"instruction": "question", "response": "answer"})
    experiment = Experiment("kto", experiment_path=tmp_path)
    with pytest.raises(DatasetError, match=r"question \+ answer \+ label"):
        experiment.run_fit(RFKTOConfig(lora_rank=4), create_model, rows)


def test_tpo_needs_a_reference_and_says_so(tmp_path: Path) -> None:
    experiment = Experiment("tpo", experiment_path=tmp_path)
    with pytest.raises(DatasetError, match="TPO reads reference as well"):
        experiment.run_fit(RFTPOConfig(lora_rank=4), create_model, preference_rows())
