"""What scripts for the incumbent write, unchanged but for the sizes, on models made on the spot."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import DPOConfig, DPOTrainer

from rapidfireai import Experiment
from rapidfireai.automl import (
    List,
    RFDPOConfig,
    RFGridSearch,
    RFGRPOConfig,
    RFLoraConfig,
    RFModelConfig,
    RFOptuna,
    RFSFTConfig,
)
from rapidfireai.errors import ConfigError
from rapidfireai.testing.tiny import (
    instruction_rows,
    preference_rows,
    sentence,
    tiny_model,
    tiny_tokenizer,
)
from rapidfireai.workers.process_state import ProcessState

CreateModel = Callable[[dict[str, Any]], tuple[Any, Any]]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RF_EXPERIMENT_PATH", str(tmp_path / "experiments"))
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with tiny models: two in bfloat16, as most are published, and one in float32.

    The tokenizer of "two" has no padding token, like that of Llama 3.
    """
    folder = tmp_path_factory.mktemp("models")
    for name, dtype in (("one", torch.bfloat16), ("two", torch.bfloat16), ("full", torch.float32)):
        tiny_model(seed=len(name), dropout=0.0).to(dtype).save_pretrained(folder / name)
        tokenizer = tiny_tokenizer()
        if name == "two":
            tokenizer.pad_token = None
        tokenizer.save_pretrained(folder / name)
    return folder


class CountedLoads:
    """A script's `create_model`, as the tutorials write it."""

    def __init__(self) -> None:
        self.num_calls = 0

    def __call__(self, model_config: dict[str, Any]) -> tuple[Any, Any]:
        self.num_calls += 1
        assert model_config["model_type"] == "causal_lm"
        model = AutoModelForCausalLM.from_pretrained(
            model_config["model_name"], **model_config["model_kwargs"]
        )
        model.config.use_cache = False
        tokenizer = AutoTokenizer.from_pretrained(
            model_config["model_name"], **model_config["tokenizer_kwargs"]
        )
        return (model, tokenizer)


def completed(experiment: Experiment, num_runs: int) -> pd.DataFrame:
    info = experiment.get_runs_info()
    assert list(info["status"]) == ["completed"] * num_runs, list(info["traceback"])
    return info


def as_chat(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "prompt": [
            {"role": "system", "content": "the cat is old"},
            {"role": "user", "content": row["instruction"]},
        ],
        "completion": [{"role": "assistant", "content": row["response"]}],
    }


def overlap(eval_preds: tuple[Sequence[str], Sequence[str]]) -> dict[str, float]:
    """The share of the references' characters that the predictions have, in lieu of ROUGE."""
    predictions, references = eval_preds
    pairs = zip(predictions, references, strict=True)
    shares = [len(set(text) & set(wanted)) / len(set(wanted)) for text, wanted in pairs]
    return {"rougeL": round(sum(shares) / len(shares), 4)}


def test_the_program_of_the_first_page(models: Path) -> None:
    model_name, fn = str(models / "one"), as_chat
    train_dataset = instruction_rows(64)
    lora = {"target_modules": ["q_proj", "v_proj"]}

    config_set = List(
        [
            RFModelConfig(
                model_name=model_name,
                peft_config=RFLoraConfig(r=8, lora_alpha=16, **lora),
                training_args=RFSFTConfig(learning_rate=1e-3, max_steps=8, fp16=True),
            ),
            RFModelConfig(
                model_name=model_name,
                peft_config=RFLoraConfig(r=32, lora_alpha=64, **lora),
                training_args=RFSFTConfig(learning_rate=1e-4, max_steps=8, fp16=True),
                formatting_func=fn,
            ),
        ]
    )
    experiment = Experiment(experiment_name="sft-comparison")
    config_group = RFGridSearch(configs=config_set, trainer_type="SFT")

    def create_model(model_config: dict[str, Any]) -> tuple[Any, Any]:
        model = AutoModelForCausalLM.from_pretrained(
            model_config["model_name"], device_map="auto", torch_dtype="auto"
        )
        return (model, AutoTokenizer.from_pretrained(model_config["model_name"]))

    experiment.run_fit(config_group, create_model, train_dataset, num_chunks=4, seed=42)
    experiment.end()

    info = completed(experiment, 2)
    assert list(info["chunks_done"]) == [4, 4]
    assert list(info["step"]) == [8, 8]
    assert "instruction (+ context) -> prompt, response -> completion" in info["notes"][0]
    assert "prompt" not in info["notes"][1]
    for path, rank in zip(info["path"], (8, 32), strict=True):
        base = AutoModelForCausalLM.from_pretrained(model_name)
        assert PeftModel.from_pretrained(base, path).peft_config["default"].r == rank
    assert list(experiment.get_results()["run_id"].unique()) == [1, 2]


