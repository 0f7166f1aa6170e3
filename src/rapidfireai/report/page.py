"""A report as one HTML page, which loads nothing from anywhere."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from string import Template
from typing import Final

from rapidfireai.core.modes import gain
from rapidfireai.report.findings import NUM_LAST, Findings, Standing
from rapidfireai.report.pictures import learning_curves, parallel_coordinates
from rapidfireai.report.terminal import saved, shown

_PAGE: Final = Template(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>$name</title>
<style>
:root { color-scheme: light dark; --ink: #1f2328; --faint: #656d76; --grid: #e4e7eb;
  --axis: #b4bac1; --paper: #fff; --best: #eef6ee; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --faint: #9aa3ad; --grid: #31363c;
  --axis: #565d66; --paper: #17191c; --best: #1f2d21; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 960px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
.big { font-size: 1.9rem; font-weight: 650; } .facts { display: flex; gap: 3rem; flex-wrap: wrap; }
.faint, caption { color: var(--faint); } caption { text-align: left; caption-side: bottom; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--grid); }
th { font-weight: 600; } tr.best { background: var(--best); } td.num { text-align: right; }
svg { width: 100%; height: auto; } svg text { font-size: 12px; fill: var(--ink); }
.wide { width: 60%; } .scroll { overflow-x: auto; }
.bar { background: #1b6ca8; height: .7rem; border-radius: 2px; display: inline-block; }
</style>
</head>
<body>
<h1>$name</h1>
<p class="faint">$when. Runs are compared by <b>$metric</b>, $direction: $why.</p>
<div class="facts">$facts</div>
$sections
</body>
</html>
"""
)


def as_html(findings: Findings, now_s: float) -> str:
    """The page.

    Args:
        findings: What it tells.
        now_s: Seconds since the Unix epoch, at which this was found.
    """
    when = datetime.fromtimestamp(now_s, tz=UTC)
    return _PAGE.substitute(
        name=escape(findings.name),
        when=f"{when:%Y-%m-%d %H:%M} UTC",
        metric=escape(findings.objective.metric),
        direction=f"{findings.objective.direction}d",
        why=escape(findings.why),
        facts=_facts(findings),
        sections="".join(_sections(findings)),
    )


def _facts(findings: Findings) -> str:
    best = findings.standings[0]
    facts = (
        (f"run {best.run.id}", f"best: {shown(best)}"),
        (f"{findings.saved:.0%}", saved(findings)),
        (str(len(findings.decisions)), "decisions to end, resume or clone a run"),
    )
    return "".join(
        f'<div><div class="big">{escape(big)}</div><div class="faint">{escape(small)}</div></div>'
        for big, small in facts
    )


def _sections(findings: Findings) -> Iterable[str]:
    yield _section("Learning curves", learning_curves(findings))
    for title, standings in findings.rankings():
        yield _section(title, _ranking(findings, standings))
    yield _section("Knobs", parallel_coordinates(findings))
    yield _section("What explains the ranking", _importance(findings))
    yield _section("Decisions", _decisions(findings))
    yield _section("Shared passes", _shared(findings))


def _section(title: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>{body}" if body else ""


def _ranking(findings: Findings, standings: Sequence[Standing]) -> str:
    rows = []
    for standing in standings:
        run = standing.run
        cells = [
            str(standing.place),
            f"run {run.id}",
            shown(standing),
            f"{run.chunks_done}/{run.num_chunks or '?'}",
            run.status.value,
            *(str(findings.value_of(run, knob)) for knob in findings.knobs),
        ]
        rows.append((cells, "best" if standing.place == 1 else ""))
    caption = (
        f"Average over the last {NUM_LAST} chunks, and its standard error; tied: within twice the "
        "standard error of the difference to the best."
    )
    head = ["", "run", findings.objective.metric, "chunks", "status", *findings.knobs]
    return _table(head, rows, caption)


def _importance(findings: Findings) -> str:
    if not findings.importance:
        return ""
    rows = "".join(
        f"<tr><td>{escape(knob)}</td><td class=num>{share:.0%}</td>"
        f'<td class="wide"><span class="bar" style="width:{100 * share:.0f}%"></span></td></tr>'
        for knob, share in findings.importance.items()
    )
    return (
        f"<table><caption>Share of the variance of the ranks that a knob explains by itself "
        f"(epsilon squared), over {len(findings.standings)} runs.</caption>{rows}</table>"
    )


def _decisions(findings: Findings) -> str:
    if not findings.decisions:
        return '<p class="faint">None: every run was left to itself.</p>'
    rows = [
        (
            [
                f"{datetime.fromtimestamp(record.given_s, tz=UTC):%H:%M:%S}",
                str(record.command),
                "" if record.step is None else str(record.step),
                record.command.by,
                record.command.reason,
            ],
            "",
        )
        for record in findings.decisions
    ]
    return _table(["UTC", "what", "step", "by", "why"], rows, "")


def _shared(findings: Findings) -> str:
    """How passes through the base were computed, and why; empty where there was no choice."""
    rows = []
    for run in findings.shared:
        measured = [choice for choice in run.modes if gain(choice) is not None]
        for choice in measured or run.modes:
            times = gain(choice)
            cells = [
                f"run {run.id}",
                choice["kind"] or "all",
                choice["mode"],
                "" if times is None else f"{times:.2f}x",
                choice["reason"],
                ", ".join(map(str, choice["members"])),
            ]
            rows.append((cells, ""))
    caption = (
        "Gain: how many times as fast a pass was, measured, when the runs of the gang shared it. "
        "A run's numbers are the same either way."
    )
    return _table(["", "passes", "kept", "gain", "why", "gang"], rows, caption) if rows else ""


def _table(head: Sequence[str], rows: Iterable[tuple[Sequence[str], str]], caption: str) -> str:
    body = "".join(
        f'<tr class="{kind}">{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for cells, kind in rows
    )
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    below = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table>{below}<tr>{names}</tr>{body}</table></div>'
