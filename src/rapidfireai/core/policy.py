"""What decides about runs while they train, besides a person.

Decisions hang on what runs have measured, never on who was quicker: chunk k is judged once every
run that has not settled has done it, and the runs are shown in a fixed order. Fairness keeps that
wait short, as nobody leads a waiting run by more than a chunk. So the same seed leads to the same
decisions, and what policies know can be rebuilt from what was recorded.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from rapidfireai.core.commands import Command, Verb
from rapidfireai.core.events import (
    ChunkAssigned,
    ChunkFinished,
    Event,
    MetricsLogged,
    MetricSource,
    RunCompleted,
    StepFinished,
)
from rapidfireai.core.ids import RunId
from rapidfireai.core.run import Run
from rapidfireai.errors import ObjectiveError

logger = logging.getLogger(__name__)


class Policy(Protocol):
    """Looks at each run after each of its chunks and says what is to be done with which runs.

    Called from the engine's thread while no run trains, chunk by chunk: for chunk k once every run
    that has not settled has done it, first for runs that have ended by now, then for the others,
    each in the order of their numbers. A chunk that is repeated after a crash is not shown again; a
    new process shows all chunks from the first on, so a policy needs to keep nothing. Its commands
    go the same way as a person's: they are stored with their reasons, and rejected where they are
    impossible, as pruning a pinned run is. A policy that raises is switched off.
    """

    def on_chunk(
        self, run: Run, metrics: Mapping[str, float], runs: Sequence[Run]
    ) -> Sequence[Command]:
        """Decide after `run` did a chunk, the one that `run.chunks_done` counts last.

        Args:
            run: The run at the end of that chunk.
            metrics: Its metrics by then: those of its steps, such as `loss`, are averages over the
                chunk, those of evaluations the latest values.
            runs: All runs as they are now, this one included.

        Raises:
            ObjectiveError: No run has the metric that the policy is to go by: ends the training,
                since nothing would be decided.
        """
        ...


@dataclass(slots=True)
class ChunkMetrics:
    """What is known of a run's metrics, to be summed up at the ends of its chunks."""

    latest: dict[str, float] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)
    """By step, of the present chunk. A run that goes on from a checkpoint repeats some."""
    logged: dict[str, dict[int, float]] = field(default_factory=dict)
    """Of each metric of the steps that the trainer logs, likewise."""

    def note(self, event: StepFinished | MetricsLogged) -> None:
        """Take in what was measured."""
        if isinstance(event, StepFinished):
            self.losses[event.step] = event.loss
            return
        for name, value in event.values.items():
            # A chunk has one evaluation, and the device is looked at once.
            if event.source is MetricSource.LOG and not name.startswith("eval_"):
                self.logged.setdefault(name, {})[event.step] = value
            else:
                self.latest[name] = value

    def take(self) -> dict[str, float]:
        """The metrics at a chunk's end, where the next one begins."""
        averages = {name: _average(values.values()) for name, values in self.logged.items()}
        metrics = {**self.latest, **averages, "loss": _average(self.losses.values())}
        self.latest.update(averages)
        self.losses.clear()
        self.logged.clear()
        return metrics


@dataclass(frozen=True, slots=True)
class _Report:
    """A run at the end of a chunk."""

    run: Run
    metrics: Mapping[str, float]


