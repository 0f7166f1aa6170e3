"""Every status meets every event: allowed ones change what they should, the others raise."""

import itertools
from dataclasses import replace
from typing import Any, get_args

import pytest

from rapidfireai.core.events import (
    ChunkAssigned,
    ChunkFinished,
    Event,
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
from rapidfireai.core.ids import RunId, WorkerId
from rapidfireai.core.run import AS_BEFORE, ENDED, SETTLED, TRANSITIONS, Run, RunStatus, apply
from rapidfireai.errors import IllegalTransitionError

ID = RunId(7)

RUN = Run(
    id=ID,
    name="seven",
    config={"learning_rate": 1e-4},
    path="runs/7",
    worker_id=WorkerId(1),
    resolved={"max_steps": 90},
    step=10,
    num_steps=90,
    chunks_done=1,
    num_chunks=9,
    active_s=5.0,
    loss=2.5,
    notes=("first",),
)

# For each event what it changes in RUN beside the status.
EFFECTS: list[tuple[Event, dict[str, Any]]] = [
    (
        ChunkAssigned(run_id=ID, worker_id=WorkerId(3), chunk=1),
        {"worker_id": WorkerId(3)},
    ),
    (
        RunStarted(
            run_id=ID, num_steps=80, num_chunks=8, resolved={"max_steps": 80}, notes=("bf16",)
        ),
        {
            "num_steps": 80,
            "num_chunks": 8,
            "resolved": {"max_steps": 80},
            "notes": ("first", "bf16"),
            "step": 0,
            "chunks_done": 0,
            "active_s": 0.0,
        },
    ),
    (
        RunStarted(
            run_id=ID, num_steps=80, num_chunks=8, resolved={}, step=20, chunks_done=2, active_s=9.0
        ),
        {
            "num_steps": 80,
            "num_chunks": 8,
            "resolved": {},
            "step": 20,
            "chunks_done": 2,
            "active_s": 9.0,
        },
    ),
    (
        StepFinished(run_id=ID, step=11, loss=2.25, active_s=5.5),
        {"step": 11, "loss": 2.25, "active_s": 5.5},
    ),
    (
        MetricsLogged(run_id=ID, step=11, source=MetricSource.LOG, values={"grad_norm": 1.0}),
        {},
    ),
    (
        RunNoted(run_id=ID, note="a column was mapped"),
        {"notes": ("first", "a column was mapped")},
    ),
    (
        ModeChosen(run_id=ID, mode=PassMode.SLICED, reason="it trains all weights"),
        {
            "modes": (
                {
                    "kind": "",
                    "mode": "sliced",
                    "reason": "it trains all weights",
                    "members": [],
                    "fused_s": None,
                    "sliced_s": None,
                    "step": 10,
                },
            )
        },
    ),
    (
        ChunkFinished(run_id=ID, chunk=1, step=20, active_s=10.0),
        {"chunks_done": 2, "step": 20, "active_s": 10.0},
    ),
    (
        RunCompleted(run_id=ID, step=90, active_s=45.0),
        {"chunks_done": 2, "step": 90, "active_s": 45.0},
    ),
    (
        RunStopped(run_id=ID, reason="no better than its parent", active_s=6.0),
        {"notes": ("first", "stopped: no better than its parent"), "active_s": 6.0},
    ),
    (
        RunPruned(run_id=ID, reason="worse than the median", active_s=6.0),
        {"notes": ("first", "pruned: worse than the median"), "active_s": 6.0},
    ),
    (
        RunResumed(run_id=ID),
        {"worker_id": None, "error": None, "traceback": None},
    ),
    (
        RunDeleted(run_id=ID, undo_until_s=100.0),
        {"undo_until_s": 100.0},
    ),
    (
        RunRestored(run_id=ID),
        {"deleted_from": None, "undo_until_s": None},
    ),
    (RunPurged(run_id=ID), {"purged": True}),
    (RunPinned(run_id=ID, pinned=True), {"pinned": True}),
    (RunCloned(run_id=ID, parent_id=RunId(3)), {"parent_id": RunId(3)}),
    (RunAdded(run_id=ID, reason="trial 3"), {"notes": ("first", "trial 3")}),
    (
        RunInterrupted(run_id=ID, reason="SIGTERM", active_s=6.0),
        {"active_s": 6.0},
    ),
    (
        RunRecovered(run_id=ID, step=8, chunks_done=1, active_s=4.0),
        {"step": 8, "chunks_done": 1, "active_s": 4.0, "worker_id": None},
    ),
    (
        RunFailed(
            run_id=ID, error="out of memory", traceback="Traceback", active_s=6.0, notes=("8 GiB",)
        ),
        {
            "error": "out of memory",
            "traceback": "Traceback",
            "active_s": 6.0,
            "notes": ("first", "8 GiB"),
        },
    ),
]

PAIRS = list(itertools.product(RunStatus, EFFECTS))
ALLOWED = [
    (status, event, changes)
    for status, (event, changes) in PAIRS
    if type(event) in TRANSITIONS[status]
]
FORBIDDEN = [
    (status, event) for status, (event, _) in PAIRS if type(event) not in TRANSITIONS[status]
]


def _name(value: object) -> str | None:
    if isinstance(value, RunStatus):
        return value.value
    return "" if isinstance(value, dict) else type(value).__name__


def test_every_event_is_examined() -> None:
    assert {type(event) for event, _ in EFFECTS} == set(get_args(Event))
    assert set(TRANSITIONS) == set(RunStatus)
    assert len(ALLOWED) + len(FORBIDDEN) == len(RunStatus) * len(EFFECTS)


@pytest.mark.parametrize(("status", "event", "changes"), ALLOWED, ids=_name)
def test_allowed_event_changes_what_it_should(
    status: RunStatus, event: Event, changes: dict[str, Any]
) -> None:
    before = replace(RUN, status=status, deleted_from=RunStatus.PRUNED)

    after = apply(before, event)

    expected = TRANSITIONS[status][type(event)] or RunStatus.PRUNED
    if isinstance(event, RunDeleted):
        changes = {**changes, "deleted_from": status}
    assert after == replace(before, status=expected, **changes)
    assert before == replace(RUN, status=status, deleted_from=RunStatus.PRUNED), "left as it was"


@pytest.mark.parametrize(("status", "event"), FORBIDDEN, ids=_name)
def test_forbidden_event_raises_and_changes_nothing(status: RunStatus, event: Event) -> None:
    before = replace(RUN, status=status)

    with pytest.raises(IllegalTransitionError) as caught:
        apply(before, event)

    assert before == replace(RUN, status=status)
    assert caught.value.run_id == ID
    assert caught.value.status == status
    assert caught.value.event == type(event).__name__
    assert str(caught.value) == (
        f"run 7 is {status.value}: {type(event).__name__} is not possible from there"
    )


@pytest.mark.parametrize("status", RunStatus)
def test_settled_runs_do_not_train_unless_they_are_resumed(status: RunStatus) -> None:
    others = {target for target in TRANSITIONS[status].values() if target is not status}
    on_request = {RunStatus.QUEUED, RunStatus.DELETED, AS_BEFORE}
    assert (status in SETTLED) == (
        others <= on_request
        and ChunkAssigned not in TRANSITIONS[status]
        and RunRecovered not in TRANSITIONS[status]
    )
    assert replace(RUN, status=status).ended == (status in ENDED)


@pytest.mark.parametrize("status", [status for status in RunStatus if status not in ENDED])
def test_a_run_can_be_stopped_and_can_fail_until_it_has_ended(status: RunStatus) -> None:
    assert TRANSITIONS[status][RunStopped] is RunStatus.STOPPED
    assert TRANSITIONS[status][RunFailed] is RunStatus.FAILED


def test_every_status_is_reached_from_queued() -> None:
    reached = {RunStatus.QUEUED}
    for _ in RunStatus:
        targets = {target for status in reached for target in TRANSITIONS[status].values()}
        reached |= {target for target in targets if target is not None}
    assert reached == set(RunStatus)


def test_a_warm_clones_pace_is_that_of_its_own_steps() -> None:
    started = RunStarted(run_id=ID, num_steps=80, num_chunks=8, resolved={}, step=20)
    clone = apply(replace(RUN, status=RunStatus.RUNNING), started)
    assert (clone.start_step, clone.remaining_s) == (20, None)
    clone = apply(clone, StepFinished(run_id=ID, step=21, loss=1.0, active_s=2.0))
    assert clone.remaining_s == 2.0 * 59
    # Taken up again it has spent time, on steps since the same one.
    again = replace(started, step=25, active_s=10.0)
    assert apply(clone, again).start_step == 20


def test_a_run_of_a_trainer_that_ends_early_counts_the_chunks_it_did() -> None:
    run = replace(RUN, status=RunStatus.RUNNING, chunks_done=3)
    run = apply(run, RunCompleted(run_id=ID, step=35, active_s=20.0))
    assert (run.chunks_done, run.num_chunks) == (4, 9)


def test_resolved_arguments_are_a_copy() -> None:
    resolved = {"max_steps": 80}
    running = replace(RUN, status=RunStatus.RUNNING)
    run = apply(running, RunStarted(run_id=ID, num_steps=80, num_chunks=8, resolved=resolved))
    resolved["max_steps"] = 1
    assert run.resolved == {"max_steps": 80}


@pytest.mark.parametrize(
    ("step", "num_steps", "remaining_s"),
    [(10, 90, 40.0), (90, 90, 0.0), (0, 90, None), (0, None, None)],
)
def test_remaining_time_follows_the_pace_so_far(
    step: int, num_steps: int | None, remaining_s: float | None
) -> None:
    assert replace(RUN, step=step, num_steps=num_steps).remaining_s == remaining_s
