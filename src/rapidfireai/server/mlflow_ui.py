"""MLflow's own pages under /mlflow, behind the same gate.

A process for each experiment's store that somebody looks at, started by the first request and ended
when nobody has asked for a while. Its pages name everything relative to where they are.
"""

import http.client
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

from starlette.responses import HTMLResponse, Response

from rapidfireai.core.ids import RunId
from rapidfireai.paths import ExperimentFolder
from rapidfireai.server.pages import page
from rapidfireai.tracking import MLflow
from rapidfireai.tracking.ledger import Ledger, TrackerFolder
from rapidfireai.tracking.mlflow import local_path, without_password

PREFIX: Final = "/mlflow"

IDLE_S: Final = 600.0
"""Without a request, after which a process ends."""

_MAX_PROCESSES: Final = 2
"""Each takes a quarter of a GiB."""

_TIMEOUT_S: Final = 60.0
_FORWARDED: Final = ("accept", "accept-encoding", "accept-language", "content-type", "range")
_RETURNED: Final = ("content-type", "content-encoding", "content-disposition", "content-range")


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A request for one of MLflow's pages."""

    method: str
    path: str
    """Below the experiment's, with what follows the question mark, encoded."""
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


@dataclass(slots=True)
class _Process:
    """The pages of one store."""

    popen: "subprocess.Popen[bytes]"
    folder: Path
    used_s: float = field(default_factory=time.monotonic)

    @property
    def socket(self) -> Path:
        return self.folder / "socket"

    def end(self) -> None:
        self.popen.kill()
        self.popen.wait()
        assert self.popen.stdin is not None, "it was asked for"
        self.popen.stdin.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class MLflowPages:
    """Serves MLflow's pages. Threads may share it.

    Args:
        clock: Seconds on any scale.
        idle_s: After how long without a request a process ends.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, idle_s: float = IDLE_S) -> None:
        self._clock = clock
        self._idle_s = idle_s
        self._lock = threading.Lock()
        self._processes: dict[str, _Process] = {}
        self._over = threading.Event()
        self._sweeper: threading.Thread | None = None

    @property
    def num_processes(self) -> int:
        """How many there are at the moment."""
        return len(self._processes)

    def answer(self, folder: ExperimentFolder, asked: Asked) -> Response:
        """What MLflow answers, or that it is starting."""
        path = _store(folder)
        if path is None:
            return Response("this experiment has no MLflow store of its own\n", 404)
        if find_spec("mlflow.server") is None or find_spec("flask") is None:
            return Response(f"MLflow's pages are not installed: {MLflow.install}\n", 404)
        process = self._process(f"sqlite:///{path}")
        if not process.socket.exists():
            if process.popen.poll() is not None:
                self._drop(f"sqlite:///{path}")
            waiting = {"Retry-After": "2", "Cache-Control": "no-store"}
            return HTMLResponse(page("mlflow_starts.html"), 503, waiting)
        try:
            return _forwarded(process.socket, asked)
        except (OSError, http.client.HTTPException):
            self._drop(f"sqlite:///{path}")
            return Response("MLflow has ended: try again\n", 503, {"Retry-After": "2"})

    def sweep(self) -> None:
        """End what nobody has asked for in a while."""
        now_s = self._clock()
        with self._lock:
            for uri, process in list(self._processes.items()):
                if now_s - process.used_s >= self._idle_s or process.popen.poll() is not None:
                    self._processes.pop(uri).end()

    def close(self) -> None:
        """End all processes."""
        self._over.set()
        with self._lock:
            while self._processes:
                self._processes.popitem()[1].end()

    def _process(self, uri: str) -> _Process:
        with self._lock:
            process = self._processes.get(uri)
            if process is None:
                while len(self._processes) >= _MAX_PROCESSES:
                    oldest = min(self._processes, key=lambda one: self._processes[one].used_s)
                    self._processes.pop(oldest).end()
                process = self._processes[uri] = _start(uri)
            process.used_s = self._clock()
            if self._sweeper is None:
                self._sweeper = threading.Thread(target=self._sweep_on, daemon=True)
                self._sweeper.start()
            return process

    def _drop(self, uri: str) -> None:
        with self._lock:
            if (process := self._processes.pop(uri, None)) is not None:
                process.end()

    def _sweep_on(self) -> None:
        while not self._over.wait(min(self._idle_s, 30.0)):
            self.sweep()


def page_of(folder: ExperimentFolder, run_id: RunId | None = None) -> str | None:
    """Where a browser finds the experiment, or one of its runs, in MLflow; None if it is not there.

    A path on this server, or the address of the MLflow server that the experiment is told to.
    """
    ledger = TrackerFolder.of(folder, MLflow.name).read()
    if ledger is None:
        return None
    base = f"{PREFIX}/{quote(folder.name)}/" if _store(folder) else _server(ledger)
    if base is None or run_id is None:
        return base
    known = ledger.runs.get(run_id)
    return None if known is None else f"{base}#/runs/{known.key}"


def content_policy(host: str, path: str) -> str | None:
    """What MLflow's pages may do: everything that they do, but nothing outside of their own paths.

    They come from the same address as the API, which the cookie opens to whatever runs there.
    """
    if not path.startswith(f"{PREFIX}/"):
        return None
    own = f"http://{host}{PREFIX}/"
    return (
        f"default-src 'none'; script-src {own} 'unsafe-inline' 'unsafe-eval'; "
        f"style-src {own} 'unsafe-inline'; img-src {own} data: blob:; font-src {own} data:; "
        f"connect-src {own}; worker-src {own} blob:; manifest-src {own}; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )


def _store(folder: ExperimentFolder) -> Path | None:
    """The experiment's own MLflow store, if it is told to one."""
    ledger = TrackerFolder.of(folder, MLflow.name).read()
    uri = None if ledger is None else ledger.settings.get("tracking_uri")
    path = None if uri is None else local_path(uri)
    return path if path is not None and path.is_file() else None


def _server(ledger: Ledger) -> str | None:
    uri = str(ledger.settings.get("tracking_uri") or "")
    is_http = urlsplit(uri).scheme in ("http", "https")
    return f"{without_password(uri).rstrip('/')}/" if is_http else None


def _start(uri: str) -> _Process:
    # Only this user may enter; a socket's path has to be short.
    folder = Path(tempfile.mkdtemp(prefix="rapidfireai-"))
    with (folder / "log").open("wb") as log:
        popen = subprocess.Popen(
            [sys.executable, "-m", "rapidfireai.server.mlflow_process", uri, folder / "socket"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=folder,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )
    return _Process(popen, folder)


class _Connection(http.client.HTTPConnection):
    """HTTP over a socket in the file system."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        """Connect."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _forwarded(address: Path, asked: Asked) -> Response:
    connection = _Connection(address)
    try:
        headers = {name: asked.headers[name] for name in _FORWARDED if name in asked.headers}
        connection.request(asked.method, f"/{asked.path}", asked.body or None, headers)
        answer = connection.getresponse()
        kept = {name: value for name in _RETURNED if (value := answer.getheader(name)) is not None}
        return Response(answer.read(), answer.status, kept)
    finally:
        connection.close()
