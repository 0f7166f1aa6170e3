"""Verbs that look: `experiments`, `runs`, `show-run`, `commands`."""

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from rapidfireai.commandline.experiments import add_experiment, add_json, add_path, chosen
from rapidfireai.commandline.output import (
    format_number,
    format_size,
    format_time,
    print_json,
    print_line,
    print_table,
)
from rapidfireai.core.modes import in_words, summary
from rapidfireai.errors import ConfigError, RapidFireError
from rapidfireai.paths import ExperimentFolder, experiments_root

if TYPE_CHECKING:
    from rapidfireai.core.ids import RunId
    from rapidfireai.core.run import Run
    from rapidfireai.live.board import Standing

_Row = dict[str, Any]


def add(verbs: Any) -> None:
    """Add the verbs to the command's parser."""
    experiments = verbs.add_parser(
        "experiments",
        help="list all experiments",
        description="Lists all experiments: when each was begun, its runs by status, the best of "
        "them so far, its size on disk, and the process that trains it.",
    )
    add_path(experiments)
    add_json(experiments)
    experiments.set_defaults(verb=_experiments)

    runs = verbs.add_parser(
        "runs",
        help="list the runs of an experiment",
        description="Lists runs with status, progress, metrics and what tells them apart.",
    )
    runs.add_argument(
        "--where", metavar="CONDITION", help='only runs such as: "eval_loss > 3 and step >= 10"'
    )
    runs.add_argument("--all", action="store_true", help="deleted runs as well")
    add_experiment(runs)
    runs.set_defaults(verb=_runs)

    show = verbs.add_parser(
        "show-run",
        help="show all that is known of a run",
        description="Shows a run's state, where it comes from, its configuration, its notes, and "
        "the traceback if it failed.",
    )
    show.add_argument("run", type=int, metavar="RUN", help="the run's number")
    add_experiment(show)
    show.set_defaults(verb=_show_run)

    commands = verbs.add_parser(
        "commands",
        help="list what was asked of an experiment's runs, and what became of it",
        description="Lists all commands: who asked for what, when, why, and what became of it.",
    )
    add_experiment(commands)
    commands.set_defaults(verb=_commands)


def _experiments(options: argparse.Namespace) -> int:
    root = experiments_root(options.path)
    found = [_experiment(folder) for folder in ExperimentFolder.all(root)]
    if options.json:
        print_json(found)
        return 0
    if not found:
        print_line(f"there is no experiment in {root}")
        return 0
    rows = [
        (
            one["name"],
            "" if one["begun_s"] is None else format_time(one["begun_s"]),
            one["problem"] or ", ".join(f"{n} {status}" for status, n in one["runs"].items()),
            _best_text(one["best"]),
            format_size(one["num_bytes"]),
            "" if one["trained_by"] is None else f"process {one['trained_by']}",
        )
        for one in found
    ]
    print_table(("experiment", "begun", "runs", "best", "size", "trained by"), rows)
    return 0


def _experiment(folder: ExperimentFolder) -> _Row:
    """All about an experiment; one that cannot be read must not hide the others."""
    from rapidfireai.cleaning import size_of
    from rapidfireai.control import open_store

    row: _Row = {
        "name": folder.name,
        "path": str(folder.path),
        "begun_s": None,
        "runs": {},
        "best": None,
        "num_bytes": size_of(folder.path),
        "trained_by": None,
        "problem": None,
    }
    try:
        row["trained_by"] = folder.trained_by()
        with closing(open_store(folder)) as store:
            runs = store.runs()
            row["begun_s"] = store.experiment().created_s
            row["runs"] = dict(Counter(run.status.value for run in runs))
            row["best"] = _best(_standing(_shown(runs), store.metrics()))
    except RapidFireError as error:
        row["problem"] = str(error)
    return row


def _shown(runs: Sequence["Run"]) -> list["Run"]:
    return [run for run in runs if run.status != "deleted"]


def _standing(runs: Sequence["Run"], rows: Sequence[Any]) -> "Standing":
    from rapidfireai.core.clock import SystemClock
    from rapidfireai.live.board import Board

    board = Board(runs, SystemClock())
    shown = {run.id for run in runs}
    board.take_stored(row for row in rows if row.run_id in shown)
    return board.standing()


def _best(standing: "Standing") -> _Row | None:
    best = standing.best
    if best is None:
        return None
    return {
        "run_id": best.run.id,
        "metric": standing.metric,
        "value": best.value(standing.metric),
    }


def _best_text(best: _Row | None) -> str:
    if best is None:
        return ""
    return f"run {best['run_id']}, {best['metric']} {format_number(best['value'])}"


