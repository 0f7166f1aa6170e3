"""Whether a clone can start from its parent's state with the arguments that it is to have.

Asked when somebody wants the clone, before anything of it is built or trained.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.training_args import OptimizerNames

from rapidfireai.core.events import Json
from rapidfireai.core.fork import (
    ForkPlan,
    Length,
    OptimizerState,
    Schedule,
    Standing,
    Walk,
    plan_fork,
)
from rapidfireai.errors import ConfigError
from rapidfireai.training.arguments import Resolved, make_peft_config, resolve
from rapidfireai.training.checkpoint import Checkpoint
from rapidfireai.training.config import PeftSpec, RunConfig, as_json
from rapidfireai.training.fork import (
    SCHEDULE_ARGUMENTS,
    STATEFUL_SCHEDULES,
    Fork,
    cannot_continue,
    regenerates,
)
from rapidfireai.training.identity import digest
from rapidfireai.workers.process_state import ProcessState

_INSTEAD = "clone the run without warm start"

_ORDER = "the clone goes on in its parent's order of the data"
_ROWS = "it decides about the rows that the parent's place is counted in"

FIXED: Mapping[str, str] = {
    "seed": "the clone goes on in its parent's random numbers and order of the data",
    "data_seed": _ORDER,
    "train_sampling_strategy": _ORDER,
    "shuffle_dataset": _ORDER,
    "accelerator_config": _ORDER,
    "packing": _ROWS,
    "packing_strategy": _ROWS,
    "chat_template_path": "it may change the form of the base model",
    "model_init_kwargs": "it decides about the base model",
    "sync_ref_model": "the reference model that has followed the parent would be lost",
}
"""Training arguments that a warm clone cannot change, and why."""

_OPTIMIZERS = ("optim", "optim_args", "optim_target_modules")
"""Training arguments that decide what an optimizer's state consists of."""

_PLACES = ("output_dir", "logging_dir", "run_name")
"""Training arguments that are each run's own."""

_LAYERS = (
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "target_parameters",
)
_SIZES = ("r", "lora_alpha", "use_rslora")
PEFT_CHANGES = frozenset({*_SIZES, *_LAYERS, "lora_dropout", "init_lora_weights"})
"""Arguments of LoraConfig that a warm clone may change."""

