"""Processes that tests may kill, forked from a server that has done the slow imports.

`multiprocessing` has one such server for the whole process, which `tests.training.solo` keeps free
of the engine. This one is a process of its own that is told over its standard input what to do.
"""

import atexit
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT_S = 240
"""A child that takes longer is stuck, and ends by SIGALRM."""


@dataclass(frozen=True)
class Child:
    """A process that the server forked."""

    server: "Children"
    pid: int
    output: Path
    """What it printed."""

    def send(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit status; minus the signal that ended it."""
        status: int = self.server.ask(wait=self.pid)
        return status


class Children:
    """The server, as its client sees it.

    Args:
        preload: Modules that are imported before anything is forked.
    """

    def __init__(self, preload: Sequence[str]) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", __name__, *preload],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            cwd=Path(__file__).parents[1],
        )

    def start(self, target: str, *args: Any, output: Path) -> Child:
        """Call a function in a new process.

        Args:
            target: "module:function".
            args: JSON.
            output: File for what it prints.
        """
        pid = self.ask(target=target, args=args, output=str(output))
        return Child(self, pid, output)

    def ask(self, **request: Any) -> Any:
        """The server's answer."""
        stdin, stdout = self._server.stdin, self._server.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        return json.loads(stdout.readline())

    def close(self) -> None:
        """End the server."""
        self._server.communicate()


def serve(preload: Sequence[str]) -> None:
    """Be the server until the standard input ends."""
    # What libraries print while they are imported is no answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in preload:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # so that a child's garbage collection need not look at all of that
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if answer == 0:
                _live(**request)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _live(target: str, args: Sequence[Any], output: str) -> None:
    """Be a child: as a script that calls the function and ends."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.alarm(LIMIT_S)
    atexit._clear()  # what the server's libraries have registered is the server's
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    printed = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    status = 0
    try:
        module, _, function = target.partition(":")
        getattr(importlib.import_module(module), function)(*args)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except KeyboardInterrupt:
        status = 130
    except BaseException:  # noqa: BLE001 - as a script's end
        traceback.print_exc()
        status = 1
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve(sys.argv[1:])
