"""What a person who watches an experiment wants to know, kept up to date event by event.

Knows nothing of screens. Events come at every step of every run, so nothing is computed here
before somebody looks.
"""

import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from rapidfireai.core.clock import Clock
from rapidfireai.core.events import (
    Event,
    MetricsLogged,
    MetricSource,
    ModeChosen,
    PassMode,
    RunAdded,
    RunCloned,
    RunDeleted,
    RunFailed,
    RunInterrupted,
    RunNoted,
    RunPruned,
    RunRecovered,
    RunRestored,
    RunResumed,
    RunStarted,
    RunStopped,
    StepFinished,
)
from rapidfireai.core.ids import RunId
from rapidfireai.core.metrics import is_maximised
from rapidfireai.core.modes import in_words
from rapidfireai.core.run import Run, RunStatus
from rapidfireai.live.messages import Messages
from rapidfireai.store import MetricRow

_UNCOMPARED: Final = re.compile(r"_(runtime|per_second|preparation_time|num_tokens)$")
_DETAIL: Final = re.compile(r"entropy|logits|logps")


@dataclass(slots=True)
class Row:
    """A run and the latest of what is known about it besides."""

    run: Run
    metrics: dict[str, float] = field(default_factory=dict)
    """What runs are compared by: evaluations, and the rewards of trainers that have any."""
    device: dict[str, float] = field(default_factory=dict)
    """What the device monitor measured when the run was paused last."""
    tokens_per_s: float | None = None
    """Tokens trained on, by the run's own seconds so far; None if its trainer counts none."""
    tokens: tuple[int, float] = (0, 0.0)
    """Step and number of tokens at the trainer's latest log."""

    def value(self, metric: str) -> float:
        """The metric's latest value; NaN if there is none."""
        value = self.run.loss if metric == "loss" else self.metrics.get(metric)
        return math.nan if value is None else value


class Board:
    """All runs and messages; an engine's listener.

    Args:
        runs: The runs there are; further ones are taken in with their first event.
        clock: Tells for how long the experiment has been going.
    """

    def __init__(self, runs: Iterable[Run], clock: Clock) -> None:
        self._clock = clock
        self._begin_s = clock.now()
        self.rows = {run.id: Row(run) for run in runs}
        self.messages = Messages()
        self.device: Mapping[str, float] = {}
        """What the device monitor measured last."""

    @property
    def elapsed_s(self) -> float:
        """Seconds since the board was made."""
        return self._clock.now() - self._begin_s

    def take_stored(self, values: Iterable[MetricRow]) -> None:
        """Take in what an earlier process has measured; of each metric the latest counts."""
        for value in sorted(values, key=lambda value: value.step):
            if value.source is not MetricSource.DEVICE and _is_compared(value.name):
                self.rows[value.run_id].metrics[value.name] = value.value

    def on_event(self, before: Run, event: Event, after: Run) -> None:
        """Take the event in."""
        row = self.rows.get(after.id)
        if row is None:
            row = self.rows[after.id] = Row(after)
        row.run = after
        match event:
            case StepFinished():
                step, num_tokens = row.tokens
                if step == event.step and event.active_s > 0:
                    row.tokens_per_s = num_tokens / event.active_s
            case MetricsLogged():
                self._take_metrics(row, event)
            case _:
                for text, level in told(event, after):
                    self.messages.add(text, level, after.id)

    def _take_metrics(self, row: Row, event: MetricsLogged) -> None:
        values = event.values
        if event.source is MetricSource.DEVICE:
            row.device.update(values)
            self.device = values
            return
        if event.source is MetricSource.LOG and "num_tokens" in values:
            # The step's own event follows with the time that it took.
            row.tokens = (event.step, values["num_tokens"])
        row.metrics.update({name: value for name, value in values.items() if _is_compared(name)})

    def count(self, status: RunStatus) -> int:
        """Runs in a status."""
        return sum(row.run.status is status for row in self.rows.values())

    def remaining_s(self) -> float | None:
        """Seconds until all runs have ended, if they go on as before; None if nobody can say.

        Runs that have shown no pace yet are taken for average ones.
        """
        runs = [row.run for row in self.rows.values()]
        paces = {run.id: run.remaining_s for run in runs if not run.ended}
        totals = [run.active_s + (run.remaining_s or 0.0) for run in runs if run.step > 0]
        if not totals:
            return None
        mean_s = sum(totals) / len(totals)
        work_s = sum(mean_s if pace is None else pace for pace in paces.values())
        return work_s / max(1, self.count(RunStatus.RUNNING))

    def standing(self) -> "Standing":
        """How the runs compare now."""
        metric = self._ranked_by()
        sign = -1 if is_maximised(metric) else 1

        def key(row: Row) -> tuple[bool, bool, float, RunId]:
            value = row.value(metric)
            unknown = math.isnan(value)
            failed = row.run.status is RunStatus.FAILED
            return failed, unknown, 0.0 if unknown else sign * value, row.run.id

        names = dict.fromkeys(name for row in self.rows.values() for name in row.metrics)
        return Standing(
            metric=metric,
            rows=sorted(self.rows.values(), key=key),
            names=sorted(details_last(names), key=lambda name: name != metric),
        )

    def _ranked_by(self) -> str:
        """The metric that ranks the runs: the first of several that most of them have."""
        losses = (name for row in self.rows.values() for name in row.metrics if _is_loss(name))
        measured = [
            row.metrics
            for row in self.rows.values()
            if row.run.status is not RunStatus.FAILED and (row.run.step or row.metrics)
        ]
        for name in dict.fromkeys(("eval_reward", "reward", "eval_loss", *losses)):
            if sum(name in metrics for metrics in measured) * 2 > len(measured):
                return name
        return "loss"


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """How runs compare."""

    metric: str
    """What they are ranked by."""
    rows: Sequence[Row]
    """All of them, the best first, those without a value and failed ones last."""
    names: Sequence[str]
    """All that they are compared by but the loss: the metric first, details last."""

    @property
    def best(self) -> Row | None:
        """The best run, if any has a value."""
        first = next(iter(self.rows), None)
        return None if first is None or math.isnan(first.value(self.metric)) else first