def test_sft_with_scores_of_generated_texts(models: Path) -> None:
    peft_configs = List(
        [
            RFLoraConfig(
                r=8, lora_alpha=16, lora_dropout=0.1, target_modules=["q_proj", "v_proj"],
                bias="none",
            ),
            RFLoraConfig(
                r=32, lora_alpha=64, lora_dropout=0.1,
                target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], bias="none",
            ),
        ]
    )  # fmt: skip
    config_set = List(
        [
            RFModelConfig(
                model_name=str(models / name),
                peft_config=peft_configs,
                training_args=RFSFTConfig(
                    learning_rate=1e-3,
                    lr_scheduler_type="linear",
                    per_device_train_batch_size=4,
                    per_device_eval_batch_size=4,
                    max_steps=8,
                    gradient_accumulation_steps=1,
                    logging_steps=2,
                    eval_strategy="steps",
                    eval_steps=4,
                    fp16=True,
                ),
                model_type="causal_lm",
                model_kwargs={"device_map": "auto", "torch_dtype": "auto", "use_cache": False},
                formatting_func=as_chat,
                compute_metrics=overlap,
                generation_config={
                    "max_new_tokens": 6,
                    "temperature": 0.8,
                    "top_p": 0.9,
                    "top_k": 30,
                    "repetition_penalty": 1.05,
                    "use_cache": False,
                },
            )
            for name in ("one", "two")
        ]
    )
    experiment = Experiment(experiment_name="exp1-chatqa", mode="fit")
    config_group = RFGridSearch(configs=config_set, trainer_type="SFT")
    create_model = CountedLoads()
    experiment.run_fit(
        config_group,
        create_model,
        instruction_rows(32),
        instruction_rows(6, seed=1),
        num_chunks=4,
        seed=42,
    )
    experiment.end()

    info = completed(experiment, 4)
    assert create_model.num_calls == 2
    ranks = [config["peft"]["r"] for config in info["config"]]
    assert ranks == [8, 32, 8, 32]
    results = experiment.get_results()
    for run_id in info["run_id"]:
        scored = results[results["run_id"] == run_id].dropna(subset=["eval_rougeL"])
        assert list(scored["step"]) == [2, 4, 6, 8]  # chunk ends and the run's own
        assert scored["eval_loss"].notna().all()
        logged = results[results["run_id"] == run_id].dropna(subset=["logged_loss"])
        assert list(logged["step"]) == [2, 4, 6, 8]
    assert experiment.best("eval_rougeL")["eval_rougeL"] == info["eval_rougeL"].max()
    assert "temperature, top_p, top_k count only where tokens are sampled" in info["notes"][0]


def test_optuna_searches_for_the_best_scores(models: Path) -> None:
    config = RFModelConfig(
        model_name=str(models / "one"),
        peft_config=RFLoraConfig(
            r=List([8, 16, 32]),
            lora_alpha=List([16, 32]),
            lora_dropout=0.1,
            target_modules=List([["q_proj", "v_proj"], ["q_proj", "k_proj", "v_proj", "o_proj"]]),
            bias="none",
        ),
        training_args=RFSFTConfig(
            learning_rate=List([1e-4, 5e-4, 1e-3]),
            lr_scheduler_type="linear",
            per_device_train_batch_size=4,
            max_steps=4,
            logging_steps=2,
            eval_strategy="steps",
            eval_steps=2,
            fp16=True,
        ),
        model_type="causal_lm",
        model_kwargs={"device_map": "auto", "torch_dtype": "auto", "use_cache": False},
        formatting_func=as_chat,
        compute_metrics=overlap,
        generation_config={"max_new_tokens": 4},
    )
    experiment = Experiment(experiment_name="exp1-optuna", mode="fit")
    config_group = RFOptuna(
        configs=config,
        trainer_type="SFT",
        n_initial=4,
        budget=6,
        objective="maximize:rougeL",
        sampler="tpe",
        pruner="median",
        seed=42,
    )
    experiment.run_fit(
        config_group,
        CountedLoads(),
        instruction_rows(16),
        instruction_rows(4, seed=1),
        num_chunks=2,
        seed=42,
    )
    experiment.end()

    info = experiment.get_runs_info()
    assert len(info) == 6
    assert set(info["status"]) <= {"completed", "pruned"}, list(info["traceback"])
    assert info["eval_rougeL"].notna().all()
    study = optuna_study(experiment)
    values = [trial.value for trial in study if trial.value is not None]
    assert len(values) == (info["status"] == "completed").sum()
    assert max(values) == info["eval_rougeL"].max()


