"""When two configurations say the same."""

import dataclasses
from collections.abc import Mapping
from typing import Any


def comparable(value: Any) -> Any:
    """The value with objects that compare equal whatever they say taken apart.

    Those are transformers' quantization configs, as dataclasses without their settings as fields.
    """
    if isinstance(value, Mapping):
        return {key: comparable(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and hasattr(value, "to_dict"):
        return type(value), value.to_dict()
    return value
