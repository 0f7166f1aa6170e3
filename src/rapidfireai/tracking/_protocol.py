"""What every tracker can do, and what it is told."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple, Protocol

from rapidfireai.core.events import Json
from rapidfireai.core.run import Run, RunStatus
from rapidfireai.store.plain import shown, shown_text

STATUS = "status"
"""Name of the series of a run's statuses; a point's step is then the number of the event."""

STATUS_CODES: Final = {status: number for number, status in enumerate(RunStatus)}
"""The values of that series: 0 is queued, 1 running, 2 waiting, ..."""


class Point(NamedTuple):
    """A value of one of a run's series. Name and step together are unique within a run."""

    name: str
    """The source and the metric's name, such as "log/eval_loss"; or `STATUS`."""
    step: int
    value: float
    """May be NaN or infinite."""
    time_s: float
    """Seconds since the Unix epoch."""


class Tracker(Protocol):
    """A connection to a tracker, used by one thread.

    Every method may be called again with the same arguments, also by another process after this one
    was killed in the middle of it, and the tracker then holds the same as after one call; `log`
    excepted, in front of which `held` tells what not to send again. A method raises what it likes
    if the tracker is not there, is full or refuses: it is called again later.
    """

    def begin(self, run: Run, identity: str, parent: str | None, time_s: float) -> str:
        """Make the tracker's own run with the parameters, unless it is there.

        Args:
            run: The run.
            identity: A name for it that no run of any other experiment has.
            parent: Key of the run that this one was cloned from.
            time_s: When it began, in seconds since the Unix epoch.

        Returns:
            The key by which the other methods know the tracker's run.
        """
        ...

    def held(self, key: str, points: Sequence[Point]) -> set[tuple[str, int]]:
        """Name and step of those points that the tracker holds already."""
        ...

    def log(self, key: str, points: Sequence[Point]) -> None:
        """Take the points, none of which it holds; they are durable when this returns."""
        ...

    def update(self, key: str, run: Run, time_s: float) -> None:
        """Take the run's status, progress and lineage as they are now.

        Args:
            key: As `begin` returned it.
            run: The run, all of whose values have been sent.
            time_s: Of the latest event, in seconds since the Unix epoch.
        """
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


class Settings(Protocol):
    """How a tracker is reached: a frozen dataclass whose fields are JSON and hold no secrets."""

    name: ClassVar[str]
    """As users write it."""
    library: ClassVar[str]
    """The module that has to be installed."""
    install: ClassVar[str]
    """The line that installs it."""

    @property
    def is_remote(self) -> bool:
        """Whether it is somewhere else, so that it may be unreachable or refuse a key."""
        ...

    @property
    def where(self) -> str:
        """Where it keeps things, for people; without a password."""
        ...

    def settled(self, folder: Path) -> "Settings":
        """The settings with what the environment and the experiment's folder leave open.

        Raises:
            ConfigError: They cannot work.
        """
        ...

    def connect(self, experiment: str) -> Tracker:
        """Reach the tracker. To be called on what `settled` gave.

        Args:
            experiment: The experiment's name.

        Raises:
            TrackerRefusedError: It is there, and refuses.
            Exception: It is not there.
        """
        ...


def parameters(run: Run) -> dict[str, Any]:
    """A run's configuration as one flat mapping, what is set only: names of knobs with dots. No
    secrets: it goes to other machines."""
    flat: dict[str, Any] = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, dict) and value:
            for key, item in value.items():
                walk(item, f"{name}.{key}" if name else str(key))
        elif value is not None:
            flat[name] = value

    walk(shown(run.config), "")
    return flat


def state(run: Run) -> dict[str, Json]:
    """What changes in a run's life, and where it comes from, without what there is nothing of."""
    told: dict[str, Json] = {
        "run": run.id,
        "status": run.status.value,
        "step": run.step,
        "num_steps": run.num_steps,
        "chunks_done": run.chunks_done,
        "num_chunks": run.num_chunks,
        "active_s": round(run.active_s, 3),
        "pinned": run.pinned,
        "folder": run.path,
        "parent": run.parent_id,
        "modified": "; ".join(
            f"{name}: {shown(old, name)} -> {shown(new, name)}"
            for name, (old, new) in run.modified.items()
        ),
        "start_step": run.start_step if run.fork is not None else None,
        "notes": shown_text("; ".join(run.notes)),
    }
    told = {name: value for name, value in told.items() if value not in (None, "")}
    # Also where there is none any more: a failed run that goes on had one.
    return {**told, "error": shown_text(run.error or "")}
