"""How the trackers of an experiment are doing, for those who only look."""

from dataclasses import dataclass
from enum import StrEnum

from rapidfireai.core.ids import RunId
from rapidfireai.paths import ExperimentFolder
from rapidfireai.store import SqliteReader
from rapidfireai.store.plain import shown_text
from rapidfireai.tracking.choice import from_json
from rapidfireai.tracking.ledger import Ledger, TrackerFolder


class TrackerState(StrEnum):
    """How a tracker is doing."""

    CURRENT = "current"
    """It holds everything."""
    SENDING = "sending"
    """A process sends what it does not hold yet."""
    FAILING = "failing"
    """It does not take what is sent; that is tried again."""
    BEHIND = "behind"
    """Nobody sends the rest: the next `run_fit` does, or `rapidfireai sync`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackerStatus:
    """A tracker of an experiment."""

    name: str
    state: TrackerState
    where: str
    """Where it keeps things, for people."""
    num_waiting: int
    """Values that it does not hold yet."""
    num_runs_waiting: int
    """Runs of which it does not know the latest event."""
    problem: str | None
    since_s: float | None
    """Since when it has failed, in seconds since the Unix epoch."""

    def told(self) -> str:
        """In a few words."""
        waiting = f"{self.num_waiting} values of {self.num_runs_waiting} runs wait"
        match self.state:
            case TrackerState.CURRENT:
                return "up to date"
            case TrackerState.SENDING:
                return f"sending; {waiting}"
            case TrackerState.FAILING:
                return f"does not take anything ({self.problem}); {waiting}"
            case TrackerState.BEHIND:
                why = f" ({self.problem})" if self.problem else ""
                return f"behind{why}; {waiting} for `rapidfireai sync`"


def trackers_of(folder: ExperimentFolder, store: SqliteReader) -> list[TrackerStatus]:
    """How all trackers that the experiment ever had are doing.

    Raises:
        StoreError: The store cannot be read.
    """
    found = [(one, one.read()) for one in TrackerFolder.all(folder)]
    if not found:
        return []
    num_values, latest = store.num_values(), store.last_events()
    return [_status(one, ledger, num_values, latest) for one, ledger in found if ledger is not None]


def _status(
    folder: TrackerFolder, ledger: Ledger, num_values: int, latest: dict[RunId, int]
) -> TrackerStatus:
    num_waiting = num_values - sum(run.num_values for run in ledger.runs.values())
    num_runs_waiting = sum(
        run_id not in ledger.runs or ledger.runs[run_id].seq < seq for run_id, seq in latest.items()
    )
    if num_waiting == num_runs_waiting == 0:
        state = TrackerState.CURRENT
    elif not folder.is_claimed():
        state = TrackerState.BEHIND
    else:
        state = TrackerState.SENDING if ledger.problem is None else TrackerState.FAILING
    return TrackerStatus(
        name=folder.name,
        state=state,
        where=from_json(ledger.settings).where,
        num_waiting=max(0, num_waiting),
        num_runs_waiting=num_runs_waiting,
        problem=None if ledger.problem is None else shown_text(ledger.problem),
        since_s=ledger.since_s,
    )
