"""Samplers and pruners of Optuna by the names that the incumbent's scripts give them."""

import importlib.util
from typing import Any, Final

from rapidfireai.core.spelling import did_you_mean
from rapidfireai.errors import ConfigError

SAMPLERS: Final = ("tpe", "random", "cmaes")
PRUNERS: Final = ("median", "hyperband")


def check_sampler(name: str) -> None:
    """Refuse a name that stands for no sampler, or for one that is not installed.

    Raises:
        ConfigError: It is one of these.
    """
    if name not in SAMPLERS:
        raise ConfigError(
            f"sampler={name!r} cannot be used; {did_you_mean(name, SAMPLERS)} Or give one of "
            "optuna.samplers"
        )
    if name == "cmaes" and importlib.util.find_spec("cmaes") is None:
        raise ConfigError(
            "sampler='cmaes' needs a package that is not installed: pip install cmaes"
        )


def new_sampler(name: str, seed: int, num_startup: int) -> Any:
    """A sampler for one trial, which proposes the same for the same seed.

    Args:
        name: One of `SAMPLERS`.
        seed: Of the trial.
        num_startup: Trials that TPE draws at random, before it has seen anything.
    """
    from optuna import samplers

    if name == "random":
        return samplers.RandomSampler(seed=seed)
    if name == "cmaes":
        return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
    return samplers.TPESampler(n_startup_trials=num_startup, constant_liar=True, seed=seed)


def pruner_named(name: str) -> Any:
    """One of optuna.pruners.

    Raises:
        ConfigError: The name stands for none.
    """
    from optuna import pruners

    if name not in PRUNERS:
        raise ConfigError(
            f"pruner={name!r} cannot be used; {did_you_mean(name, PRUNERS)} Or give one of "
            "optuna.pruners, or None"
        )
    return pruners.MedianPruner() if name == "median" else pruners.HyperbandPruner()
