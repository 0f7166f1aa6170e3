"""Train and compare many configurations of TRL trainers at once, on the hardware at hand.

from rapidfireai import Experiment
from rapidfireai.automl import List, RFGridSearch, RFLoraConfig, RFModelConfig, RFSFTConfig
"""

from typing import TYPE_CHECKING, Any

from rapidfireai._version import __version__

if TYPE_CHECKING:
    from rapidfireai.experiment import Experiment

__all__ = ["Experiment", "__version__"]


def __getattr__(name: str) -> Any:
    """Import what the package offers when it is first used, so that importing it is quick."""
    if name == "Experiment":
        from rapidfireai.experiment import Experiment  # noqa: PLC0415

        return Experiment
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
