"""Which experiment a verb is about."""

import argparse
from pathlib import Path

from rapidfireai.core.spelling import did_you_mean
from rapidfireai.errors import ConfigError
from rapidfireai.paths import ExperimentFolder, experiments_root


def add_path(parser: argparse.ArgumentParser) -> None:
    """The option for the folder of all experiments."""
    parser.add_argument(
        "--path",
        type=Path,
        metavar="DIR",
        help="folder of all experiments (default: $RF_EXPERIMENT_PATH, or rapidfire_experiments "
        "below $RF_HOME or ~/rapidfireai)",
    )


def add_experiment(parser: argparse.ArgumentParser) -> None:
    """The options that choose an experiment, and the one for output that programs read."""
    parser.add_argument(
        "-e",
        "--experiment",
        metavar="NAME",
        help="the experiment (default: the one that has changed last)",
    )
    add_path(parser)
    add_json(parser)


def add_json(parser: argparse.ArgumentParser) -> None:
    """The option for output that programs read."""
    parser.add_argument("--json", action="store_true", help="write JSON, for programs")


def chosen(options: argparse.Namespace) -> ExperimentFolder:
    """The experiment that is meant.

    Raises:
        ConfigError: There is no such experiment.
    """
    root = experiments_root(options.path)
    folders = {folder.name: folder for folder in ExperimentFolder.all(root)}
    if not folders:
        raise ConfigError(
            f"there is no experiment in {root}; give the folder of all experiments: --path DIR"
        )
    if options.experiment is None:
        return max(folders.values(), key=_changed_s)
    if options.experiment not in folders:
        raise ConfigError(
            f"there is no experiment {options.experiment!r} in {root}; "
            f"{did_you_mean(options.experiment, folders)}"
        )
    return folders[options.experiment]


def _changed_s(folder: ExperimentFolder) -> float:
    # What was written last may be in the file beside the database only.
    files = (folder.store, folder.store.with_name(f"{folder.store.name}-wal"))
    return max(file.stat().st_mtime for file in files if file.exists())
