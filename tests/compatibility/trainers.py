"""Every trainer of TRL, stable and experimental."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from rapidfireai.automl import RFGridSearch
from rapidfireai.testing.tiny import tiny_tokenizer
from rapidfireai.training.registry import REFUSED, TRAINERS
from tests.compatibility.trial import Rows, Trial, small, tiny_rows, twice
from tests.training.solo import teacher, word_variety

_REWARDED = {"reward_funcs": word_variety}
_TAUGHT: Mapping[str, Callable[[], Any]] = {"teacher_model": teacher}
_SHORT: dict[str, Any] = {"max_completion_length": 4}
_PAIRS: dict[str, Any] = {**_SHORT, "num_generations": 2}


def further_rows() -> Rows:
    """With the columns that single trainers read besides."""
    return [{**row, "reference": " the cat", "privileged_context": "a mat"} for row in tiny_rows()]


def conversations() -> Rows:
    """A question and a reply."""
    return [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"]},
            ]
        }
        for row in tiny_rows()
    ]


def binary_reward(completions: list[str], **_: Any) -> list[float]:
    """What A2PO takes a reward to be."""
    return [float(len(completion) % 2) for completion in completions]


def saved_teacher() -> Any:
    """A teacher that knows its folder, since the trainer reads the tokenizer from there."""
    folder = tempfile.mkdtemp(prefix="teacher-")
    teacher().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder)


def _trial(name: str, note: str = "", /, **parts: Any) -> Trial:
    """A trainer of the registry.

    Args:
        name: Of its row.
        note: For the page.
        parts: `rows`, `made` and `rewarded` of the trial; the others are the trainer's arguments.
    """
    spec, plain = TRAINERS[name], small("SFT")
    rows, group = parts.pop("rows", further_rows), parts.pop("group", "trainers")
    made, rewarded = parts.pop("made", {}), parts.pop("rewarded", {})
    args = {**plain.args, **parts}
    if "max_completion_length" in parts and "max_length" not in parts:
        del args["max_length"]
    adapter = plain.lora if parts.get("adapter", True) else None
    args.pop("adapter", None)
    if spec.model_type == "seq_cls":
        adapter = {**(plain.lora or {}), "task_type": "SEQ_CLS"}
    case = replace(
        plain,
        trainer=name,
        classes=(spec.trainer, spec.config),
        args=args,
        lora=adapter,
        trainer_kwargs=rewarded,
        made_kwargs=made,
    )
    alone = group == "Reward"  # the only one on its base
    cases = twice(case) if alone else (case,)
    return Trial(name=f"`{name}`", cases=cases, rows=rows, group=group, note=note)


def _refused(name: str) -> Trial:
    def attempt(folder: Path) -> None:
        RFGridSearch({"training_args": {"max_steps": 1}}, trainer_type=name).get_runs(seed=1)

    return Trial(name=f"`{name}`", attempt=attempt)


TRIALS = (
    _trial("SFT"),
    _trial("DPO"),
    _trial("GRPO", rewarded=_REWARDED, **_PAIRS),
    _trial("RLOO", rewarded=_REWARDED, **_PAIRS),
    _trial("KTO"),
    _trial("Reward", "One base for each seed, since the head is random.", group="Reward"),
    _trial("Distillation", made=_TAUGHT, **_SHORT),
    _trial(
        "A2PO",
        "Takes no `peft_config`: trains all weights.",
        rewarded={"reward_funcs": binary_reward},
        adapter=False,
        filter_all_incorrect=False,
        num_value_samples=2,
        **_SHORT,
    ),
    _trial("CPO"),
    _trial("GKD", rows=conversations, group="conversations", made=_TAUGHT, max_new_tokens=4),
    _trial("GMPO", rewarded=_REWARDED, **_PAIRS),
    _trial("GOLD", made=_TAUGHT, **_SHORT, max_length=64),
    _trial(
        "IWOPD",
        "The teacher has to be loaded from a folder or the hub, where its tokenizer is.",
        rows=conversations,
        group="conversations",
        made={"teacher_model": saved_teacher},
        **_SHORT,
        max_length=64,
    ),
    _trial("OnlineDPO", rewarded=_REWARDED, max_new_tokens=4),
    _trial("ORPO"),
    _trial("SDFT", **_PAIRS),
    _trial("SDPO", rewarded=_REWARDED, **_PAIRS),
    _trial("TPO"),
    _trial("BEMADPO", "In TRL `trl.experimental.bema_for_ref_model.DPOTrainer`."),
    *map(_refused, REFUSED),
)
