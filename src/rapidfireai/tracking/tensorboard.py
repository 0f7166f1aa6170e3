"""TensorBoard: a run is a folder of event files below the experiment's log directory.

Files are written with TensorBoard's own records, but not by its writer: that one has a thread, and
what a full disk does to it nobody learns. Here a batch is in the file when `log` returns, or the
file is cut back to where it was.
"""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO, FileIO
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, Final

from rapidfireai.core.run import Run
from rapidfireai.errors import ConfigError, ExperimentPathError
from rapidfireai.tracking._protocol import Point, Tracker, parameters, state

_STATE_TAG: Final = "rapidfireai/state"
_CONFIG_TAG: Final = "rapidfireai/config"

_MARK: Final = ".rapidfireai"
"""File in a run's folder that says whose it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorBoard:
    """TensorBoard as a tracker: `run_fit(trackers=[TensorBoard(...)])`, or "tensorboard"."""

    log_dir: str | None = None
    """Below it the experiment gets a folder; None: $RF_TENSORBOARD_LOG_DIR, or the experiment's own
    folder."""

    name: ClassVar[str] = "tensorboard"
    library: ClassVar[str] = "tensorboard"
    install: ClassVar[str] = 'pip install "tensorboard>=2.19"'

    @property
    def is_remote(self) -> bool:
        """It is on this machine."""
        return False

    @property
    def where(self) -> str:
        """The folder of all experiments."""
        return self.log_dir or ""

    def settled(self, folder: Path) -> "TensorBoard":
        """With the folder that is meant, which can be written. See `Settings.settled`."""
        if self.log_dir is not None and not (isinstance(self.log_dir, str) and self.log_dir):
            raise ConfigError(f"TensorBoard(log_dir={self.log_dir!r}) cannot be used; it is a path")
        given = self.log_dir or os.environ.get("RF_TENSORBOARD_LOG_DIR")
        path = folder / "logs" if given is None else Path(given).expanduser().absolute()
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ExperimentPathError(
                f"TensorBoard's folder, {path}, cannot be written: {error.strerror}. Give another "
                "with TensorBoard(log_dir=...)"
            ) from error
        return replace(self, log_dir=str(path))

    def connect(self, experiment: str) -> Tracker:
        """Nothing to reach. See `Settings.connect`."""
        assert self.log_dir is not None, "settled"
        return _Connection(Path(self.log_dir), experiment)


class _Connection:
    """A `Tracker`. A run's key is its folder below the log directory."""

    def __init__(self, root: Path, experiment: str) -> None:
        self._root = root
        self._experiment = experiment
        self._files: dict[str, _EventFile] = {}

    def begin(self, run: Run, identity: str, parent: str | None, time_s: float) -> str:
        """Write the configuration as a text. See `Tracker.begin`."""
        key = self._key(run, identity)
        config = {name: str(value) for name, value in parameters(run).items()}
        self._file(key).append([_text(_CONFIG_TAG, config, 0, time_s)])
        return key

    def held(self, key: str, points: Sequence[Point]) -> set[tuple[str, int]]:
        """Read the run's files. See `Tracker.held`."""
        return {(name, step) for name, step, _ in _scalars(self._root / key)}

    def log(self, key: str, points: Sequence[Point]) -> None:
        """Append to the run's file. See `Tracker.log`."""
        self._file(key).append([_scalar(point) for point in points])

    def update(self, key: str, run: Run, time_s: float) -> None:
        """Write the state as a text, the latest of which counts. See `Tracker.update`."""
        now = {name: str(value) for name, value in state(run).items()}
        self._file(key).append([_text(_STATE_TAG, now, run.step, time_s)])
        if run.ended:
            self._files.pop(key).close()

    def close(self) -> None:
        """Close all files."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _key(self, run: Run, identity: str) -> str:
        """The first folder that is free, or the run's already: an experiment of the same name may
        have been here before."""
        for number in count(1):
            experiment = self._experiment if number == 1 else f"{self._experiment}_{number}"
            key = f"{experiment}/{run.name}"
            mark = self._root / key / _MARK
            mark.parent.mkdir(parents=True, exist_ok=True)
            if not mark.exists():
                # Renamed, so that a full disk leaves none that names nobody.
                fresh = mark.with_name(f"{_MARK}.new")
                fresh.write_text(identity, encoding="utf-8")
                os.replace(fresh, mark)
            if mark.read_text(encoding="utf-8") == identity:
                return key
        raise AssertionError("the numbers never end")

    def _file(self, key: str) -> "_EventFile":
        if key not in self._files:
            self._files[key] = _EventFile(self._root / key)
        return self._files[key]


class _EventFile:
    """A new event file in a folder.

    Never one that is there: its last record may be half of one, after which nobody reads on.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = _new_file(folder)
        self._is_empty = True
        try:
            self.append([_version()])
        except OSError:
            self.close()
            raise

    def append(self, events: Sequence[Any]) -> None:
        """Write all events or none.

        Raises:
            OSError: The disk is full or gone.
        """
        from tensorboard.summary.writer.record_writer import RecordWriter

        buffer = BytesIO()
        writer = RecordWriter(buffer)
        for event in events:
            writer.write(event.SerializeToString())
        begin, rest = self._file.tell(), buffer.getbuffer()
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            os.ftruncate(self._file.fileno(), begin)
            self._file.seek(begin)
            raise
        self._is_empty = begin == 0  # what the file begins with says nothing

    def close(self) -> None:
        """Close the file; one that nothing could be written to must not stay."""
        self._file.close()
        if self._is_empty:
            Path(str(self._file.name)).unlink(missing_ok=True)


def _new_file(folder: Path) -> FileIO:
    # TensorBoard reads files in the order of their names, and takes up those that are new.
    now = time.time_ns() // 1000
    for number in count():
        name = f"events.out.tfevents.{now // 1_000_000}.{now % 1_000_000:06}.{os.getpid()}.{number}"
        try:
            return FileIO(folder / name, "x")
        except FileExistsError:
            continue
    raise AssertionError("the numbers never end")


def _version() -> Any:
    from tensorboard.compat.proto.event_pb2 import Event

    return Event(wall_time=time.time(), file_version="brain.Event:2")


def _scalar(point: Point) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    value = Summary.Value(tag=point.name, simple_value=point.value)
    return Event(wall_time=point.time_s, step=point.step, summary=Summary(value=[value]))


def _text(tag: str, table: dict[str, str], step: int, time_s: float) -> Any:
    """A table for the page of texts."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.text.metadata import create_summary_metadata
    from tensorboard.util.tensor_util import make_tensor_proto

    lines = ["| | |", "|---|---|"]
    for name, text in table.items():
        shown = text.replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {name} | {shown} |")
    value = Summary.Value(
        tag=tag,
        metadata=create_summary_metadata(display_name=tag, description=""),
        tensor=make_tensor_proto("\n".join(lines)),
    )
    return Event(wall_time=time_s, step=step, summary=Summary(value=[value]))


def _scalars(folder: Path) -> Iterator[tuple[str, int, float]]:
    """Tag, step and value of what a run's files hold."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    for file in sorted(folder.glob("events.out.tfevents.*")):
        for event in LegacyEventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    yield value.tag, event.step, value.simple_value
