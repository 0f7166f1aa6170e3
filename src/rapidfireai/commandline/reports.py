"""The verb `report`."""

import argparse
from pathlib import Path
from typing import Any

from rapidfireai.commandline.experiments import add_path, chosen


def add(verbs: Any) -> None:
    """Add the verb to the command's parser."""
    report = verbs.add_parser(
        "report",
        help="rank an experiment's runs and tell what was pruned, when and why",
        description="Ranks the runs of an experiment, also while it trains: with uncertainty, what "
        "was pruned when and why, what that saved, and which knobs matter.",
    )
    report.add_argument(
        "experiment",
        nargs="?",
        metavar="NAME",
        help="the experiment (default: the one that has changed last)",
    )
    report.add_argument("--html", type=Path, help="write a page with pictures there")
    report.add_argument("--objective", help='such as "minimize:eval_loss"; default: by what fits')
    add_path(report)
    report.set_defaults(verb=_report)


def _report(options: argparse.Namespace) -> int:
    from rich.console import Console

    from rapidfireai.experiment import Experiment

    folder = chosen(options)
    experiment = Experiment.find(folder.name, folder.path.parent)
    experiment.report(options.html, options.objective, console=Console())
    return 0
