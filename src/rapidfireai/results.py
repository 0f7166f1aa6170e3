"""What an experiment has found out, as tables."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rapidfireai.core.events import MetricSource
from rapidfireai.core.run import Run
from rapidfireai.errors import ConfigError
from rapidfireai.store import MetricRow
from rapidfireai.training.spelling import did_you_mean

if TYPE_CHECKING:
    import pandas as pd

_MAXIMISED = ("accuracy", "reward", "f1", "bleu", "rouge", "margin", "precision", "recall", "exact")


def metric_name(row: MetricRow) -> str:
    """The column of a value: the step's own loss is `loss`, the trainer's average `logged_loss`."""
    if row.source is MetricSource.LOG and row.name == "loss":
        return "logged_loss"
    return row.name


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


def runs_frame(runs: Sequence[Run], rows: Sequence[MetricRow]) -> "pd.DataFrame":
    """One row for each run: state, progress, latest metrics, configuration, folder."""
    import pandas as pd

    latest: dict[int, dict[str, float]] = {run.id: {} for run in runs}
    for row in sorted(rows, key=lambda row: row.step):
        latest[row.run_id][metric_name(row)] = row.value
    records = [
        {
            "run_id": run.id,
            "status": run.status.value,
            "step": run.step,
            "num_steps": run.num_steps,
            "chunks_done": run.chunks_done,
            "num_chunks": run.num_chunks,
            "active_s": run.active_s,
            **{name: value for name, value in latest[run.id].items() if name != "epoch"},
            "config": run.config,
            "notes": "; ".join(run.notes),
            "error": run.error,
            "traceback": run.traceback,
            "path": run.path,
        }
        for run in runs
    ]
    frame = pd.DataFrame(records)
    last = ["config", "notes", "error", "traceback", "path"]
    return frame[[column for column in frame if column not in last] + last]


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
        mode = "max" if any(word in metric for word in _MAXIMISED) else "min"
    values = frame[metric]
    best: pd.Series[Any] = frame.iloc[values.argmin() if mode == "min" else values.argmax()]
    return best