def _runs(options: argparse.Namespace) -> int:
    from rapidfireai.control import open_store
    from rapidfireai.live.board import knobs
    from rapidfireai.results import latest_metrics
    from rapidfireai.selection import select

    folder = chosen(options)
    with closing(open_store(folder)) as store:
        runs = store.runs() if options.all else _shown(store.runs())
        differing = knobs(runs)
        if options.where is not None:
            wanted = {*select(options.where, store)}
            if options.all:
                wanted |= {*select(options.where, store, deleted=True)}
            runs = [run for run in runs if run.id in wanted]
        metrics = store.metrics()
    if options.json:
        latest = latest_metrics(runs, metrics)
        print_json([_run_values(run, latest[run.id], differing) for run in runs])
        return 0
    if not runs:
        print_line(f"{folder.name}: no run" + (" meets the condition" if options.where else ""))
        return 0
    standing = _standing(runs, metrics)
    values = {row.run.id: row.metrics for row in standing.rows}
    print_line(folder.name)
    titles = ["run", "status", "step", "loss", *standing.names, *differing]
    cells = [_run_cells(run, values[run.id], standing.names, differing) for run in runs]
    titles += ["parent", "pinned", "notes"]
    if any(run.modes for run in runs):
        titles.insert(-1, "passes")
        for run, row in zip(runs, cells, strict=True):
            row.insert(-1, summary(run.modes))
    print_table(titles, cells)
    return 0


def _run_cells(
    run: "Run",
    metrics: Mapping[str, float],
    names: Sequence[str],
    differing: Mapping[str, Mapping["RunId", object]],
) -> list[str]:
    return [
        str(run.id),
        run.status.value,
        f"{run.step}/{'?' if run.num_steps is None else run.num_steps}",
        "" if run.loss is None else format_number(run.loss),
        *(format_number(metrics[name]) if name in metrics else "" for name in names),
        *(str(values.get(run.id, "")) for values in differing.values()),
        "" if run.parent_id is None else str(run.parent_id),
        "yes" if run.pinned else "",
        run.error or "; ".join(run.notes[-1:]),
    ]


def _run_values(
    run: "Run",
    metrics: Mapping[str, float],
    differing: Mapping[str, Mapping["RunId", object]],
) -> _Row:
    return {
        "run_id": run.id,
        "status": run.status.value,
        "step": run.step,
        "num_steps": run.num_steps,
        "chunks_done": run.chunks_done,
        "num_chunks": run.num_chunks,
        "active_s": run.active_s,
        "loss": run.loss,
        "pinned": run.pinned,
        "parent_id": run.parent_id,
        "metrics": dict(metrics),
        "knobs": {name: values.get(run.id) for name, values in differing.items()},
        "modes": list(run.modes),
        "notes": list(run.notes),
        "error": run.error,
        "path": run.path,
    }


def _show_run(options: argparse.Namespace) -> int:
    from rapidfireai.control import open_store
    from rapidfireai.results import latest_metrics

    with closing(open_store(chosen(options))) as store:
        runs = {run.id: run for run in store.runs()}
        metrics = store.metrics()
    if options.run not in runs:
        known = ", ".join(map(str, runs))
        raise ConfigError(f"there is no run {options.run}; the experiment's runs are {known}")
    run = runs[options.run]
    lineage = [{"run_id": one.id, "modified": dict(one.modified)} for one in _line(run, runs)]
    row = {
        **_run_values(run, latest_metrics([run], metrics)[run.id], {}),
        "lineage": lineage,
        "clones": [other.id for other in runs.values() if other.parent_id == run.id],
        "config": run.config,
        "resolved": run.resolved,
        "traceback": run.traceback,
    }
    if options.json:
        print_json(row)
    else:
        for line in _run_lines(run, row):
            print_line(line)
    return 0


def _line(run: "Run", runs: Mapping["RunId", "Run"]) -> Iterator["Run"]:
    """The run and its ancestors, the youngest first."""
    while True:
        yield run
        if run.parent_id is None:
            return
        run = runs[run.parent_id]


def _run_lines(run: "Run", row: _Row) -> Iterator[str]:
    import json

    pinned = ", pinned" if run.pinned else ""
    yield f"run {run.id}: {run.status}{pinned}, step {run.step} of {run.num_steps or '?'}"
    for younger, older in zip(row["lineage"], row["lineage"][1:], strict=False):
        changes = ", ".join(
            f"{name} {old} -> {new}" for name, (old, new) in younger["modified"].items()
        )
        parentage = f"run {younger['run_id']} is a clone of run {older['run_id']}"
        yield f"{parentage}: {changes or 'nothing modified'}"
    if row["clones"]:
        yield f"cloned by: {', '.join(map(str, row['clones']))}"
    yield f"folder: {run.path}"
    yield from (f"note: {note}" for note in run.notes)
    yield from (in_words(choice) for choice in run.modes)
    yield from (f"{name}: {format_number(value)}" for name, value in row["metrics"].items())
    yield "configuration:"
    yield json.dumps(run.config, indent=2)
    if run.error is not None:
        yield f"error: {run.error}"
        yield (run.traceback or "").rstrip()


def _commands(options: argparse.Namespace) -> int:
    from rapidfireai.control import open_store

    folder = chosen(options)
    with closing(open_store(folder)) as store:
        commands = store.commands()
    if options.json:
        print_json([record.to_json() for record in commands])
        return 0
    if not commands:
        print_line(f"{folder.name}: nothing has been asked of its runs")
        return 0
    rows = [
        (
            str(record.id),
            format_time(record.given_s),
            str(record.command),
            record.command.by,
            record.status.value,
            record.outcome,
            record.command.reason,
        )
        for record in commands
    ]
    print_table(("command", "given", "what", "by", "status", "outcome", "reason"), rows)
    return 0
