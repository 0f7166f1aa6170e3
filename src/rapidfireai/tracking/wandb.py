"""W&B, online or offline: an experiment is a group in a project, a run a run of it.

W&B's own process writes what is logged to a file on this machine first, some time after `log` has
returned. A batch counts as taken when it is in that file, which is also asked for what it holds.
"""

import hashlib
import json
import netrc
import os
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final
from urllib.parse import urlsplit

from rapidfireai.core.run import Run
from rapidfireai.errors import ConfigError, TrackerError, TrackerRefusedError
from rapidfireai.tracking._protocol import STATUS, Point, Tracker, parameters, state

if TYPE_CHECKING:
    import wandb

MODES: Final = ("online", "offline")

STEP: Final = "step"
"""Name of the axis of everything that is measured; W&B's own counts rows."""

EVENT: Final = "event"
"""Name of the axis of the status."""

_FLUSH_S: Final = 0.2
_FLUSH_TIMEOUT_S: Final = 30.0
_POLL_S: Final = 0.05
_LOGIN_TIMEOUT_S: Final = 20

_QUIET: Final = {
    "console": "off",
    "disable_git": True,
    "save_code": False,
    "silent": True,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
    "x_transaction_log_flush_interval": _FLUSH_S,
}
"""Of the process that sends there is nothing to report: it is not the one that trains."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WandB:
    """W&B as a tracker: `run_fit(trackers=[WandB(...)])`, or "wandb" for the defaults.

    The key is W&B's own affair: `wandb login`, or $WANDB_API_KEY.
    """

    project: str | None = None
    """None: $WANDB_PROJECT, or "rapidfireai"."""
    entity: str | None = None
    """None: $WANDB_ENTITY, or the key's."""
    mode: str | None = None
    """"online" or "offline"; None: $WANDB_MODE, or "online". What is written offline is sent by
    `wandb sync`."""
    directory: str | None = None
    """Where the files are written; None: $WANDB_DIR, or the experiment's folder."""
    base_url: str | None = None
    """Of a W&B server; None: $WANDB_BASE_URL, or W&B's own."""

    name: ClassVar[str] = "wandb"
    library: ClassVar[str] = "wandb"
    install: ClassVar[str] = 'pip install "wandb>=0.31"'

    @property
    def is_remote(self) -> bool:
        """Whether a server is asked."""
        return self.mode == "online"

    @property
    def where(self) -> str:
        """The server's project, or the folder that is to be sent there."""
        return f"{self.base_url}/{self.project}" if self.is_remote else f"{self.directory}/wandb"

    def settled(self, folder: Path) -> "WandB":
        """With what is meant. See `Settings.settled`."""
        for option in ("project", "entity", "mode", "directory", "base_url"):
            value = getattr(self, option)
            if value is not None and not (isinstance(value, str) and value):
                raise ConfigError(f"WandB({option}={value!r}) cannot be used; it is a string")
        mode = self.mode or os.environ.get("WANDB_MODE") or "online"
        if mode not in MODES:
            raise ConfigError(f"W&B's mode {mode!r} is not known; it is 'online' or 'offline'")
        base_url = self.base_url or os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
        if mode == "online" and not _has_key(base_url):
            raise ConfigError(
                f"there is no key for W&B at {base_url}: run `wandb login`, set WANDB_API_KEY, or "
                'give WandB(mode="offline")'
            )
        directory = Path(self.directory or os.environ.get("WANDB_DIR") or folder)
        return replace(
            self,
            project=self.project or os.environ.get("WANDB_PROJECT") or "rapidfireai",
            entity=self.entity or os.environ.get("WANDB_ENTITY"),
            mode=mode,
            directory=str(directory.expanduser().absolute()),
            base_url=base_url,
        )

    def connect(self, experiment: str) -> Tracker:
        """Log in, unless it is offline. See `Settings.connect`."""
        # W&B's own terminal output, and its questions, have no place here.
        os.environ["WANDB_SILENT"] = "true"
        import wandb

        if self.is_remote:
            try:
                wandb.login(
                    host=self.base_url, verify=True, timeout=_LOGIN_TIMEOUT_S, anonymous="never"
                )
            except wandb.errors.AuthenticationError as error:
                raise TrackerRefusedError(
                    f"W&B at {self.base_url} refuses the key: {error}; `wandb login` sets another"
                ) from error
        return _Connection(self, experiment)


