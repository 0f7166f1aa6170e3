"""Every argument of the public functions has bad values here, and each is one clear error.

A message says what was given, and what is allowed or to be done instead; nothing has been started.
`tests/test_bad_input.py` has the cases in which several parts do not fit together.
"""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import Trainer

from rapidfireai import Experiment
from rapidfireai.automl import (
    List,
    Range,
    RFGridSearch,
    RFGRPOConfig,
    RFLoraConfig,
    RFModelConfig,
    RFRandomSearch,
    RFSFTConfig,
)
from rapidfireai.errors import RapidFireError
from rapidfireai.policies import MedianPolicy
from rapidfireai.testing.tiny import prompt_rows, text_rows, tiny_model, tiny_tokenizer


def create_model(config: dict[str, Any]) -> tuple[Any, Any]:
    return tiny_model(), tiny_tokenizer()


def sft(**args: Any) -> RFSFTConfig:
    return RFSFTConfig(**{"max_steps": 2, "max_length": 32, **args})


def use_experiment(root: Path, **given: Any) -> None:
    Experiment(**{"experiment_name": "bad", "experiment_path": root, **given})


def use_run_fit(root: Path, **given: Any) -> None:
    working: dict[str, Any] = {
        "config_group": sft(lora_rank=2),
        "create_model": create_model,
        "train_dataset": text_rows(8),
    }
    Experiment("bad", experiment_path=root).run_fit(**{**working, **given})


def use_best(root: Path, **given: Any) -> None:
    Experiment("bad", experiment_path=root).best(**given)


def use_model_config(root: Path, **given: Any) -> None:
    trainer = RFGRPOConfig(max_steps=1) if "reward_funcs" in given else sft()
    config = RFModelConfig(**{"training_args": trainer, **given})
    data = prompt_rows(8) if "reward_funcs" in given else text_rows(8)
    maker = None if given.keys() & {"model_name", "model_type", "tokenizer"} else create_model
    name = {} if maker or "model_name" in given else {"model": root / "no-such-model"}
    use_run_fit(root, config_group=config, train_dataset=data, create_model=maker, **name)


def use_training_args(root: Path, **given: Any) -> None:
    use_run_fit(root, config_group=sft(**given))


def use_lora(root: Path, **given: Any) -> None:
    config = RFModelConfig(training_args=sft(), peft_config=RFLoraConfig(**given))
    use_run_fit(root, config_group=config)


def use_grid_search(root: Path, **given: Any) -> None:
    RFGridSearch(**{"configs": sft(), **given})


def use_random_search(root: Path, **given: Any) -> None:
    working: dict[str, Any] = {"configs": sft(seed=List([1, 2, 3]))}
    if not given.keys() & {"num_runs", "num_samples"}:
        working["num_runs"] = 2
    RFRandomSearch(**{**working, **given})


def use_list(root: Path, **given: Any) -> None:
    List(**given)


def use_range(root: Path, **given: Any) -> None:
    Range(**{"start": 1.0, "end": 2.0, **given})


USES: Mapping[str, tuple[Callable[..., Any], Callable[..., None]]] = {
    "Experiment": (Experiment, use_experiment),
    "run_fit": (Experiment.run_fit, use_run_fit),
    "best": (Experiment.best, use_best),
    "RFModelConfig": (RFModelConfig, use_model_config),
    "RFGridSearch": (RFGridSearch, use_grid_search),
    "RFRandomSearch": (RFRandomSearch, use_random_search),
    "List": (List, use_list),
    "Range": (Range, use_range),
}
"""By name: whose arguments these are, and how to give it one that is bad and the others good."""

Row = tuple[Any, ...]
"""A bad value and what the message has to say, in pieces."""