class Advice:
    """Keeps what policies look at, and asks them; listens to an engine's events.

    Args:
        policies: Asked in this order.
        runs: All that there are; later ones make themselves known by events.
    """

    def __init__(self, policies: Sequence[Policy], runs: Iterable[Run] = ()) -> None:
        self._policies = list(policies)
        self._seen: dict[RunId, ChunkMetrics] = {}
        self._reached: dict[RunId, int] = {}
        """Chunks that each run has reported."""
        self._unfinished: dict[RunId, int] = {}
        """The same of those that have not settled."""
        self._counts: Counter[int] = Counter()
        """How many of those have reported how many chunks, so that nobody walks over all runs."""
        self._due: dict[int, list[_Report]] = {}
        """Reports by their chunk, counted from 1."""
        self.meet(runs)

    def meet(self, runs: Iterable[Run]) -> None:
        """Know of runs that have not made themselves known by events yet."""
        for run in runs:
            self._file(run)

    def on_event(self, before: Run, event: Event, after: Run) -> None:
        """Take note of metrics, and of who has finished a chunk or settled."""
        if not self._policies:
            return
        match event:
            case StepFinished() | MetricsLogged():
                self._of(after).note(event)
            case ChunkFinished() | RunCompleted():
                self._report(after)
            case _:
                pass
        self._file(after)

    def recall(
        self,
        begin: Iterable[Run],
        history: Iterable[tuple[Run, Event, Run]],
        given: Iterable[Command],
    ) -> list[Command]:
        """Show policies all that earlier processes recorded, as it happened.

        Args:
            begin: The runs as they were before the first event.
            history: Every event, with the run before and after it.
            given: What policies asked for then.

        Returns:
            What they would have asked for, had the last process not ended before. What they say to
            older chunks and is not in the log is what they did not say then, and stays unsaid.
        """
        known = Counter(map(_key, given))
        owed: list[Command] = []
        runs = {run.id: run for run in begin}
        self._reached.clear()
        self._unfinished.clear()
        self._counts.clear()
        self.meet(runs.values())
        for before, event, after in history:
            runs[after.id] = after
            if isinstance(event, ChunkAssigned):
                owed.clear()
            self.on_event(before, event, after)
            for command in self.take(runs.values()):
                if known[_key(command)]:
                    known[_key(command)] -= 1
                else:
                    owed.append(command)
        return [command for command in owed if _is_open(command, runs)]

    def take(self, runs: Iterable[Run]) -> list[Command]:
        """The decisions about the chunks that every run has done since the last call."""
        if not self._due:
            return []
        behind = min(self._counts, default=math.inf)
        complete = sorted(chunk for chunk in self._due if chunk <= behind)
        decisions: list[Command] = []
        now = {run.id: run for run in runs} if complete else {}
        for chunk in complete:
            reports = self._due.pop(chunk)
            reports.sort(key=lambda report: (now[report.run.id].unfinished, report.run.id))
            for policy in tuple(self._policies):
                decisions += self._ask(policy, reports, tuple(now.values()))
        return [command for command in _without_repeats(decisions) if _is_open(command, now)]

    def _ask(
        self, policy: Policy, reports: Sequence[_Report], runs: Sequence[Run]
    ) -> list[Command]:
        decisions: list[Command] = []
        try:
            for report in reports:
                decisions += (
                    replace(command, by=f"policy {type(policy).__name__}")
                    for command in policy.on_chunk(report.run, report.metrics, runs)
                )
        except ObjectiveError:
            raise
        except Exception:
            logger.warning(
                "the policy %s failed and is switched off; training goes on without it",
                type(policy).__name__,
                exc_info=True,
            )
            self._policies.remove(policy)
            return []
        return decisions

    def _of(self, run: Run) -> ChunkMetrics:
        return self._seen.setdefault(run.id, ChunkMetrics())

    def _report(self, run: Run) -> None:
        metrics = self._of(run).take()
        if run.chunks_done > self._reached.get(run.id, 0):
            self._reached[run.id] = run.chunks_done
            self._due.setdefault(run.chunks_done, []).append(_Report(run, metrics))

    def _file(self, run: Run) -> None:
        """Keep the count of runs that are waited for."""
        # A clone enters where its parent stands; a run that repeats a chunk is known further on.
        reached = self._reached.setdefault(run.id, run.chunks_done)
        new = reached if run.unfinished else None
        old = self._unfinished.pop(run.id, None)
        if new is not None:
            self._unfinished[run.id] = new
        if new != old:
            if old is not None:
                self._counts[old] -= 1
                if not self._counts[old]:
                    del self._counts[old]
            if new is not None:
                self._counts[new] += 1


def _average(values: Iterable[float]) -> float:
    """The average of what is finite, so that one step that overflowed does not stand for all."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _key(command: Command) -> tuple[object, ...]:
    return (command.by, command.verb, command.run_id, repr(dict(command.modify)), command.reason)


def _is_open(command: Command, runs: Mapping[RunId, Run]) -> bool:
    """Whether there is anything to do: a run that has ended anyway need not be pruned."""
    run = runs.get(command.run_id)
    ends = command.verb in (Verb.PRUNE, Verb.STOP)
    return run is None or not ends or run.unfinished


def _without_repeats(commands: Iterable[Command]) -> list[Command]:
    """Of several policies that would end the same run, the first says why."""
    kept: list[Command] = []
    ended: set[RunId] = set()
    for command in commands:
        if command.verb in (Verb.PRUNE, Verb.STOP):
            if command.run_id in ended:
                continue
            ended.add(command.run_id)
        kept.append(command)
    return kept
