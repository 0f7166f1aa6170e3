"""Searches: from configurations with knobs to the runs to train."""

import dataclasses
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from rapidfireai.automl.argument_types import shown
from rapidfireai.automl.knobs import List, expand, expand_points, fresh, num_points, sample
from rapidfireai.automl.model_config import RFModelConfig
from rapidfireai.automl.peft_configs import PeftTemplate
from rapidfireai.automl.resolve import run_config
from rapidfireai.automl.trainer_configs import TrainerTemplate
from rapidfireai.core.equality import comparable
from rapidfireai.errors import ConfigError
from rapidfireai.training.config import CUSTOM, RunConfig
from rapidfireai.training.registry import trainer_spec

_ALLOWED = (
    "RFModelConfig(...), a dict of its arguments, RFSFTConfig(...) or another RF class for TRL, "
    "or a list of these"
)
_MAX_MISSES = 1000
"""Draws in a row without a new configuration after which random search gives up."""


class Search(ABC):
    """Configurations with knobs, and a way to turn them into runs.

    Args:
        configs: RFModelConfig, a dict of its arguments, or an RF class for TRL; or several as a
            list or a List.
        trainer_type: Such as "SFT"; needed only where training_args is a dict or missing. With
            "custom", dictionaries hold whatever `run_fit`'s create_trainer understands.

    Raises:
        ConfigError: The configurations cannot be trained as they are.
    """

    def __init__(self, configs: Any, trainer_type: str | None = None) -> None:
        if trainer_type not in (None, CUSTOM):
            trainer_spec(str(trainer_type))
        self.configs = configs
        self.trainer_type = trainer_type

    @abstractmethod
    def get_runs(self, seed: int) -> list[RunConfig]:
        """Returns the runs, the same for the same seed.

        Args:
            seed: For what is drawn; a grid draws nothing.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({shown(self.configs)})"

    def _space(self) -> Any:
        return _space(self.configs, self.trainer_type == CUSTOM)

    def _leaf(self, leaf: Any) -> RunConfig:
        if self.trainer_type != CUSTOM:
            return run_config(leaf, self.trainer_type)
        if isinstance(leaf, RFModelConfig):
            if leaf.training_args is not None:
                return run_config(leaf)
            leaf = leaf.arguments
        knobs = fresh(leaf)
        return RunConfig(trainer_type=CUSTOM, training_args={}, model=knobs, knobs=knobs)


class RFGridSearch(Search):
    """Every combination of the `List`s; the one that was written first varies slowest.

    In an RFModelConfig the arguments vary in the order of its signature. Equal configurations are
    kept, with a note on the later one. A search among the configs contributes its runs.
    """

    def __init__(self, configs: Any, trainer_type: str | None = None) -> None:
        super().__init__(configs, trainer_type)
        self.get_runs(seed=0)  # errors now, not when training starts

    def get_runs(self, seed: int) -> list[RunConfig]:
        """Returns the runs in order."""
        runs = []
        for leaf in expand(self._space(), "configs"):
            if isinstance(leaf, RFGridSearch | RFRandomSearch):
                runs.extend(leaf.get_runs(seed))
            elif isinstance(leaf, Search):
                raise ConfigError(
                    f"{type(leaf).__name__} decides while runs train, and cannot be one of "
                    "several: give it to run_fit by itself"
                )
            else:
                runs.append(self._leaf(leaf))
        return _with_repeats_noted(runs)


class RFRandomSearch(Search):
    """Distinct configurations, each knob drawn: a `List` evenly, a `Range` as it says.

    Args:
        configs: As for every search.
        trainer_type: As for every search.
        num_runs: How many configurations.
        num_samples: Another name for num_runs.
        seed: None uses the seed of `get_runs`, which `run_fit` passes.
    """

    def __init__(
        self,
        configs: Any,
        trainer_type: str | None = None,
        *,
        num_runs: int | None = None,
        num_samples: int | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(configs, trainer_type)
        if (num_runs is None) == (num_samples is None):
            raise ConfigError(
                f"num_runs={num_runs!r}, num_samples={num_samples!r}: give one of them, "
                f"they mean the same"
            )
        wanted = num_samples if num_runs is None else num_runs
        if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
            raise ConfigError(f"num_runs={wanted!r} must be a whole number of at least 1")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise ConfigError(f"seed={seed!r} must be a whole number, or None for run_fit's")
        self.num_runs = wanted
        self.seed = seed
        self.get_runs(seed=0)  # errors now, not when training starts

    def get_runs(self, seed: int) -> list[RunConfig]:
        """Returns the runs in the order in which they were drawn."""
        rng = random.Random(seed if self.seed is None else self.seed)
        space = self._space()
        size = num_points(space)
        if size <= _MAX_MISSES:
            return self._drawn_from(_distinct(map(self._run, expand_points(space))), rng)
        runs: list[RunConfig] = []
        seen = _Seen()
        misses = 0
        while len(runs) < self.num_runs:
            run = self._run(sample(space, rng))
            if seen.first_place(run, len(runs)) == len(runs):
                runs.append(run)
                misses = 0
            elif (misses := misses + 1) == _MAX_MISSES:
                raise self._too_few(len(runs))
        return runs

    def _run(self, leaf: Any) -> RunConfig:
        if isinstance(leaf, Search):
            raise ConfigError(f"{leaf!r} cannot be drawn from; give its configs instead")
        return self._leaf(leaf)

    def _drawn_from(self, points: list[RunConfig], rng: random.Random) -> list[RunConfig]:
        if len(points) < self.num_runs:
            raise self._too_few(len(points))
        return rng.sample(points, self.num_runs)

    def _too_few(self, num_distinct: int) -> ConfigError:
        return ConfigError(
            f"num_runs={self.num_runs}, but there are only {num_distinct} distinct configurations; "
            f"give num_runs={num_distinct}, or more alternatives"
        )


def as_run_configs(config_group: Any, seed: int, *, custom: bool = False) -> list[RunConfig]:
    """Returns the runs that whatever `run_fit` was given describes.

    Args:
        config_group: A search, a list of searches, or what a search takes as configs.
        seed: For searches that draw.
        custom: Whether dictionaries are for the user's create_trainer to understand.

    Raises:
        ConfigError: It is nothing of these, or describes no run.
    """
    if isinstance(config_group, Search):
        return config_group.get_runs(seed)
    return RFGridSearch(config_group, CUSTOM if custom else None).get_runs(seed)


def _space(configs: Any, custom: bool) -> Any:
    """Returns the alternatives as one value whose expansions are RFModelConfigs or searches."""
    if isinstance(configs, List):
        return List([_space(item, custom) for item in configs.values])
    if isinstance(configs, list | tuple):
        if not configs:
            raise ConfigError(f"configs={configs!r} is empty; give at least one: {_ALLOWED}")
        return List([_space(item, custom) for item in configs])
    if isinstance(configs, TrainerTemplate):
        return RFModelConfig(training_args=configs)
    if isinstance(configs, PeftTemplate):
        raise ConfigError(f"configs={configs!r}: give it to RFModelConfig(peft_config=...)")
    if isinstance(configs, dict):
        for key in configs:
            if not isinstance(key, str):
                raise ConfigError(f"the keys of a configuration are argument names, not {key!r}")
        return configs if custom else RFModelConfig(**configs)
    if isinstance(configs, RFModelConfig | Search):
        return configs
    raise ConfigError(
        f"configs={shown(configs)} ({type(configs).__name__}) is no configuration; "
        f"allowed: {_ALLOWED}"
    )


class _Seen:
    """Runs that came by. Few are compared with each other, so that large searches stay quick."""

    def __init__(self) -> None:
        self._by_scalars: dict[frozenset[Any], list[tuple[RunConfig, int]]] = {}

    def first_place(self, run: RunConfig, place: int) -> int:
        """Returns where the first equal run was; `place`, if this is the first. Notes count not."""
        bare = dataclasses.replace(run, notes=(), model=comparable(run.model))
        parts = (run.training_args, run.peft.arguments if run.peft else {}, run.knobs or {})
        scalars = frozenset(
            item
            for part in parts
            for item in part.items()
            if isinstance(item[1], int | float | str)
        )
        alike = self._by_scalars.setdefault(scalars, [])
        for other, first in alike:
            if other == bare:
                return first
        alike.append((bare, place))
        return place


def _distinct(runs: Iterable[RunConfig]) -> list[RunConfig]:
    seen = _Seen()
    return [run for place, run in enumerate(runs) if seen.first_place(run, place) == place]


def _with_repeats_noted(runs: list[RunConfig]) -> list[RunConfig]:
    seen = _Seen()
    noted = []
    for place, run in enumerate(runs):
        first = seen.first_place(run, place)
        note = f"equal to configuration {first + 1} of this search"
        if first < place and note not in run.notes:
            run = dataclasses.replace(run, notes=(*run.notes, note))
        noted.append(run)
    return noted
