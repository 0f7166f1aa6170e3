"""A clone that starts from its parent's weights and progress, with other arguments.

It begins like a run that is taken up from a checkpoint, once, and its arguments are in force from
its first step: what a checkpoint would bring along of the parent's arguments is put back. From then
on it is a run like others; its own checkpoints are ordinary ones.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments

from rapidfireai.core.events import Json
from rapidfireai.core.fork import (
    ForkPlan,
    Length,
    OptimizerState,
    Schedule,
    Walk,
    plan_fork,
)
from rapidfireai.errors import ConfigError
from rapidfireai.training.adapter import adapter_fits, load_refitted
from rapidfireai.training.checkpoint import (
    Progress,
    Resumption,
    read_checkpoint,
)
from rapidfireai.training.forgotten import Forgotten
from rapidfireai.training.manifest import link_or_copy
from rapidfireai.training.position import Place
from rapidfireai.workers.process_state import RngState


@dataclass(frozen=True, kw_only=True, slots=True)
class Fork:
    """Where a warm clone begins."""

    folder: Path
    """The clone's own copy of its parent's checkpoint; see `checkpoint.copy_checkpoint`."""
    optimizer: OptimizerState = OptimizerState.KEEP
    schedule: Schedule = Schedule.CONTINUE
    changed: tuple[str, ...] = ()
    """Arguments that are not the parent's; see `training.fork_check`."""
    notes: tuple[str, ...] = ()
    """For people."""

    def to_json(self) -> dict[str, Json]:
        """As JSON."""
        return {
            "folder": str(self.folder),
            "optimizer": self.optimizer.value,
            "schedule": self.schedule.value,
            "changed": list(self.changed),
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Json]) -> "Fork":
        """What `to_json` gave."""
        return cls(
            folder=Path(plain["folder"]),
            optimizer=OptimizerState(plain["optimizer"]),
            schedule=Schedule(plain["schedule"]),
            changed=tuple(plain["changed"]),
            notes=tuple(plain["notes"]),
        )


STATEFUL_SCHEDULES = ("reduce_lr_on_plateau", "greedy")
"""Values of lr_scheduler_type whose learning rate follows from what was measured on the way."""

SCHEDULE_ARGUMENTS = ("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs")

_KEPT_IN_GROUPS = frozenset({"k", "weight_sum", "lr_max", "scheduled_lr", "train_mode", "d"})
"""What optimizers keep in their parameter groups although it is state, such as schedule-free's."""

_SUMS = (
    "_tr_loss",
    "_total_loss_scalar",
    "_globalstep_last_logged",
    "_initial_global_step",
    "_metrics",
)
"""Attributes of trainers that sum over steps: of no use where steps are of another size."""

_GENERATED = ("_step", "_buffered_inputs")
"""Attributes that belong to completions that were generated and not trained on yet."""


