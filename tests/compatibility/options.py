"""Options of trainers, optimizers, and kinds of datasets."""

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, interleave_datasets, load_dataset
from transformers import TrainerCallback
from transformers.training_args import OptimizerNames

from rapidfireai.testing.tiny import tiny_model, tiny_tokenizer
from tests.compatibility.trainers import conversations
from tests.compatibility.trial import Rows, Trial, refused, small, tiny_rows, twice
from tests.training.scenarios import rows
from tests.training.solo import early_stopping, word_variety

_MARKED = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] }}<|end|>{% endgeneration %}{% else %}{{ m['content'] }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_WITH_TOOLS = (
    "{% if tools %}<|system|>{{ tools | tojson }}<|end|>{% endif %}{% for m in messages %}"
    "<|{{ m['role'] }}|>{{ m['content'] }}{{ m.get('tool_calls') or '' }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def texts() -> Rows:
    """Plain texts."""
    return [{"text": row["prompt"] + row["completion"]} for row in tiny_rows()]


def tool_calls() -> Rows:
    """Conversations in which a tool is called, and the tools there are."""
    parameters = {"type": "object", "properties": {"a": {"type": "integer"}}}
    tool = {"name": "add", "description": "adds", "parameters": parameters}
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    return [
        {
            "messages": [
                {"role": "user", "content": row["prompt"], "tool_calls": None},
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "content": "2", "tool_calls": None},
                {"role": "assistant", "content": row["completion"], "tool_calls": None},
            ],
            "tools": [{"type": "function", "function": tool}],
        }
        for row in tiny_rows()
    ]


def few_rows() -> Rows:
    """To evaluate on."""
    return rows(4, seed=1)


def with_template(template: str) -> tuple[Any, Any]:
    """The tiny model, with another chat template."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tiny_model(), tokenizer


def iterable(given: Rows) -> Any:
    """A stream over rows in memory."""
    return Dataset.from_list(given).to_iterable_dataset(num_shards=2)


def streamed(given: Rows) -> Any:
    """A stream over a file."""
    file = Path(tempfile.mkdtemp(prefix="stream-")) / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    return load_dataset("json", data_files=str(file), split="train", streaming=True)


def mixture(given: Rows) -> Any:
    """Two datasets, drawn from with unequal probabilities."""
    halves = [Dataset.from_list(given[::2]), Dataset.from_list(given[1::2])]
    return interleave_datasets(
        halves, probabilities=[0.7, 0.3], seed=1, stopping_strategy="all_exhausted"
    )


class Halver(TrainerCallback):
    """A user's callback with a memory: halves the learning rate after each step that it counts."""

    def __init__(self) -> None:
        self.num_steps = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.num_steps += 1
        for group in kwargs["optimizer"].param_groups:
            group["lr"] /= 1 + self.num_steps


def halver() -> list[TrainerCallback]:
    """For the trainer's constructor."""
    return [Halver()]


def _option(
    name: str,
    trainer: str = "SFT",
    made: Mapping[str, Callable[[], Any]] | None = None,
    **args: Any,
) -> Trial:
    """One option, over the usual rows and beside the others of the day or of the exam."""
    every_day = args.pop("every_day", False)
    note = args.pop("note", "")
    spec = small(trainer, **args)
    if made is not None:
        spec = replace(spec, made_kwargs={**spec.made_kwargs, **made})
    if trainer == "GRPO":
        spec = replace(spec, trainer_kwargs={"reward_funcs": word_variety})
    group = "options" if every_day else "more options"
    return Trial(name=name, cases=(spec,), group=group, exam=not every_day, note=note)


def _refused(name: str, trainer: str = "SFT", **args: Any) -> Trial:
    return refused(name, small(trainer, **args))


_PACKING: dict[str, Any] = {"packing": True, "max_length": 24}
_WHILE_TRAINING = {"eval_strategy": "steps", "eval_steps": 1}
_STOPPING = {
    **_WHILE_TRAINING,
    "save_strategy": "steps",
    "save_steps": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
    "learning_rate": 1.0,
    "max_steps": 4,
}
_UNMASKED = "Without FlashAttention, which needs a GPU, texts in one row see each other, as in TRL."


def _text(name: str, note: str = "", **args: Any) -> Trial:
    return Trial(
        name=name,
        cases=(small("SFT", **args),),
        rows=texts,
        group="texts",
        note=note,
        exam=True,
    )


def _data(name: str, note: str = "", args: Mapping[str, Any] | None = None, **parts: Any) -> Trial:
    spec = small("SFT", **(args or {}))
    spec = replace(spec, make_model=parts.pop("make_model", None))
    return Trial(name=name, cases=twice(spec), note=note, exam=True, **parts)


OPTIONS = (
    _text('`packing`, `"bfd"`', _UNMASKED, **_PACKING, packing_strategy="bfd"),
    _text('`packing`, `"bfd_split"`', _UNMASKED, **_PACKING, packing_strategy="bfd_split"),
    _text('`packing`, `"wrapped"`', **_PACKING, packing_strategy="wrapped"),
    _text("`padding_free`", _UNMASKED, padding_free=True, max_length=None),
    _option("`neftune_noise_alpha`", neftune_noise_alpha=5.0, every_day=True),
    _refused("`use_liger_kernel`", use_liger_kernel=True),
    _option("no activation checkpointing", gradient_checkpointing=False, every_day=True),
    _option(
        "activation checkpointing, reentrant",
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": True},
        every_day=True,
    ),
    _option(
        "activation checkpointing, not reentrant",
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        every_day=True,
    ),
    _refused(
        "activation checkpointing, selective",
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"selective": True},
    ),
    _refused("`activation_offloading`", activation_offloading=True),
    _option(
        "`torch_compile`",
        torch_compile=True,
        torch_compile_backend="aot_eager",
        gradient_checkpointing=False,
        note="With the backend `aot_eager`.",
    ),
    _option("`bf16`", bf16=True),
    _option("`fp16`", fp16=True),
    _option("`full_determinism`", full_determinism=True),
    _option('`loss_type="dft"`', loss_type="dft"),
    _option("`completion_only_loss=False`", completion_only_loss=False),
    _option("`pad_to_multiple_of`", pad_to_multiple_of=16),
    _option("`shuffle_dataset`", shuffle_dataset=True),
    _option('`train_sampling_strategy="group_by_length"`',
            train_sampling_strategy="group_by_length"),
    _option("`dataloader_num_workers`", dataloader_num_workers=1, every_day=True),
    _option("`dataloader_persistent_workers`", dataloader_num_workers=1,
            dataloader_persistent_workers=True),
    _option("callbacks with a memory", made={"callbacks": halver}, every_day=True),
    Trial(
        name='`lr_scheduler_type="reduce_lr_on_plateau"`',
        cases=(small("SFT", **_WHILE_TRAINING, lr_scheduler_type="reduce_lr_on_plateau"),),
        eval_rows=few_rows,
        group="evaluated",
        exam=True,
    ),
    Trial(
        name="early stopping",
        cases=(replace(small("SFT", **_STOPPING), made_kwargs={"callbacks": early_stopping}),),
        eval_rows=few_rows,
        group="evaluated",
        exam=True,
    ),
    _option("DPO, `precompute_ref_log_probs`", "DPO", precompute_ref_log_probs=True),
    _option('DPO, `loss_type=["bco_pair"]`', "DPO", loss_type=["bco_pair"]),
    _option("DPO, several losses", "DPO", loss_type=["sigmoid", "sft"], loss_weights=[0.8, 0.2]),
    _option('KTO, `loss_type="apo_zero_unpaired"`', "KTO", loss_type="apo_zero_unpaired"),
    _option("GRPO, `cast_lm_head_to_fp32`", "GRPO", cast_lm_head_to_fp32=True, num_generations=2),
    _refused("GRPO, `use_vllm`", "GRPO", use_vllm=True),
    _refused("`auto_find_batch_size`", auto_find_batch_size=True),
    _refused("`deepspeed`", deepspeed={"zero_optimization": {"stage": 2}}),
    _refused("`fsdp`", fsdp=["full_shard"]),
)  # fmt: skip

