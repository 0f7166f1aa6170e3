"""The policy of `schedule`, stated as properties of any snapshot."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapidfireai.core.ids import RunId, WorkerId
from rapidfireai.core.scheduler import Assign, Snapshot, WaitingRun, WaitingRuns, schedule

workers = st.integers(0, 4).map(WorkerId)


@st.composite
def waiting_runs(draw: st.DrawFn) -> list[WaitingRun]:
    """Few distinct values, so that there are many equals."""
    return [
        WaitingRun(
            run_id=RunId(run_id),
            chunks_done=draw(st.integers(0, 2)),
            remaining_s=draw(st.sampled_from([0.0, 1.0, 2.0, math.inf])),
            holder=draw(st.none() | workers),
        )
        for run_id in draw(st.permutations(range(1, 1 + draw(st.integers(0, 12)))))
    ]


idle_workers = st.lists(workers, unique=True).map(tuple)


@dataclass(frozen=True)
class Decision:
    """A snapshot, what was decided on it, and what was left."""

    runs: dict[RunId, WaitingRun]
    idle: tuple[WorkerId, ...]
    orders: list[Assign]

    @property
    def left(self) -> list[WaitingRun]:
        started = {order.run_id for order in self.orders}
        return [run for run in self.runs.values() if run.run_id not in started]

    @property
    def moves(self) -> list[Assign]:
        return [o for o in self.orders if self.runs[o.run_id].holder not in (None, o.worker_id)]

    def holds(self, worker_id: WorkerId, chunks_done: int) -> bool:
        return any(
            run.holder == worker_id and run.chunks_done == chunks_done for run in self.runs.values()
        )


@st.composite
def decisions(draw: st.DrawFn) -> Decision:
    runs, idle = draw(waiting_runs()), draw(idle_workers)
    return Decision({run.run_id: run for run in runs}, idle, decide(runs, idle))


def decide(runs: Sequence[WaitingRun], idle: Sequence[int]) -> list[Assign]:
    return schedule(
        Snapshot(waiting=WaitingRuns(runs), idle=tuple(WorkerId(worker) for worker in idle))
    )


def waiting(run_id: int, chunks_done: int, remaining_s: float, holder: int | None) -> WaitingRun:
    return WaitingRun(
        run_id=RunId(run_id),
        chunks_done=chunks_done,
        remaining_s=remaining_s,
        holder=None if holder is None else WorkerId(holder),
    )


@pytest.mark.parametrize(
    ("runs", "idle", "expected"),
    [
        pytest.param([], [0], {}, id="nothing waits"),
        pytest.param([waiting(1, 0, 9, None)], [], {}, id="nobody is idle"),
        pytest.param(
            [waiting(1, 2, 9, 0), waiting(2, 1, 1, 1)], [0], {0: 2}, id="fair before sticky"
        ),
        pytest.param(
            [waiting(1, 1, 9, 1), waiting(2, 1, 1, 0)], [0], {0: 2}, id="sticky before longest"
        ),
        pytest.param(
            [waiting(1, 0, 9, 1), waiting(2, 0, 1, None)], [0], {0: 2}, id="nobody's before moved"
        ),
        pytest.param(
            [waiting(1, 1, 1, 0), waiting(2, 1, 2, 0)], [0], {0: 2}, id="longest of its own"
        ),
        pytest.param(
            [waiting(1, 1, 1, 1), waiting(2, 1, 2, 2)], [0], {0: 2}, id="longest of the others'"
        ),
        pytest.param(
            [waiting(2, 1, 1, 0), waiting(1, 1, 1, 0)], [0], {0: 1}, id="lowest id of equals"
        ),
        pytest.param([waiting(1, 1, 1, 1)], [0, 1], {1: 1}, id="an idle holder keeps its only run"),
        pytest.param(
            [waiting(1, 1, 3, 1), waiting(2, 1, 2, 1), waiting(3, 1, 1, 1)],
            [0, 1],
            {0: 2, 1: 1},
            id="rebalancing",
        ),
        pytest.param(
            [waiting(1, 0, 1, 0), waiting(2, 1, 1, 1)], [0, 1], {0: 1, 1: 2}, id="over rounds"
        ),
    ],
)
def test_examples(runs: list[WaitingRun], idle: list[int], expected: dict[int, int]) -> None:
    assert {order.worker_id: order.run_id for order in decide(runs, idle)} == expected


@given(runs=waiting_runs(), idle=idle_workers, data=st.data())
def test_depends_on_the_snapshot_alone_and_not_on_the_order_of_runs(
    runs: list[WaitingRun], idle: tuple[WorkerId, ...], data: st.DataObject
) -> None:
    snapshot = Snapshot(waiting=WaitingRuns(runs), idle=idle)
    orders = schedule(snapshot)
    assert schedule(snapshot) == orders, "the first call changed the snapshot"
    assert decide(data.draw(st.permutations(runs)), idle) == orders


@given(decisions())
def test_at_most_one_order_a_worker_and_a_run(decision: Decision) -> None:
    served = [order.worker_id for order in decision.orders]
    started = [order.run_id for order in decision.orders]
    assert len(set(served)) == len(served)
    assert len(set(started)) == len(started)
    assert set(served) <= set(decision.idle)
    assert all(decision.runs[o.run_id].chunks_done == o.chunk for o in decision.orders)


@given(decisions())
def test_no_worker_idles_while_a_run_waits(decision: Decision) -> None:
    assert len(decision.orders) == min(len(decision.idle), len(decision.runs))


@given(decisions())
def test_never_starts_a_run_while_one_with_fewer_chunks_waits(decision: Decision) -> None:
    for order in decision.orders:
        assert all(order.chunk <= run.chunks_done for run in decision.left)


@given(decisions())
def test_a_worker_takes_its_own_run_of_the_round_if_it_holds_one(decision: Decision) -> None:
    for order in decision.orders:
        if decision.holds(order.worker_id, order.chunk):
            assert decision.runs[order.run_id].holder == order.worker_id


@given(decisions())
def test_moves_a_run_only_to_keep_a_worker_from_idling(decision: Decision) -> None:
    chunk_of = {order.worker_id: order.chunk for order in decision.orders}
    for move in decision.moves:
        holder = decision.runs[move.run_id].holder
        assert not any(
            run.holder is None and run.chunks_done == move.chunk for run in decision.left
        )
        if holder in decision.idle:
            assert chunk_of[holder] <= move.chunk, "it was free to keep its run"


@given(decisions())
def test_longest_first_among_equals(decision: Decision) -> None:
    def distance(run: WaitingRun, worker_id: WorkerId) -> int:
        return 0 if run.holder == worker_id else 1 if run.holder is None else 2

    for order in decision.orders:
        started = decision.runs[order.run_id]
        equals = [
            run
            for run in decision.left
            if run.chunks_done == started.chunks_done
            and distance(run, order.worker_id) == distance(started, order.worker_id)
        ]
        for run in equals:
            assert (-started.remaining_s, started.run_id) < (-run.remaining_s, run.run_id)


@given(runs=waiting_runs(), gone=st.sets(st.integers(1, 14)), idle=idle_workers)
def test_filing_run_by_run_equals_filing_at_once(
    runs: list[WaitingRun], gone: set[int], idle: tuple[WorkerId, ...]
) -> None:
    filed = WaitingRuns(runs)
    for run_id in gone:
        filed.discard(RunId(run_id))
    stay = [run for run in runs if run.run_id not in gone]
    assert schedule(Snapshot(waiting=filed, idle=idle)) == decide(stay, idle)
    assert list(filed) == stay
    assert len(filed) == len(stay)
    assert all((run in filed) == (run in stay) for run in runs)
    for run in runs:
        if run.run_id in gone:
            filed.add(run)
    assert schedule(Snapshot(waiting=filed, idle=idle)) == decide(runs, idle)


def test_a_run_is_not_filed_twice() -> None:
    filed = WaitingRuns([waiting(1, 0, 1, None)])
    with pytest.raises(AssertionError, match="run 1 waits already"):
        filed.add(waiting(1, 1, 1, 0))
