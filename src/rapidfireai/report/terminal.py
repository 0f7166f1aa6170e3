"""A report as lines and tables in a terminal."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rapidfireai.core.commands import CommandRecord
from rapidfireai.core.modes import summary
from rapidfireai.report.findings import NUM_LAST, Findings, Standing


def show(findings: Findings, console: Console) -> None:
    """Print a report."""
    console.print(
        f"[bold]{escape(findings.name)}[/]: runs by {findings.objective.metric}, "
        f"{findings.objective.direction}d ({findings.why})"
    )
    console.print(saved(findings))
    for title, standings in findings.rankings():
        console.print(_ranking(findings, title, standings))
    if findings.unranked:
        numbers = ", ".join(str(run.id) for run in findings.unranked)
        console.print(f"not ranked, as they have not reported it: run {numbers}")
    if findings.importance:
        shares = ", ".join(f"{escape(k)} {share:.0%}" for k, share in findings.importance.items())
        console.print(f"what explains the ranking: {shares}")
    for run in findings.shared:
        console.print(f"passes of run {run.id}: {escape(summary(run.modes))}", highlight=False)
    for record in findings.decisions:
        console.print(f"- {escape(told(record))}", highlight=False)


def saved(findings: Findings) -> str:
    """What was trained of what could have been."""
    return (
        f"{findings.num_steps:,} of {findings.num_planned:,} steps were trained: "
        f"{findings.saved:.0%} saved"
    )


def told(record: CommandRecord) -> str:
    """A decision, with its reason."""
    command = record.command
    at = "" if record.step is None else f" at step {record.step}"
    return f"{command} by {command.by}{at}: {command.reason or 'no reason given'}"


def shown(standing: Standing) -> str:
    """A run's value, with its uncertainty."""
    error = "" if standing.error is None else f" ± {standing.error:.2g}"
    return f"{standing.value:.4g}{error}{' (tied)' if standing.is_tied else ''}"


def _ranking(findings: Findings, title: str, standings: list[Standing]) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        caption=f"average and standard error over the last {NUM_LAST} chunks",
    )
    for name in ("", "run", f"{findings.objective.metric}", "chunks", "status", *findings.knobs):
        table.add_column(escape(name), justify="right" if name in ("", "run", "chunks") else "left")
    for standing in standings:
        run = standing.run
        table.add_row(
            str(standing.place),
            str(run.id),
            shown(standing),
            f"{run.chunks_done}/{run.num_chunks or '?'}",
            run.status.value,
            *(escape(str(findings.value_of(run, knob))) for knob in findings.knobs),
        )
    return table
