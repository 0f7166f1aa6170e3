"""Objects of the user's own code, which a file names as `module.name`."""

import importlib
import sys
from pathlib import Path
from typing import Any

from rapidfireai.errors import ConfigError


def load(name: str, key: str, folder: Path) -> Any:
    """The object that a dotted name stands for.

    Args:
        name: Such as "rewards.brief": `brief` of `rewards.py`, in the folder of the file, in the
            one where the command runs, or installed.
        key: Whose value it is, for messages.
        folder: Of the file.

    Raises:
        ConfigError: There is no such module, it cannot be imported, or has no such name.
    """
    module, _, attribute = name.rpartition(".")
    if not module:
        raise ConfigError(
            f"{key}: {name!r} is no dotted name; write it as module.{name}, where module.py is in "
            "the file's folder"
        )
    for place in (str(Path.cwd()), str(folder)):
        if place not in sys.path:
            sys.path.insert(0, place)
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise ConfigError(f"{key}: {name!r} cannot be imported: {error}") from error
    except AttributeError as error:
        raise ConfigError(f"{key}: the module {module!r} has no {attribute!r}") from error
    except Exception as error:  # the user's module
        raise ConfigError(
            f"{key}: importing {module!r} raised {type(error).__name__}: {error}"
        ) from error
