"""The command `rapidfireai`: reads arguments and calls the verb's module.

Nothing heavy is imported before a verb runs, so that `--help` and `--version` answer at once.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rapidfireai._version import __version__
from rapidfireai.commandline import files, listings, reports, server, trackers, training, verbs
from rapidfireai.errors import RapidFireError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: What follows the command's name; None takes them from `sys.argv`.

    Returns:
        The exit status: 0 if all is well, 1 after an error or if a command was rejected, 3 if one
        is pending, 130 after Ctrl-C.

    Raises:
        SystemExit: Status 0 after `--help` and `--version`, 2 for arguments that nobody knows.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.verb is None:
        parser.print_help()
        return 0
    try:
        status: int = options.verb(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read has had enough, as `head` has. What is left must not fail at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (RapidFireError, OSError) as error:  # OSError: a folder or a disk, not the program
        return _fail(str(error))
    except ModuleNotFoundError as error:
        return _fail(f"{error}\n`rapidfireai doctor` shows what else is missing.")
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped\n")
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rapidfireai",
        description="Train and compare many configurations of TRL trainers at once.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.set_defaults(verb=None)
    commands = parser.add_subparsers(title="commands", metavar="<command>")

    demo = commands.add_parser(
        "demo",
        help="train 4 configurations of a small model at once and compare them",
        description="Trains 4 configurations of SmolLM2-135M at once on questions about Python's "
        "standard library, ranks them, and asks the best one. Takes minutes on two CPU cores.",
    )
    demo.add_argument(
        "--quick", action="store_true", help="a few steps only: shows that everything works"
    )
    demo.add_argument(
        "--cache",
        type=Path,
        help="folder for the converted model (default: models below $RF_HOME or ~/rapidfireai)",
    )
    demo.set_defaults(verb=_demo)

    doctor = commands.add_parser(
        "doctor",
        help="show versions and devices, what is missing and how to install it",
        description="Shows versions against the tested ranges, devices, the folder for "
        "experiments, and the line that installs what is missing. "
        "Exit status 1 if something required is missing or out of range.",
    )
    doctor.add_argument("--json", action="store_true", help="write JSON, for programs")
    doctor.set_defaults(verb=_doctor)

    for group in (training, listings, verbs, files, server, reports, trackers):
        group.add(commands)
    return parser


def _demo(options: argparse.Namespace) -> int:
    from rapidfireai.demo.run import main as run_demo

    run_demo(quick=options.quick, cache=options.cache)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from rich.console import Console

    from rapidfireai import doctor

    report = doctor.examine()
    if options.json:
        sys.stdout.write(json.dumps(doctor.as_dict(report), indent=2) + "\n")
    else:
        doctor.show(report, Console())
    return 0 if report.ok else 1


def _fail(message: str) -> int:
    sys.stderr.write(f"rapidfireai: error: {message}\n")
    return 1
