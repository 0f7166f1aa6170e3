"""What a server keeps in the home folder: its token, who it is while it runs, and its log.

A server holds a lock as long as it lives, so that nobody has to guess from numbers of processes
whether it still does. Nothing but the standard library is imported here: every `run_fit` asks.
"""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from rapidfireai.errors import RapidFireError
from rapidfireai.paths import take_lock

_LOCK_WAIT_S: Final = 0.3
"""Those who only ask whether a server runs hold its lock for less than a millisecond."""


class ServerError(RapidFireError):
    """A server cannot be started, found or stopped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerRecord:
    """A server that runs."""

    pid: int
    created_s: float
    """When its process began, as the system has it."""
    host: str
    port: int
    experiments: str
    """Folder of the experiments that it serves."""
    version: str

    @property
    def url(self) -> str:
        """Where it is, for a browser on this machine."""
        host = "localhost" if self.host in ("127.0.0.1", "0.0.0.0", "::", "::1") else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def link(self, token: str) -> str:
        """The address that lets a browser in."""
        return f"{self.url}/?token={token}"

    def experiment_url(self, name: str) -> str:
        """An experiment's page, for a browser that has been let in."""
        return f"{self.url}/experiments/{quote(name)}"


@dataclass(frozen=True, slots=True)
class ServerHome:
    """A server's folder below the home folder.

    Args:
        home: The home folder; see `paths.home`.
    """

    home: Path

    @property
    def path(self) -> Path:
        """The server's own folder."""
        return self.home / "server"

    @property
    def log(self) -> Path:
        """What a server in the background writes."""
        return self.path / "server.log"

    @property
    def _record(self) -> Path:
        return self.path / "server.json"

    @property
    def _token(self) -> Path:
        return self.path / "token"

    @property
    def _lock(self) -> Path:
        return self.path / "lock"

    def prepare(self) -> None:
        """Make the folder, for nobody else to look into.

        Raises:
            ServerError: It cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.path.chmod(0o700)
        except OSError as error:
            raise ServerError(
                f"the home folder, {self.home}, cannot be written: {error.strerror}. Set the "
                "environment variable RF_HOME to another"
            ) from error

    def token(self) -> str:
        """The token; made when it is asked for the first time.

        Raises:
            ServerError: It cannot be read or written.
        """
        self.prepare()
        try:
            if not self._token.exists():
                self._make_token()
            # It may have been copied from elsewhere.
            self._token.chmod(0o600)
            token = self._token.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            raise ServerError(f"{self._token} cannot be used: {error}") from error
        if len(token) < 32:
            raise ServerError(f"{self._token} holds no token: delete it, and a new one is made")
        return token

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Be the home folder's only server.

        Raises:
            ServerError: There is one already.
        """
        self.prepare()
        lock = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if not take_lock(lock, _LOCK_WAIT_S):
                raise ServerError(self._told_of_other())
            yield
        finally:
            os.close(lock)

    @contextmanager
    def recorded(self, record: ServerRecord) -> Iterator[None]:
        """Let others find the server, which has claimed the folder."""
        fresh = self._record.with_suffix(".new")
        with _private(fresh) as descriptor:
            os.write(descriptor, json.dumps(asdict(record)).encode())
        os.replace(fresh, self._record)
        try:
            yield
        finally:
            self._record.unlink(missing_ok=True)

    def running(self) -> ServerRecord | None:
        """The server that runs; None if there is none, or it is just starting or ending."""
        if not self._is_claimed():
            return None
        try:
            return ServerRecord(**json.loads(self._record.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def _is_claimed(self) -> bool:
        try:
            lock = os.open(self._lock, os.O_RDONLY)
        except OSError:
            return False
        try:
            # Shared, so that several who only ask do not see each other.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        else:
            return False
        finally:
            os.close(lock)

    def _make_token(self) -> None:
        fresh = self._token.with_name(f"token.{os.getpid()}.{secrets.token_hex(4)}")
        with _private(fresh) as descriptor:
            os.write(descriptor, secrets.token_urlsafe(32).encode())
        with suppress(FileExistsError):  # then another process was first
            os.link(fresh, self._token)
        fresh.unlink()

    def _told_of_other(self) -> str:
        other = self.running()
        if other is None:
            return "another server is just starting or ending here: try again"
        return (
            f"a server is running already: process {other.pid} at {other.url}. `rapidfireai "
            "status` prints its link, `rapidfireai stop` ends it"
        )


def running(home: Path) -> ServerRecord | None:
    """The server that serves a home folder; quick, and None where what is left is stale."""
    return ServerHome(home).running()


@contextmanager
def _private(path: Path) -> Iterator[int]:
    """A new file that nobody else may read, to be written."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
