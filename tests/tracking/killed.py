"""The process of a tracker, to be killed: `... <orders> [<point> <how often it is reached>]`."""

import os
import signal
import sys

from rapidfireai import faults
from rapidfireai.tracking.__main__ import main

_left = 0


def _reached(point: faults.Point) -> None:
    global _left
    if point == sys.argv[2]:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        _left = int(sys.argv[3])
        faults.listen(_reached)
    sys.exit(main())