def details_last(metrics: Iterable[str]) -> list[str]:
    """The names in their order, but those that few people look at behind the others."""
    return sorted(metrics, key=lambda name: _DETAIL.search(name) is not None)


def knobs(runs: Sequence[Run]) -> dict[str, dict[RunId, object]]:
    """What tells the runs apart: by name, the value in each configuration that sets it."""
    leaves = {run.id: dict(_leaves(run.config)) for run in runs}
    paths = dict.fromkeys(path for values in leaves.values() for path in values)
    varying = [
        path for path in paths if len({str(values.get(path)) for values in leaves.values()}) > 1
    ]
    names = [path[-1] for path in varying]
    return {
        name if names.count(name) == 1 else ".".join(path[-2:]): {
            run_id: values[path] for run_id, values in leaves.items() if path in values
        }
        for name, path in zip(names, varying, strict=True)
    }


def told(event: Event, run: Run) -> Iterator[tuple[str, int]]:  # noqa: C901, PLR0912 - a table
    """What the event has to say to a person, with levels as in `logging`."""
    match event:
        case RunStarted():
            yield from ((note, logging.INFO) for note in event.notes)
        case RunNoted():
            yield event.note, logging.INFO
        case ModeChosen() if event.members:
            yield in_words(run.modes[-1]), logging.INFO
        case ModeChosen() if event.mode is PassMode.SLICED and event.wished:
            yield f"trains by turns, its passes are not shared: {event.reason}", logging.INFO
        case RunStopped():
            yield f"stopped: {event.reason}", logging.INFO
        case RunPruned():
            yield f"pruned: {event.reason}", logging.INFO
        case RunResumed():
            yield f"resumed at step {run.step}", logging.INFO
        case RunDeleted():
            yield "deleted", logging.INFO
        case RunRestored():
            yield f"restored: {run.status}", logging.INFO
        case RunAdded():
            yield f"added: {event.reason}", logging.INFO
        case RunCloned():
            yield _lineage(run), logging.INFO
        case RunInterrupted():
            yield event.reason, logging.INFO
        case RunRecovered():
            yield f"taken up again at step {event.step}", logging.INFO
        case RunFailed():
            yield f"failed at step {run.step}: {event.error}", logging.ERROR
            yield from ((note, logging.WARNING) for note in event.notes)
        case _:
            pass


def _lineage(run: Run) -> str:
    changes = ", ".join(
        f"{full.rpartition('.')[2]} {old!r} -> {new!r}" for full, (old, new) in run.modified.items()
    )
    start = "" if run.fork is None else f", from its step {run.fork['parent_step']}"
    return f"a clone of run {run.parent_id}{start}: {changes or 'nothing modified'}"


def _leaves(
    config: Mapping[str, object], above: tuple[str, ...] = ()
) -> Iterable[tuple[tuple[str, ...], object]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*above, name))
        elif value is not None:
            yield (*above, name), value


def _is_compared(name: str) -> bool:
    return name == "reward" or (name.startswith("eval_") and not _UNCOMPARED.search(name))


def _is_loss(name: str) -> bool:
    return name.startswith("eval_") and name.endswith("_loss")
