"""A server's process: in the foreground, in the background, and its end."""

import errno
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Final

import psutil

from rapidfireai._version import __version__
from rapidfireai.server.home import ServerError, ServerHome, ServerRecord

DEFAULT_PORT: Final = 3000

_START_TIMEOUT_S: Final = 60.0
_STOP_TIMEOUT_S: Final = 15.0
_GRACE_S: Final = 3
"""For answers that are being sent when the server ends."""

_POLL_S: Final = 0.05

_CLOCK_TOLERANCE_S: Final = 2.0
"""By which the system's own account of when a process began may vary."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a server listens, and what it serves."""

    home: Path
    experiments: Path
    """Folder of all experiments."""
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    """0 takes any that is free."""


def serve(place: Place, announce: Callable[[ServerRecord, str], None]) -> None:
    """Be the server until SIGINT or SIGTERM.

    Args:
        place: Where.
        announce: Called with the server and its token once it listens.

    Raises:
        ServerError: There is a server already, the port is in use, or a library is missing.
        KeyboardInterrupt: SIGINT, when everything has been closed.
        SystemExit: SIGTERM, likewise.
    """
    try:
        import uvicorn  # noqa: PLC0415 - of the extra `server`

        from rapidfireai.server.app import ServerSettings, create_app  # noqa: PLC0415 - likewise
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("fastapi", "uvicorn", "starlette"):
            raise
        raise ServerError(
            f'{error.name} is not installed: pip install "fastapi>=0.165" "uvicorn>=0.54"'
        ) from error

    home = ServerHome(place.home)
    with home.claimed(), _listening(place) as listener:
        token = home.token()
        port = listener.getsockname()[1]
        application = create_app(
            ServerSettings(root=place.experiments, token=token, host=place.host, port=port)
        )
        record = ServerRecord(
            pid=os.getpid(),
            created_s=psutil.Process().create_time(),
            host=place.host,
            port=port,
            experiments=str(place.experiments),
            version=__version__,
        )

        class Server(uvicorn.Server):
            def handle_exit(self, sig: int, frame: FrameType | None) -> None:
                # Streams go on for ever: they have to know before the server waits for them.
                application.streams.close()
                super().handle_exit(sig, frame)

        config = uvicorn.Config(
            application.asgi,
            log_level=logging.WARNING,
            access_log=False,  # it would hold the token
            server_header=False,
            ws="none",
            timeout_graceful_shutdown=_GRACE_S,
            timeout_keep_alive=30,
            limit_concurrency=512,
            h11_max_incomplete_event_size=1 << 16,
        )
        # uvicorn, when it has ended, raises the signal again that ended it.
        signal.signal(signal.SIGTERM, _end)
        with home.recorded(record):
            announce(record, token)
            Server(config).run(sockets=[listener])


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


def start_detached(place: Place) -> tuple[ServerRecord, str]:
    """Start a server in a session of its own, and wait until it listens.

    Returns:
        The server and its token.

    Raises:
        ServerError: It did not start; its log says why.
    """
    home = ServerHome(place.home)
    home.prepare()
    arguments = {name: str(value) for name, value in asdict(place).items()}
    log = os.open(home.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    begin = os.fstat(log).st_size
    try:
        child = subprocess.Popen(
            [sys.executable, "-m", "rapidfireai.server", json.dumps(arguments)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    finally:
        os.close(log)
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        record = home.running()
        if record is not None and record.pid == child.pid:
            # It goes on when this process ends, which is not to be warned of.
            child.returncode = 0
            return record, home.token()
        if child.poll() is not None:
            raise ServerError(_last_words(home.log, begin) or f"see {home.log}")
        time.sleep(_POLL_S)
    child.terminate()
    raise ServerError(f"the server did not start within {_START_TIMEOUT_S:g} s: see {home.log}")


def stop(home_path: Path) -> ServerRecord | None:
    """End the home folder's server, and wait for it.

    Returns:
        The server that was; None if none ran.

    Raises:
        ServerError: The process is not the server that it was, or does not end.
    """
    home = ServerHome(home_path)
    record = home.running()
    if record is None:
        return None
    try:
        process = psutil.Process(record.pid)
        if not _is_server(process, record):
            raise ServerError(
                f"process {record.pid} is not the server that {home.path} tells of: nothing has "
                "been ended"
            )
        process.terminate()
        process.wait(_STOP_TIMEOUT_S)
    except psutil.NoSuchProcess:
        pass
    except psutil.TimeoutExpired:
        raise ServerError(
            f"the server, process {record.pid}, has been asked to end and does not: see {home.log}"
        ) from None
    except psutil.AccessDenied:
        raise ServerError(f"process {record.pid} is another user's: ask him to end it") from None
    return record


def _is_server(process: psutil.Process, record: ServerRecord) -> bool:
    is_same = abs(process.create_time() - record.created_s) <= _CLOCK_TOLERANCE_S
    return is_same and any("rapidfireai" in part for part in process.cmdline())


def _listening(place: Place) -> socket.socket:
    """A socket that others can connect to."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            place.host, place.port, type=socket.SOCK_STREAM
        )[0]
    except (socket.gaierror, OverflowError) as error:
        raise ServerError(f"--host {place.host}: {error}; leave it out for this machine") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ServerError(
                f"port {place.port} is in use by {_owner(place.port)}: end that, or choose another "
                "with --port"
            ) from error
        raise ServerError(
            f"cannot listen on {place.host}:{place.port}: {error.strerror}"
        ) from error
    return listener


def _owner(port: int) -> str:
    """Who listens on a port, as far as the system tells this user."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except (psutil.Error, OSError):
        connections = []
    for one in connections:
        if one.status == psutil.CONN_LISTEN and one.laddr.port == port and one.pid is not None:
            try:
                return f"process {one.pid} ({psutil.Process(one.pid).name()})"
            except psutil.Error:
                return f"process {one.pid}"
    return "another program"


def _last_words(log: Path, begin: int) -> str:
    """What a process wrote last into its log."""
    with log.open("rb") as file:
        file.seek(begin)
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("rapidfireai: error: ") if lines else ""