def _has_key(base_url: str) -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        return netrc.netrc(path).authenticators(urlsplit(base_url).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


@dataclass(slots=True)
class _Open:
    """A run that W&B's process holds open."""

    run: "wandb.Run"
    file: "_LogFile"
    next_row: int
    """Number of the next row, over all files of the run: W&B drops rows with numbers it has had."""


class _Connection:
    """A `Tracker`. A run's key is W&B's id for it and its name, with a line's end between them."""

    def __init__(self, settings: WandB, experiment: str) -> None:
        self._settings = settings
        self._experiment = experiment
        self._open: dict[str, _Open] = {}

    def begin(self, run: Run, identity: str, parent: str | None, time_s: float) -> str:
        """Make the run with its parameters. See `Tracker.begin`."""
        key = f"{hashlib.sha256(identity.encode()).hexdigest()[:24]}\n{run.name}"
        self._run(key).run.config.update(parameters(run), allow_val_change=True)
        return key

    def held(self, key: str, points: Sequence[Point]) -> set[tuple[str, int]]:
        """Read the run's files. See `Tracker.held`."""
        return {
            (name, int(row[axis]))
            for row in self._rows(key)
            for name in row
            if (axis := _axis(name)) in row and name not in (STEP, EVENT)
        }

    def log(self, key: str, points: Sequence[Point]) -> None:
        """Log a row for each step and source, and wait until they are in the file."""
        one = self._run(key)
        for row in _as_rows(points):
            one.run.log(row, step=one.next_row, commit=True)
            one.next_row += 1
        one.file.await_row(one.next_row - 1)

    def update(self, key: str, run: Run, time_s: float) -> None:
        """Keep the state in the run's summary. See `Tracker.update`."""
        one = self._run(key)
        one.run.config.update(parameters(run), allow_val_change=True)
        for name, value in state(run).items():
            one.run.summary[f"rapidfireai.{name}"] = value
        if run.ended:
            self._open.pop(key).run.finish(exit_code=1 if run.error else 0)

    def close(self) -> None:
        """End what is open; each goes on in another file."""
        while self._open:
            _, one = self._open.popitem()
            one.run.finish()

    def _run(self, key: str) -> _Open:
        if key not in self._open:
            self._open[key] = self._begin(key)
        return self._open[key]

    def _begin(self, key: str) -> _Open:
        import wandb

        settings, (run_id, _, name) = self._settings, key.partition("\n")
        numbers = [int(row["_step"]) for row in self._rows(key) if "_step" in row]
        assert settings.directory is not None, "settled"
        Path(settings.directory).mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            group=self._experiment,
            id=run_id,
            name=name,
            dir=settings.directory,
            mode=settings.mode,  # type: ignore[arg-type]
            resume="allow",
            # Runs stand beside each other; there is no current one.
            reinit="create_new",
            settings=wandb.Settings(**_QUIET, base_url=settings.base_url),
        )
        run.define_metric("*", step_metric=STEP)
        run.define_metric(STATUS, step_metric=EVENT)
        return _Open(run, _LogFile(Path(run.settings.sync_file)), max(numbers, default=-1) + 1)

    def _rows(self, key: str) -> Iterator[dict[str, Any]]:
        assert self._settings.directory is not None, "settled"
        run_id = key.partition("\n")[0]
        # Not through the link `latest-run`.
        for path in Path(self._settings.directory).glob(f"wandb/*run-*-{run_id}/run-*.wandb"):
            yield from _LogFile(path).new_rows()


def _axis(name: str) -> str:
    return EVENT if name == STATUS else STEP


def _as_rows(points: Sequence[Point]) -> list[dict[str, float]]:
    """One row for what one source measured at one step."""
    rows: dict[tuple[str, int], dict[str, float]] = {}
    for point in points:
        source = point.name.partition("/")[0]
        row = rows.setdefault(
            (source, point.step), {_axis(point.name): point.step, "_timestamp": point.time_s}
        )
        row[point.name] = point.value
    return list(rows.values())


@dataclass(slots=True)
class _LogFile:
    """What W&B's process writes for a run: records in the log format of LevelDB, in blocks of
    32 KiB, of which only whole ones are read.

    Source: https://github.com/google/leveldb/blob/main/doc/log_format.md, with a header in front.
    """

    path: Path
    _position: int = 7
    """Behind the header."""
    _begun: bytes = b""
    """Of a record that is in several blocks."""
    _last_row: int = field(default=-1)

    def new_rows(self) -> Iterator[dict[str, Any]]:
        """The rows that came since the last call."""
        from wandb.proto.wandb_internal_pb2 import Record

        for body in self._new_records():
            record = Record.FromString(body)
            if record.HasField("history"):
                yield {
                    item.nested_key[0] if item.nested_key else item.key: json.loads(item.value_json)
                    for item in record.history.item
                }

    def await_row(self, number: int) -> None:
        """Wait until the row of that number is in the file.

        Raises:
            TrackerError: It takes too long.
        """
        deadline_s = time.monotonic() + _FLUSH_TIMEOUT_S
        while self._last_row < number:
            for row in self.new_rows():
                self._last_row = int(row["_step"])
            if self._last_row < number:
                if time.monotonic() > deadline_s:
                    raise TrackerError(f"W&B has not written {self.path}; is its disk full?")
                time.sleep(_POLL_S)

    def _new_records(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            file.seek(self._position)
            data = file.read()
        at = 0
        while at + _HEADER.size <= len(data):
            left = _BLOCK - (self._position + at) % _BLOCK
            _, length, kind = _HEADER.unpack_from(data, at)
            if left < _HEADER.size or kind == 0:  # the rest of the block is empty
                at += left
                continue
            if at + _HEADER.size + length > len(data):
                break
            at += _HEADER.size
            self._begun += data[at : at + length]
            at += length
            if kind in (_WHOLE, _LAST):
                body, self._begun = self._begun, b""
                yield body
        self._position += min(at, len(data))


_BLOCK: Final = 32768
_HEADER: Final = struct.Struct("<IHB")
_WHOLE: Final = 1
_LAST: Final = 4
