"""The same decisions whoever is quicker, and whenever the process that decides is killed."""

import random
from collections.abc import Callable, Mapping, Sequence

import pytest

from rapidfireai.core.clock import SystemClock
from rapidfireai.core.commands import Command, Verb
from rapidfireai.core.engine import Engine
from rapidfireai.core.events import RunRecovered
from rapidfireai.core.ids import RunId
from rapidfireai.core.policy import Policy
from rapidfireai.core.run import Run, RunStatus, apply
from rapidfireai.errors import ObjectiveError
from rapidfireai.policies import CurvePolicy, MedianPolicy, SuccessiveHalving
from rapidfireai.store import ExperimentRecord, History, MemoryStore, Recorder
from rapidfireai.testing.simulation import FakeClock, SimulatedExecutor, queued_runs

NUM_CHUNKS = 9
LOSSES = {
    RunId(number): [1.0 + number / 10 + 2.0 / chunk for chunk in range(1, NUM_CHUNKS + 1)]
    for number in range(1, 7)
}
LOSSES[RunId(7)] = [5.0] * NUM_CHUNKS  # learns nothing
LOSSES[RunId(1)][5:] = [9.0, 12.0, 15.0, 20.0]  # the leader diverges

POLICIES: Mapping[str, Callable[[], Policy]] = {
    "curve": CurvePolicy,
    "median": lambda: MedianPolicy(warm_up=2, min_peers=2, patience=1),
    "halving": lambda: SuccessiveHalving(first_rung=2, reduction_factor=2),
}


class Killed(BaseException):
    """As kill -9: nobody catches it."""


class Kill:
    """A recorder whose process ends right after it has written the n-th time."""

    def __init__(self, recorder: Recorder, after: int | None) -> None:
        self._recorder, self._left = recorder, after

    def __getattr__(self, name: str) -> object:
        method = getattr(self._recorder, name)
        if name not in ("on_event", "submit", "add_run", "settle"):
            return method

        def write(*args: object) -> object:
            result = method(*args)
            if self._left is not None:
                self._left -= 1
                if self._left == 0:
                    raise Killed
            return result

        return write


def live(store: MemoryStore, policy: Policy, pace: int, kill_after: int | None = None) -> int:
    """One process; returns how many chunks it trained."""
    for run in store.runs():
        if run.unfinished and run.status is not RunStatus.QUEUED:
            event = RunRecovered(
                run_id=run.id, step=run.chunks_done, chunks_done=run.chunks_done, active_s=0.0
            )
            store.record(run, event, apply(run, event), 0.0)
    rng = random.Random(pace)
    durations = {run_id: [rng.uniform(1, 5)] * NUM_CHUNKS for run_id in LOSSES}
    recorder = Recorder(store, SystemClock())
    executor = SimulatedExecutor(FakeClock(), 1, durations, losses=LOSSES)
    record = Kill(recorder, kill_after)
    engine = Engine(store.runs(), executor, record, policies=[policy])  # type: ignore[arg-type]
    history = History(store)
    engine.recall(history.begin, history.moments(), [r.command for r in store.commands()])
    engine.run()
    recorder.flush()
    return len(store.events())


def begun() -> MemoryStore:
    store = MemoryStore()
    store.create(
        ExperimentRecord(name="lab", created_s=0.0, seed=0, num_chunks=NUM_CHUNKS),
        queued_runs(LOSSES),
    )
    return store


def outcome(store: MemoryStore) -> tuple[object, ...]:
    decided = [(r.command.verb, r.command.run_id, r.command.reason) for r in store.commands()]
    return decided, [(run.id, run.status, run.chunks_done) for run in store.runs()]


@pytest.mark.parametrize("name", POLICIES)
def test_pace_decides_nothing(name: str) -> None:
    outcomes = []
    for pace in range(3):
        store = begun()
        live(store, POLICIES[name](), pace)
        outcomes.append(outcome(store))
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert outcomes[0][0], "something was decided"


@pytest.mark.parametrize("name", POLICIES)
def test_a_process_that_is_killed_anywhere_decides_the_same(name: str) -> None:
    whole = begun()
    num_events = live(whole, POLICIES[name](), pace=0)
    for kill_after in range(1, num_events, 7):
        store = begun()
        with pytest.raises(Killed):
            live(store, POLICIES[name](), 0, kill_after)
        live(store, POLICIES[name](), pace=1)
        assert outcome(store) == outcome(whole), f"killed after {kill_after} writes"


class Broken:
    """Raises when it is asked for the second time."""

    def __init__(self) -> None:
        self.num_calls = 0

    def on_chunk(
        self, run: Run, metrics: Mapping[str, float], runs: Sequence[Run]
    ) -> Sequence[Command]:
        self.num_calls += 1
        if self.num_calls == 2:
            raise KeyError("eval_los")
        return [Command(verb=Verb.PRUNE, run_id=run.id, reason="first")]


def test_a_policy_that_raises_is_switched_off_once_and_training_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, broken = begun(), Broken()
    live(store, broken, pace=0)
    assert broken.num_calls == 2
    warnings = [entry for entry in caplog.records if "switched off" in entry.message]
    assert len(warnings) == 1 and "Broken" in warnings[0].message
    assert {run.status for run in store.runs()} == {RunStatus.COMPLETED}
    assert store.commands() == []


def test_an_objective_that_no_run_reports_says_what_there_is() -> None:
    with pytest.raises(ObjectiveError, match=r"'eval_los'.*eval_loss, loss"):
        live(begun(), MedianPolicy(objective="minimize:eval_los"), pace=0)


def test_runs_are_shown_chunk_by_chunk_with_averages() -> None:
    shown: list[tuple[int, int, float]] = []

    class Looks:
        def on_chunk(
            self, run: Run, metrics: Mapping[str, float], runs: Sequence[Run]
        ) -> Sequence[Command]:
            shown.append((run.chunks_done, run.id, metrics["eval_loss"]))
            return []

    live(begun(), Looks(), pace=2)
    assert [(chunk, run_id) for chunk, run_id, _ in shown] == [
        (chunk, run_id) for chunk in range(1, NUM_CHUNKS + 1) for run_id in LOSSES
    ]
    assert all(value == LOSSES[RunId(i)][chunk - 1] for chunk, i, value in shown)
