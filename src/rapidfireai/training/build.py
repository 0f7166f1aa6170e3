"""One run's parts, and the trainer that is built from them."""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import check_target_module_exists
from transformers import ProcessorMixin, set_seed

from rapidfireai.core.ids import RunId
from rapidfireai.errors import ConfigError
from rapidfireai.training.arguments import Resolved, make_peft_config, resolve, use_one_gpu
from rapidfireai.training.columns import FORMATS
from rapidfireai.training.config import PeftSpec, RunConfig, as_json
from rapidfireai.training.context import TrainerContext, config_mapping
from rapidfireai.training.fork import Fork
from rapidfireai.training.formatting import AnyDataset
from rapidfireai.training.manifest import checkpoints_folder
from rapidfireai.training.reference import COMPARING, SharedReference
from rapidfireai.training.registry import trainer_spec
from rapidfireai.training.rewards import checked_rewards
from rapidfireai.training.tools import TimeLimit, limited_tools
from rapidfireai.workers.shared_weights import Base

TRAINED_ADAPTER = "default"
"""Of the adapters of a PeftModel that `create_model` returns, the one that a run trains."""

REFERENCE_ADAPTER = "reference"
"""And the one that is the reference of trainers that need one, if there is one of that name."""

CreateTrainer = Callable[[Mapping[str, Any], TrainerContext], Any]
"""The user's function: (configuration, context) -> transformers.Trainer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSpec:
    """A run as it is asked for."""

    run_id: RunId
    config: RunConfig
    identity: str = ""
    """See `training.identity`."""
    folder: Path
    """The trainer's output folder."""
    final: Path
    """Where the ended run is saved."""
    default_seed: int
    """For a configuration that sets none."""
    num_chunks: int
    """An epoch."""
    device: torch.device
    checkpoint_every_s: float = 60.0
    """Seconds of the run's own training between two checkpoints, at least."""
    tool_timeout_s: float | None = None
    """Seconds for one call of a tool; None: no limit."""
    fork: Fork | None = None
    """Where a warm clone begins; None begins at step 0."""
    fuse: str = "off"
    """Whether to share passes through the base with other runs, if the run can."""
    fuse_generation: bool = False
    """Whether to share those in which it generates texts as well."""

    @property
    def checkpoints(self) -> Path:
        """Folder of the run's checkpoints; apart from those that its trainer saves by itself."""
        return checkpoints_folder(self.folder)

    def resolve(self) -> Resolved:
        """The run's arguments in force, as new objects.

        To be called with the run's own process state in place.

        Raises:
            ConfigError: An argument cannot be used.
        """
        return resolve(
            self.config,
            device=self.device,
            output_dir=self.folder,
            default_seed=self.default_seed,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RunParts:
    """All that a run's trainer is built from."""

    spec: RunSpec
    base: Base
    train_dataset: AnyDataset
    eval_dataset: AnyDataset | dict[str, AnyDataset] | None
    create_trainer: CreateTrainer | None
    notes: tuple[str, ...]
    """How its data was prepared."""

    def __post_init__(self) -> None:
        """Check that the parts fit together, as far as that shows before there is a trainer.

        Raises:
            ConfigError: They do not.
        """
        config, model = self.spec.config, self.base.model
        if self.create_trainer is not None:
            _check_takes_two(self.create_trainer)
            return
        if isinstance(model, PeftModel):
            _check_adapters(model, config)
        elif config.peft is not None:
            _check_targets(config.peft, model)
        _check_pictures(self.base, self.train_dataset)
        _check_messages(config, self.train_dataset)
        strategy = config.training_args.get("eval_strategy", "no")
        if self.eval_dataset is None and strategy not in ("no", None):
            raise ConfigError(
                f"eval_strategy={str(strategy)!r} needs an eval_dataset, and there is none: give "
                "run_fit(eval_dataset=...), or leave eval_strategy out."
            )

    def build_trainer(self, resolved: Resolved) -> Any:
        """The run's trainer, ready to train.

        To be called with the run's own process state in place, in the run's own thread.

        Raises:
            ConfigError: The user's `create_trainer` made something that cannot be trained.
            Exception: What the trainer's constructor or `create_trainer` raises.
        """
        if self.spec.device.type == "cuda":
            torch.cuda.set_device(self.spec.device)
        if self.create_trainer is not None:
            return self._call_create_trainer(self.create_trainer, resolved)
        config = self.spec.config
        trainer_class = trainer_spec(config.trainer_type).load_trainer()
        tunes_all = resolved.peft_config is None and not isinstance(self.base.model, PeftModel)
        model = self.base.clone(private=tunes_all or resolved.private_base is not None)
        given = {name: own_copy(value) for name, value in config.trainer_kwargs.items()}
        if "ref_model" in given and self._changes_reference(resolved):
            given["ref_model"] = copy.deepcopy(config.trainer_kwargs["ref_model"])
        if "ref_model" not in given and _takes_reference(trainer_class):
            given["ref_model"] = self._reference(model, resolved)
        if resolved.peft_config is not None:
            given["peft_config"] = resolved.peft_config
        self._guard(given)
        shared = self._shared_reference(resolved)
        if shared:
            given["callbacks"] = [*(given.get("callbacks") or ()), *shared]
        trainer = trainer_class(
            model=model,
            args=resolved.args,
            train_dataset=self.train_dataset,
            eval_dataset=self.eval_dataset,
            processing_class=copy.deepcopy(self.base.tokenizer),
            **given,
        )
        for callback in shared:
            trainer.remove_callback(callback)  # what it had to do, it has done
        return trainer

    def _shared_reference(self, resolved: Resolved) -> list[SharedReference]:
        """At most one, for a run whose reference is the bare base that it shares."""
        config = self.spec.config
        if (
            config.trainer_type not in COMPARING
            or resolved.peft_config is None
            or resolved.private_base is not None
            or isinstance(self.base.model, PeftModel)
            or config.trainer_kwargs.get("ref_model") is not None
            or any(resolved.computes_otherwise())
        ):
            return []
        return [SharedReference(self.base, config.trainer_type, resolved.args)]

    def _guard(self, given: dict[str, Any]) -> None:
        """Put checks and limits around the user's functions that a trainer calls."""
        limit = TimeLimit(self.spec.tool_timeout_s)
        given.update(limited_tools(given, limit))
        if given.get("reward_funcs") is not None:
            given["reward_funcs"] = checked_rewards(given["reward_funcs"], before=limit.check)

    def _reference(self, model: torch.nn.Module, resolved: Resolved) -> torch.nn.Module | None:
        """The reference model for `model`; None where TRL finds it in the model itself."""
        if isinstance(model, PeftModel):
            if REFERENCE_ADAPTER not in model.peft_config:
                return None  # a frozen copy of the adapter as it is now
            # TRL would not look at it, and take that copy.
            model.delete_adapter(REFERENCE_ADAPTER)
            reference: Any = self.base.clone(private=False)
            reference.set_adapter(REFERENCE_ADAPTER)
            reference.delete_adapter(TRAINED_ADAPTER)
            return reference.get_base_model().requires_grad_(False)
        if resolved.peft_config is not None:
            return None  # the model without the adapter
        # TRL would load it a second time, by name.
        writes = resolved.private_base is not None or self._changes_reference(resolved)
        return self.base.clone(private=writes).requires_grad_(False)

    def _changes_reference(self, resolved: Resolved) -> bool:
        """Whether the reference model follows the trained one."""
        callbacks = self.spec.config.trainer_kwargs.get("callbacks") or ()
        return getattr(resolved.args, "sync_ref_model", False) or any(
            getattr(callback, "update_ref_model", False) for callback in callbacks
        )

    def _call_create_trainer(self, create: CreateTrainer, resolved: Resolved) -> Any:
        set_seed(resolved.seed)
        context = TrainerContext(
            tokenizer=copy.deepcopy(self.base.tokenizer),
            train_dataset=self.train_dataset,
            eval_dataset=self.eval_dataset,
            output_dir=str(self.spec.folder),
            seed=resolved.seed,
            device=self.spec.device,
            training_args=resolved.args,
            peft_config=resolved.peft_config,
            base=self.base,
        )
        trainer = create(own_copy(config_mapping(self.spec.config)), context)
        name = as_json(create)
        if not isinstance(trainer, transformers.Trainer):
            raise ConfigError(
                f"create_trainer {name} returned a {type(trainer).__name__}; it has to return a "
                "transformers.Trainer or an instance of a subclass of it."
            )
        if not any(parameter.requires_grad for parameter in trainer.model.parameters()):
            raise ConfigError(
                f"create_trainer {name} made a trainer without weights to train. context.model "
                "shares the base's weights, which are frozen: put an adapter on it (peft_config), "
                "or train context.private_model()."
            )
        trainer.args.output_dir = str(self.spec.folder)
        if trainer.args.n_gpu > 1:
            use_one_gpu(trainer.args)
            # Read from the arguments when the trainer was built.
            trainer._train_batch_size = trainer.args.train_batch_size  # noqa: SLF001
        return trainer


def _takes_reference(trainer_class: type) -> bool:
    """Whether the constructor takes a `ref_model`, or passes it on to its parent's."""
    return any(
        "ref_model" in inspect.signature(cls).parameters
        for cls in trainer_class.__mro__
        if issubclass(cls, transformers.Trainer)
    )


_PICTURES = ("image", "images")


def _check_pictures(base: Base, dataset: AnyDataset) -> None:
    """Refuse pictures for a model that cannot see them."""
    column = next((name for name in _PICTURES if name in next(iter(dataset))), None)
    if column is None:
        return
    if getattr(getattr(base.model, "config", None), "vision_config", None) is None:
        raise ConfigError(
            f"train_dataset has pictures in the column {column}, and {type(base.model).__name__} "
            'cannot see: load a vision-language model (model_type="image_text_to_text"), or leave '
            "the column out."
        )
    if not isinstance(base.tokenizer, ProcessorMixin):
        raise ConfigError(
            f"train_dataset has pictures in the column {column}, and the model comes with a "
            f"{type(base.tokenizer).__name__}, which knows only text: let create_model return "
            'AutoProcessor.from_pretrained(...), or give model_type="image_text_to_text".'
        )


def _check_messages(config: RunConfig, dataset: AnyDataset) -> None:
    """Refuse to look for an assistant's words where nobody has said anything."""
    if not config.training_args.get("assistant_only_loss"):
        return
    row = next(iter(dataset))
    if not FORMATS[trainer_spec(config.trainer_type).data_kind].is_conversation(row):
        raise ConfigError(
            "assistant_only_loss=True needs chat messages, and train_dataset has the columns "
            f"{', '.join(sorted(row))} without any: give a column `messages`, or leave it out."
        )


def _check_takes_two(create: CreateTrainer) -> None:
    try:
        inspect.signature(create).bind("config", "context")
    except TypeError as error:
        raise ConfigError(
            f"create_trainer {as_json(create)} cannot be called with (config, context): {error}"
        ) from error
    except ValueError:  # it does not say what it takes
        pass


def _check_targets(spec: PeftSpec, model: torch.nn.Module) -> None:
    """Refuse LoRA on layers that the model does not have; others are left to PEFT."""
    peft_config, targets = make_peft_config(spec), spec.arguments.get("target_modules")
    if not isinstance(peft_config, LoraConfig) or targets in (None, "all-linear"):
        return
    modules = dict(model.named_modules())
    if any(check_target_module_exists(peft_config, name) for name in modules):
        return
    matrices = (
        name.rpartition(".")[2]
        for name, module in modules.items()
        if getattr(getattr(module, "weight", None), "ndim", 0) == 2
    )
    raise ConfigError(
        f"target_modules={targets!r} fits no layer of {type(model).__name__}; its layers with "
        f"weight matrices are named {', '.join(dict.fromkeys(matrices))}. Or give "
        'target_modules="all-linear".'
    )


def _check_adapters(model: PeftModel, config: RunConfig) -> None:
    brought = f"create_model returned a PeftModel with the adapters {list(model.peft_config)}"
    if config.peft is not None:
        raise ConfigError(
            f"{brought}, and peft_config asks for one more. Leave peft_config out to train the "
            f"adapter {TRAINED_ADAPTER!r} of that model, or return the model without adapters."
        )
    if model.active_adapters != [TRAINED_ADAPTER]:
        raise ConfigError(
            f"{brought}, of which {model.active_adapters} are active. The one to train has to be "
            f"named {TRAINED_ADAPTER!r} and be the active one; for DPO and KTO one that is named "
            f"{REFERENCE_ADAPTER!r} is the reference."
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            f"{brought}, all of them frozen. Load the one to train with is_trainable=True, as in "
            "PeftModel.from_pretrained(model, path, is_trainable=True)."
        )


def own_copy(value: Any) -> Any:
    """A copy for one run; models in it share their weights, since nobody trains them.

    Callbacks, reward functions with memory and the like keep state, which runs must not share.
    """
    memo = {
        id(tensor): tensor
        for module in _modules(value)
        for tensor in (*module.parameters(), *module.buffers())
    }
    return copy.deepcopy(value, memo)


def check_copyable(config: RunConfig) -> None:
    """Refuse what could not be given to several runs.

    Raises:
        ConfigError: An argument cannot be copied.
    """
    for name, value in config_mapping(config).items():
        try:
            own_copy(value)
        except Exception as error:
            raise ConfigError(
                f"{name}={value!r} cannot be copied ({type(error).__name__}: {error}), but every "
                "run needs one of its own. Leave locks, files and connections out of it, or open "
                "them when training begins."
            ) from error


def _modules(value: Any) -> Iterator[torch.nn.Module]:
    if isinstance(value, torch.nn.Module):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _modules(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _modules(item)
