"""What an experiment has shown: a ranking, what was decided, what that saved, which knobs matter."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rapidfireai.core.commands import Command, CommandRecord, CommandStatus, Verb
from rapidfireai.core.events import Json
from rapidfireai.core.ids import RunId
from rapidfireai.core.policy import Advice
from rapidfireai.core.run import Run, RunStatus
from rapidfireai.errors import ConfigError
from rapidfireai.policies.objective import Measured, Objective, Yardstick, ranks
from rapidfireai.store import History, Store

NUM_LAST: Final = 4
"""Chunks at the end of a run over which its value is averaged."""

_TOLD: Final = frozenset({Verb.PRUNE, Verb.RESUME, Verb.STOP, Verb.CLONE, Verb.DELETE})
_SECTIONS: Final = ("training_args", "peft", "model", "trainer_kwargs")
_MAX_BINS: Final = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """A run's place among those that it can be compared with."""

    run: Run
    place: int
    group: str
    value: float
    """Average over its last chunks."""
    error: float | None
    """Standard error of that average, from the same chunks; None with a single one."""
    curve: tuple[float, ...]
    """The metric after each chunk; NaN where it was not measured."""
    is_tied: bool
    """Whether the difference to the best is within twice its standard error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """All that a report tells."""

    name: str
    objective: Objective
    why: str
    """Why runs are compared by that."""
    standings: tuple[Standing, ...]
    """By group, from the best to the worst."""
    unranked: tuple[Run, ...]
    """Runs that have not reported the metric."""
    decisions: tuple[CommandRecord, ...]
    """What ended, resumed or cloned runs, in order."""
    num_steps: int
    """Optimizer steps that were done."""
    num_planned: int
    """Those of all runs, had each been trained to its end."""
    knobs: tuple[str, ...]
    """Short names of the knobs in which runs differ."""
    importance: Mapping[str, float]
    """Of each knob: the share of the variance between runs that it explains by itself, 0 to 1."""

    @property
    def saved(self) -> float:
        """Share of the steps that did not have to be done."""
        return 1 - self.num_steps / self.num_planned if self.num_planned else 0.0

    def value_of(self, run: Run, knob: str) -> Json:
        """What a knob is in a run."""
        return _knobs(run).get(knob)


class _Collector:
    """A policy that only looks."""

    def __init__(self) -> None:
        self.measured: list[Measured] = []

    def on_chunk(
        self, run: Run, metrics: Mapping[str, float], runs: Sequence[Run]
    ) -> Sequence[Command]:
        self.measured.append(Measured(run=run, metrics=metrics))
        return []


def find(store: Store, objective: str | None = None) -> Findings:
    """What an experiment has shown so far.

    Args:
        store: The experiment's.
        objective: Such as "minimize:eval_loss"; None takes the evaluation's reward or loss if every
            run reports it, else the training's.

    Raises:
        ConfigError: The objective cannot be read, or nobody has finished a chunk.
        ObjectiveError: No run reports it.
    """
    runs = {run.id: run for run in store.runs() if run.status is not RunStatus.DELETED}
    # Everything is told at once: who is behind holds nobody up here.
    advice, collector = Advice([looks := _Collector()]), looks
    for before, event, after in History(store).moments():
        advice.on_event(before, event, after)
        advice.take(_as_settled(after))
    measured = [m for m in collector.measured if m.run.id in runs]
    if not measured:
        raise ConfigError(
            "no run has finished a chunk yet: there is nothing to report; try again later"
        )
    first = {m.run.id: m for m in reversed(measured)}
    yardstick = Yardstick(objective)
    yardstick.choose(list(first.values()))
    standings = _standings(runs, measured, yardstick)
    ranked = {standing.run.id for standing in standings}
    longest = max((run.num_steps or 0 for run in runs.values()), default=0)
    knobs = _varied(runs.values())
    return Findings(
        name=store.experiment().name,
        objective=yardstick.objective,
        why=_why(objective, yardstick.objective, len({s.group for s in standings})),
        standings=standings,
        unranked=tuple(run for run in runs.values() if run.id not in ranked),
        decisions=tuple(
            record
            for record in store.commands()
            if record.command.verb in _TOLD and record.status is CommandStatus.APPLIED
        ),
        num_steps=sum(run.step for run in runs.values()),
        num_planned=sum(run.num_steps or longest for run in runs.values()),
        knobs=knobs,
        importance=_importance(standings, knobs),
    )
