"""Places at which tests let something go wrong: the process is killed, the disk is full.

Nobody listens outside of tests, and passing a point then costs some 50 nanoseconds.
"""

from collections.abc import Callable
from typing import Literal

Point = Literal[
    "data.formatting",
    "data.formatted",
    "store.new",
    "store.before_commit",
    "store.recorded",
    "run.recovered",
    "evaluation.begun",
    "evaluation.measured",
    "checkpoint.begun",
    "checkpoint.trainer_written",
    "checkpoint.before_manifest",
    "checkpoint.before_rename",
    "checkpoint.after_rename",
    "checkpoint.older_removed",
    "final.begun",
    "final.written",
    "final.replacing",
    "final.renamed",
    "tracker.begun",
    "tracker.sent",
    "tracker.updated",
]
"""What is about to be done, or has just been done."""

_listener: Callable[[Point], None] | None = None


def reach(point: Point) -> None:
    """Tell the listener, if there is one, that the point has been reached; what it raises is raised
    here."""
    if _listener is not None:
        _listener(point)


def listen(listener: Callable[[Point], None] | None) -> None:
    """Have `listener` called at every point of this process, in whatever thread reaches it; None
    ends that."""
    global _listener
    _listener = listener