class ForkedStart(Resumption):
    """Lets a trainer go on from its parent's checkpoint, with its own arguments in force.

    Raises:
        DamagedCheckpointError: The copy of the parent's checkpoint is not what was written.
    """

    def __init__(self, fork: Fork) -> None:
        checkpoint = read_checkpoint(fork.folder)
        super().__init__(checkpoint)
        self.told = []  # the parent's
        self._fork = fork
        self._parent = checkpoint.standing
        self._plan: ForkPlan | None = None
        self._trainer: Any = None
        self._keeps_groups = True
        """Whether the parent's place in its groups of rows is the clone's too."""
        self._has_weights = False
        """Whether the parent's have been loaded."""
        self._is_refitted = False
        """Whether the adapter has got another form."""

    def prepare(self, trainer: Any, forgotten: Forgotten) -> None:
        """Before the trainer's `train` is called."""
        super().prepare(trainer, forgotten)
        self._trainer = trainer
        # The public way is one call for all of it, which takes the parent's arguments along.
        load_weights, load_scaler = trainer._load_from_checkpoint, trainer._load_scaler  # noqa: SLF001

        def load_from_checkpoint(folder: str, *args: Any, **kwargs: Any) -> None:
            self._has_weights = True
            if isinstance(trainer.model, PeftModel) and not adapter_fits(trainer.model, folder):
                load_refitted(trainer.model, folder)
                self._is_refitted = True
            else:
                _check_weights(trainer.model, Path(folder))
                load_weights(folder, *args, **kwargs)

        def load_scaler_if_any(folder: str) -> None:
            if getattr(trainer.accelerator, "scaler", None) is not None:
                load_scaler(folder)

        trainer._load_from_checkpoint = load_from_checkpoint  # noqa: SLF001
        trainer._load_optimizer_and_scheduler = self._load_optimizer_and_schedule  # noqa: SLF001
        trainer._load_scaler = load_scaler_if_any  # noqa: SLF001

    def locate(self, walk: Walk) -> Place:
        """Where the clone begins.

        Raises:
            ConfigError: That cannot be found, or nothing remains to be trained.
        """
        args, parent = self._trainer.args, self._parent
        realigns = regenerates(self._fork.changed, parent.walk)
        self._plan = plan = plan_fork(
            parent,
            walk,
            Length(max_steps=args.max_steps, num_epochs=args.num_train_epochs),
            schedule=self._fork.schedule,
            realigns=realigns,
        )
        self._keeps_groups = walk == parent.walk and not realigns
        self.progress = Progress(step=plan.step, chunks_done=0, active_s=0.0)
        begins = f"warm start: {plan.describe()}"
        self.note = None if begins in self._fork.notes else begins
        is_same_epoch = plan.epoch == parent.epoch
        return Place(
            written_at=parent.step,
            step=plan.step,
            epoch=plan.epoch,
            offset=plan.offset,
            num_batches=plan.num_batches,
            rng=RngState.from_plain(self._position["rng"]) if is_same_epoch else None,
            sampler=self._position["sampler" if is_same_epoch else "sampler_now"],
            num_steps=plan.num_steps,
            num_epochs=plan.num_epochs,
            schedule_start=plan.schedule_start,
        )

    def apply(self, trainer: Any) -> None:
        """In the trainer's first call of `get_batch_samples`.

        Raises:
            ConfigError: The trainer has begun from the start.
        """
        if self._plan is None or not self._has_weights:
            raise ConfigError(
                f"{type(trainer).__name__}.train(resume_from_checkpoint=...) does not go on from a "
                "checkpoint: clone the run without warm start"
            )
        self._forgotten = self._carried_over(self._plan)
        super().apply(trainer)
        state = trainer.state
        # Loaded from the parent's, these are not what the clone's arguments say.
        state.compute_steps(trainer.args, self._plan.num_steps)
        state.train_batch_size = trainer.args.train_batch_size
        if self._plan.renumbered:
            state.log_history = []
        else:
            # The summary of a training that is over is none of the clone's.
            state.log_history = [row for row in state.log_history if "train_runtime" not in row]
        self._take_best_along(trainer, self._plan)

    def _take_best_along(self, trainer: Any, plan: ForkPlan) -> None:
        """Make what the parent saved as its best the clone's own: the parent may remove it."""
        state, changed = trainer.state, set(self._fork.changed)
        is_lost = state.best_model_checkpoint is None and trainer.args.load_best_model_at_end
        is_other = plan.renumbered or changed & {"metric_for_best_model", "greater_is_better"}
        if is_lost or is_other:
            state.best_metric = state.best_model_checkpoint = state.best_global_step = None
        elif state.best_model_checkpoint is not None:
            best = Path(state.best_model_checkpoint)
            own = Path(trainer.args.output_dir) / best.name
            shutil.copytree(best, own, copy_function=link_or_copy, dirs_exist_ok=True)
            state.best_model_checkpoint = str(own)

    def _carried_over(self, plan: ForkPlan) -> dict[str, Any]:
        """What of the parent's forgotten things is the clone's too."""
        changed = set(self._fork.changed)
        attributes = dict(self._forgotten["attributes"])
        left: set[str] = set()
        if plan.renumbered:
            left |= set(_SUMS)
        elif self._parent.completed:
            # At its end a trainer adds up what was not logged yet, and would do it once more.
            attributes["_total_loss_scalar"] -= float(attributes["_tr_loss"])
        if not self._keeps_groups:
            left |= set(_GENERATED)
        carried = {**self._forgotten, "attributes": attributes}
        for name in left & attributes.keys():
            del attributes[name]
        if changed & {"callbacks", "reward_funcs"}:
            carried["companions"] = []
        if "ref_model" in changed:
            carried["reference"] = None
        return carried

    def _load_optimizer_and_schedule(self, checkpoint: str) -> None:
        """Instead of the trainer's own method, which takes over the parent's arguments."""
        trainer, folder = self._trainer, Path(checkpoint)
        groups = trainer.optimizer.param_groups
        own = [{k: v for k, v in group.items() if k != "params"} for group in groups]
        if self._fork.optimizer is OptimizerState.KEEP and not self._is_refitted:
            saved = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
            _check_fits(trainer.optimizer, saved)
            trainer.optimizer.load_state_dict(saved)
            for group, arguments in zip(trainer.optimizer.param_groups, own, strict=True):
                group.update((k, v) for k, v in arguments.items() if k not in _KEPT_IN_GROUPS)
        if self._fork.schedule is Schedule.CONTINUE:
            self._continue_schedule(torch.load(folder / "scheduler.pt", weights_only=True))

    def _continue_schedule(self, saved: Mapping[str, Any]) -> None:
        """Put the schedule where it would stand had it been in force from the beginning.

        Args:
            saved: State of the parent's schedule.
        """
        scheduler, changed = self._trainer.lr_scheduler, self._fork.changed
        assert self._plan is not None, "the clone's place has been found"
        if isinstance(scheduler, LambdaLR):
            # Not always the step: fp16 leaves out the steps that its loss scaler skips.
            counts_alike = not self._plan.renumbered and "lr_scheduler_type" not in changed
            index = self._plan.step - self._plan.schedule_start
            index = saved["last_epoch"] if counts_alike else index
            rates = [
                float(base * rate(index))
                for base, rate in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
            ]
            scheduler.last_epoch, scheduler._step_count = index, index + 1  # noqa: SLF001
            scheduler._last_lr = list(rates)  # noqa: SLF001
        elif set(SCHEDULE_ARGUMENTS) & set(changed):
            raise ConfigError(cannot_continue(self._trainer.args.lr_scheduler_type))
        else:
            scheduler.load_state_dict(dict(saved))
            rates = saved["_last_lr"]
        for group, rate in zip(self._trainer.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def regenerates(changed: Sequence[str], parent: Walk) -> bool:
    """Whether completions that the parent has generated and not used up are of no use to the clone.

    That is so where an argument is another one that only trainers of this kind know, such as a
    temperature or a reward function: they were generated and scored under the parent's.
    """
    of_all_trainers = {field.name for field in fields(TrainingArguments)}
    return parent.repeats > 1 and not of_all_trainers.issuperset(changed)


def cannot_continue(scheduler_type: Any) -> str:
    """Why such a schedule cannot go on with other arguments."""
    name = str(getattr(scheduler_type, "value", scheduler_type))
    return (
        f"lr_scheduler_type={name!r} follows from what was measured on the way, so that it has no "
        "value that could be continued with another learning rate or from another schedule: give "
        "schedule='restart'"
    )


def _check_weights(model: Any, folder: Path) -> None:
    """Refuse weights of another model, of which transformers would load those that fit.

    Raises:
        ConfigError: They are.
    """
    if isinstance(model, PeftModel):
        fits = any(folder.rglob("adapter_model.*"))
    else:
        saved: set[str] = set()
        for file in folder.glob("model*.safetensors"):
            with safe_open(file, "pt") as tensors:
                saved.update(tensors.keys())
        trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
        fits = trained <= saved <= model.state_dict().keys()
    if not fits:
        raise ConfigError(
            "the parent's weights are not those of the clone's model: clone it without warm start"
        )


def _check_fits(optimizer: Any, saved: Mapping[str, Any]) -> None:
    """Refuse a state that is not one of the optimizer's parameters.

    Raises:
        ConfigError: It is of other parameters.
    """
    mine = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    theirs = [index for group in saved["param_groups"] for index in group["params"]]
    fits = len(mine) == len(theirs) and len(optimizer.param_groups) == len(saved["param_groups"])
    for parameter, index in zip(mine, theirs, strict=False):
        for name in ("exp_avg", "exp_avg_sq", "momentum_buffer"):
            value = saved["state"].get(index, {}).get(name)
            fits &= value is None or value.shape == parameter.shape
    if not fits:
        raise ConfigError(
            "the parent's optimizer state does not fit the weights that the clone trains: give "
            "optimizer='reset'"
        )
