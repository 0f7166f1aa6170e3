"""Trackio: an experiment is a project, a run a run of it, on this machine.

Written through Trackio's storage rather than `trackio.log`: there every row has an id of ours,
which makes sending it twice the same as sending it once, and a call returns once it is on disk.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rapidfireai.core.events import Json
from rapidfireai.core.run import Run
from rapidfireai.errors import ConfigError
from rapidfireai.tracking._protocol import Point, Tracker, parameters, state

if TYPE_CHECKING:
    from trackio.sqlite_storage import SQLiteStorage


@dataclass(frozen=True, kw_only=True, slots=True)
class Trackio:
    """Trackio as a tracker: `run_fit(trackers=[Trackio(...)])`, or "trackio" for the defaults."""

    project: str | None = None
    """None: $TRACKIO_PROJECT, or the experiment's name."""
    directory: str | None = None
    """Where Trackio keeps its projects; None: $TRACKIO_DIR, or where it always does."""

    name: ClassVar[str] = "trackio"
    library: ClassVar[str] = "trackio"
    install: ClassVar[str] = 'pip install "trackio>=0.43"'

    @property
    def is_remote(self) -> bool:
        """It is on this machine."""
        return False

    @property
    def where(self) -> str:
        """The folder of its projects."""
        return self.directory or "~/.cache/huggingface/trackio"

    def settled(self, folder: Path) -> "Trackio":
        """With the project and folder that are meant. See `Settings.settled`."""
        for field in ("project", "directory"):
            value = getattr(self, field)
            if value is not None and not (isinstance(value, str) and value):
                raise ConfigError(f"Trackio({field}={value!r}) cannot be used; it is a string")
        directory = self.directory or os.environ.get("TRACKIO_DIR")
        return replace(
            self,
            project=self.project or os.environ.get("TRACKIO_PROJECT"),
            directory=None if directory is None else str(Path(directory).expanduser().absolute()),
        )

    def connect(self, experiment: str) -> Tracker:
        """Make the project's database. See `Settings.connect`."""
        if self.directory is not None:
            os.environ["TRACKIO_DIR"] = self.directory  # read when Trackio is imported
        from trackio.sqlite_storage import SQLiteStorage

        project = self.project or experiment
        SQLiteStorage.validate_project_name(project)
        SQLiteStorage.init_db(project)
        return _Connection(SQLiteStorage, project)


class _Connection:
    """A `Tracker`. A run's key is its id and its name, with a line's end between them."""

    def __init__(self, storage: "type[SQLiteStorage]", project: str) -> None:
        self._storage = storage
        self._project = project

    def begin(self, run: Run, identity: str, parent: str | None, time_s: float) -> str:
        """Make the run, by a row without values. See `Tracker.begin`."""
        key = f"{identity}\n{run.name}"
        self._configure(key, parameters(run), time_s)
        return key

    def held(self, key: str, points: Sequence[Point]) -> set[tuple[str, int]]:
        """Nothing to ask: rows that are there are ignored, by their ids. See `Tracker.held`."""
        return set()

    def log(self, key: str, points: Sequence[Point]) -> None:
        """Write them in one transaction. See `Tracker.log`."""
        identity, _, name = key.partition("\n")
        self._storage.bulk_log(
            self._project,
            name,
            [{point.name: point.value} for point in points],
            steps=[point.step for point in points],
            timestamps=[_timestamp(point.time_s) for point in points],
            log_ids=[f"{identity}/{point.name}/{point.step}" for point in points],
            run_id=identity,
        )

    def update(self, key: str, run: Run, time_s: float) -> None:
        """Keep the state beside the configuration. See `Tracker.update`."""
        now = {f"rapidfireai.{name}": value for name, value in state(run).items()}
        self._configure(key, {**parameters(run), **now}, time_s)

    def close(self) -> None:
        """Nothing is held."""

    def _configure(self, key: str, config: dict[str, Json], time_s: float) -> None:
        identity, _, name = key.partition("\n")
        # Trackio takes a configuration with rows only; the second of the same id is ignored.
        self._storage.bulk_log(
            self._project,
            name,
            [{}],
            steps=[0],
            timestamps=[_timestamp(time_s)],
            config=config,
            log_ids=[identity],
            run_id=identity,
        )


def _timestamp(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).isoformat()
