"""What the API answers, made from what the view and the store have."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, Final

from rapidfireai.core.commands import CommandRecord
from rapidfireai.core.events import Json, MetricSource
from rapidfireai.core.metrics import is_maximised, shown_name
from rapidfireai.core.run import Run
from rapidfireai.server.knobs import Knob
from rapidfireai.server.mlflow_ui import page_of
from rapidfireai.server.series import Metric, Point, interpolated
from rapidfireai.server.timeline import Timeline
from rapidfireai.server.view import Batch, RunRow, View
from rapidfireai.store import EventRow
from rapidfireai.store.plain import MASK, encoded, finite, is_secret, shown, shown_text
from rapidfireai.tracking import MLflow
from rapidfireai.tracking.status import trackers_of

_WITH_THE_RUN: Final = frozenset({"run_id", "resolved", "traceback"})
"""Fields of events that are not repeated with them."""

TOKENS: Final = Metric(MetricSource.LOG, "num_tokens")


def command_message(record: CommandRecord) -> dict[str, Json]:
    """As `messages.CommandMessage`."""
    return {
        **record.to_json(),
        "reason": shown_text(record.command.reason),
        "modify": {name: shown(value, name) for name, value in record.command.modify.items()},
        "outcome": shown_text(record.outcome),
    }


def trackers_answer(view: View) -> list[Json]:
    """Each as `messages.Tracker`."""
    return [
        {
            **asdict(one),
            "told": one.told(),
            "page": page_of(view.folder) if one.name == MLflow.name else None,
        }
        for one in trackers_of(view.folder, view.reader)
    ]


def event_message(row: EventRow) -> dict[str, Json]:
    """As `messages.EventMessage`."""
    event = row.event
    return {
        "seq": row.seq,
        "time_s": row.time_s,
        "type": type(event).__name__,
        "run_id": event.run_id,
        "data": {
            field.name: shown(getattr(event, field.name), field.name)
            for field in fields(event)
            if field.name not in _WITH_THE_RUN
        },
    }


def run_detail(run: Run, row: RunRow, mlflow_page: str | None) -> bytes:
    """As `messages.RunDetail`."""
    detail = encoded(
        {
            "config": shown(run.config),
            "resolved": shown(run.resolved),
            "modes": [shown(choice) for choice in run.modes],
            "notes": [shown_text(note) for note in run.notes],
            "traceback": None if run.traceback is None else shown_text(run.traceback),
            "path": run.path,
            "mlflow_page": mlflow_page,
        }
    )
    return b'{"row":' + row.json + b"," + detail[1:]


def runs_answer(view: View, since: int) -> bytes:
    """As `messages.Runs`."""
    version, cursor = view.place
    head = encoded({"version": version, "cursor": cursor, "trained_by": view.trained_by})
    return head[:-1] + b',"runs":[' + b",".join(view.changed(since)) + b"]}"


def knob_message(knob: Knob) -> dict[str, Json]:
    """As `messages.Knob`."""
    message = asdict(knob)
    for name in ("default", "value"):
        message[name] = shown(message[name], knob.name)
    message["used"] = [shown(value, knob.name) for value in knob.used]
    return {**message, "type": list(knob.type), "enum": [shown(one) for one in knob.enum]}


def difference(name: str, values: Sequence[Json]) -> list[Json]:
    """A knob's old and new value without secrets."""
    if is_secret(name):
        return [None if value is None else MASK for value in values]
    return [shown(value, name) for value in values]


def timeline_message(found: Timeline) -> dict[str, Json]:
    """As `messages.Timeline`."""
    message = asdict(found)
    message["utilisation"] = found.busy_s / found.span_s if found.span_s > 0 else None
    return message


def metric_names(view: View) -> list[dict[str, Json]]:
    """Of `messages.MetricName`."""
    return [
        {
            "source": source.value,
            "name": name,
            "shown": shown_name(source, name),
            "maximised": is_maximised(name),
        }
        for source, name in sorted(view.names)
    ]


def batch_answer(batch: Batch) -> bytes:
    """What the stream tells at once: runs as they are now, and what was added."""
    series: dict[tuple[int, MetricSource, str], dict[str, Json]] = {}
    for new in batch.values:
        value = new.value
        found = series.setdefault(
            (new.run_id, value.source, value.name),
            {
                "run_id": new.run_id,
                "source": value.source.value,
                "name": value.name,
                "shown": shown_name(value.source, value.name),
                "steps": [],
                "values": [],
                "times_s": [],
            },
        )
        found["steps"].append(value.step)
        found["values"].append(finite(value.value))
        found["times_s"].append(value.time_s)
    head = encoded(
        {
            "trained_by": batch.trained_by,
            "series": list(series.values()),
            "events": [event_message(row) for row in batch.events],
            "commands": [command_message(record) for record in batch.commands],
        }
    )
    return head[:-1] + b',"runs":[' + b",".join(batch.runs) + b"]}"


def series_answer(run_id: int, points: Sequence[Point], x: bytes) -> bytes:
    """As `messages.Series`; seven digits are more than a screen can show."""
    steps = ",".join(str(point.step) for point in points)
    values = ",".join(map(_number, (point.value for point in points)))
    return f'{{"run_id":{run_id},"steps":[{steps}],"values":[{values}],"x":'.encode() + x + b"}"


def axis(
    x: str, points: Sequence[Point], row: RunRow, tokens: Sequence[Point]
) -> Sequence[float | None] | None:
    """Where points lie on the horizontal axis; None for their steps.

    Args:
        x: "step", "samples", "tokens" or "time".
        points: Of a series.
        row: The run.
        tokens: Its number of tokens at some steps.
    """
    match x:
        case "samples":
            size = row.samples_per_step
            return [None if size is None else point.step * size for point in points]
        case "tokens":
            return interpolated([point.step for point in points], tokens)
        case "time":
            return [round(point.time_s, 3) for point in points]
        case _:
            return None


def used_values(rows: Mapping[Any, RunRow]) -> dict[str, tuple[Json, ...]]:
    """Different values that runs have been given, by the knobs' full names."""
    found: dict[str, list[Json]] = {}
    for row in rows.values():
        for name, value in row.knobs.items():
            values = found.setdefault(name, [])
            if value not in values and len(values) < _MAX_USED:
                values.append(value)
    return {name: tuple(values) for name, values in found.items()}


_MAX_USED: Final = 20


def _number(value: float) -> str:
    return "null" if finite(value) is None else f"{value:.7g}"
