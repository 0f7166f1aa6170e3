"""The verb `sync`."""

import argparse
from contextlib import closing
from dataclasses import asdict
from typing import Any, Final

from rapidfireai.commandline.experiments import add_experiment, chosen
from rapidfireai.commandline.output import print_json, print_line

_WAIT_S: Final = 300.0


def add(verbs: Any) -> None:
    """Add the verb to the command's parser."""
    sync = verbs.add_parser(
        "sync",
        help="send trackers what they have not been told yet",
        description="Sends an experiment's trackers (MLflow, TensorBoard, Trackio, W&B) what they "
        "do not hold yet, and says how they are doing. Exit status 1 if one of them still lacks "
        "something.",
    )
    sync.add_argument(
        "--wait",
        type=float,
        default=_WAIT_S,
        metavar="SECONDS",
        help=f"how long to wait for them (default: {_WAIT_S:g})",
    )
    add_experiment(sync)
    sync.set_defaults(verb=_sync)


def _sync(options: argparse.Namespace) -> int:
    from rapidfireai.store import SqliteReader
    from rapidfireai.tracking.choice import from_json
    from rapidfireai.tracking.ledger import TrackerFolder
    from rapidfireai.tracking.process import start
    from rapidfireai.tracking.status import TrackerState, trackers_of

    folder = chosen(options)
    with closing(SqliteReader(folder.store)) as store:
        lacking = {
            one.name
            for one in trackers_of(folder, store)
            if one.state in (TrackerState.BEHIND, TrackerState.FAILING)
        }
        ledgers = [one.read() for one in TrackerFolder.all(folder) if one.name in lacking]
        start(folder, [from_json(one.settings) for one in ledgers if one is not None]).end(
            options.wait
        )
        found = trackers_of(folder, store)
    if options.json:
        print_json([{**asdict(one), "told": one.told()} for one in found])
    elif not found:
        print_line(f"{folder.name} has no trackers; run_fit(trackers=[...]) chooses them")
    else:
        for one in found:
            print_line(f"{one.name}: {one.told()}")
    return 0 if all(one.state is TrackerState.CURRENT for one in found) else 1
