"""The board as lines of styled text, laid out for a width and a height.

Knows neither terminals nor notebooks.
"""

import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from rapidfireai.core.ids import RunId
from rapidfireai.core.metrics import is_maximised
from rapidfireai.core.run import RunStatus
from rapidfireai.live.board import Board, Row, Standing, knobs
from rapidfireai.live.messages import Message
from rapidfireai.live.table import Column, Line, Span, crop, shorten, table

_BAR_CELLS: Final = 10
_TITLE_CELLS: Final = 16
_NUM_MESSAGES: Final = 5
_NUM_LAST_MESSAGES: Final = 20
_NUM_RANKED: Final = 20
_NUM_RANGES: Final = 5

_STYLES: Final = {
    RunStatus.RUNNING: "bold cyan",
    RunStatus.WAITING: "",
    RunStatus.QUEUED: "dim",
    RunStatus.COMPLETED: "green",
    RunStatus.STOPPED: "yellow",
    RunStatus.INTERRUPTED: "yellow",
    RunStatus.PRUNED: "yellow",
    RunStatus.DELETED: "dim",
    RunStatus.FAILED: "red",
}
_ANSI: Final = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")

_LEVEL_STYLES: Final = {
    logging.WARNING: "yellow",
    logging.ERROR: "red",
    logging.CRITICAL: "red",
}


