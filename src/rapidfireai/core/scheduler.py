"""Which run trains its next chunk where: a pure function of a snapshot.

It knows no clock, database, torch or global randomness. Policy:

- *Fair*: a run starts a chunk only if no waiting run has finished fewer chunks. Hence nobody leads
  a waiting run by more than one chunk, and configurations stay comparable all the time.
- *Work-conserving*: a worker never idles while a run waits; there is no barrier between rounds.
- *Sticky*: among runs with equally many chunks done, a worker prefers those that it holds, then
  those that nobody holds. It takes another worker's run only when it would idle otherwise, and
  never while that worker is idle too, since moving a run's state costs time.
- *Longest first*: among what is still equal, the run with most work left starts first, which is
  Graham's LPT rule (https://doi.org/10.1137/0117039); it keeps the end of the schedule level.
"""

from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain

from rapidfireai.core.ids import RunId, WorkerId


@dataclass(frozen=True, kw_only=True, slots=True)
class WaitingRun:
    """A run that could start its next chunk now."""

    run_id: RunId
    chunks_done: int
    remaining_s: float
    """Estimate of the work left; only the order between runs matters."""
    holder: WorkerId | None
    """Worker that holds the run's state; None if none does yet."""


@dataclass(slots=True)
class Round:
    """The waiting runs with equally many chunks done, in the order of `_rank`."""

    runs: list[WaitingRun] = field(default_factory=list)
    held: dict[WorkerId, list[WaitingRun]] = field(default_factory=dict)
    """Those that a worker holds, by worker; no list is empty."""


class WaitingRuns(Collection[WaitingRun]):
    """The waiting runs, filed so that a decision looks at a few of them instead of at all.

    The order in which runs are added does not matter. Adding or discarding a run takes
    O(log(runs)) comparisons.
    """

    def __init__(self, runs: Iterable[WaitingRun] = ()) -> None:
        self._runs: dict[RunId, WaitingRun] = {}
        self._rounds: dict[int, Round] = {}
        for run in runs:
            self.add(run)

    def add(self, run: WaitingRun) -> None:
        """File a run, which must not be filed already."""
        assert run.run_id not in self._runs, f"run {run.run_id} waits already"
        self._runs[run.run_id] = run
        in_round = self._rounds.setdefault(run.chunks_done, Round())
        insort(in_round.runs, run, key=_rank)
        if run.holder is not None:
            insort(in_round.held.setdefault(run.holder, []), run, key=_rank)

    def discard(self, run_id: RunId) -> None:
        """Take a run out, if it is filed."""
        run = self._runs.pop(run_id, None)
        if run is None:
            return
        in_round = self._rounds[run.chunks_done]
        _remove(in_round.runs, run)
        if not in_round.runs:
            del self._rounds[run.chunks_done]
        elif run.holder is not None:
            _remove(in_round.held[run.holder], run)
            if not in_round.held[run.holder]:
                del in_round.held[run.holder]

    def rounds(self) -> Iterator[Round]:
        """The runs by the number of chunks done, the fewest first; no round is empty."""
        return (self._rounds[chunks_done] for chunks_done in sorted(self._rounds))

    def __contains__(self, run: object) -> bool:
        return isinstance(run, WaitingRun) and self._runs.get(run.run_id) == run

    def __iter__(self) -> Iterator[WaitingRun]:
        return iter(self._runs.values())

    def __len__(self) -> int:
        return len(self._runs)


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """All that a decision depends on. `schedule` changes nothing in it."""

    waiting: WaitingRuns
    idle: tuple[WorkerId, ...]
    """Workers without an order, in the order in which they should be served."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Assign:
    """Let the worker train the run's next chunk."""

    run_id: RunId
    worker_id: WorkerId
    chunk: int


def schedule(snapshot: Snapshot) -> list[Assign]:
    """Orders for the idle workers, at most one each.

    Deterministic. The time it takes grows with the number of idle workers, not of runs.
    """
    orders: list[Assign] = []
    idle = snapshot.idle
    for in_round in snapshot.waiting.rounds():
        if not idle:
            break
        served = dict(_serve(in_round, idle))
        orders += (
            Assign(run_id=run.run_id, worker_id=worker_id, chunk=run.chunks_done)
            for worker_id, run in served.items()
        )
        idle = tuple(worker_id for worker_id in idle if worker_id not in served)
    return orders


def _serve(in_round: Round, idle: Collection[WorkerId]) -> Iterator[tuple[WorkerId, WaitingRun]]:
    """Who gets what of a round: each worker what it holds, then the rest of either."""
    own = {
        worker_id: in_round.held[worker_id][0] for worker_id in idle if worker_id in in_round.held
    }
    taken = {run.run_id for run in own.values()}
    others = (worker_id for worker_id in idle if worker_id not in own)
    left = (run for run in in_round.runs if run.run_id not in taken)
    return chain(own.items(), zip(others, left, strict=False))


def _rank(run: WaitingRun) -> tuple[bool, float, RunId]:
    """What nobody holds comes first, then what takes longest."""
    return (run.holder is not None, -run.remaining_s, run.run_id)


def _remove(runs: list[WaitingRun], run: WaitingRun) -> None:
    del runs[bisect_left(runs, _rank(run), key=_rank)]
