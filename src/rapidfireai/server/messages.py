"""What goes over the API, both ways.

The models of what the server answers describe it for clients and for the tests that compare answers
with them; frequent answers are written without passing through them.
"""

import math
from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from rapidfireai.core.commands import Verb
from rapidfireai.core.events import MetricSource, PassMode
from rapidfireai.core.fork import OptimizerState, Schedule
from rapidfireai.core.run import RunStatus
from rapidfireai.store.plain import MASK
from rapidfireai.tracking.status import TrackerState

MAX_COMMANDS: Final = 1000
"""In one request."""

_MAX_DEPTH: Final = 8
"""Of the values in a configuration."""

MAX_INTEGER: Final = 2**53
"""Larger ones are no integers in a browser."""

RunNumber = Annotated[int, Field(ge=1, le=MAX_INTEGER)]


class Message(BaseModel):
    """Base of all models."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Problem(Message):
    """What is wrong with a request, or with what it asked for."""

    code: str = Field(examples=["unknown_experiment"])
    message: str = Field(examples=["there is no experiment 'first'"])


class ServerStatus(Message):
    """The server itself."""

    version: str = Field(examples=["0.1.0"])
    pid: int
    started_s: float
    now_s: float = Field(description="The server's clock, which all times here are of.")
    experiments_path: str
    num_listeners: int


class Best(Message):
    """The best run of an experiment so far."""

    run_id: int
    metric: str = Field(examples=["eval_loss"])
    value: float


class Experiment(Message):
    """An experiment in a few numbers."""

    name: str = Field(examples=["first"])
    state: Literal["training", "interrupted", "ended", "unreadable"] = Field(
        description="interrupted: has unfinished runs, and no process that trains them."
    )
    problem: str | None = Field(description="Why an unreadable one cannot be read.")
    trained_by: int | None = Field(description="Number of the process that trains it.")
    created_s: float | None
    seed: int | None
    num_chunks: int | None
    versions: dict[str, str]
    settings: dict[str, Any]
    num_runs: int = Field(description="Without deleted ones.")
    statuses: dict[RunStatus, int]
    progress: float | None = Field(description="Share of the work that is done, 0 to 1.")
    remaining_s: float | None
    best: Best | None


class Experiments(Message):
    """All experiments, the latest first."""

    experiments: list[Experiment]


class Tracker(Message):
    """A tracker of an experiment, and how far it has been told."""

    name: str = Field(examples=["mlflow"])
    state: TrackerState = Field(
        description="current: it holds everything. sending: a process sends the rest. failing: it "
        "does not take anything, which is tried again. behind: nobody sends the rest."
    )
    where: str
    num_waiting: int = Field(description="Values that it does not hold yet.")
    num_runs_waiting: int = Field(description="Runs of which it lacks the latest event.")
    problem: str | None
    since_s: float | None = Field(description="Since when it has failed.")
    told: str = Field(description="The state in a few words.")
    page: str | None = Field(description="Path of its own page on this server.")


class Trackers(Message):
    """All trackers that an experiment ever had."""

    trackers: list[Tracker]


class RunRow(Message):
    """A run as a table shows it."""

    run_id: int
    name: str
    status: RunStatus
    step: int
    num_steps: int | None
    chunks_done: int
    num_chunks: int | None
    active_s: float | None = Field(description="Seconds of its own training, pauses excluded.")
    remaining_s: float | None = Field(description="Active seconds that it still needs.")
    loss: float | None
    metrics: dict[str, float | None] = Field(
        description="Latest value of each metric, those of the device included; null: not finite.",
        examples=[{"eval_loss": 1.93, "device_memory_gib": 3.2}],
    )
    sparkline: list[float | None] = Field(description="The loss at up to 32 evenly spaced steps.")
    pinned: bool
    trainer_type: str | None
    model_name: str | None
    samples_per_step: int | None
    worker_id: int | None
    parent_id: int | None = Field(description="The run that it was cloned from.")
    modified: dict[str, Any] = Field(
        description="Of a clone: full name of a knob -> [the parent's value, its own].",
        examples=[{"training_args.learning_rate": [0.001, 0.0001]}],
    )
    fork: dict[str, Any] | None = Field(description="Of a warm-started clone: where it began.")
    error: str | None
    passes: str = Field(
        description="How its passes through its base are computed; empty: by turns, as asked for.",
        examples=["fused: 16 tokens a batch 1.62x; sliced: 128 tokens a batch 0.91x"],
    )
    num_notes: int
    deleted_from: RunStatus | None
    undo_until_s: float | None
    purged: bool
    version: int = Field(description="Of the view, when the run changed last.")


class Runs(Message):
    """Runs of an experiment, by number."""

    version: int = Field(description="Give it as `since` to get only what changes after this.")
    cursor: str = Field(description="Give it as `after` to the stream.")
    trained_by: int | None
    runs: list[RunRow]


class ChosenMode(Message):
    """How a run's passes through its base are computed, of one kind of pass."""

    kind: str = Field(
        description="Such as `32 tokens a batch`; empty: all for which none was chosen."
    )
    mode: PassMode
    reason: str
    members: list[int] = Field(description="Runs that it was chosen for; empty: not measured.")
    fused_s: float | None = Field(description="Measured for a run's pass that is shared.")
    sliced_s: float | None = Field(description="Measured for a run's pass alone.")
    step: int = Field(description="The run's, when it was chosen.")