class Layout:
    """Lays a board out.

    Args:
        board: What there is to show.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self._num_knobs_of = 0
        self._knobs: dict[str, dict[RunId, object]] = {}

    def live(self, width: int, height: int) -> list[Line]:
        """The table of runs with the latest messages below; at most `height` lines."""
        board, standing = self._board, self._board.standing()
        num_messages = min(_NUM_MESSAGES, max(1, height - 10))
        messages = [line for message in board.messages.all() for line in _message_lines(message)]
        messages = messages[-num_messages:]
        # Around the rows: the summary, a blank, the titles, and a blank before messages.
        room = max(1, height - 3 - len(messages) - bool(messages))
        rows, hidden = _most_relevant(list(board.rows.values()), standing, room)
        lines = [
            _summary(board, _device(board.device)),
            (),
            *table(self._run_columns(rows, standing), width),
            *_hidden(hidden),
        ]
        if messages:
            lines += [(), *messages]
        return [crop(line, width) for line in lines[:height]]

    def final(self, width: int) -> list[Line]:
        """The ranking, with what there is to know about runs below."""
        messages = [
            message
            for message in self._board.messages.all()
            if message.run_ids or message.level >= logging.WARNING
        ]
        lines = [_summary(self._board)]
        ranking = self.ranking(width)
        if ranking:
            lines += [(), *ranking]
        if messages:
            lines.append(())
        if len(messages) > _NUM_LAST_MESSAGES:
            num = len(messages) - _NUM_LAST_MESSAGES
            lines.append((Span(f"... and {num} earlier messages", "dim"),))
        for message in messages[-_NUM_LAST_MESSAGES:]:
            lines += _message_lines(message)
        return lines

    def ranking(self, width: int) -> list[Line]:
        """The best runs, and by what they are; nothing if no run has a value yet."""
        standing = self._board.standing()
        if standing.best is None:
            return []
        order = "highest" if is_maximised(standing.metric) else "lowest"
        lines = [
            (Span(f"Ranking by {standing.metric}, {order} first", "bold"),),
            *table(self._ranking_columns(standing.rows[:_NUM_RANKED], standing), width),
            *_hidden(standing.rows[_NUM_RANKED:]),
        ]
        return [crop(line, width) for line in lines]

    def _run_columns(self, rows: Sequence[Row], standing: Standing) -> Iterator[Column]:
        runs = [row.run for row in rows]
        yield _id_column(rows)
        yield _status_column(rows)
        yield from self._knob_columns(rows, importance=5)
        yield _column("chunk", [_of(run.chunks_done, run.num_chunks) for run in runs], importance=4)
        yield Column(
            title="step",
            cells=[_bar(run.step, run.num_steps) for run in runs],
            importance=7,
            left=True,
        )
        yield _column("", [_of(run.step, run.num_steps) for run in runs], importance=6)
        yield from _metric_columns(rows, standing)
        yield _column("speed", [_speed(row) for row in rows], importance=9)
        yield _column("memory", [_memory(row.device) for row in rows], importance=10)
        yield _column(
            "to go",
            [
                "" if run.ended or run.remaining_s is None else format_s(math.ceil(run.remaining_s))
                for run in runs
            ],
            importance=6,
        )

    def _ranking_columns(self, rows: Sequence[Row], standing: Standing) -> Iterator[Column]:
        runs = [row.run for row in rows]
        yield _id_column(rows)
        yield from self._knob_columns(rows, importance=4)
        yield from _metric_columns(rows, standing)
        yield _column("step", [_of(run.step, run.num_steps) for run in runs], importance=5)
        yield _column("trained", [format_s(run.active_s) for run in runs], importance=6)
        yield _status_column(rows)

    def _knob_columns(self, rows: Sequence[Row], importance: int) -> Iterator[Column]:
        if self._num_knobs_of != len(self._board.rows):
            self._num_knobs_of = len(self._board.rows)
            self._knobs = knobs([row.run for row in self._board.rows.values()])
        for title, values in self._knobs.items():
            yield _column(
                shorten(title, _TITLE_CELLS),
                [_knob(values[row.run.id]) if row.run.id in values else "" for row in rows],
                importance=importance,
            )


def format_s(seconds: float) -> str:
    """Seconds as 0:42, 12:05 or 3:07:10."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def format_value(value: float) -> str:
    """A metric with as many digits as one compares."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.4f}"
    return f"{value:.2e}"


def _most_relevant(
    rows: list[Row], standing: Standing, room: int
) -> tuple[Sequence[Row], Sequence[Row]]:
    """The rows to show and the others: all in their order if there is room for all of them."""
    if len(rows) <= room:
        return rows, []
    rows = sorted(standing.rows, key=_relevance)
    num_shown = max(1, room - 1)
    return rows[:num_shown], rows[num_shown:]


def _relevance(row: Row) -> int:
    """Those who train now come first, then those who can be compared, then the rest."""
    if row.run.status is RunStatus.RUNNING:
        return 0
    if row.run.status is RunStatus.FAILED:
        return 2
    return 1 if row.run.step else 3


def _summary(board: Board, more: Iterable[str] = ()) -> Line:
    rows = list(board.rows.values())
    parts = [_counts(rows), f"{format_s(board.elapsed_s)} elapsed"]
    remaining_s = board.remaining_s()
    if remaining_s:
        parts.append(f"about {format_s(remaining_s)} to go")
    num_runs = "1 run" if len(rows) == 1 else f"{len(rows)} runs"
    return (Span(num_runs, "bold"), Span(": " + " · ".join([*parts, *more])))


def _hidden(rows: Sequence[Row]) -> list[Line]:
    """A line that stands for rows that are not shown."""
    return [(Span(f"... and {len(rows)} more: {_counts(rows)}", "dim"),)] if rows else []


def _counts(rows: Sequence[Row]) -> str:
    """How many are in each status, those who train first."""
    statuses = [row.run.status for row in rows]
    counts = {status: statuses.count(status) for status in _STYLES}
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count)


def _device(values: Mapping[str, float]) -> Iterator[str]:
    if "device_utilization_percent" in values:
        yield f"GPU {values['device_utilization_percent']:.0f} %"
    if "device_memory_used_gib" in values and "device_memory_total_gib" in values:
        used, total = values["device_memory_used_gib"], values["device_memory_total_gib"]
        yield f"memory {used:.1f} of {total:.0f} GiB"
    elif "host_memory_gib" in values:
        if "cpu_percent" in values:
            yield f"CPU {values['cpu_percent']:.0f} %"
        yield f"memory {values['host_memory_gib']:.1f} GiB"


def _message_lines(message: Message) -> list[Line]:
    style = _LEVEL_STYLES.get(message.level, "")
    first, *more = [_printable(line) for line in message.text.splitlines()] or [""]
    return [
        (Span(_label(message.run_ids), f"bold {style}"), Span(first, style)),
        *((Span("  " + line, style),) for line in more),
    ]


def _printable(text: str) -> str:
    """Without what would move the cursor, such as the colours of an error message."""
    return "".join(char if char.isprintable() else " " for char in _ANSI.sub("", text))


def _label(run_ids: Sequence[RunId]) -> str:
    """`run 3: `, or `runs 1-4, 7: `; nothing for none."""
    if not run_ids:
        return ""
    ranges: list[list[int]] = []
    for run_id in sorted(run_ids):
        if ranges and run_id == ranges[-1][1] + 1:
            ranges[-1][1] = run_id
        else:
            ranges.append([run_id, run_id])
    names = [f"{first}" if first == last else f"{first}-{last}" for first, last in ranges]
    if len(names) > _NUM_RANGES:
        names[_NUM_RANGES - 1 :] = ["..."]
    return f"run{'s' if len(run_ids) > 1 else ''} {', '.join(names)}: "


def _id_column(rows: Sequence[Row]) -> Column:
    return _column("run", [str(row.run.id) for row in rows], importance=0)


def _status_column(rows: Sequence[Row]) -> Column:
    return Column(
        title="status",
        # As wide as the longest of them, so that the table stands still.
        cells=[(Span(f"{row.run.status:9}", _STYLES[row.run.status]),) for row in rows],
        importance=1,
        left=True,
    )


def _column(title: str, texts: Sequence[str], importance: int) -> Column:
    return Column(title=title, cells=[(Span(text),) for text in texts], importance=importance)


def _metric_columns(rows: Sequence[Row], standing: Standing) -> Iterator[Column]:
    """The loss, then the metric that ranks, then the others."""
    best = standing.best
    names = dict.fromkeys(("loss", *standing.names))
    for number, name in enumerate(names):
        yield Column(
            title=shorten(name, _TITLE_CELLS),
            cells=[_value(row, name, name == standing.metric and row is best) for row in rows],
            importance=2 if name == standing.metric else 3 if name == "loss" else 11 + number,
        )


def _value(row: Row, metric: str, best: bool) -> Line:
    """A metric's value; nothing where it was never measured."""
    if metric not in row.metrics and (metric != "loss" or row.run.loss is None):
        return ()
    value = row.value(metric)
    if not math.isfinite(value):
        return (Span(format_value(value), "red"),)
    return (Span(format_value(value), "bold green" if best else ""),)