TABLE: Mapping[str, Mapping[str, Sequence[Row]]] = {
    "Experiment": {
        "experiment_name": [
            ("a/b", "experiment_name='a/b' cannot be used: it names a folder"),
            ("", "experiment_name='' cannot be used"),
        ],
        "mode": [("evals", "mode='evals' is not known; only 'fit' is")],
        "experiment_path": [
            ("/dev/null/x", "/dev/null/x"),
            (3, "experiment_path=3 cannot be used", "a string or a pathlib.Path"),
            ([], "experiment_path=[] cannot be used", "a string or a pathlib.Path"),
            (b"there", "experiment_path=b'there' cannot be used", "Leave it out"),
            (True, "experiment_path=True cannot be used", "Leave it out"),
        ],
    },
    "run_fit": {
        "config_group": [
            (None, "there is nothing to train", "RFGridSearch([...])"),
            (7, "configs=7 (int) is no configuration; allowed: RFModelConfig(...)"),
            (RFLoraConfig(r=2), "configs=RFLoraConfig(r=2): give it to RFModelConfig(peft_config"),
        ],
        "create_model": [
            (3, "create_model=3 has to be a function that takes the model configuration"),
            (lambda: None, "create_model raised TypeError", "call it once by hand"),
            (lambda config: 3, "create_model returned one value, a int; it has to return two"),
        ],
        "train_dataset": [
            (None, "train_dataset is missing: give run_fit(train_dataset=...) a datasets.Dataset"),
            ("rows.jsonl", "train_dataset is a str; it has to be a datasets.Dataset"),
            (Dataset.from_dict({"text": []}), "train_dataset is empty; it needs at least one row"),
            (prompt_rows(2), "train_dataset has the columns prompt; SFT reads one of: messages"),
        ],
        "eval_dataset": [
            ([1], "eval_dataset is a list; it has to be a datasets.Dataset"),
            ({"b": Dataset.from_dict({"text": []})}, "eval_dataset['b'] is empty"),
            (prompt_rows(2), "eval_dataset has the columns prompt; SFT reads one of: messages"),
        ],
        "num_chunks": [
            (0, "num_chunks=0 cannot be used; it has to be an integer >= 1"),
            (2.0, "num_chunks=2.0 cannot be used"),
        ],
        "seed": [
            (None, "seed=None cannot be used; it has to be an integer >= 0"),
            (2**32, "seed=4294967296 cannot be used; it has to be an integer from 0 to 2**32 - 1"),
        ],
        "num_gpus": [(4, "num_gpus=4: a run trains on one device here; leave it out")],
        "create_trainer": [
            (3, "create_trainer=3 has to be a function that takes (config, context) and returns"),
            (lambda: None, "cannot be called with (config, context): too many positional"),
        ],
        "memory_limit_gib": [
            ("8GB", "memory_limit_gib='8GB' cannot be used; it has to be a number >= 0, or None"),
            (-1, "memory_limit_gib=-1 cannot be used"),
        ],
        "host_memory_limit_gib": [(-0.5, "host_memory_limit_gib=-0.5 cannot be used; it has to")],
        "tool_timeout_s": [
            (0, "tool_timeout_s=0 cannot be used; it has to be a number > 0, or None for no limit"),
            ("1m", "tool_timeout_s='1m' cannot be used"),
            (True, "tool_timeout_s=True cannot be used"),
        ],
        "checkpoint_every_s": [
            (-1, "checkpoint_every_s=-1 cannot be used; it has to be a number >= 0"),
            ("1m", "checkpoint_every_s='1m' cannot be used"),
        ],
        "policy": [
            ("median", "policy='median' has no method on_chunk() to call. Give 'auto', a policy"),
            ([MedianPolicy], "did you mean MedianPolicy()?"),
            ([None], "policy=None has no method on_chunk()"),
        ],
        "fuse_generation": [
            ("yes", "fuse_generation='yes' cannot be used; it is True or False"),
        ],
        "fuse": [
            ("yes", "fuse='yes' cannot be used; it is one of 'off', 'auto', 'on'"),
            (True, "fuse=True cannot be used"),
        ],
        "trackers": [
            ([print], "trackers holds <built-in", "and has no method on_event()"),
            ("mlflow", "trackers='mlflow' cannot be used; it has to be a list"),
            (["mlfow"], "trackers holds 'mlfow', which is no tracker; did you mean 'mlflow'?"),
            (["wandb", "WandB"], "trackers holds 'wandb' twice"),
        ],
    },
    "best": {
        "metric": [("eval_los", "has no results yet; call run_fit(...) first")],
    },
    "RFModelConfig": {
        "model_name": [
            (3, "model_name=3 (int) is not possible; allowed: a name or path, or None"),
            (Path("no", "such"), "model_name='no/such' cannot be loaded", "the path of a folder"),
        ],
        "peft_config": [
            (8, "peft_config=8 (int) is not possible; allowed: RFLoraConfig(...)"),
            ({"rank": 8}, "RFLoraConfig has no argument 'rank'"),
        ],
        "training_args": [
            ("SFT", "training_args='SFT' (str) is not possible; allowed: RFSFTConfig(...)"),
            ({"max_steps": 1}, "does not say which trainer; use RFSFTConfig(...)"),
        ],
        "model_type": [
            ("causal", "model_type='causal' cannot be loaded; did you mean 'causal_lm'?"),
            (3, "model_type=3 (int) is not possible; allowed: str"),
        ],
        "model_kwargs": [("auto", "model_kwargs='auto' (str) is not possible; allowed: dict[str")],
        "tokenizer": [("no-such-one", "cannot be loaded", "the path of a folder")],
        "tokenizer_kwargs": [([1], "tokenizer_kwargs=[1] (list) is not possible; allowed: dict")],
        "formatting_func": [
            ("text", "formatting_func='text' (str) is not possible; allowed: a function of a row"),
            (lambda row: 3, "returned a int for a row of train_dataset; it has to return a dict"),
            (lambda row: {"a": "b"}, "leaves train_dataset with the columns a; SFT reads one of"),
        ],
        "compute_metrics": [
            (3, "compute_metrics=3 (int) is not possible; allowed: a function of (predictions,"),
        ],
        "generation_config": [
            (8, "generation_config=8 (int) is not possible; allowed: dict"),
            ({"max_new_token": 8}, "no entry 'max_new_token'; did you mean 'max_new_tokens'?"),
            ({"do_sample": True}, "has no use without compute_metrics; give compute_metrics=..."),
        ],
        "share_base": [("no", "share_base='no' (str) is not possible; allowed: bool")],
        "reward_funcs": [
            (3, "reward_funcs=3 is not possible: 3 (int) is no reward; allowed: functions of the"),
            ([print, 3.5], "3.5 (float) is no reward; allowed: functions of the completions"),
            ([], "reward_funcs=[] is empty; give at least one function"),
        ],
        "callbacks": [(3, "callbacks=3 (int) is not possible; allowed: a list of transformers.T")],
        "ref_model": [(1, "RFModelConfig has no argument 'ref_model'", "the trainer of SFT")],
        "ref_model_name": [("m", "ref_model_name='m' cannot be used; load the reference model")],
        "num_gpus": [(2, "num_gpus=2 is not possible: every run trains on one device")],
    },
    "RFGridSearch": {
        "configs": [
            (None, "configs=None (NoneType) is no configuration; allowed: RFModelConfig(...)"),
            ([], "configs=[] is empty; give at least one: RFModelConfig(...)"),
            (
                RFSFTConfig(max_steps=Range(1, 5)),
                "max_steps is Range(1, 5): a grid cannot enumerate a Range; write List([...])",
            ),
        ],
        "trainer_type": [
            ("sft", "trainer_type='sft' is not known; did you mean 'SFT'?"),
            ("DPO", "trainer_type='DPO' contradicts training_args=RFSFTConfig(...); leave"),
        ],
    },
    "RFRandomSearch": {
        "configs": [("SFT", "configs='SFT' (str) is no configuration; allowed: RFModelConfig")],
        "trainer_type": [("PPO", "trainer_type='PPO' is not known")],
        "num_runs": [
            (0, "num_runs=0 must be a whole number of at least 1"),
            (9, "num_runs=9, but there are only 3 distinct configurations; give num_runs=3"),
            (None, "num_runs=None, num_samples=None: give one of them"),
        ],
        "num_samples": [("all", "num_runs='all' must be a whole number of at least 1")],
        "seed": [
            ("x", "seed='x' must be a whole number, or None for run_fit's"),
            (1.5, "seed=1.5 must be a whole number"),
        ],
    },
    "List": {
        "values": [
            ([], "List([]) has no alternatives: give at least one value"),
            (3, "List(3): List takes a list, as in List([3, ...])"),
            ("ab", "List('ab'): List takes a list, as in List(['ab', ...])"),
        ],
    },
    "Range": {
        "start": [
            ("1e-4", "start must be a number, written without quotes"),
            (3.0, "Range(3.0, 2.0): start must be less than end"),
        ],
        "end": [(float("inf"), "end must be finite")],
        "dtype": [
            ("double", "dtype='double'", 'dtype must be "int" or "float"'),
        ],
        "log": [(True, "log=True needs a start above 0")],
        "step": [(0.0, "step must be above 0 and at most end - start")],
    },
}  # fmt: skip

