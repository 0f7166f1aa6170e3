"""Policies: what prunes, resumes and clones runs while they train, by what they have measured.

One layer above `core`, whose `Policy` protocol they implement. Give one, or a list of them, to
`run_fit(policy=...)`; "auto" is `CurvePolicy()`.
"""

import copy
from typing import TYPE_CHECKING, Any

from rapidfireai.core.policy import Policy
from rapidfireai.errors import ConfigError
from rapidfireai.policies.halving import SuccessiveHalving
from rapidfireai.policies.median import MedianPolicy
from rapidfireai.policies.optuna_pruner import OptunaPruner
from rapidfireai.policies.population import PopulationBased
from rapidfireai.policies.rounds import Round, RoundPolicy
from rapidfireai.policies.threshold import ThresholdPolicy

if TYPE_CHECKING:
    from rapidfireai.policies.curve import CurvePolicy

__all__ = [
    "CurvePolicy",
    "MedianPolicy",
    "OptunaPruner",
    "Policy",
    "PopulationBased",
    "Round",
    "RoundPolicy",
    "SuccessiveHalving",
    "ThresholdPolicy",
    "as_policies",
    "described",
]


_AUTO = "auto"


def __getattr__(name: str) -> Any:
    """Import `CurvePolicy` when it is first used: it is the one that needs NumPy."""
    if name == "CurvePolicy":
        from rapidfireai.policies.curve import CurvePolicy

        return CurvePolicy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def as_policies(given: Any) -> tuple[Policy, ...]:
    """The policies that `run_fit(policy=...)` was given.

    Args:
        given: None, "auto", a policy, or a list of the last two.

    Raises:
        ConfigError: It is none of these.
    """
    if given is None:
        return ()
    from rapidfireai.policies.curve import CurvePolicy

    items = given if isinstance(given, list | tuple) else [given]
    return tuple(CurvePolicy() if item == _AUTO else _own(_checked(item)) for item in items)


def _own(policy: Policy) -> Policy:
    """One that has seen no other experiment yet."""
    return copy.deepcopy(policy) if isinstance(policy, RoundPolicy) else policy


def described(policy: Policy) -> str:
    """What a policy does, for people: its class's first line."""
    return f"{type(policy).__name__}: {(type(policy).__doc__ or 'undocumented').splitlines()[0]}"


def _checked(item: Any) -> Policy:
    if isinstance(item, type) or not callable(getattr(item, "on_chunk", None)):
        hint = f"; did you mean {item.__name__}()?" if isinstance(item, type) else "."
        raise ConfigError(
            f"policy={item!r} has no method on_chunk() to call{hint} Give 'auto', a policy such "
            "as MedianPolicy(), one of your own (see rapidfireai.core.policy), or a list of these"
        )
    policy: Policy = item
    return policy