DATA = (
    _data("`IterableDataset`", as_dataset=iterable),
    _data("a streamed file", as_dataset=streamed),
    _data("a mixture of datasets", "By `datasets.interleave_datasets`.", as_dataset=mixture),
    _data("chat messages", rows=conversations),
    _data(
        "`assistant_only_loss`",
        "With a chat template that has `{% generation %}` markers.",
        {"assistant_only_loss": True},
        rows=conversations,
        make_model=partial(with_template, _MARKED),
    ),
    _data("tool calls", rows=tool_calls, make_model=partial(with_template, _WITH_TOOLS)),
    refused("`assistant_only_loss` over plain text", small("SFT", assistant_only_loss=True)),
)

_PACKAGED = frozenset(
    [
        "adamw_torch_4bit",
        "adamw_torch_8bit",
        "adamw_anyprecision",
        "adamw_torch_xla",
        "adamw_torch_npu_fused",
        "galore_adamw",
        "galore_adamw_8bit",
        "galore_adafactor",
        "galore_adamw_layerwise",
        "galore_adamw_8bit_layerwise",
        "galore_adafactor_layerwise",
        "lomo",
        "adalomo",
        "grokadamw",
        "apollo_adamw",
        "apollo_adamw_layerwise",
        "stable_adamw",
    ]
)
"""Those of packages or devices that the tests do not have."""


def _optimizer(name: str) -> Trial:
    if name in _PACKAGED:
        return _refused(f"`{name}`", optim=name)
    schedule = {"lr_scheduler_type": "constant"} if name.startswith("schedule_free") else {}
    case = small("SFT", optim=name, **schedule)
    return Trial(name=f"`{name}`", cases=(case,), group="optimizers", exam=True)


OPTIMIZERS = tuple(_optimizer(name.value) for name in OptimizerNames)
