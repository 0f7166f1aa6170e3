"""Which arguments are in force on which device, and which are refused."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora.config import CordaConfig, KasaConfig
from trl import SFTConfig

from rapidfireai.errors import ConfigError
from rapidfireai.training.arguments import REFUSED, Resolved, resolve
from rapidfireai.training.config import CUSTOM, PeftSpec, RunConfig
from rapidfireai.training.registry import TRAINERS
from rapidfireai.workers.process_state import ProcessState

CPU = torch.device("cpu")
BF16_NOTE = "bf16 is off: its default needs a GPU (set bf16=True to have it here)"


@pytest.fixture(autouse=True)
def _own_process_state() -> Iterator[None]:
    with ProcessState():
        yield


def resolved(trainer: str = "SFT", *, device: torch.device = CPU, **config: Any) -> Resolved:
    given = {"trainer_type": trainer, "training_args": {}, **config}
    return resolve(
        RunConfig(**given), device=device, output_dir=Path("/somewhere/runs/1"), default_seed=42
    )


def refusal(**arguments: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        resolved(**arguments)
    return str(caught.value)


def lora(**arguments: Any) -> PeftSpec:
    return PeftSpec(method="LoraConfig", arguments={"target_modules": ["q_proj"], **arguments})


class TestOnTheCpu:
    @pytest.mark.parametrize("trainer", ["SFT", "DPO", "GRPO", "RLOO", "KTO", "Reward", "ORPO"])
    def test_no_half_precision_unless_chosen(self, trainer: str) -> None:
        result = resolved(trainer)
        assert (result.args.bf16, result.args.fp16) == (False, False)
        assert result.args.use_cpu
        assert result.notes == (BF16_NOTE,)

    @pytest.mark.parametrize(
        ("given", "precision"),
        [
            ({"bf16": True}, (True, False)),
            ({"fp16": True}, (False, True)),
            ({"bf16": False}, (False, False)),
            ({"fp16": True, "bf16": False}, (False, True)),
        ],
        ids=str,
    )
    def test_the_users_choice_is_kept(
        self, given: dict[str, bool], precision: tuple[bool, bool]
    ) -> None:
        result = resolved(training_args=given)
        assert (result.args.bf16, result.args.fp16) == precision
        assert result.notes == ()

    def test_fp16_off_is_no_choice_of_bf16(self) -> None:
        result = resolved(training_args={"fp16": False})
        assert (result.args.bf16, result.args.fp16) == (False, False)
        assert result.notes == (BF16_NOTE,)

    def test_memory_is_not_pinned(self) -> None:
        assert resolved().args.dataloader_pin_memory is False

    def test_use_cpu_may_be_said(self) -> None:
        assert resolved(training_args={"use_cpu": True}).args.use_cpu


def test_use_cpu_is_refused_where_runs_share_a_gpu() -> None:
    message = refusal(device=torch.device("cuda", 0), training_args={"use_cpu": True})
    assert message.startswith("use_cpu=True cannot be used here: the runs share weights on cuda:0")
    assert "CUDA_VISIBLE_DEVICES" in message


class TestDefaults:
    def test_the_seed(self) -> None:
        result = resolved()
        assert result.args.seed == result.seed == 42
        result = resolved(training_args={"seed": 7})
        assert result.args.seed == result.seed == 7

    def test_the_output_folder_is_the_engines(self) -> None:
        result = resolved()
        assert result.args.output_dir == "/somewhere/runs/1"
        assert not any("output_dir" in note for note in result.notes)
        result = resolved(training_args={"output_dir": "mine"})
        assert result.args.output_dir == "/somewhere/runs/1"
        assert result.notes[0].startswith("output_dir='mine' is not used: every run writes to its")

    def test_nothing_is_saved_in_between_unless_asked_for(self) -> None:
        assert resolved().args.save_strategy == "no"
        assert resolved(training_args={"save_steps": 5}).args.save_strategy == "steps"
        assert resolved(training_args={"save_strategy": "epoch"}).args.save_strategy == "epoch"
        best = {
            "load_best_model_at_end": True,
            "eval_strategy": "steps",
            "eval_steps": 500,
        }
        assert resolved(training_args=best).args.save_strategy == "steps"

    def test_no_progress_bars_of_trainers_unless_asked_for(self) -> None:
        assert resolved().args.disable_tqdm is True
        assert resolved(training_args={"disable_tqdm": False}).args.disable_tqdm is False

    def test_notes_of_the_configuration_come_first(self) -> None:
        assert resolved(notes=("translated",)).notes == ("translated", BF16_NOTE)

    def test_every_call_makes_new_objects(self) -> None:
        config = RunConfig(trainer_type="SFT", training_args={}, peft=lora(r=3))
        one, other = (
            resolve(config, device=CPU, output_dir=Path("/x"), default_seed=1) for _ in range(2)
        )
        assert one.args is not other.args
        assert one.peft_config is not other.peft_config
        assert one.peft_config.r == 3

    def test_an_own_trainers_configuration_is_left_to_it(self) -> None:
        knobs = {"anything": 1, "seed": 5}
        result = resolved(CUSTOM, knobs=knobs)
        assert (result.args, result.peft_config, result.private_base) == (None, None, None)
        assert result.seed == 5
        assert resolved(CUSTOM, knobs={}).seed == 42

    def test_all_of_it_is_json(self) -> None:
        result = resolved(training_args={"learning_rate": 0.5}, peft=lora(r=3))
        stored = json.loads(json.dumps(result.to_json()))
        assert stored["training_args"]["learning_rate"] == 0.5
        assert stored["training_args"]["bf16"] is False
        assert stored["peft_config"]["r"] == 3
        assert stored["peft_config"]["lora_alpha"] == 8
        assert stored["private_base"] is None
        assert set(stored["training_args"]) > {"output_dir", "seed", "max_length", "optim"}


REFUSED_VALUES = [
    ("enable_jit_checkpoint", True, "signal handler"),
    ("auto_find_batch_size", True, "per_device_train_batch_size"),
    ("use_vllm", True, "generation then runs in transformers"),
    ("deepspeed", {"zero_optimization": {}}, "one device"),
    ("fsdp", "full_shard", "one device"),
    ("use_liger_kernel", True, "use_kernels"),
    ("gradient_checkpointing_kwargs", {"selective": True}, "leave it out"),
    ("report_to", "wandb", 'run_fit(trackers=["wandb", "trackio"])'),
    ("report_to", ["tensorboard", "wandb"], "one current run of the whole process"),
    ("report_to", "all", "get_results()"),
]


class TestRefused:
    @pytest.mark.parametrize(("name", "value", "advice"), REFUSED_VALUES, ids=str)
    def test_options_that_reach_beyond_the_run(self, name: str, value: object, advice: str) -> None:
        trainer = "GRPO" if name == "use_vllm" else "SFT"
        message = refusal(trainer=trainer, training_args={name: value})
        assert message.startswith(f"{name}={value!r} cannot be used here: ")
        assert advice in message

    def test_what_needs_a_gpu_says_so(self) -> None:
        message = refusal(training_args={"activation_offloading": True})
        assert message.startswith("activation_offloading=True needs a GPU: ")
        assert message.endswith("leave it out.")

    @pytest.mark.parametrize("method", ["MultitaskPromptTuningConfig", "PolyConfig"])
    def test_methods_that_need_more_than_a_trainer_gives(self, method: str) -> None:
        message = refusal(peft=PeftSpec(method=method, arguments={}))
        assert message.startswith(f"peft.{method} cannot be used here: its model needs task_ids")

    def test_a_method_whose_package_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "sklearn", None)  # as where it is not installed
        message = refusal(peft=PeftSpec(method="AdamssConfig", arguments={}))
        assert message.startswith("peft.AdamssConfig needs scikit-learn, which is not installed")

    def test_every_one_is_tested(self) -> None:
        assert {name for name, _, _ in REFUSED_VALUES} == set(REFUSED)

    @pytest.mark.parametrize(
        "given",
        [{"report_to": "none"}, {"report_to": []}, {"report_to": ["mlflow"]},
         {"fsdp": ""}, {"use_liger_kernel": False},
         {"gradient_checkpointing_kwargs": {"use_reentrant": False}},
         {"activation_offloading": False}, {"auto_find_batch_size": False}],
        ids=str,
    )  # fmt: skip
    def test_switched_off_they_do_no_harm(self, given: dict[str, Any]) -> None:
        resolved(training_args=given)

    @pytest.mark.parametrize(
        ("trainer", "given", "reason"),
        [
            ("SFT", {"lr_scheduler_type": "constnt"}, "constnt"),
            ("SFT", {"optim": "adam"}, "adam"),
            ("SFT", {"load_best_model_at_end": True}, "load_best_model_at_end"),
            ("GRPO", {"num_generations": 3, "per_device_train_batch_size": 4}, "divisible"),
            ("SFT", {"fp16": True, "bf16": True}, "fp16"),
            ("SFT", {"no_such_argument": 1}, "no_such_argument"),
        ],
    )
    def test_what_trl_refuses_is_said_with_what_was_given(
        self, trainer: str, given: dict[str, Any], reason: str
    ) -> None:
        message = refusal(trainer=trainer, training_args=given)
        assert message.startswith(f"{trainer}Config refuses the arguments {{")
        assert all(name in message for name in given)
        assert reason in message.split("}:", 1)[1]

    @pytest.mark.parametrize(
        ("given", "reason"),
        [
            ({"seed": -1}, "seed=-1 cannot be used; it has to be an integer from 0 to 2**32 - 1"),
            ({"max_steps": 0}, "give at least 1, or -1 to let num_train_epochs decide"),
            ({"num_train_epochs": 0}, "num_train_epochs=0 trains nothing"),
        ],
        ids=str,
    )
    def test_amounts_that_train_nothing(self, given: dict[str, Any], reason: str) -> None:
        ((name, value),) = given.items()
        message = refusal(training_args=given)
        assert message.startswith(f"{name}={value}")
        assert reason in message

    @pytest.mark.parametrize(
        ("spec", "reason"),
        [
            (lora(layers_pattern="h"), "layers_to_transform"),
            (lora(no_such_argument=1), "no_such_argument"),
            (PeftSpec(method="AdaLoraConfig", arguments={}), "total_step"),
        ],
        ids=lambda value: value.method if isinstance(value, PeftSpec) else value,
    )
    def test_what_peft_refuses_likewise(self, spec: PeftSpec, reason: str) -> None:
        message = refusal(peft=spec)
        assert message.startswith(f"peft.{spec.method} refuses {{")
        assert reason in message


PRIVATE = [
    ({"share_base": False}, "share_base=False"),
    ({"training_args": {"chat_template_path": "x"}}, "may resize the base's embeddings"),
    *[
        ({"peft": lora(init_lora_weights=init)}, f"init_lora_weights={init!r} rewrites")
        for init in ("pissa", "pissa_niter_16", "olora", "OLoRA", "lora_ga")
    ],
    (
        {"peft": lora(init_lora_weights="corda", corda_config=CordaConfig())},
        "init_lora_weights='corda' rewrites",
    ),
    (
        {"peft": lora(init_lora_weights="loftq", loftq_config={"loftq_bits": 4})},
        "init_lora_weights='loftq' rewrites",
    ),
    ({"peft": lora(kasa_config=KasaConfig())}, "kasa_config truncates"),
    ({"peft": lora(bias="all")}, "bias='all' trains the base's biases"),
    ({"peft": lora(bias="lora_only")}, "bias='lora_only' trains the base's biases"),
    ({"trainer": "GRPO", "training_args": {"cast_lm_head_to_fp32": True}}, "cast_lm_head_to_fp32"),
]


class TestPrivateBase:
    @pytest.mark.parametrize(("config", "reason"), PRIVATE, ids=str)
    def test_options_that_write_to_the_base(
        self, config: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # LoftQ's config asks for scipy, which it needs later on.
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: name)
        result = resolved(**config)
        assert result.private_base is not None
        assert reason in result.private_base
        assert result.to_json()["private_base"] == result.private_base

    @pytest.mark.parametrize(
        "arguments",
        [{}, {"init_lora_weights": "gaussian"}, {"init_lora_weights": False}, {"use_dora": True},
         {"bias": "none"}, {"modules_to_save": ["lm_head"]}],
        ids=str,
    )  # fmt: skip
    def test_others_share(self, arguments: dict[str, Any]) -> None:
        assert resolved(peft=lora(**arguments)).private_base is None

    def test_without_an_adapter_it_is_not_decided_here(self) -> None:
        assert resolved().private_base is None


@dataclass
class TwoGpus(SFTConfig):
    """TRL's config on a machine with two GPUs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._n_gpu = 2


def test_a_run_uses_one_of_several_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        TRAINERS,
        "SFT",
        replace(TRAINERS["SFT"], config=f"{__name__}:TwoGpus"),
    )
    args = resolved(training_args={"per_device_train_batch_size": 3}).args
    assert type(args) is TwoGpus
    assert args.n_gpu == 1
    assert args.train_batch_size == 3
