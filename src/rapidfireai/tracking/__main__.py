"""The process that sends to one tracker: `python -m rapidfireai.tracking <orders as JSON>`.

It follows the store until its standard input ends, which is when the process that trains does, also
when that is killed. Then it catches up and ends.
"""

import json
import logging
import os
import sys
from pathlib import Path

from rapidfireai.paths import ExperimentFolder
from rapidfireai.tracking.choice import from_json
from rapidfireai.tracking.follower import Follower, training_ends
from rapidfireai.tracking.ledger import TrackerFolder

_LOCK_WAIT_S = 600.0
"""For the process of the training before, which may be catching up still."""


def main() -> int:
    """Follow; returns the exit status, 0 if the tracker holds everything."""
    given = json.loads(sys.argv[1])
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    # The training comes first wherever both want the same core.
    os.nice(10)
    settings = from_json(given["settings"])
    experiment = ExperimentFolder(Path(given["folder"]))
    folder = TrackerFolder.of(experiment, settings.name)
    with folder.claimed(_LOCK_WAIT_S) as is_mine:
        if not is_mine:
            return 1
        follower = Follower(experiment, settings, folder)
        return 0 if follower.follow(training_ends) else 1


if __name__ == "__main__":
    sys.exit(main())
