"""All trainers of the installed TRL, found by looking."""

import importlib
import inspect
import pkgutil
import warnings
from collections.abc import Iterator

import transformers


def found() -> set[str]:
    """Every trainer that TRL offers, as "module:class".

    Where TRL has moved a trainer, the old import path, which says so when it is used, is left out.
    """
    return {
        f"{module}:{name}"
        for module in _modules()
        for name, value in vars(importlib.import_module(module)).items()
        if inspect.isclass(value)
        and issubclass(value, transformers.Trainer)
        and not name.startswith("_")
        and value.__module__ != module  # a class in __init__.py itself: the old path
    }


def _modules() -> Iterator[str]:
    yield "trl"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of each experimental module: that it is one
        experimental = importlib.import_module("trl.experimental")
        for info in pkgutil.iter_modules(experimental.__path__, "trl.experimental."):
            importlib.import_module(info.name)
            yield info.name
