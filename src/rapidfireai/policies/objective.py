"""What runs are compared by, and which runs can be compared at all."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from rapidfireai.core.ids import RunId
from rapidfireai.core.run import Run
from rapidfireai.errors import ConfigError, ObjectiveError

_LOSS_ARGUMENTS: Final = (
    "loss_type", "loss_weights", "beta", "label_smoothing", "label_smoothing_factor",
    "desirable_weight", "undesirable_weight", "simpo_gamma", "cpo_alpha", "epsilon",
    "completion_only_loss", "assistant_only_loss", "rpo_alpha", "f_divergence_type",
)  # fmt: skip
"""Arguments of TRL's trainers that change what their loss measures."""

_DATA_ARGUMENTS: Final = (
    "max_length", "packing", "packing_strategy", "max_prompt_length", "max_completion_length",
    "truncation_mode", "dataset_text_field",
)  # fmt: skip
"""Arguments that change which tokens a training loss is of."""


class Direction(StrEnum):
    """Whether less or more of a metric is better."""

    MINIMIZE = "minimize"
    MAXIMIZE = "maximize"


@dataclass(frozen=True, slots=True)
class Objective:
    """A metric and its direction."""

    metric: str
    direction: Direction = Direction.MINIMIZE

    @classmethod
    def parse(cls, text: Any) -> "Objective":
        """The objective that "minimize:eval_loss" and its like name.

        Raises:
            ConfigError: It has no direction, or no metric.
        """
        direction, _, metric = text.partition(":") if isinstance(text, str) else ("", "", "")
        if direction not in set(Direction) or not metric.strip():
            hint = text if isinstance(text, str) and text and ":" not in text else "eval_loss"
            raise ConfigError(
                f"objective={text!r} cannot be used: it is a direction and a metric, such as "
                f"'minimize:{hint}' or 'maximize:{hint}'"
            )
        return cls(metric.strip(), Direction(direction))

    def cost(self, value: float) -> float:
        """The value on a scale on which less is better."""
        return value if self.direction is Direction.MINIMIZE else -value

    def value(self, cost: float) -> float:
        """The metric's value of a cost."""
        return self.cost(cost)

    def __str__(self) -> str:
        return f"{self.direction}:{self.metric}"


_DEFAULTS: Final = (
    # A reward is what online methods are after; their losses hover around 0 by construction.
    Objective("eval_reward", Direction.MAXIMIZE),
    Objective("eval_loss"),
    Objective("reward", Direction.MAXIMIZE),
    Objective("loss"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A run at the end of a chunk."""

    run: Run
    metrics: Mapping[str, float]


class Yardstick:
    """Turns metrics into costs that can be compared, within groups of runs.

    Args:
        objective: Such as "minimize:eval_loss"; None chooses at the first chunk's end: the reward
            or the loss of the evaluation if every run reports it, else that of the training.

    Raises:
        ConfigError: The objective cannot be read.
    """

    def __init__(self, objective: str | None = None) -> None:
        self._objective = None if objective is None else Objective.parse(objective)
        self._is_chosen = self._objective is not None

    @property
    def objective(self) -> Objective:
        """What runs are compared by; known from the first chunk's end on."""
        assert self._objective is not None, "choose it first"
        return self._objective

    def choose(self, reports: Sequence[Measured]) -> None:
        """Settle what runs are compared by; nothing to do when that is settled.

        Args:
            reports: All runs at the end of their first chunk.

        Raises:
            ObjectiveError: No run reports the metric.
        """
        if self._objective is None:
            self._objective = next(
                objective
                for objective in _DEFAULTS
                if all(_is_number(report.metrics.get(objective.metric)) for report in reports)
                or objective is _DEFAULTS[-1]
            )
        if self._is_chosen and reports:
            self._check(reports)
            self._is_chosen = False

    def cost(self, metrics: Mapping[str, float]) -> float | None:
        """What is compared, less being better; NaN if it is not a number, None if not measured."""
        value = metrics.get(self.objective.metric)
        return None if value is None else self.objective.cost(value)

    def group(self, run: Run) -> str:
        """Equal for runs that can be compared with each other.

        Losses are, where the trainer's type and the arguments of its loss are the same; those of
        the training also need the same tokens. Other metrics are always.
        """
        metric = self.objective.metric
        if not metric.endswith("loss"):
            return metric
        names = _LOSS_ARGUMENTS if metric.startswith("eval_") else _LOSS_ARGUMENTS + _DATA_ARGUMENTS
        arguments = run.resolved.get("training_args") or run.config.get("training_args") or {}
        kind = {name: arguments[name] for name in names if name in arguments}
        if not metric.startswith("eval_"):
            kind["formatting_func"] = run.config.get("formatting_func")
        return f"{run.config.get('trainer_type')} {json.dumps(kind, sort_keys=True, default=str)}"

    def __str__(self) -> str:
        return "" if self._objective is None else self._objective.metric

    def _check(self, reports: Sequence[Measured]) -> None:
        metric = self.objective.metric
        names = sorted({name for report in reports for name in report.metrics})
        if metric not in names:
            raise ObjectiveError(
                f"no run reports the objective {metric!r} at the end of its first chunk; what they "
                f"report is {', '.join(names)}. All runs are written down: correct the objective "
                "and run the script again"
            )


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def ranks(costs: Mapping[RunId, float]) -> list[RunId]:
    """The runs from the best to the worst; those that are not numbers last, ties by number."""
    return sorted(costs, key=lambda run_id: (_worst_if_nan(costs[run_id]), run_id))


def _worst_if_nan(cost: float) -> float:
    return math.inf if math.isnan(cost) else cost


def median(costs: Iterable[float]) -> float:
    """The median, what is not a number counting as worst."""
    ordered = sorted(map(_worst_if_nan, costs))
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
