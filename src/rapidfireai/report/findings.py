"""What an experiment has shown: a ranking, decisions, what they saved, which knobs matter."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rapidfireai.core.commands import CommandRecord, CommandStatus, Verb
from rapidfireai.core.events import ChunkFinished, Json, MetricsLogged, RunCompleted, StepFinished
from rapidfireai.core.ids import RunId
from rapidfireai.core.policy import ChunkMetrics
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
    shared: tuple[Run, ...]
    """Runs of which it was chosen how their passes through the base are computed."""
    importance: Mapping[str, float]
    """Of each knob: the share of the variance between runs that it explains by itself, 0 to 1."""

    @property
    def saved(self) -> float:
        """Share of the steps that did not have to be done."""
        return 1 - self.num_steps / self.num_planned if self.num_planned else 0.0

    def rankings(self) -> Iterator[tuple[str, list[Standing]]]:
        """A title and the standings of each group of runs that can be compared."""
        groups = list(dict.fromkeys(standing.group for standing in self.standings))
        for number, group in enumerate(groups, start=1):
            title = "Ranking" if len(groups) == 1 else f"Ranking, group {number} of {len(groups)}"
            yield title, [standing for standing in self.standings if standing.group == group]

    def value_of(self, run: Run, knob: str) -> Json:
        """What a knob is in a run."""
        return _knobs(run).get(knob)


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
    measured = [m for m in _chunk_ends(store) if m.run.id in runs]
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
        shared=tuple(run for run in runs.values() if run.modes),
        importance=_importance(standings, knobs),
    )


def _chunk_ends(store: Store) -> Iterator[Measured]:
    """Runs at the ends of their chunks; one that was repeated after a crash comes once."""
    metrics: dict[RunId, ChunkMetrics] = defaultdict(ChunkMetrics)
    reached: dict[RunId, int] = {}
    for _, event, after in History(store).moments():
        if isinstance(event, StepFinished | MetricsLogged):
            metrics[after.id].note(event)
        elif isinstance(event, ChunkFinished | RunCompleted):
            values = metrics[after.id].take()
            if after.chunks_done > reached.get(after.id, 0):
                reached[after.id] = after.chunks_done
                yield Measured(run=after, metrics=values)


def _standings(
    runs: Mapping[RunId, Run], measured: Iterable[Measured], yardstick: Yardstick
) -> tuple[Standing, ...]:
    groups: dict[str, dict[RunId, list[float]]] = {}
    for one in measured:
        cost = yardstick.cost(one.metrics)
        if cost is None:
            continue
        curve = groups.setdefault(yardstick.group(one.run), {}).setdefault(one.run.id, [])
        curve += [math.nan] * (one.run.chunks_done - 1 - len(curve))
        curve.append(cost)
    return tuple(
        standing
        for name in sorted(groups)
        for standing in _ranking(runs, name, groups[name], yardstick.objective)
    )


def _ranking(
    runs: Mapping[RunId, Run],
    group: str,
    curves: Mapping[RunId, Sequence[float]],
    objective: Objective,
) -> Iterator[Standing]:
    ends = {run_id: _end(curve) for run_id, curve in curves.items()}
    order = ranks({run_id: mean for run_id, (mean, _) in ends.items()})
    best, best_error = ends[order[0]]
    for place, run_id in enumerate(order, start=1):
        mean, error = ends[run_id]
        together = math.hypot(error or 0.0, best_error or 0.0)
        yield Standing(
            run=runs[run_id],
            place=place,
            group=group,
            value=objective.value(mean),
            error=error,
            curve=tuple(objective.value(cost) for cost in curves[run_id]),
            is_tied=place > 1 and together > 0 and mean - best <= 2 * together,
        )


def _end(curve: Sequence[float]) -> tuple[float, float | None]:
    """Average over the last chunks, and its standard error around the line through them."""
    last = curve[-NUM_LAST:]
    mean = statistics.fmean(last)
    if not math.isfinite(curve[-1]) or not all(map(math.isfinite, last)) or len(last) < 3:
        return (mean if math.isfinite(mean) else curve[-1]), None
    steps = range(len(last))
    slope, begin = statistics.linear_regression(steps, last)
    squares = sum(
        (cost - begin - slope * step) ** 2 for step, cost in zip(steps, last, strict=True)
    )
    return mean, math.sqrt(squares / (len(last) - 2) / len(last))


def _why(given: str | None, objective: Objective, num_groups: int) -> str:
    if given is not None:
        why = "as asked for"
    elif objective.metric.startswith("eval_"):
        why = "every run reports it"
    elif objective.metric == "loss":
        why = "not every run is evaluated, so it is the training loss, averaged over each chunk"
    else:
        why = "there is no evaluation, and every run reports it"
    if num_groups > 1:
        why += (
            f"; runs are ranked in {num_groups} groups, since their losses or data differ and "
            "cannot be compared"
        )
    return why


def _knobs(run: Run) -> dict[str, Json]:
    """A run's knobs by their short names."""
    sections = [run.config.get(section) or {} for section in _SECTIONS]
    if not any(sections):
        return {name: value for name, value in run.config.items() if name != "trainer_type"}
    return {name: value for values in sections for name, value in values.items()}


def _varied(runs: Iterable[Run]) -> tuple[str, ...]:
    """Knobs of which runs have different values, in the order in which they were written."""
    values: dict[str, set[str]] = defaultdict(set)
    configs = [_knobs(run) for run in runs]
    for name in dict.fromkeys(name for knobs in configs for name in knobs):
        values[name] = {repr(knobs.get(name)) for knobs in configs}
    return tuple(name for name, texts in values.items() if len(texts) > 1)


def _importance(standings: Sequence[Standing], knobs: Sequence[str]) -> dict[str, float]:
    """Of each knob the share of the variance that it explains (epsilon squared), largest first.

    Of ranks, so that a run that diverged counts as last and not as far off. A knob with more values
    than bins counts by quarters.
    """
    order = [s.run for s in standings if s.group == standings[0].group]
    if len(order) < 4:
        return {}
    shares = {knob: _explained([_knobs(run).get(knob) for run in order]) for knob in knobs}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _explained(values: Sequence[Json]) -> float:
    """Share of the variance of 0, 1, 2, ... between the groups of equal or similar values."""
    bins: dict[Any, list[int]] = defaultdict(list)
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if numeric and len(set(values)) > _MAX_BINS:
        ordered = sorted(set(values))
        for place, value in enumerate(values):
            bins[ordered.index(value) * _MAX_BINS // len(ordered)].append(place)
    else:
        for place, value in enumerate(values):
            bins[repr(value)].append(place)
    n, k = len(values), len(bins)
    if k < 2 or k >= n:
        return 0.0
    mean = (n - 1) / 2
    total = sum((place - mean) ** 2 for place in range(n))
    within = sum((p - statistics.fmean(b)) ** 2 for b in bins.values() for p in b)
    return max(0.0, 1 - (within / (n - k)) / (total / (n - 1)))
