"""Stored values as they may be shown: strict JSON, and no secrets in it."""

import json
import math
import re
from collections.abc import Mapping
from typing import Final

from rapidfireai.core.events import Json

MASK: Final = "********"
"""Stands for a secret. It is refused where it comes back as a value."""

_SECRET_KEY: Final = re.compile(
    r"(^|[_\-.])(token|passphrase|credentials?|authorization|auth"
    r"|((api|access|private|account|storage|signing)[_\-]?)?keys?)$|secret|passw(or)?d",
    re.IGNORECASE,
)
_SPECIAL_TOKEN: Final = re.compile(
    r"(^|_)(bos|eos|pad|unk|sep|cls|mask|eod|eom|eot|image|video|audio|stop|think|fim\w*|special)_token$",
    re.IGNORECASE,
)
"""Tokens of a text, which are no secrets."""

_SECRET_VALUE: Final = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_\-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}"
    r"|xox[abpr]-[A-Za-z0-9\-]{10,}|AKIA[A-Z0-9]{16})"
)
"""How the keys of well-known services begin, wherever they stand."""

_USER_IN_URL: Final = re.compile(r"(://)[^/@\s:]+:[^/@\s]+@")


def shown(value: Json, key: str = "") -> Json:
    """A stored value without secrets, and with strings for numbers that JSON does not have.

    Args:
        value: A value of a configuration, of an event, ...
        key: The name under which it stands.
    """
    match value:
        case str():
            return MASK if value and is_secret(key) else shown_text(value)
        case float() if not math.isfinite(value):
            return str(value)
        case Mapping():
            return {str(name): shown(item, str(name)) for name, item in value.items()}
        case list() | tuple():
            return [shown(item, key) for item in value]
        case _:
            return value


def shown_text(text: str) -> str:
    """A text, such as a line of a log, without secrets that can be told by their form."""
    return _USER_IN_URL.sub(rf"\1{MASK}@", _SECRET_VALUE.sub(MASK, text))


def is_secret(key: str) -> bool:
    """Whether what stands under a name of a configuration is likely to be a secret."""
    name = key.rpartition(".")[2]
    return bool(_SECRET_KEY.search(name)) and not _SPECIAL_TOKEN.search(name)


def finite(value: float | None) -> float | None:
    """The number, or None where JSON has none."""
    return value if value is not None and math.isfinite(value) else None


def encoded(value: Json) -> bytes:
    """The value as compact JSON."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
