"""What an experiment has found out, as tables."""

from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

from rapidfireai.core.commands import CommandRecord
from rapidfireai.core.ids import RunId
from rapidfireai.core.metrics import is_maximised, shown_name
from rapidfireai.core.modes import summary
from rapidfireai.core.run import Run
from rapidfireai.core.spelling import did_you_mean
from rapidfireai.errors import ConfigError
from rapidfireai.store import MetricRow

if TYPE_CHECKING:
    import pandas as pd


def metric_name(row: MetricRow) -> str:
    """The column of a value."""
    return shown_name(row.source, row.name)


def results_frame(rows: Sequence[MetricRow]) -> "pd.DataFrame":
    """One row for each run and step, one column for each metric."""
    import pandas as pd

    table: dict[tuple[int, int], dict[str, Any]] = {}
    for row in rows:
        key = (row.run_id, row.step)
        table.setdefault(key, {"run_id": row.run_id, "step": row.step})[metric_name(row)] = (
            row.value
        )
    columns = ["run_id", "step", "loss"]
    frame = pd.DataFrame(list(table.values()))
    if frame.empty:
        return pd.DataFrame(columns=columns)
    first = [column for column in columns if column in frame]
    rest = sorted(str(column) for column in frame if column not in first)
    return frame[first + rest].sort_values(["run_id", "step"], ignore_index=True)


def latest_metrics(runs: Sequence[Run], rows: Sequence[MetricRow]) -> dict[RunId, dict[str, float]]:
    """The latest value of each metric of each of the runs."""
    latest: dict[RunId, dict[str, float]] = {run.id: {} for run in runs}
    for row in sorted(rows, key=lambda row: row.step):
        if row.run_id in latest:
            latest[row.run_id][metric_name(row)] = row.value
    return latest


def runs_frame(runs: Sequence[Run], rows: Sequence[MetricRow]) -> "pd.DataFrame":
    """One row for each run: state, progress, latest metrics, configuration, folder."""
    import pandas as pd

    latest = latest_metrics(runs, rows)
    records = [
        {
            "run_id": run.id,
            "status": run.status.value,
            "step": run.step,
            "num_steps": run.num_steps,
            "chunks_done": run.chunks_done,
            "num_chunks": run.num_chunks,
            "active_s": run.active_s,
            "pinned": run.pinned,
            "parent_id": run.parent_id,
            **{name: value for name, value in latest[run.id].items() if name != "epoch"},
            "config": run.config,
            "passes": summary(run.modes),
            "notes": "; ".join(run.notes),
            "error": run.error,
            "traceback": run.traceback,
            "path": run.path,
        }
        for run in runs
    ]
    frame = pd.DataFrame(records)
    last = ["config", "passes", "notes", "error", "traceback", "path"]
    return frame[[column for column in frame if column not in last] + last]


def commands_frame(commands: Sequence[CommandRecord]) -> "pd.DataFrame":
    """One row for each command: what was asked by whom, and what became of it."""
    import pandas as pd

    columns = ["command_id", "given", "verb", "run_id", "by", "reason", "modify", "warm_start"]
    last = ["status", "outcome", "latency_s", "step", "new_run_id"]
    records = [
        {**record.to_json(), "given": pd.Timestamp(record.given_s, unit="s", tz="UTC")}
        for record in commands
    ]
    return pd.DataFrame(records, columns=columns + last)


def run_ids(chosen: Any) -> list[RunId]:
    """The numbers of the runs that a user means.

    Args:
        chosen: A number, several, or one or more rows of `runs_frame`.

    Raises:
        ConfigError: It is none of these.
    """
    numbers = chosen
    if hasattr(chosen, "iloc"):  # of pandas
        numbers = chosen.get("run_id", [])
    if isinstance(numbers, Integral):
        numbers = [numbers]
    try:
        found = [RunId(int(number)) for number in numbers]
    except (TypeError, ValueError):
        found = []
    if not found or isinstance(numbers, str):
        raise ConfigError(
            f"run={chosen!r} names no run; give its number, a list of numbers, or rows of "
            "get_runs_info()"
        )
    return found


def best_run(frame: "pd.DataFrame", metric: str, mode: str | None) -> "pd.Series[Any]":
    """The row of `runs_frame` that is best by the metric, among runs that have not failed.

    Raises:
        ConfigError: No run has the metric, or the mode is unknown.
    """
    if mode not in (None, "min", "max"):
        raise ConfigError(f"mode={mode!r} is not known; it is 'min', 'max' or None (by the name)")
    frame = frame[frame["status"] != "failed"]
    measured = [str(name) for name in frame.select_dtypes("number") if frame[name].notna().any()]
    if metric not in measured:
        raise ConfigError(f"no run has the metric {metric!r}; {did_you_mean(metric, measured)}")
    if mode is None:
        mode = "max" if is_maximised(metric) else "min"
    values = frame[metric]
    best: pd.Series[Any] = frame.iloc[values.argmin() if mode == "min" else values.argmax()]
    return best
