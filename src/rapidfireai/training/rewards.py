"""Reward functions of the user's, checked where they are called.

What goes wrong in one is told by its name, and with lengths where those are wrong. What a function
returns is handed on as it is.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from rapidfireai.errors import RewardError

RewardFunction = Callable[..., Any]

_MAX_SHOWN = 60


def checked_rewards(given: Any, before: Callable[[], None]) -> Any:
    """The same reward functions, checked; models and names of models stay what they are.

    Args:
        given: One, or a list of them.
        before: Called before each of them is.
    """
    if isinstance(given, list | tuple):
        return [checked_rewards(each, before) for each in given]
    if isinstance(given, torch.nn.Module) or not callable(given):
        return given
    return _checked(given, before)


def _checked(function: RewardFunction, before: Callable[[], None]) -> RewardFunction:
    name = _name(function)

    def call(*args: Any, **kwargs: Any) -> Any:
        before()
        try:
            rewards = function(*args, **kwargs)
        except Exception as error:
            raise _raised(name, error) from error
        return _examined(name, rewards, kwargs)

    async def call_async(*args: Any, **kwargs: Any) -> Any:
        before()
        try:
            rewards = await function(*args, **kwargs)
        except Exception as error:
            raise _raised(name, error) from error
        return _examined(name, rewards, kwargs)

    # Metrics are named after it.
    checked: Any = call_async if _is_async(function) else call
    checked.__name__ = checked.__qualname__ = name
    # What it keeps belongs into checkpoints: see `forgotten`.
    checked.__wrapped__ = function
    return checked


def _is_async(function: RewardFunction) -> bool:
    inner: Any = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(inner.__call__)


def _name(function: RewardFunction) -> str:
    """As TRL names it."""
    inner: Any = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    name: str = getattr(inner, "__name__", type(inner).__name__)
    return name


def _raised(name: str, error: Exception) -> RewardError:
    return RewardError(f"the reward function {name!r} raised {type(error).__name__}: {error}")


def _examined(name: str, rewards: Any, given: Mapping[str, Any]) -> Any:
    """What the function returned, if it is a number or None for each completion.

    Raises:
        RewardError: It is not.
    """
    if not hasattr(rewards, "__len__") or not hasattr(rewards, "__iter__"):
        raise RewardError(
            f"the reward function {name!r} returned {_shown(rewards)}; it has to return a list "
            "with a number, or None, for each completion"
        )
    wanted = given.get("completions")
    if wanted is not None and len(rewards) != len(wanted):
        raise RewardError(
            f"the reward function {name!r} returned {len(rewards)} rewards for {len(wanted)} "
            "completions; it has to return one for each"
        )
    for reward in rewards:
        if reward is not None and not _is_number(reward):
            raise RewardError(
                f"the reward function {name!r} returned {_shown(reward)} among its rewards; each "
                "has to be a number, or None where it does not apply"
            )
    return rewards


def _is_number(reward: Any) -> bool:
    try:
        math.isfinite(reward)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return False
    return True


def _shown(value: Any) -> str:
    text = repr(value)
    short = text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
    return f"{short} ({type(value).__name__})"