class RunDetail(Message):
    """All that is known of a run, apart from its metrics."""

    row: RunRow
    config: dict[str, Any] = Field(description="As given, after the search has expanded it.")
    resolved: dict[str, Any] = Field(description="The arguments in force.")
    modes: list[ChosenMode]
    notes: list[str]
    traceback: str | None
    path: str
    mlflow_page: str | None = Field(description="Where a browser finds it in MLflow, if at all.")


class Configs(Message):
    """The configurations of runs side by side: for a comparison, or for parallel coordinates."""

    differing: list[str] = Field(description="Knobs by which the runs differ.")
    configs: dict[int, dict[str, Any]] = Field(
        description="Run -> full name of a knob -> value; only what is given.",
        examples=[{"1": {"training_args.learning_rate": 0.001}}],
    )


class Knob(Message):
    """An argument that a clone may have another value of."""

    name: str = Field(examples=["training_args.learning_rate"])
    type: list[str] = Field(description="JSON Schema's types; empty: any.", examples=[["number"]])
    default: Any
    allowed: str = Field(examples=["float"])
    enum: list[Any]
    value: Any = Field(description="The run's.")
    is_set: bool = Field(description="Whether the run's configuration gives it.")
    used: list[Any] = Field(description="Different values in this experiment.")


class Knobs(Message):
    """The form for a clone: what the run sets itself comes first."""

    run_id: int
    knobs: list[Knob]


class MetricNames(Message):
    """The metrics that an experiment has measured."""

    metrics: list["MetricName"]


class MetricName(Message):
    """A metric."""

    source: MetricSource
    name: str = Field(description="Under which its source measured it.", examples=["eval_loss"])
    shown: str = Field(description="Under which rows show it.", examples=["eval_loss"])
    maximised: bool = Field(description="Whether more is better, as far as the name tells.")


class Series(Message):
    """A run's values of a metric, thinned out: no peak is lost."""

    run_id: int
    steps: list[int]
    values: list[float | None] = Field(description="null: not finite.")
    x: list[float | None] | None = Field(description="null: the steps; see `x` of the request.")


class SeriesOfRuns(Message):
    """A metric of several runs. Runs that have none of it are left out."""

    source: MetricSource | None = Field(description="null: all that measure it, merged.")
    metric: str
    x: Literal["step", "samples", "tokens", "time"]
    cursor: str
    series: list[Series]


class EventMessage(Message):
    """Something that happened to a run."""

    seq: int
    time_s: float
    type: str = Field(examples=["ChunkFinished"])
    run_id: int
    data: dict[str, Any] = Field(
        description="The event's other fields. Resolved arguments and tracebacks are with the run.",
        examples=[{"chunk": 0, "step": 4, "active_s": 12.5}],
    )


class Events(Message):
    """Events in order."""

    last: int = Field(description="Give it as `after` to get what follows.")
    events: list[EventMessage]