def _of(done: int, total: int | None) -> str:
    return "" if total is None else f"{done:>{len(str(total))}}/{total}"


def _bar(done: int, total: int | None) -> Line:
    if not total:
        return ()
    full = min(_BAR_CELLS, round(_BAR_CELLS * done / total))
    return (Span("━" * full, "cyan"), Span("─" * (_BAR_CELLS - full), "dim"))


def _speed(row: Row) -> str:
    run = row.run
    if row.tokens_per_s is not None:
        return f"{_short(row.tokens_per_s)} tok/s"
    if run.step == 0 or run.active_s == 0:
        return ""
    return f"{_short(run.step / run.active_s)} steps/s"


def _short(value: float) -> str:
    if value >= 9999.5:
        return f"{value / 1000:.0f}k"
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}"


def _memory(values: Mapping[str, float]) -> str:
    """What the run holds for itself, or else what its turn took on the device at most."""
    gib = values.get("run_memory_gib", values.get("device_memory_peak_gib"))
    if gib is None:
        return ""
    if gib >= 1:
        return f"{gib:.1f} GiB"
    return f"{gib * 1024:.0f} MiB" if gib >= 10 / 1024 else f"{gib * 1024:.1f} MiB"


def _knob(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return shorten(",".join(_knob(item) for item in value), _TITLE_CELLS)
    return shorten(str(value), _TITLE_CELLS)
