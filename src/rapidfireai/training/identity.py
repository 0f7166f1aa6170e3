"""What makes two runs the same: a digest of everything that decides about a run's numbers."""

import hashlib
import inspect
import json
from collections.abc import Mapping
from typing import Any

from rapidfireai.training.config import RunConfig, as_json


def run_identity(config: RunConfig, surroundings: Mapping[str, Any]) -> str:
    """Digest of the configuration and of what all runs share.

    Args:
        config: The configuration. A function counts by module, qualified name and source, so that
            an edited reward makes a new run.
        surroundings: Datasets, functions and seed, by name.
    """
    described = {"config": _describe(_parts(config)), "surroundings": _describe(surroundings)}
    text = json.dumps(described, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _parts(config: RunConfig) -> dict[str, Any]:
    return {
        "trainer_type": config.trainer_type,
        "training_args": config.training_args,
        "model": config.model,
        "peft": None if config.peft is None else (config.peft.method, config.peft.arguments),
        "trainer_kwargs": config.trainer_kwargs,
        "formatting_func": config.formatting_func,
        "compute_metrics": config.compute_metrics,
        "generation_config": config.generation_config,
        "knobs": config.knobs,
        "share_base": config.share_base,
    }


def _describe(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_describe(item) for item in value]
    fingerprint = getattr(value, "_fingerprint", None)
    if fingerprint is not None:
        return f"dataset {fingerprint}"
    if callable(value):
        return [as_json(value), _source(value)]
    described = as_json(value)
    if isinstance(described, str) and " object at 0x" in described:
        # An address is another in every process: the class has to do.
        return [f"{type(value).__module__}.{type(value).__qualname__}", _source(type(value))]
    return described


def _source(value: Any) -> str | None:
    """The source of a function or class; None where there is none to be had, as in a REPL."""
    target = value if inspect.isroutine(value) or inspect.isclass(value) else type(value)
    try:
        return inspect.getsource(target)
    except (OSError, TypeError):
        return None
