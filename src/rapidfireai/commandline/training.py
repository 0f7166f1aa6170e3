"""The verb `fit`: trains what a YAML file describes."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapidfireai.commandline.experiments import add_json, add_path
from rapidfireai.commandline.output import print_json, print_line, print_table
from rapidfireai.errors import ConfigError

if TYPE_CHECKING:
    from rapidfireai.experiment import Experiment
    from rapidfireai.recipe import Recipe
    from rapidfireai.training.config import RunConfig


def add(verbs: Any) -> None:
    """Add the verb to the command's parser."""
    fit = verbs.add_parser(
        "fit",
        help="train all configurations that a YAML file describes",
        description="Trains what a YAML file describes. It has the keys of `trl sft --config` and "
        "its like; a list stands for several configurations. Called again, what was interrupted "
        "goes on. Exit status: 0 if all runs trained, 1 after an error or if a run failed, 130 "
        "after Ctrl-C.",
    )
    fit.add_argument("file", type=Path, metavar="FILE", help="the YAML file")
    fit.add_argument(
        "--trainer",
        metavar="NAME",
        help="such as sft, dpo or grpo; where the file has no trainer_type",
    )
    fit.add_argument(
        "--set",
        action="append",
        default=[],
        type=_change,
        metavar="KEY=VALUE",
        help="a key and its value, instead of the file's; may be given again",
    )
    fit.add_argument(
        "--dry-run", action="store_true", help="only show the configurations; trains nothing"
    )
    add_json(fit)
    add_path(fit)
    fit.set_defaults(verb=_fit)


def _fit(options: argparse.Namespace) -> int:
    # Before the libraries are loaded, which takes seconds in each of the processes.
    from rapidfireai.surroundings import check_not_launched

    check_not_launched()

    from rapidfireai.recipe import read

    recipe = read(options.file, options.trainer, options.set)
    if options.dry_run:
        _show(recipe, as_json=options.json)
        return 0
    return _train(recipe, options)


def _train(recipe: "Recipe", options: argparse.Namespace) -> int:
    from rapidfireai.experiment import Experiment

    os.environ.update(recipe.env)
    train, evaluation = recipe.data.load(recipe.seed)
    experiment = Experiment(recipe.name, experiment_path=options.path or recipe.path)
    experiment.run_fit(
        recipe.search,
        train_dataset=train,
        eval_dataset=evaluation,
        seed=recipe.seed,
        **recipe.fit,
    )
    return _told(experiment, as_json=options.json)


def _told(experiment: "Experiment", *, as_json: bool) -> int:
    """Tell programs what came of it, as people have been already; the exit status."""
    runs = experiment.get_runs_info()
    if as_json:
        columns = ["run_id", "status", "step", "path", "error"]
        named = {"experiment": experiment.name, "path": str(experiment.path)}
        print_json({**named, "runs": runs[columns].to_dict("records")})
    return int((runs["status"] == "failed").any())


def _show(recipe: "Recipe", *, as_json: bool) -> None:
    configs = recipe.configs()
    if as_json:
        print_json([config.to_json() for config in configs])
        return
    titles, rows = _table(configs)
    what = "configuration" if len(configs) == 1 else "configurations"
    print_line(f"{recipe.name}: {len(configs)} {what} of {configs[0].trainer_type}")
    if titles:
        print_table(["", *titles], [[str(place), *row] for place, row in enumerate(rows, 1)])
    for note in dict.fromkeys(note for config in configs for note in config.notes):
        print_line(f"note: {note}")
    print_line("--json shows all of each; without --dry-run they are trained")


def _table(configs: "Sequence[RunConfig]") -> tuple[list[str], list[list[str]]]:
    """What tells configurations apart."""
    from rapidfireai.core.ids import RunId
    from rapidfireai.core.run import Run
    from rapidfireai.live.board import knobs

    runs = [
        Run(id=RunId(place), name="", config=config.to_json(), path="")
        for place, config in enumerate(configs)
    ]
    differing = knobs(runs)
    rows = [[str(values.get(run.id, "default")) for values in differing.values()] for run in runs]
    return list(differing), rows


def _change(text: str) -> tuple[str, Any]:
    from rapidfireai.recipe.document import parse

    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form KEY=VALUE")
    try:
        return key, parse(value)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
