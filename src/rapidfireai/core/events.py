"""What happens to runs, as facts in the past tense.

Executors report them, `core.run.apply` folds them into a run, the store keeps them. Every field is
JSON: events cross process borders and are read by the dashboard.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from rapidfireai.core.ids import RunId, WorkerId

Json = Any
"""A value of JSON: None, bool, int, float, str, list or dict of these."""


class MetricSource(StrEnum):
    """Who measured a metric."""

    STEP = "step"
    """The engine, at every optimizer step: the loss of that step."""
    LOG = "log"
    """The trainer's own log rows, verbatim."""
    CHUNK = "chunk"
    """The evaluation at a chunk's end."""
    DEVICE = "device"
    """The device monitor, when the run paused at a chunk's end; units are in the names."""


class PassMode(StrEnum):
    """How a run's passes through its base are computed."""

    FUSED = "fused"
    """Together with other runs'."""
    SLICED = "sliced"
    """Alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkAssigned:
    """The engine gave a worker the order to run the run's next chunk."""

    run_id: RunId
    worker_id: WorkerId
    chunk: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStarted:
    """The run's trainer stands and has taken its place in front of the first step."""

    run_id: RunId
    num_steps: int
    """Optimizer steps of the whole run."""
    num_chunks: int
    resolved: Mapping[str, Json]
    """The arguments really in force, after defaults and adaptation to the device."""
    notes: tuple[str, ...] = ()
    step: int = 0
    """Above 0 for a run that goes on from a checkpoint."""
    chunks_done: int = 0
    """Likewise."""
    active_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFinished:
    """One optimizer step is done. `loss` is NaN where the trainer reports none."""

    run_id: RunId
    step: int
    loss: float
    active_s: float
    """Seconds this run has held a worker so far, pauses excluded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricsLogged:
    """Metrics were measured at a step."""

    run_id: RunId
    step: int
    source: MetricSource
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunNoted:
    """Something the user should know about the run: a default changed, a column mapped."""

    run_id: RunId
    note: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ModeChosen:
    """How the run's passes through its base are computed from now on."""

    run_id: RunId
    mode: PassMode
    reason: str
    kind: str = ""
    """Which passes, such as "32 tokens a batch"; empty: all for which nothing else was chosen."""
    members: tuple[RunId, ...] = ()
    """The runs that it was chosen for; empty where it was not measured."""
    fused_s: float | None = None
    """Seconds that a pass took for each run in it, forward and backward, as measured: of the
    processor on a CPU, which neighbours of the process do not change, else of the clock."""
    sliced_s: float | None = None
    """Likewise, each run alone."""
    wished: bool = False
    """Whether the user wants them shared wherever that can be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkFinished:
    """A chunk that is not the run's last is done; the run waits for its next turn."""

    run_id: RunId
    chunk: int
    step: int
    active_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RunCompleted:
    """The run did all its steps and its folder is written."""

    run_id: RunId
    step: int
    active_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStopped:
    """The run was ended before its last step and its folder is written."""

    run_id: RunId
    reason: str
    active_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPruned:
    """The run was ended as not promising, to be resumed if it turns out to be; as `RunStopped`."""

    run_id: RunId
    reason: str
    active_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResumed:
    """Somebody asked for an ended run to go on from its latest checkpoint."""

    run_id: RunId


@dataclass(frozen=True, kw_only=True, slots=True)
class RunDeleted:
    """Somebody asked for an ended run to be removed; its files stay for a while."""

    run_id: RunId
    undo_until_s: float
    """Seconds since the Unix epoch; until then the run can be restored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRestored:
    """A deleted run is there again as it was."""

    run_id: RunId


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPurged:
    """The files of a deleted run are gone."""

    run_id: RunId


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPinned:
    """Protected from being pruned and deleted, or no longer so."""

    run_id: RunId
    pinned: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class RunCloned:
    """The run was made from another; its first event."""

    run_id: RunId
    parent_id: RunId


@dataclass(frozen=True, kw_only=True, slots=True)
class RunAdded:
    """A search asked for the run while others trained; its first event."""

    run_id: RunId
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RunInterrupted:
    """The process is about to end before the run has; its checkpoint is written."""

    run_id: RunId
    reason: str
    active_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecovered:
    """A new process takes the run over as its latest checkpoint has it."""

    run_id: RunId
    step: int
    chunks_done: int
    active_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFailed:
    """The run raised, ran out of memory or diverged."""

    run_id: RunId
    error: str
    """One line: what went wrong."""
    traceback: str
    active_s: float
    notes: tuple[str, ...] = field(default=())


Event = (
    ChunkAssigned
    | RunStarted
    | StepFinished
    | MetricsLogged
    | RunNoted
    | ModeChosen
    | ChunkFinished
    | RunCompleted
    | RunStopped
    | RunPruned
    | RunResumed
    | RunDeleted
    | RunRestored
    | RunPurged
    | RunPinned
    | RunCloned
    | RunAdded
    | RunInterrupted
    | RunRecovered
    | RunFailed
)
