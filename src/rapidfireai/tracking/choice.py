"""Which trackers an experiment has: as given, as the environment or the configuration file says."""

import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from rapidfireai.core.events import Json
from rapidfireai.core.spelling import did_you_mean
from rapidfireai.errors import ConfigError
from rapidfireai.paths import home
from rapidfireai.tracking._protocol import Settings
from rapidfireai.tracking.mlflow import MLflow
from rapidfireai.tracking.tensorboard import TensorBoard
from rapidfireai.tracking.trackio import Trackio
from rapidfireai.tracking.wandb import WandB

TRACKERS: Final[Mapping[str, type[Settings]]] = {
    kind.name: kind for kind in (MLflow, TensorBoard, Trackio, WandB)
}
"""All that there are, by name."""

VARIABLE: Final = "RF_TRACKERS"
"""Names with commas between them, or "none"."""

CONFIG_FILE: Final = "config.toml"
"""In the home folder: `trackers = ["mlflow"]`."""

_NONE: Final = "none"


def chosen(given: Sequence[Any] | None) -> tuple[Settings, ...]:
    """The trackers that are meant.

    Args:
        given: Names and settings; None takes $RF_TRACKERS, or the configuration file, or MLflow
            if it is installed and what $RF_MLFLOW_ENABLED and its like switch on or off.

    Raises:
        ConfigError: One is not known, not installed or given twice; the message says what to do.
    """
    if given is not None:
        return _checked([_settings(one, "trackers") for one in given])
    text = os.environ.get(VARIABLE)
    if text is not None:
        names = [name.strip() for name in text.split(",") if name.strip()]
        return _checked(_named(names, f"${VARIABLE}"))
    file = home() / CONFIG_FILE
    if (configured := _configured(file)) is not None:
        return _checked(_named(configured, str(file)))
    default = MLflow()
    # mlflow-skinny alone cannot keep anything on this machine.
    is_usable = is_installed(default) and (
        find_spec("alembic") is not None or "MLFLOW_TRACKING_URI" in os.environ
    )
    return _switched((default,) if is_usable else ())


def is_tracker(value: object) -> bool:
    """Whether it is the name or the settings of a tracker, rather than a listener."""
    return isinstance(value, str) or type(value) in TRACKERS.values()


def is_installed(settings: Settings | type[Settings]) -> bool:
    """Whether the tracker's library is there; does not import it."""
    return find_spec(settings.library) is not None


def to_json(settings: Settings) -> dict[str, Json]:
    """Settings with their tracker's name, as JSON."""
    return {"name": settings.name, **asdict(settings)}  # type: ignore[call-overload]


def from_json(found: Mapping[str, Any]) -> Settings:
    """What `to_json` gave."""
    rest = {name: value for name, value in found.items() if name != "name"}
    return TRACKERS[found["name"]](**rest)


def _settings(value: Any, where: str) -> Settings:
    if type(value) in TRACKERS.values():
        found: Settings = value
        return found
    if isinstance(value, str) and value.lower() in TRACKERS:
        return TRACKERS[value.lower()]()
    installed = [name for name, kind in TRACKERS.items() if is_installed(kind)]
    rest = [
        f"`{kind.install}` installs {name}"
        for name, kind in TRACKERS.items()
        if name not in installed
    ]
    told = [f"installed: {', '.join(installed) or 'none'}", *rest]
    raise ConfigError(
        f"{where} holds {value!r}, which is no tracker; {did_you_mean(str(value), TRACKERS)} "
        f"({'; '.join(told)})"
    )


def _checked(trackers: Sequence[Settings]) -> tuple[Settings, ...]:
    for settings in trackers:
        if not is_installed(settings):
            raise ConfigError(
                f"the tracker {settings.name!r} is not installed: {settings.install}, or leave it "
                "out"
            )
    names = [settings.name for settings in trackers]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"trackers holds {name!r} twice; give each tracker once")
    return tuple(trackers)


def _named(names: Iterable[Any], where: str) -> list[Settings]:
    return [_settings(name, where) for name in names if name != _NONE]


def _switched(usual: tuple[Settings, ...]) -> tuple[Settings, ...]:
    """What remains of the usual ones, and comes to them, by `RF_<NAME>_ENABLED`."""
    chosen = {settings.name: settings for settings in usual}
    for name, kind in TRACKERS.items():
        variable = f"RF_{name.upper()}_ENABLED"
        match os.environ.get(variable, "").strip().lower():
            case "":
                pass
            case "true":
                chosen.setdefault(name, kind())
            case "false":
                chosen.pop(name, None)
            case _:
                raise ConfigError(
                    f"${variable} is {os.environ[variable]!r}; it is true or false, or not set"
                )
    return _checked(list(chosen.values()))


def _configured(file: Path) -> list[Any] | None:
    """What the configuration file names; None if it says nothing of trackers."""
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    unknown = found.keys() - {"trackers"}
    if unknown:
        raise ConfigError(f"{file} sets {', '.join(sorted(unknown))}; it may only set trackers")
    names = found.get("trackers")
    if names is not None and not isinstance(names, list):
        raise ConfigError(f'{file}: trackers is a list of names, such as ["mlflow"]')
    return names