_PLAIN_INITS = (True, False, "gaussian", "orthogonal")
"""Values of init_lora_weights that leave the base as it is, and need no data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedFork:
    """A warm clone that can be made."""

    plan: ForkPlan | None
    """Where it begins; None where that shows only when its trainer stands."""
    optimizer: OptimizerState
    """What really becomes of the optimizer's state."""
    schedule: Schedule
    changed: tuple[str, ...]
    """Arguments that are not the parent's."""
    notes: tuple[str, ...]
    """For people: where it begins, and what does not go over from its parent."""

    def at(self, folder: Path) -> Fork:
        """The fork from a copy of the parent's checkpoint in the folder."""
        return Fork(
            folder=folder,
            optimizer=self.optimizer,
            schedule=self.schedule,
            changed=self.changed,
            notes=self.notes,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ForkChoices:
    """What becomes of what the parent's optimizer and schedule have got to."""

    optimizer: OptimizerState = OptimizerState.KEEP
    schedule: Schedule = Schedule.CONTINUE


def check_fork(
    parent: RunConfig,
    source: Checkpoint,
    clone: RunConfig,
    choices: ForkChoices,
    *,
    device: torch.device,
    default_seed: int,
) -> CheckedFork:
    """Refuse a warm clone that cannot be made, and tell where one begins that can.

    Args:
        parent: The parent's configuration.
        source: The parent's checkpoint; see `checkpoint.latest_state`.
        clone: The clone's configuration.
        choices: What is to become of optimizer and schedule.
        device: Where both train.
        default_seed: For a configuration that sets none.

    Raises:
        ConfigError: It cannot be made; the message says why, and what would do instead.
    """
    _check_same_kind(parent, clone)
    with ProcessState():
        mine, theirs = (
            resolve(config, device=device, output_dir=Path("unused"), default_seed=default_seed)
            for config in (clone, parent)
        )
    changed = _changed_arguments(theirs, mine)
    for name in changed:
        if name in FIXED:
            raise ConfigError(
                f"{name} cannot be changed in a warm clone: {FIXED[name]}; {_INSTEAD}"
            )
    if mine.seed != theirs.seed:
        raise ConfigError(f"seed cannot be changed in a warm clone: {FIXED['seed']}; {_INSTEAD}")
    changed += _changed_kwargs(parent, clone)
    optimizer, notes = _check_peft(parent.peft, clone.peft, choices.optimizer)
    _check_optimizer(changed, theirs, mine, optimizer)
    _check_schedule(changed, mine, choices.schedule)
    if mine.args is not None:
        _check_packing(changed, mine.args)
    plan = None
    if mine.args is not None:
        plan = _plan(source.standing, theirs.args, mine.args, choices.schedule, changed)
    begins = "where it starts shows when its trainer stands" if plan is None else plan.describe()
    return CheckedFork(
        plan=plan,
        optimizer=optimizer,
        schedule=choices.schedule,
        changed=tuple(changed),
        notes=(f"warm start: {begins}", *notes, *_notes(plan, source, theirs, mine, changed)),
    )


def _check_same_kind(parent: RunConfig, clone: RunConfig) -> None:
    for name, one, other in (
        ("trainer_type", parent.trainer_type, clone.trainer_type),
        ("the model", parent.model, clone.model),
    ):
        if digest(one) != digest(other):
            raise ConfigError(
                f"{name} cannot be changed in a warm clone, from {as_json(one)} to "
                f"{as_json(other)}: its weights and their optimizer's state are others; {_INSTEAD}"
            )
    if (parent.peft is None) != (clone.peft is None):
        was, is_ = ("all weights", "an adapter")[:: 1 if parent.peft is None else -1]
        raise ConfigError(
            f"the parent trains {was}, and the clone would train {is_}: the parent's weights "
            f"do not fit; {_INSTEAD}"
        )


def _changed_arguments(parent: Resolved, clone: Resolved) -> list[str]:
    if parent.args is None or clone.args is None:
        return []
    theirs, mine = parent.args.to_dict(), clone.args.to_dict()
    return [
        name
        for name in mine
        if name not in _PLACES and as_json(mine[name]) != as_json(theirs.get(name))
    ]


def _changed_kwargs(parent: RunConfig, clone: RunConfig) -> list[str]:
    theirs: dict[str, Any] = {**parent.trainer_kwargs, **(parent.knobs or {})}
    mine: dict[str, Any] = {**clone.trainer_kwargs, **(clone.knobs or {})}
    for config, given in ((parent, theirs), (clone, mine)):
        given["formatting_func"] = config.formatting_func
    names = dict.fromkeys((*theirs, *mine))
    return [name for name in names if digest(theirs.get(name)) != digest(mine.get(name))]


def _check_peft(
    parent: PeftSpec | None, clone: PeftSpec | None, optimizer: OptimizerState
) -> tuple[OptimizerState, tuple[str, ...]]:
    """What becomes of the optimizer's state, and what is to be known about the adapter."""
    if parent is None or clone is None:
        return optimizer, ()
    if parent.method != clone.method:
        raise ConfigError(
            f"the PEFT method cannot be changed in a warm clone, from {parent.method} to "
            f"{clone.method}; {_INSTEAD}"
        )
    theirs, mine = _in_force(parent), _in_force(clone)
    changed = {name for name in mine if mine[name] != theirs.get(name)}
    if not changed:
        return optimizer, ()
    others = changed if parent.method != "LoraConfig" else changed - PEFT_CHANGES
    if others:
        raise ConfigError(
            f"{', '.join(sorted(others))} of the adapter cannot be changed in a warm clone; of a "
            f"LoraConfig {', '.join(sorted(PEFT_CHANGES))} can; {_INSTEAD}"
        )
    _check_init(changed, theirs, mine)
    if changed & set(_LAYERS) and optimizer is OptimizerState.KEEP:
        raise ConfigError(
            "the parent's optimizer state does not fit an adapter on other layers: give "
            "optimizer='reset'"
        )
    if "r" in changed:
        _check_resizable(theirs, mine)
        optimizer = OptimizerState.RESET
    return optimizer, tuple(_peft_notes(changed, theirs, mine))


def _in_force(spec: PeftSpec) -> dict[str, Json]:
    config: dict[str, Json] = as_json(make_peft_config(spec).to_dict())
    return config


def _check_init(changed: set[str], theirs: Mapping[str, Json], mine: Mapping[str, Json]) -> None:
    if not changed & {"r", "init_lora_weights", *_LAYERS}:
        return
    for arguments in (theirs, mine):
        init = arguments.get("init_lora_weights")
        if init not in _PLAIN_INITS:
            raise ConfigError(
                f"init_lora_weights={init!r} makes the adapter and the base out of each other, so "
                "that a warm clone cannot change rank, layers or initialisation; " + _INSTEAD
            )


def _check_resizable(theirs: Mapping[str, Json], mine: Mapping[str, Json]) -> None:
    for name in ("rank_pattern", "alpha_pattern", "lora_bias", "target_parameters"):
        if theirs.get(name) or mine.get(name):
            raise ConfigError(
                f"an adapter with {name} cannot be given another rank in a warm clone; {_INSTEAD}"
            )


def _peft_notes(
    changed: set[str], theirs: Mapping[str, Json], mine: Mapping[str, Json]
) -> list[str]:
    notes = []
    if "r" in changed:
        change = f"LoRA rank {theirs['r']} to {mine['r']}"
        if mine["r"] > theirs["r"]:
            notes.append(f"{change}: the function is kept, the optimizer's state is reset")
        else:
            notes.append(
                f"{change}: the best approximation of that rank is kept, the optimizer's state is "
                "reset"
            )
    elif changed & set(_SIZES):
        notes.append(
            "lora_alpha and use_rslora scale what the adapter has learned: the clone's function is "
            "not the parent's"
        )
    if changed & set(_LAYERS):
        notes.append(
            "adapters on layers that the parent did not train begin anew, those that the clone "
            "does not train are left out"
        )
    return notes


def _check_optimizer(
    changed: list[str], parent: Resolved, clone: Resolved, optimizer: OptimizerState
) -> None:
    if optimizer is OptimizerState.RESET:
        return
    for name in _OPTIMIZERS:
        if name in changed:
            was, is_ = (_text(getattr(args.args, name)) for args in (parent, clone))
            raise ConfigError(
                f"{name} is {is_} instead of the parent's {was}, so that the optimizer's state "
                "does not fit: give optimizer='reset'"
            )


def _text(value: Any) -> str:
    return repr(OptimizerNames(value).value if isinstance(value, OptimizerNames) else value)


def _check_schedule(changed: list[str], clone: Resolved, schedule: Schedule) -> None:
    if clone.args is None or schedule is Schedule.RESTART:
        return
    kind = getattr(clone.args.lr_scheduler_type, "value", clone.args.lr_scheduler_type)
    if kind in STATEFUL_SCHEDULES and set(SCHEDULE_ARGUMENTS) & set(changed):
        raise ConfigError(cannot_continue(kind))


def _check_packing(changed: list[str], args: Any) -> None:
    if getattr(args, "packing", False) and "max_length" in changed:
        raise ConfigError(
            "max_length cannot be changed in a warm clone of a run that packs its data: it packs "
            f"other rows; {_INSTEAD}"
        )


def _plan(
    parent: Standing, theirs: Any, mine: Any, schedule: Schedule, changed: list[str]
) -> ForkPlan | None:
    walk = _foreseen(theirs, mine, parent.walk)
    if walk is None:
        return None
    length = Length(max_steps=mine.max_steps, num_epochs=mine.num_train_epochs)
    realigns = regenerates(changed, parent.walk)
    return plan_fork(parent, walk, length, schedule=schedule, realigns=realigns)


def _foreseen(theirs: Any, mine: Any, parent: Walk) -> Walk | None:
    """How the clone will go through its data; None where that cannot be told from its arguments."""
    before, now = (_walk(args, parent) for args in (theirs, mine))
    if before == now:
        return parent
    # Where the parent's does not come out right, the clone's would not either.
    return now if before == parent else None


def _walk(args: Any, parent: Walk) -> Walk:
    generates = parent.order == "RepeatSampler"
    copies = getattr(args, "num_generations", 1) if generates else 1
    batch_size, accumulation = args.train_batch_size, args.gradient_accumulation_steps
    per_generation = getattr(args, "steps_per_generation", accumulation) if generates else 1
    return Walk(
        num_rows=parent.num_rows,
        group=batch_size * per_generation // copies,
        repeats=per_generation * getattr(args, "num_iterations", 1) if generates else 1,
        copies=copies,
        batch_size=batch_size,
        accumulation=accumulation,
        drops_last=generates or bool(args.dataloader_drop_last),
        order=parent.order,
    )


def _notes(
    plan: ForkPlan | None,
    source: Checkpoint,
    parent: Resolved,
    clone: Resolved,
    changed: list[str],
) -> list[str]:
    notes = []
    if plan is not None and plan.renumbered:
        notes.append(
            "steps are of another size than the parent's: they are counted anew, and the trainer's "
            "log begins anew"
        )
    if {"callbacks", "reward_funcs"} & set(changed):
        notes.append("what callbacks and reward functions have counted begins anew")
    if source.standing.walk.repeats > 1 and plan is not None and plan.offset:
        notes.append(
            "prompts of the generation batch that the parent was training on count as used"
        )
    best = getattr(parent.args, "load_best_model_at_end", False)
    if source.standing.completed and best:
        notes.append("the parent had completed: its best weights are those that it ended with")
    return notes
