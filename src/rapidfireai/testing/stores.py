"""The contract of `rapidfireai.store.Store` as a test suite, for every backend.

A backend subclasses `StoreContract` under a name that pytest collects and provides a fixture:

    class TestMyStore(StoreContract):
        @pytest.fixture
        def store(self, tmp_path: Path) -> Iterator[Store]:
            with closing(MyStore(tmp_path / "experiment.db")) as store:
                yield store

What a suite within one process cannot see (durability, other processes) is the backend's own to
test.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import pytest

from rapidfireai.core.commands import Command, CommandId, CommandStatus, Outcome, Verb
from rapidfireai.core.events import (
    ChunkAssigned,
    ChunkFinished,
    Event,
    Json,
    MetricsLogged,
    MetricSource,
    ModeChosen,
    PassMode,
    RunAdded,
    RunCloned,
    RunCompleted,
    RunDeleted,
    RunFailed,
    RunInterrupted,
    RunNoted,
    RunPinned,
    RunPruned,
    RunPurged,
    RunRecovered,
    RunRestored,
    RunResumed,
    RunStarted,
    RunStopped,
    StepFinished,
)
from rapidfireai.core.fork import OptimizerState, Schedule
from rapidfireai.core.ids import RunId, WorkerId
from rapidfireai.core.run import Run, RunStatus
from rapidfireai.errors import StaleRunError, StoreError
from rapidfireai.store import ExperimentRecord, MetricRow, Store

FIRST: Final = RunId(1)
SECOND: Final = RunId(2)

AWKWARD_JSON: Final[dict[str, Json]] = {
    "none": None,
    "flag": True,
    "count": 2**80,
    "tiny": 5e-324,
    "minus_zero": -0.0,
    "nan": math.nan,
    "nested": [math.inf, {"low": -math.inf, "empty": {}}, []],
    "text": 'Grüße, 世界 "quoted"\n\x00 \udc80',
    "": "empty key",
    "$float": "nan",
    "$$float": {"$float": "inf", "type": "Run"},
}
"""Values of JSON, and floats beside it, that a careless encoding loses or confuses."""

EVENTS: Final[tuple[Event, ...]] = (
    ChunkAssigned(run_id=FIRST, worker_id=WorkerId(0), chunk=0),
    RunStarted(run_id=FIRST, num_steps=40, num_chunks=4, resolved=AWKWARD_JSON, notes=("a", "b")),
    StepFinished(run_id=FIRST, step=7, loss=math.nan, active_s=1.5),
    RunInterrupted(run_id=FIRST, reason="SIGTERM", active_s=3.5),
    RunRecovered(run_id=FIRST, step=8, chunks_done=2, active_s=3.25),
    MetricsLogged(
        run_id=FIRST,
        step=7,
        source=MetricSource.CHUNK,
        values={"eval_loss": math.inf, "eval_accuracy": 0.1},
    ),
    RunNoted(run_id=FIRST, note="bf16 is not available: fp32"),
    ModeChosen(
        run_id=FIRST,
        mode=PassMode.FUSED,
        reason="measured",
        kind="32 tokens a batch",
        members=(FIRST, SECOND),
        fused_s=0.1,
        sliced_s=0.5,
    ),
    ChunkFinished(run_id=FIRST, chunk=0, step=10, active_s=2.25),
    RunCompleted(run_id=FIRST, step=40, active_s=9.125),
    RunStopped(run_id=FIRST, reason="pruned: median", active_s=3.0),
    RunPruned(run_id=FIRST, reason="worse than the median", active_s=3.0),
    RunResumed(run_id=FIRST),
    RunDeleted(run_id=FIRST, undo_until_s=1_760_000_600.5),
    RunRestored(run_id=FIRST),
    RunPurged(run_id=FIRST),
    RunPinned(run_id=FIRST, pinned=True),
    RunCloned(run_id=FIRST, parent_id=SECOND),
    RunAdded(run_id=FIRST, reason="trial 3 of the search"),
    RunFailed(run_id=FIRST, error="boom", traceback="Traceback ...\n", active_s=0.0, notes=("n",)),
)
"""One event of every type."""


def example_experiment() -> ExperimentRecord:
    """A record with every field set."""
    return ExperimentRecord(
        name="exp1",
        created_s=1_760_000_000.123456,
        seed=42,
        num_chunks=4,
        versions={"torch": "2.13.0"},
        settings=dict(AWKWARD_JSON),
    )


def example_run(run_id: RunId, status: RunStatus = RunStatus.QUEUED) -> Run:
    """A run with every field set."""
    return Run(
        id=run_id,
        name=f"run {run_id}",
        config={"learning_rate": 2e-4, "extra": dict(AWKWARD_JSON)},
        path=f"runs/{run_id}",
        status=status,
        worker_id=WorkerId(1),
        resolved=dict(AWKWARD_JSON),
        step=12,
        start_step=3,
        num_steps=40,
        chunks_done=1,
        num_chunks=4,
        active_s=0.1 + 0.2,
        loss=math.nan,
        error="boom",
        traceback="Traceback ...\n",
        notes=("first", "second"),
        modes=(
            {
                "kind": "32 tokens a batch",
                "mode": "fused",
                "reason": "measured both ways",
                "members": [1, 2],
                "fused_s": 0.1 + 0.2,
                "sliced_s": 0.5,
                "step": 3,
            },
        ),
        pinned=True,
        parent_id=SECOND,
        modified={"training_args.learning_rate": [2e-4, math.inf]},
        fork=dict(AWKWARD_JSON),
        deleted_from=RunStatus.COMPLETED,
        undo_until_s=1_760_000_600.5,
        purged=True,
    )


def example_command(verb: Verb = Verb.CLONE) -> Command:
    """A command with every field set, equal to what comes back: without NaN."""
    return Command(
        verb=verb,
        run_id=FIRST,
        by="cli",
        reason='"why" not?\n',
        modify={name: value for name, value in AWKWARD_JSON.items() if name != "nan"},
        warm_start=True,
        optimizer=OptimizerState.RESET,
        schedule=Schedule.RESTART,
    )


def applied(
    command_id: CommandId, step: int | None = None, new_run_id: RunId | None = None
) -> Outcome:
    """The outcome of a command that was carried out."""
    return Outcome(
        command_id=command_id,
        status=CommandStatus.APPLIED,
        text="it is done",
        step=step,
        new_run_id=new_run_id,
    )


def metric(
    name: str = "loss",
    value: float = 0.5,
    *,
    run_id: RunId = FIRST,
    source: MetricSource = MetricSource.STEP,
    step: int = 1,
) -> MetricRow:
    """A value, by default the loss of the first run's first step."""
    return MetricRow(
        run_id=run_id, source=source, step=step, name=name, value=value, time_s=1_760_000_000.5
    )