class Turn(Message):
    """A run's turn on a worker."""

    seq: int
    run_id: int
    worker_id: int
    chunk: int
    start_s: float
    started_s: float | None = Field(description="When its trainer stood, if it was built here.")
    end_s: float | None = Field(description="null: it goes on.")
    end: str | None = Field(examples=["paused"])
    active_s: float | None = Field(description="Seconds of the run's own work.")
    gap_s: float | None = Field(description="Seconds without anybody before this turn.")


class Timeline(Message):
    """Which run's chunk held which worker when."""

    turns: list[Turn]
    busy_s: float
    active_s: float
    span_s: float
    utilisation: float | None = Field(description="busy_s / span_s.")
    first_seq: int
    last_seq: int


class LogPart(Message):
    """Lines of the experiment's log."""

    lines: list[str]
    first: int = Field(description="Byte at which they begin.")
    next: int = Field(description="Byte at which the next ones will; give it as `after`.")
    size: int


class CommandRequest(Message):
    """One thing asked of one run."""

    verb: Verb
    run_id: RunNumber
    reason: str = Field(default="", max_length=500)
    modify: dict[str, Any] = Field(
        default_factory=dict,
        max_length=200,
        description="For a clone: knobs, by full or short names, and their new values.",
        examples=[{"learning_rate": 0.0001}],
    )
    warm_start: bool = False
    optimizer: OptimizerState = OptimizerState.KEEP
    schedule: Schedule = Schedule.CONTINUE

    @field_validator("modify")
    @classmethod
    def _is_storable(cls, modify: dict[str, Any]) -> dict[str, Any]:
        """Python reads more as JSON than there is in JSON."""
        level: list[Any] = [modify]
        for _ in range(_MAX_DEPTH):
            level = [item for value in level for item in _items(value)]
            if not level:
                return modify
        raise ValueError(f"values may be nested {_MAX_DEPTH} deep at most")


def _items(value: Any) -> Iterable[Any]:
    """What a value of JSON consists of."""
    match value:
        case dict():
            return (*value, *value.values())
        case list():
            return value
        case float() if not math.isfinite(value):
            raise ValueError(f"{value} is no number of JSON")
        case int() if abs(value) > MAX_INTEGER:
            raise ValueError(f"integers are at most {MAX_INTEGER}")
        case str():
            if MASK in value:
                raise ValueError("a value that is masked cannot be sent back: leave it out")
            if any("\ud800" <= letter <= "\udfff" for letter in value):
                raise ValueError("a string holds half a character")
    return ()


class CommandsRequest(Message):
    """Commands, carried out in this order."""

    commands: list[CommandRequest] = Field(
        min_length=1,
        max_length=MAX_COMMANDS,
        examples=[
            [
                {
                    "verb": "clone",
                    "run_id": 1,
                    "modify": {"learning_rate": 0.0001},
                    "warm_start": True,
                    "reason": "plateau",
                }
            ]
        ],
    )
    wait_s: float = Field(
        default=0.0,
        ge=0.0,
        le=30.0,
        description="Seconds to wait for the process that trains. The stream tells of it as well.",
    )


class CommandMessage(Message):
    """A command and what became of it so far."""

    command_id: int
    verb: Verb
    run_id: int
    by: str = Field(examples=["http"])
    reason: str
    modify: dict[str, Any]
    warm_start: bool
    optimizer: OptimizerState
    schedule: Schedule
    given_s: float
    status: Literal["pending", "applied", "rejected"]
    settled_s: float | None
    latency_s: float | None
    outcome: str
    step: int | None
    new_run_id: int | None


class Commands(Message):
    """Commands in the order in which they were given."""

    last: int = Field(description="Give it as `after` to get what follows.")
    commands: list[CommandMessage]


class Forecast(Message):
    """What a warm start would leave to be trained."""

    step: int
    num_steps: int | None
    remaining_steps: int | None
    estimated: bool = Field(description="Whether only the process that trains knows exactly.")
    text: str


class Checked(Message):
    """What would become of a command that is not given."""

    refusal: str | None = Field(description="Why it would be rejected; null: it would not.")
    differences: dict[str, list[Any]] = Field(
        description="For a clone: full name of a knob -> [the parent's value, the new one].",
        examples=[{"training_args.learning_rate": [0.001, 0.0001]}],
    )
    forecast: Forecast | None = Field(description="Of a warm start.")


class CheckedCommands(Message):
    """One answer for each command, in their order."""

    checked: list[Checked]