TRAINING_ARGS: Mapping[str, Sequence[Row]] = {
    "seed": [(-1, "seed=-1 cannot be used; it has to be an integer from 0 to 2**32 - 1")],
    "max_steps": [(0, "max_steps=0 cannot be used; give at least 1, or -1 to let num_train_ep")],
    "per_device_train_batch_size": [
        (0, "per_device_train_batch_size=0 (int) is not possible", ">= 1")
    ],
    "gradient_accumulation_steps": [
        (0, "gradient_accumulation_steps=0 (int) is not possible", ">= 1")
    ],
    "optim": [
        ("adamw_8bit", "optim='adamw_8bit' needs bitsandbytes, which is not installed: pip inst"),
        ("adam", "optim='adam' (str) is not possible; allowed: adamw_torch, "),
    ],
    "eval_strategy": [("steps", "eval_strategy='steps' needs an eval_dataset, and there is none")],
    "lora_rank": [(0, "lora_rank=0 (int) is not possible; allowed: int; numbers >= 1")],
    "report_to": [("wandb", "report_to='wandb' cannot be used here", 'use "none"')],
}
"""Of RFSFTConfig: values that the type allows, and that would fail only in training."""

LORA_ARGS: Mapping[str, Sequence[Row]] = {
    "r": [(-4, "r=-4 (int) is not possible; allowed: int; numbers >= 1")],
    "lora_dropout": [(1.5, "lora_dropout=1.5 (float) is not possible", ">= 0 and < 1")],
    "target_modules": [
        (["query"], "target_modules=['query'] fits no layer of LlamaForCausalLM; its layers with"
         " weight matrices are named embed_tokens, q_proj, k_proj"),
        ("q_prj", "target_modules='q_prj' fits no layer of LlamaForCausalLM"),
    ],
}  # fmt: skip

