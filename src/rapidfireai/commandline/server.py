"""Verbs of the server: `init`, `start`, `stop`, `status`."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapidfireai.paths import experiments_root, home

if TYPE_CHECKING:
    from rapidfireai.server.home import ServerRecord


def add(verbs: Any) -> None:
    """Add the verbs to the command's parser."""
    init = verbs.add_parser(
        "init",
        help="prepare the home folder and check the machine",
        description="Makes the home folder ($RF_HOME, or ~/rapidfireai) with the server's token, "
        "and shows what `doctor` shows. Exit status 1 if training cannot start.",
    )
    init.set_defaults(verb=_init)

    start = verbs.add_parser(
        "start",
        help="serve the dashboard and its API",
        description="Serves all experiments at http://localhost:3000, to this machine only, and "
        "prints the link that lets a browser in. Experiments may be trained before, meanwhile or "
        "afterwards.",
    )
    start.add_argument("--port", type=_port, default=3000, help="default: 3000; 0: any free one")
    start.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)"
    )
    start.add_argument(
        "--path", type=Path, help="folder of all experiments (default: where run_fit keeps them)"
    )
    start.add_argument("--detach", action="store_true", help="serve in the background")
    start.set_defaults(verb=_start)

    stop = verbs.add_parser(
        "stop",
        help="end the server that `start` started",
        description="Ends the home folder's server, and no other process; what trains goes on.",
    )
    stop.set_defaults(verb=_stop)

    status = verbs.add_parser(
        "status",
        help="show the server, the experiments and who trains them",
        description="Shows the server's link, and all experiments with their runs by status.",
    )
    status.add_argument("--path", type=Path, help="folder of all experiments, without a server")
    status.add_argument("--json", action="store_true", help="write JSON, for programs")
    status.set_defaults(verb=_status)


def _init(options: argparse.Namespace) -> int:
    from rich.console import Console

    from rapidfireai import doctor
    from rapidfireai.server.home import ServerHome

    ServerHome(home()).token()
    report = doctor.examine()
    doctor.show(report, Console())
    sys.stdout.write(f"The home folder is {home()}. `rapidfireai start` serves the dashboard.\n")
    return 0 if report.ok else 1


def _start(options: argparse.Namespace) -> int:
    from rapidfireai.server.process import Place, serve, start_detached

    place = Place(
        home=home(),
        experiments=experiments_root(options.path),
        host=options.host,
        port=options.port,
    )
    if options.detach:
        _announce(*start_detached(place))
    else:
        serve(place, _announce)
    return 0


def _announce(record: "ServerRecord", token: str) -> None:
    sys.stdout.write(f"RapidFire AI is at {record.link(token)}\n")
    if record.host not in ("127.0.0.1", "localhost", "::1"):
        sys.stdout.write(
            "It can be reached from other machines, unencrypted: whoever listens on the way gets "
            "the token. An SSH tunnel is safer; see docs/server.md.\n"
        )
    sys.stdout.flush()


def _stop(options: argparse.Namespace) -> int:
    from rapidfireai.server.process import stop

    record = stop(home())
    message = "no server runs" if record is None else f"the server at {record.url} has ended"
    sys.stdout.write(f"{message}\n")
    return 0


def _status(options: argparse.Namespace) -> int:
    from rapidfireai.server.status import status, told

    found = status(home(), experiments_root(options.path))
    text = json.dumps(found, indent=2) if options.json else "\n".join(told(found))
    sys.stdout.write(f"{text}\n")
    return 0


def _port(text: str) -> int:
    if not (text.isdecimal() and int(text) < 1 << 16):
        raise argparse.ArgumentTypeError(f"{text!r} is no port; it is a number from 0 to 65535")
    return int(text)