def optuna_study(experiment: Experiment) -> list[Any]:
    """The trials that the experiment keeps."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    (file,) = experiment.path.glob("*study*")
    storage = JournalStorage(JournalFileBackend(str(file)))
    (study,) = storage.get_all_studies()
    return storage.get_all_trials(study._study_id)


def as_preferences(row: dict[str, Any]) -> dict[str, Any]:
    """With the prompt inside both conversations, as in `trl-lib/ultrafeedback_binarized`."""
    prompt = {"role": "user", "content": row["prompt"]}
    replies = {
        column: [prompt, {"role": "assistant", "content": row[column]}]
        for column in ("chosen", "rejected")
    }
    return {**replies, "score_chosen": 2.0, "score_rejected": 1.0}


@pytest.fixture(scope="module")
def preferences() -> Dataset:
    return preference_rows(16).map(as_preferences, remove_columns=["prompt"])


def dpo_config(**changes: Any) -> RFDPOConfig:
    return RFDPOConfig(
        **{
            "model_adapter_name": "default",
            "ref_adapter_name": "reference",
            "force_use_ref_model": False,
            "loss_type": "sigmoid",
            "beta": 0.1,
            "max_prompt_length": 512,
            "max_completion_length": 512,
            "max_length": 1024,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "learning_rate": 5e-4,
            "warmup_ratio": 0.1,
            "weight_decay": 0,
            "lr_scheduler_type": "linear",
            "num_train_epochs": 1,
            "bf16": True,
            "save_strategy": "chunk",
            "logging_strategy": "steps",
            "logging_steps": 1,
            **changes,
        }
    )


def test_dpo_with_a_new_adapter(models: Path, preferences: Dataset) -> None:
    lora_config = RFLoraConfig(
        task_type=TaskType.CAUSAL_LM, r=64, lora_alpha=64, lora_dropout=0.1,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj"], bias="none",
    )  # fmt: skip
    small = lora_config.copy()
    small.r = 16
    base_config = dpo_config(
        beta=List([0.1, 0.001]),
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": True},
    )
    combined = base_config.copy()
    combined.beta = 0.1
    combined.loss_type = ["sigmoid", "bco_pair", "sft"]
    combined.loss_weights = [0.8, 0.2, 1.0]
    config_set = List(
        [
            RFModelConfig(
                model_name=str(models / "one"),
                ref_model_name=None,
                peft_config=peft_config,
                training_args=training_args,
                model_kwargs={"device_map": "auto", "torch_dtype": torch.bfloat16},
                tokenizer_kwargs={
                    "model_max_length": 1024,
                    "padding_side": "right",
                    "truncation": True,
                },
            )
            for peft_config, training_args in ((small, base_config), (lora_config, combined))
        ]
    )
    experiment = Experiment(experiment_name="exp1-sft-dpo", mode="fit")
    config_group = RFGridSearch(configs=config_set, trainer_type="DPO")
    create_model = CountedLoads()
    experiment.run_fit(
        config_group, create_model, preferences, eval_dataset=None, num_chunks=4, seed=42
    )
    experiment.end()

    info = completed(experiment, 3)
    assert create_model.num_calls == 1
    assert [config["training_args"]["beta"] for config in info["config"]] == [0.1, 0.001, 0.1]
    assert list(info["chunks_done"]) == [4] * 3
    for name in ("ref_adapter_name", "force_use_ref_model", "max_prompt_length", "save_strategy"):
        assert f"{name}=" in info["notes"][0]
    # The policy is its own reference before the first update.
    first = experiment.get_results().query("step == 1").set_index("run_id")
    assert list(first.loc[[1, 2], "loss"]) == pytest.approx([0.6931] * 2, abs=1e-3)


@pytest.fixture(scope="module")
def sft_adapters(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters "policy" and "reference" of the model "full", as an SFT before left them."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("policy", "reference")):
        torch.manual_seed(seed)
        config = LoraConfig(
            r=4 + seed, target_modules=["q_proj", "v_proj"], init_lora_weights=False
        )
        base = AutoModelForCausalLM.from_pretrained(models / "full")
        get_peft_model(base, config).save_pretrained(folder / name)
    return folder


def with_adapters(models: Path, first: Path, second: Path | None) -> CreateModel:
    """A `create_model` that puts adapters on the model: one to train, one for reference."""

    def create_model(model_config: dict[str, Any]) -> tuple[Any, Any]:
        base = AutoModelForCausalLM.from_pretrained(models / "full")
        model = PeftModel.from_pretrained(base, first, is_trainable=True)
        if second is not None:
            model.load_adapter(second, adapter_name="reference")
        return model, tiny_tokenizer()

    return create_model


def chosen_rewards_of_plain_trl(
    models: Path, adapters: Path, reference: str, data: Dataset, folder: Path
) -> list[float]:
    """What TRL logs that is given the reference as a model of its own."""
    with ProcessState():
        tuned = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(models / "full"), adapters / reference
        )
        policy = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(models / "full"),
            adapters / "policy",
            is_trainable=True,
        )
        trainer = DPOTrainer(
            policy,
            tuned.merge_and_unload(),
            DPOConfig(
                output_dir=str(folder),
                beta=0.5,
                per_device_train_batch_size=4,
                learning_rate=5e-4,
                num_train_epochs=1,
                logging_steps=1,
                report_to="none",
                save_strategy="no",
                bf16=False,
                use_cpu=True,
                dataloader_pin_memory=False,
                disable_tqdm=True,
            ),
            train_dataset=data,
            processing_class=tiny_tokenizer(),
        )
        trainer.train()
        rows = trainer.state.log_history
        return [row["rewards/chosen"] for row in rows if "rewards/chosen" in row]


@pytest.mark.parametrize("reference", ["reference", None])
def test_dpo_goes_on_from_an_sft_adapter(
    reference: str | None, models: Path, sft_adapters: Path, preferences: Dataset, tmp_path: Path
) -> None:
    config = RFModelConfig(
        training_args=dpo_config(
            beta=0.5, bf16=False, warmup_ratio=0.0,
            per_device_train_batch_size=4, gradient_accumulation_steps=1,
        )
    )  # fmt: skip
    second = None if reference is None else sft_adapters / reference
    experiment = Experiment(experiment_name="exp2-dpo", mode="fit")
    experiment.run_fit(
        RFGridSearch(configs=List([config]), trainer_type="DPO"),
        with_adapters(models, sft_adapters / "policy", second),
        preferences,
        eval_dataset=None,
        num_chunks=2,
        seed=42,
    )
    info = completed(experiment, 1)
    rewards = experiment.get_results()["rewards/chosen"].dropna().to_list()
    expected = {
        name: chosen_rewards_of_plain_trl(models, sft_adapters, name, preferences, tmp_path / "trl")
        for name in ("reference", "policy")
    }
    # Without an adapter of that name, the reference is the policy as it was at the start.
    assert rewards == pytest.approx(expected[reference or "policy"], abs=2e-4)
    assert abs(expected["reference"][0] - expected["policy"][0]) > 1e-2
    base = AutoModelForCausalLM.from_pretrained(models / "full")
    assert PeftModel.from_pretrained(base, info["path"][0]).peft_config["default"].r == 4


@pytest.mark.parametrize(
    ("changes", "peft_config", "message"),
    [
        (
            {},
            RFLoraConfig(r=4),
            r"adapters \['default'\], and peft_config asks for one more. Leave",
        ),
        ({"is_trainable": False}, None, "all of them frozen. Load the one to train with is_train"),
        ({"adapter_name": "sft"}, None, r"of which \['sft'\] are active. The one to train has to"),
    ],
)
def test_adapters_that_cannot_be_trained(
    changes: dict[str, Any],
    peft_config: RFLoraConfig | None,
    message: str,
    models: Path,
    sft_adapters: Path,
    preferences: Dataset,
) -> None:
    def create_model(model_config: dict[str, Any]) -> tuple[Any, Any]:
        base = AutoModelForCausalLM.from_pretrained(models / "full")
        given = {"is_trainable": True, **changes}
        return PeftModel.from_pretrained(base, sft_adapters / "policy", **given), tiny_tokenizer()

    config = RFModelConfig(training_args=RFDPOConfig(max_steps=1), peft_config=peft_config)
    with pytest.raises(ConfigError, match=message):
        Experiment("adapters").run_fit(config, create_model, preferences)


def test_quantization_as_it_was_asked_for_before_transformers_5() -> None:
    def loaded(**model_kwargs: Any) -> tuple[Any, tuple[str, ...]]:
        config = RFModelConfig(training_args=RFSFTConfig(), model_kwargs=model_kwargs)
        (run,) = RFGridSearch(config).get_runs(0)
        return run.model["model_kwargs"], run.notes

    kwargs, (note,) = loaded(load_in_4bit=True, device_map="auto")
    assert kwargs == {"device_map": "auto", "quantization_config": {"load_in_4bit": True}}
    assert "load_in_4bit=True became quantization_config=" in note
    kwargs, notes = loaded(load_in_8bit=False)
    assert kwargs == {}
    assert notes == ("model_kwargs: load_in_8bit=False was left out: it is the default",)


def test_quantizations_are_told_apart() -> None:
    ways = List([BitsAndBytesConfig(llm_int8_threshold=threshold) for threshold in (6.0, 1.0, 6.0)])
    config = RFModelConfig(training_args=RFSFTConfig(), model_kwargs={"quantization_config": ways})
    runs = RFGridSearch(config).get_runs(0)
    assert [run.notes for run in runs] == [(), (), ("equal to configuration 1 of this search",)]


def said(completion: list[dict[str, str]]) -> str:
    return completion[0]["content"]


def correctness_reward(
    prompts: Any, completions: Any, answer: list[str], **kwargs: Any
) -> list[float]:
    assert prompts[0][-1]["role"] == "user"
    assert len(kwargs["question"]) == len(completions)
    return [2.0 * (a in said(c)) for c, a in zip(completions, answer, strict=True)]


def digit_reward(completions: Any, **kwargs: Any) -> list[float]:
    return [0.5 * any(map(str.isdigit, said(c))) for c in completions]


def strict_format_reward(completions: Any, **kwargs: Any) -> list[float]:
    return [0.5 * said(c).startswith("<answer>") for c in completions]


def soft_format_reward(completions: Any, **kwargs: Any) -> list[float]:
    return [0.5 * ("<" in said(c)) for c in completions]


def variety_reward(completions: Any, **kwargs: Any) -> list[float]:
    return [0.125 * len(set(said(c))) for c in completions]


def as_question(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "prompt": [
            {"role": "system", "content": "the sun is near"},
            {"role": "user", "content": row["question"]},
        ],
        "question": row["question"],
        "answer": row["answer"].split("####")[1].strip(),
    }


def test_grpo_with_five_rewards(models: Path) -> None:
    rng = random.Random(0)
    dataset = Dataset.from_list(
        [
            {"question": sentence(rng, 4), "answer": f"so it is #### {rng.randint(1, 9)}"}
            for _ in range(16)
        ]
    )
    lora_config = RFLoraConfig(
        r=16, lora_alpha=16, lora_dropout=0.05, target_modules=["q_proj", "v_proj"], bias="none"
    )
    grpo_config = RFGRPOConfig(
        learning_rate=5e-6,
        warmup_ratio=0.1,
        weight_decay=0.1,
        max_grad_norm=0.1,
        adam_beta1=0.9,
        adam_beta2=0.99,
        lr_scheduler_type="linear",
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        num_generations=8,
        max_steps=4,
        max_prompt_length=256,
        max_completion_length=8,
        temperature=0.9,
        logging_steps=2,
        beta=0.0,
    )
    faster = grpo_config.copy()
    faster.learning_rate = 1e-5
    reward_funcs = [
        correctness_reward,
        digit_reward,
        strict_format_reward,
        soft_format_reward,
        variety_reward,
    ]
    config_set = List(
        [
            RFModelConfig(
                model_name=str(models / "one"),
                peft_config=lora_config,
                training_args=training_args,
                formatting_func=as_question,
                reward_funcs=reward_funcs,
                model_kwargs={
                    "load_in_4bit": False,
                    "device_map": "auto",
                    "torch_dtype": "auto",
                    "use_cache": False,
                },
                tokenizer_kwargs={
                    "model_max_length": 512,
                    "padding_side": "left",
                    "truncation": True,
                },
            )
            for training_args in (grpo_config, faster)
        ]
    )
    experiment = Experiment(experiment_name="exp1-math-reasoning", mode="fit")
    config_group = RFGridSearch(configs=config_set, trainer_type="GRPO")
    create_model = CountedLoads()
    experiment.run_fit(
        config_group, create_model, dataset, dataset.select(range(2)), num_chunks=2, seed=42
    )
    experiment.end()

    info = completed(experiment, 2)
    assert create_model.num_calls == 1
    assert list(info["chunks_done"]) == [2, 2]
    rewards = experiment.get_results().dropna(subset=["reward"])
    for function in reward_funcs:
        assert rewards[f"rewards/{function.__name__}/mean"].notna().all()
    assert (rewards["rewards/variety_reward/mean"] > 0).all()
    assert info["eval_rewards/variety_reward/mean"].notna().all()
    assert "load_in_4bit=False was left out" in info["notes"][0]
