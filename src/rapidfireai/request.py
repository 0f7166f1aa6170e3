"""What a call of `run_fit` asks for, checked before anything else happens."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rapidfireai.core.engine import Listener
from rapidfireai.errors import ConfigError
from rapidfireai.tracking import Settings
from rapidfireai.tracking.choice import chosen, is_tracker

FUSE_MODES = ("off", "auto", "on")
"""Whether runs share passes through their base: never, where that is quicker, always."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FitRequest:
    """What the user asks for; see `Experiment.run_fit`.

    Raises:
        ConfigError: A value cannot be used.
    """

    config_group: Any
    create_model: Callable[[dict[str, Any]], tuple[Any, Any]] | None
    create_trainer: Callable[[Mapping[str, Any], Any], Any] | None
    model: str | os.PathLike[str] | None
    train_dataset: Any
    eval_dataset: Any
    num_chunks: int
    seed: int
    memory_limit_gib: float | None
    host_memory_limit_gib: float | None
    checkpoint_every_s: float
    tool_timeout_s: float | None
    policy: Any
    trackers: Sequence[str | Settings | Listener] | None
    fuse: str = "auto"
    fuse_generation: bool = False

    def __post_init__(self) -> None:
        if self.config_group is None:
            raise ConfigError(
                "there is nothing to train: give run_fit(config_group, ...) a search such as "
                "RFGridSearch([...]), or a configuration"
            )
        if self.train_dataset is None:
            raise ConfigError(
                "train_dataset is missing: give run_fit(train_dataset=...) a datasets.Dataset"
            )
        _check_integer("num_chunks", self.num_chunks, least=1)
        _check_integer("seed", self.seed, least=0)
        for name in ("memory_limit_gib", "host_memory_limit_gib", "checkpoint_every_s"):
            _check_size(name, getattr(self, name))
        if self.fuse not in FUSE_MODES:
            raise ConfigError(
                f"fuse={self.fuse!r} cannot be used; it is one of "
                f"{', '.join(map(repr, FUSE_MODES))}"
            )
        if not isinstance(self.fuse_generation, bool):
            raise ConfigError(
                f"fuse_generation={self.fuse_generation!r} cannot be used; it is True or False"
            )
        if self.fuse_generation and self.fuse == "off":
            raise ConfigError(
                "fuse_generation=True needs runs that share their passes: give fuse='on' or "
                "fuse='auto' as well, or leave it out"
            )
        for name, takes in (
            ("create_model", "the model configuration and returns (model, tokenizer)"),
            ("create_trainer", "(config, context) and returns a transformers.Trainer"),
        ):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} has to be a function that takes {takes}"
                )
        _check_limit("tool_timeout_s", self.tool_timeout_s)
        self._check_values()
        self._check_hooks()

    def _check_values(self) -> None:
        if self.checkpoint_every_s is None:
            raise ConfigError("checkpoint_every_s=None cannot be used; it has to be a number >= 0")
        if self.model is not None and not isinstance(self.model, str | os.PathLike):
            raise ConfigError(f"model={self.model!r} cannot be used; it has to be a name or a path")
        if isinstance(self.eval_dataset, Mapping) and not (
            self.eval_dataset and all(isinstance(name, str) for name in self.eval_dataset)
        ):
            raise ConfigError(
                f"eval_dataset={self.eval_dataset!r} cannot be used; a dictionary has to hold at "
                "least one dataset, by name"
            )

    def _check_hooks(self) -> None:
        from rapidfireai.policies import as_policies

        as_policies(self.policy)
        if not isinstance(self.trackers, list | tuple | None):
            raise ConfigError(
                f"trackers={self.trackers!r} cannot be used; it has to be a list, or None for the "
                "default"
            )
        for item in self.trackers or ():
            if not is_tracker(item) and not callable(getattr(item, "on_event", None)):
                raise ConfigError(
                    f"trackers holds {item!r}, which is neither the name of a tracker nor one of "
                    "rapidfireai.tracking, and has no method on_event(); see "
                    "rapidfireai.core.engine.Listener for what a listener needs"
                )
        self.chosen_trackers()

    @property
    def listeners(self) -> list[Listener]:
        """The objects of the user's own that are told of every event."""
        return [item for item in self.trackers or () if not is_tracker(item)]  # type: ignore[misc]

    def chosen_trackers(self) -> tuple[Settings, ...]:
        """The trackers that are told of the experiment.

        Raises:
            ConfigError: One is not known or not installed.
        """
        if self.trackers is None:
            return chosen(None)
        return chosen([item for item in self.trackers if is_tracker(item)])


def _check_limit(name: str, value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(
            f"{name}={value!r} cannot be used; it has to be a number > 0, or None for no limit"
        )


def _check_integer(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name}={value!r} cannot be used; it has to be an integer >= {least}")


def _check_size(name: str, value: object) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (is_number and 0 <= value < math.inf):  # type: ignore[operator]
        raise ConfigError(f"{name}={value!r} cannot be used; it has to be a number >= 0, or None")
