"""Train and compare many configurations of TRL trainers at once, on the hardware at hand.

    from rapidfireai import Experiment, List, RFGridSearch, RFLoraConfig, RFModelConfig, RFSFTConfig

What users import is here, and everything for configurations also in `rapidfireai.automl`.
"""

from typing import TYPE_CHECKING, Any

from rapidfireai._version import __version__

if TYPE_CHECKING:
    from rapidfireai.automl import (
        List,
        Range,
        RFDPOConfig,
        RFGridSearch,
        RFGRPOConfig,
        RFLoraConfig,
        RFModelConfig,
        RFOptuna,
        RFRandomSearch,
        RFSFTConfig,
    )
    from rapidfireai.experiment import Experiment

__all__ = [
    "Experiment",
    "List",
    "RFDPOConfig",
    "RFGRPOConfig",
    "RFGridSearch",
    "RFLoraConfig",
    "RFModelConfig",
    "RFOptuna",
    "RFRandomSearch",
    "RFSFTConfig",
    "Range",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import what the package offers when it is first used, so that importing it is quick.

    That includes every name of `rapidfireai.automl`, also those that are not listed above.
    """
    if name == "Experiment":
        from rapidfireai.experiment import Experiment  # noqa: PLC0415

        return Experiment
    if name == "List" or name.startswith(("RF", "Range")):
        from rapidfireai import automl  # noqa: PLC0415

        return getattr(automl, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
