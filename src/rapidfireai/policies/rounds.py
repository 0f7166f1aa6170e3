"""What the policies of this package have in common: they judge all runs of a chunk together."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rapidfireai.core.commands import Command, Verb
from rapidfireai.core.ids import RunId
from rapidfireai.core.run import Run, RunStatus
from rapidfireai.policies.objective import Measured, Yardstick


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """Runs that have done the same chunk, and can be compared with each other."""

    group: str
    """Of the runs that can be compared; the same in each round."""
    chunk: int
    """Counted from 1: how many chunks they have done."""
    fresh: tuple[RunId, ...]
    """Those that have done it since the last call and train on: what a policy decides about."""
    runs: Mapping[RunId, Run]
    """All that can be compared with them, as they are now."""
    curves: Mapping[RunId, Sequence[float]]
    """Costs after each chunk, less being better, of runs that have done any; NaN where a chunk's is
    not a number. A warm clone's begin with its parent's."""

    def costs(self) -> dict[RunId, float]:
        """The costs after this chunk of all runs that ever did it."""
        return {
            run_id: curve[self.chunk - 1]
            for run_id, curve in self.curves.items()
            if len(curve) >= self.chunk
        }

    def prunable(self) -> list[RunId]:
        """Of `fresh` those that nobody protects."""
        return [run_id for run_id in self.fresh if not self.runs[run_id].pinned]


@dataclass(slots=True)
class _Group:
    curves: dict[RunId, list[float]] = field(default_factory=dict)
    fresh: list[RunId] = field(default_factory=list)


class RoundPolicy(ABC):
    """Judges all runs of a chunk at once; implements `core.policy.Policy`.

    Runs are judged within groups that can be compared: see `Yardstick.group`. A run that does not
    report the objective is left alone.

    Args:
        objective: Such as "minimize:eval_loss" or "maximize:eval_accuracy". None takes the
            evaluation's reward or loss if every run reports it, else the training's.

    Raises:
        ConfigError: The objective cannot be read.
    """

    def __init__(self, objective: str | None = None) -> None:
        self._yardstick = Yardstick(objective)
        self._groups: dict[str, _Group] = {}
        self._reports: list[Measured] = []
        self._reached: dict[RunId, int] = {}

    @property
    def metric(self) -> str:
        """What runs are compared by; empty before the first chunk's end where it was left open."""
        return str(self._yardstick)

    def on_chunk(
        self, run: Run, metrics: Mapping[str, float], runs: Sequence[Run]
    ) -> Sequence[Command]:
        """Take note, and judge once the round is complete. See `Policy.on_chunk`."""
        self._reports.append(Measured(run=run, metrics=metrics))
        self._reached[run.id] = run.chunks_done
        if any(r.unfinished and self._reached.get(r.id, 0) < run.chunks_done for r in runs):
            return []
        reports, self._reports = self._reports, []
        self._yardstick.choose(reports)
        now = {other.id: other for other in runs}
        for report in reports:
            self._file(report)
        return [
            command
            for name in sorted(self._groups)
            for command in self._judge_group(name, run.chunks_done, now)
        ]

    @abstractmethod
    def judge(self, round: Round) -> list[Command]:
        """What is to be done after a chunk.

        Args:
            round: The runs, one of them at least to be decided about.
        """

    def value(self, cost: float) -> str:
        """The metric's value of a cost, for people."""
        return f"{self._yardstick.objective.value(cost):.4g}"

    def prune(self, run_id: RunId, reason: str) -> Command:
        """End a run for this reason."""
        return Command(verb=Verb.PRUNE, run_id=run_id, reason=f"{reason} {self._mark}")

    def resume(self, run_id: RunId, reason: str) -> Command:
        """Let a pruned run go on for this reason."""
        return Command(verb=Verb.RESUME, run_id=run_id, reason=f"{reason} {self._mark}")

    def has_pruned(self, run: Run) -> bool:
        """Whether a run is one that a policy like this ended, and may have go on."""
        notes = run.notes[-1:]
        return run.status is RunStatus.PRUNED and bool(notes) and notes[0].endswith(self._mark)

    @property
    def _mark(self) -> str:
        """Ends every reason, also for finding out whose decision an ended run's was."""
        return f"({type(self).__name__} by {self.metric})"

    def _file(self, report: Measured) -> None:
        cost = self._yardstick.cost(report.metrics)
        run = report.run
        if cost is None:
            return
        group = self._groups.setdefault(self._yardstick.group(run), _Group())
        if run.id not in group.curves:
            parent = group.curves.get(run.parent_id) if run.parent_id and run.fork else None
            group.curves[run.id] = list((parent or ())[: run.chunks_done - 1])
        curve = group.curves[run.id]
        # What a run did not measure, as a chunk of a clone whose parent is in another group.
        curve += [float("nan")] * (run.chunks_done - 1 - len(curve))
        curve.append(cost)
        group.fresh.append(run.id)

    def _judge_group(self, name: str, chunk: int, now: Mapping[RunId, Run]) -> list[Command]:
        group = self._groups[name]
        fresh, group.fresh = group.fresh, []
        going = tuple(run_id for run_id in fresh if now[run_id].unfinished)
        if not going:
            return []
        return self.judge(
            Round(
                group=name,
                chunk=chunk,
                fresh=going,
                runs={run_id: now[run_id] for run_id in group.curves},
                curves=group.curves,
            )
        )