def _noted(run_id: RunId, note: str = "note") -> RunNoted:
    return RunNoted(run_id=run_id, note=note)


def _contents(store: Store) -> str:
    # As text, since NaN is equal to nothing and 1.0 to 1.
    return repr((store.runs(), store.events(), store.metrics()))


USES: Final[dict[str, Callable[[Store], object]]] = {
    "add_runs": lambda store: store.add_runs([]),
    "create": lambda store: store.create(example_experiment(), []),
    "experiment": lambda store: store.experiment(),
    "runs": lambda store: store.runs(),
    "record": lambda store: store.record(
        example_run(FIRST), _noted(FIRST), example_run(FIRST), 1.0
    ),
    "save_progress": lambda store: store.save_progress([example_run(FIRST)], [metric()]),
    "metrics": lambda store: store.metrics(),
    "events": lambda store: store.events(),
}
"""Every method but `close`."""


class StoreContract:
    """Examines every sentence of the contract of `Store`."""

    @pytest.fixture
    def filled(self, store: Store) -> Store:
        """The store with an experiment of two queued runs."""
        store.create(example_experiment(), [example_run(FIRST), example_run(SECOND)])
        return store

    def test_is_empty_before_create(self, store: Store) -> None:
        assert (store.runs(), store.events(), store.metrics()) == ([], [], [])

    def test_has_no_experiment_before_create(self, store: Store) -> None:
        with pytest.raises(StoreError, match="holds no experiment"):
            store.experiment()

    def test_returns_what_was_created(self, store: Store) -> None:
        experiment, runs = example_experiment(), [example_run(FIRST), example_run(SECOND)]
        store.create(experiment, runs)
        assert repr(store.experiment()) == repr(experiment)
        assert repr(store.runs()) == repr(runs)

    @pytest.mark.parametrize("status", RunStatus)
    def test_keeps_every_status(self, store: Store, status: RunStatus) -> None:
        store.create(example_experiment(), [example_run(FIRST, status)])
        assert store.runs()[0].status is status

    def test_keeps_a_run_of_which_nothing_is_known_yet(self, store: Store) -> None:
        run = Run(id=FIRST, name="1", config={}, path="runs/1")
        store.create(example_experiment(), [run])
        assert store.runs() == [run]

    def test_returns_runs_by_id(self, store: Store) -> None:
        store.create(example_experiment(), [example_run(RunId(i)) for i in (3, 10, 1, 2)])
        assert [run.id for run in store.runs()] == [1, 2, 3, 10]

    def test_second_create_is_refused_and_changes_nothing(self, filled: Store) -> None:
        before = _contents(filled)
        with pytest.raises(StoreError, match="'exp1' already"):
            filled.create(replace(example_experiment(), name="exp2"), [example_run(RunId(3))])
        assert filled.experiment().name == "exp1"
        assert _contents(filled) == before

    def test_create_with_two_runs_of_one_id_creates_nothing(self, store: Store) -> None:
        with pytest.raises(StoreError, match="two runs"):
            store.create(example_experiment(), [example_run(FIRST), example_run(FIRST)])
        assert store.runs() == []
        store.create(example_experiment(), [example_run(FIRST)])
        assert len(store.runs()) == 1

    def test_takes_in_further_runs(self, filled: Store) -> None:
        third = example_run(RunId(3))
        filled.add_runs([third])
        assert repr(filled.runs()[-1]) == repr(third)
        contents = _contents(filled)
        with pytest.raises(StoreError, match="id"):
            filled.add_runs([example_run(RunId(4)), example_run(FIRST)])
        assert _contents(filled) == contents

    def test_takes_in_no_runs_before_create(self, store: Store) -> None:
        with pytest.raises(StoreError, match="no experiment"):
            store.add_runs([example_run(FIRST)])

    @pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
    def test_keeps_every_event(self, filled: Store, event: Event) -> None:
        run = example_run(FIRST)
        filled.record(run, event, run, 12.5)
        [row] = filled.events()
        assert (row.time_s, repr(row.event)) == (12.5, repr(event))

    def test_record_changes_the_run_and_no_other(self, filled: Store) -> None:
        before = example_run(FIRST)
        after = replace(before, status=RunStatus.RUNNING, worker_id=WorkerId(7), notes=())
        filled.record(before, EVENTS[0], after, 1.0)
        assert repr(filled.runs()) == repr([after, example_run(SECOND)])

    def test_stale_record_writes_nothing(self, filled: Store) -> None:
        contents = _contents(filled)
        running = example_run(FIRST, RunStatus.RUNNING)
        with pytest.raises(StaleRunError, match="run 1 is queued in the store, not running"):
            filled.record(running, EVENTS[-2], replace(running, status=RunStatus.STOPPED), 1.0)
        assert _contents(filled) == contents

    def test_of_two_changes_from_one_status_the_second_is_stale(self, filled: Store) -> None:
        queued, running = example_run(FIRST), example_run(FIRST, RunStatus.RUNNING)
        filled.record(queued, EVENTS[0], running, 1.0)
        with pytest.raises(StaleRunError, match="run 1 is running in the store, not queued"):
            filled.record(queued, EVENTS[0], running, 2.0)
        assert [row.time_s for row in filled.events()] == [1.0]

    def test_record_of_an_unknown_run_writes_nothing(self, filled: Store) -> None:
        contents = _contents(filled)
        run = example_run(RunId(9))
        with pytest.raises(StaleRunError, match="run 9 is not in the store"):
            filled.record(run, _noted(run.id), run, 1.0)
        assert _contents(filled) == contents

    @pytest.mark.parametrize(
        "value",
        [(1, 2), {3}, b"bytes", object(), {4: 5}],
        ids=["tuple", "set", "bytes", "object", "number as key"],
    )
    def test_record_of_what_json_does_not_have_writes_nothing(
        self, filled: Store, value: object
    ) -> None:
        contents = _contents(filled)
        run = example_run(FIRST)
        started = RunStarted(run_id=FIRST, num_steps=1, num_chunks=1, resolved={"bad": value})
        running = replace(run, status=RunStatus.RUNNING)
        with pytest.raises(StoreError, match=r"RunStarted\.resolved\['bad'\]"):
            filled.record(run, started, running, 1.0)
        with pytest.raises(StoreError, match=r"Run\.resolved\['bad'\]"):
            filled.record(run, EVENTS[0], replace(running, resolved={"bad": value}), 1.0)
        assert _contents(filled) == contents

    def test_save_progress_updates_runs_and_writes_values(self, filled: Store) -> None:
        first = replace(example_run(FIRST), step=20, loss=0.25, active_s=7.0)
        filled.save_progress([first], [metric(step=20, value=0.25)])
        assert repr(filled.runs()) == repr([first, example_run(SECOND)])
        assert filled.metrics() == [metric(step=20, value=0.25)]
        assert filled.events() == []

    def test_save_progress_takes_values_alone(self, filled: Store) -> None:
        filled.save_progress([], [metric()])
        assert filled.metrics() == [metric()]

    def test_newer_value_replaces_the_older(self, filled: Store) -> None:
        filled.save_progress([], [metric(value=1.0), metric("other", 5.0)])
        newer = replace(metric(value=2.0), time_s=9.0)
        filled.save_progress([], [newer])
        assert filled.metrics() == [newer, metric("other", 5.0)]

    def test_last_value_of_one_call_wins(self, filled: Store) -> None:
        filled.save_progress([], [metric(value=1.0), metric(value=2.0)])
        assert filled.metrics() == [metric(value=2.0)]

    def test_values_differing_in_any_key_stand_side_by_side(self, filled: Store) -> None:
        rows = [
            metric(),
            metric("lr"),
            metric(step=2),
            metric(source=MetricSource.LOG),
            metric(run_id=SECOND),
        ]
        filled.save_progress([], rows)
        assert len(filled.metrics()) == len(rows)

    def test_stale_progress_writes_nothing(self, filled: Store) -> None:
        contents = _contents(filled)
        fresh = replace(example_run(FIRST), step=30)
        stale = example_run(SECOND, RunStatus.RUNNING)
        with pytest.raises(StaleRunError, match="run 2 is queued in the store, not running"):
            filled.save_progress([fresh, stale], [metric()])
        assert _contents(filled) == contents

    def test_progress_of_an_unknown_run_writes_nothing(self, filled: Store) -> None:
        contents = _contents(filled)
        runs = [replace(example_run(FIRST), step=30), example_run(RunId(9))]
        with pytest.raises(StaleRunError, match="run 9 is not in the store"):
            filled.save_progress(runs, [metric()])
        assert _contents(filled) == contents

    def test_value_of_an_unknown_run_writes_nothing(self, filled: Store) -> None:
        contents = _contents(filled)
        fresh = replace(example_run(FIRST), step=30)
        with pytest.raises(StoreError, match="run"):
            filled.save_progress([fresh], [metric(), metric(run_id=RunId(9))])
        assert _contents(filled) == contents

    @pytest.mark.parametrize(
        "value", [0.1, 0.0, -5e-324, 1e308, math.inf, -math.inf, math.nan], ids=repr
    )
    def test_keeps_every_float(self, filled: Store, value: float) -> None:
        filled.save_progress([replace(example_run(FIRST), loss=value)], [metric(value=value)])
        assert repr(filled.metrics()[0].value) == repr(value)
        assert repr(filled.runs()[0].loss) == repr(value)

    def test_number_may_replace_nan_and_nan_a_number(self, filled: Store) -> None:
        filled.save_progress([], [metric("a", math.nan), metric("b", 1.0)])
        filled.save_progress([], [metric("a", 2.0), metric("b", math.nan)])
        assert repr([row.value for row in filled.metrics()]) == "[2.0, nan]"

    def test_metrics_come_by_run_source_step_and_name(self, filled: Store) -> None:
        rows = [
            metric(name, run_id=run_id, source=source, step=step)
            for run_id in (FIRST, SECOND)
            for source in sorted(MetricSource)
            for step in (2, 10)
            for name in ("Loss", "loss", "éval")
        ]
        filled.save_progress([], rows[::-1])
        assert filled.metrics() == rows

    def test_metrics_are_filtered(self, filled: Store) -> None:
        rows = [
            metric(run_id=run_id, source=source)
            for run_id in (FIRST, SECOND)
            for source in (MetricSource.LOG, MetricSource.STEP)
        ]
        filled.save_progress([], rows)
        assert filled.metrics(run_id=FIRST) == rows[:2]
        assert filled.metrics(source=MetricSource.STEP) == rows[1::2]
        assert filled.metrics(run_id=SECOND, source=MetricSource.LOG) == [rows[2]]
        assert filled.metrics(source=MetricSource.CHUNK) == []
        assert filled.metrics(run_id=RunId(9)) == []

    def test_events_come_in_order_and_are_filtered(self, filled: Store) -> None:
        for i in range(6):
            run = example_run((FIRST, SECOND)[i % 2])
            filled.record(run, _noted(run.id, f"note {i}"), run, 100.0 - i)
        rows = filled.events()
        seqs = [row.seq for row in rows]
        assert [row.event for row in rows] == [
            _noted((FIRST, SECOND)[i % 2], f"note {i}") for i in range(6)
        ]
        assert seqs[0] >= 1
        assert seqs == sorted(set(seqs))
        assert filled.events(after=seqs[2]) == rows[3:]
        assert filled.events(run_id=SECOND) == rows[1::2]
        assert filled.events(after=seqs[1], run_id=SECOND) == [rows[3], rows[5]]
        assert filled.events(after=seqs[-1]) == []
        assert filled.events(run_id=RunId(9)) == []

    def test_changing_what_was_passed_in_changes_nothing(self, store: Store) -> None:
        settings: dict[str, Any] = {"list": [1]}
        config: dict[str, Any] = {"list": [1]}
        values = {"loss": 1.0}
        run = replace(example_run(FIRST), config=config)
        store.create(replace(example_experiment(), settings=settings), [run])
        logged = MetricsLogged(run_id=FIRST, step=1, source=MetricSource.LOG, values=values)
        store.record(run, logged, run, 1.0)
        settings["list"].append(2)
        config["list"].append(2)
        values["loss"] = 2.0
        assert store.experiment().settings == {"list": [1]}
        assert store.runs()[0].config == {"list": [1]}
        [row] = store.events()
        assert isinstance(row.event, MetricsLogged)
        assert row.event.values == {"loss": 1.0}

    def test_changing_what_was_returned_changes_nothing(self, filled: Store) -> None:
        run = example_run(FIRST)
        filled.record(run, EVENTS[1], run, 1.0)
        filled.save_progress([], [metric()])
        contents, experiment = _contents(filled), repr(filled.experiment())
        filled.experiment().settings.clear()
        filled.experiment().versions.clear()
        filled.runs()[0].config["extra"].clear()
        event = filled.events()[0].event
        assert isinstance(event, RunStarted)
        assert isinstance(event.resolved, dict)
        event.resolved.clear()
        for rows in (filled.runs(), filled.events(), filled.metrics()):
            rows.clear()
        assert (_contents(filled), repr(filled.experiment())) == (contents, experiment)

    @pytest.mark.parametrize("use", USES)
    def test_every_method_raises_after_close(self, filled: Store, use: str) -> None:
        filled.close()
        with pytest.raises(StoreError, match="closed"):
            USES[use](filled)

    def test_close_may_be_repeated(self, filled: Store) -> None:
        filled.close()
        filled.close()

    def test_commands_come_back_in_their_order(self, filled: Store) -> None:
        first = filled.submit(example_command(), 10.5)
        second = filled.submit(Command(verb=Verb.STOP, run_id=SECOND), 11.0)
        assert (first.command, first.given_s) == (example_command(), 10.5)
        assert first.id < second.id
        assert filled.commands() == [first, second]
        assert {c.status for c in filled.commands()} == {CommandStatus.PENDING}
        assert (first.settled_s, first.outcome, first.latency_s) == (None, "", None)

    def test_a_refused_command_is_kept_as_rejected(self, filled: Store) -> None:
        refused = filled.submit(example_command(), 10.0, "there is no run 1")
        assert refused.status is CommandStatus.REJECTED
        assert (refused.outcome, refused.settled_s) == ("there is no run 1", 10.0)
        assert filled.commands(status=CommandStatus.PENDING) == []
        assert filled.commands(status=CommandStatus.REJECTED) == [refused]

    def test_settling_keeps_what_became_of_a_command(self, filled: Store) -> None:
        given = filled.submit(example_command(), 10.0)
        outcome = applied(given.id, step=7, new_run_id=SECOND)
        filled.settle(outcome, 10.25)
        (settled,) = filled.commands()
        assert settled == replace(
            given, status=CommandStatus.APPLIED, settled_s=10.25, outcome=outcome.text,
            step=7, new_run_id=SECOND,
        )  # fmt: skip
        assert settled.latency_s == 0.25

    def test_a_command_is_settled_once(self, filled: Store) -> None:
        given = filled.submit(example_command(), 10.0)
        filled.settle(applied(given.id), 11.0)
        before = filled.commands()
        with pytest.raises(StoreError, match="is applied already"):
            filled.settle(applied(given.id), 12.0)
        with pytest.raises(StoreError, match="not in the store"):
            filled.settle(applied(CommandId(99)), 12.0)
        assert filled.commands() == before

    def test_an_event_settles_a_command_or_nothing_happens(self, filled: Store) -> None:
        before, after = example_run(FIRST), example_run(FIRST, RunStatus.STOPPED)
        event = RunStopped(run_id=FIRST, reason="enough", active_s=1.0)
        given = filled.submit(Command(verb=Verb.STOP, run_id=FIRST), 10.0)
        with pytest.raises(StoreError):
            filled.record(before, event, after, 11.0, applied(CommandId(99)))
        assert repr(filled.runs()[0]) == repr(before)
        assert filled.events() == []
        with pytest.raises(StaleRunError):
            filled.record(after, event, after, 11.0, applied(given.id))
        assert filled.commands() == [given]
        filled.record(before, event, after, 11.0, applied(given.id))
        assert repr(filled.runs()[0]) == repr(after)
        assert filled.commands()[0].status is CommandStatus.APPLIED

    def test_a_run_that_a_command_asked_for_is_added_with_its_first_event(
        self, filled: Store
    ) -> None:
        given = filled.submit(example_command(), 10.0)
        run = example_run(RunId(3))
        event = RunCloned(run_id=RunId(3), parent_id=FIRST)
        with pytest.raises(StoreError):
            filled.add_run(event, run, 11.0, applied(CommandId(99)))
        with pytest.raises(StoreError):
            filled.add_run(event, example_run(FIRST), 11.0, applied(given.id))
        assert len(filled.runs()) == 2
        assert filled.commands() == [given]
        filled.add_run(event, run, 11.0, applied(given.id, new_run_id=RunId(3)))
        assert repr(filled.runs()[2]) == repr(run)
        assert [row.event for row in filled.events()] == [event]
        assert filled.commands()[0].new_run_id == 3

    def test_schemas_come_back_and_are_replaced(self, filled: Store) -> None:
        assert filled.schemas() == {}
        filled.save_schema("SFT", {"learning_rate": {"type": ["number"]}})
        filled.save_schema("LoraConfig", AWKWARD_JSON)
        filled.save_schema("SFT", {"r": {"type": ["integer"]}})
        assert repr(filled.schemas()) == repr(
            {"LoraConfig": AWKWARD_JSON, "SFT": {"r": {"type": ["integer"]}}}
        )

    def test_changes_are_not_counted_while_there_are_none(self, filled: Store) -> None:
        assert filled.num_changes() == filled.num_changes()