ROWS = [
    *(
        pytest.param(use, {argument: value}, says, id=f"{name}({argument}={i})")
        for name, (_, use) in USES.items()
        for argument, rows in TABLE[name].items()
        for i, (value, *says) in enumerate(rows)
    ),
    *(
        pytest.param(use, {argument: value}, says, id=f"{name}({argument}={i})")
        for name, use, table in (
            ("RFSFTConfig", use_training_args, TRAINING_ARGS),
            ("RFLoraConfig", use_lora, LORA_ARGS),
        )
        for argument, rows in table.items()
        for i, (value, *says) in enumerate(rows)
    ),
]

WITHOUT_BAD_VALUES = {
    ("run_fit", "background"): "anything is true or false",
    ("run_fit", "incumbent"): "names, not values: see tests/test_bad_input.py",
    ("run_fit", "model"): "see RFModelConfig(model_name=...)",
    ("best", "mode"): "see tests/test_results.py",
    ("RFModelConfig", "trainer_kwargs"): "names, not values",
}


@pytest.fixture(autouse=True)
def _nothing_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(self: Trainer, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("training began")

    torch.set_num_threads(1)
    monkeypatch.setattr(Trainer, "train", train)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as where it is not installed


@pytest.mark.parametrize(("use", "given", "says"), ROWS)
def test_is_one_clear_error(
    use: Callable[..., None], given: dict[str, Any], says: list[str], tmp_path: Path
) -> None:
    if given == {"log": True}:
        given = {"log": True, "start": 0.0}
    with pytest.raises(RapidFireError) as caught:
        use(tmp_path, **given)
    message = str(caught.value)
    for part in says:
        assert part in message
    assert "\n" not in message
    assert not list(tmp_path.rglob("*.db*")), "half-started"
    assert not list(tmp_path.rglob("runs")), "half-started"


@pytest.mark.parametrize("name", USES)
def test_every_argument_has_a_row(name: str) -> None:
    arguments = {argument for argument in inspect.signature(USES[name][0]).parameters}
    without = {argument for owner, argument in WITHOUT_BAD_VALUES if owner == name}
    assert arguments - {"self"} - without <= TABLE[name].keys()
    assert without <= arguments
    assert not without & TABLE[name].keys()
