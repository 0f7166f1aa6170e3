"""What the dashboard's page costs the browser, and how quickly it shows what happens.

    python -m benchmarks.dashboard

An experiment of many runs with long series is written by hand and looked at; then tiny models are
trained, and the page is asked how late it shows their steps and what becomes of commands.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks._report import Report, Row, percentiles
from benchmarks.server import written
from rapidfireai.core.events import MetricSource
from rapidfireai.core.ids import RunId
from rapidfireai.store import SqliteStore
from tests.browser.stage import Stage, browsing, missing, staged

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_LIMIT_MS = 300_000
_ALL_CURVES_MS = 15_000
"""For some requests one after another, whose end nothing on the page tells."""

_WATCH = """() => {
    window.seen = [];
    const cell = document.querySelector("tr[data-run='1'] .progress-text");
    new MutationObserver(() => {
        window.seen.push([Date.now() / 1000, parseInt(cell.textContent)]);
    }).observe(cell, {characterData: true, childList: true, subtree: true});
}"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dashboard", description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--points", type=int, default=10_000, help="of each run's loss")
    parser.add_argument("--commands", type=int, default=10, help="stops, and as many resumptions")
    parser.add_argument("--watch-s", type=float, default=30.0, help="seconds of watching steps")
    parser.add_argument("--json", type=Path, help="also write the result there")
    options = parser.parse_args(arguments)
    reason = missing()
    if reason is not None:
        parser.error(reason)
    with (
        tempfile.TemporaryDirectory() as folder,
        staged(Path(folder) / "stage") as stage,
        browsing() as browser,
    ):
        rows = _live_rows(browser, stage, options.commands, options.watch_s)
        written(stage.experiments, options.runs, options.points)
        rows += _size_rows(browser, stage)
    report = Report(title=f"Dashboard: {options.runs} runs with {options.points} points", rows=rows)
    report.print()
    if options.json is not None:
        report.save(options.json)


def _opened(browser: "Browser", stage: Stage) -> "Page":
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    context.set_default_timeout(_LIMIT_MS)
    page = context.new_page()
    page.goto(stage.link)
    return page


def _live_rows(browser: "Browser", stage: Stage, num_commands: int, watch_s: float) -> list[Row]:
    process = stage.train("long")
    try:
        page = _opened(browser, stage)
        page.get_by_role("link", name="long", exact=True).click()
        page.locator("tr[data-run='3'] .progress-text", has_text="/40000").wait_for()
        page.evaluate(_WATCH)
        page.wait_for_timeout(1000 * watch_s)
        late_s = _delays(stage, page.evaluate("() => window.seen"))
        effects_s = _effects(page, num_commands)
        page.context.close()
    finally:
        process.terminate()
        process.wait(120)
    return [
        Row(
            name="**a step's end to its number on the page, p50 / p95**",
            value=percentiles([1000 * one for one in late_s], "ms"),
            goal="p95 < 1 s",
            note=f"{len(late_s)} times",
        ),
        Row(
            name="**a key to its effect on the page, p50 / p95**",
            value=percentiles([1000 * one for one in effects_s], "ms"),
            goal="p95 < 1 s",
            note="stop and resume",
        ),
    ]


def _delays(stage: Stage, seen: list[tuple[float, int]]) -> list[float]:
    """Seconds from each step that was shown being done to its being shown."""
    path = stage.experiments / "long" / "experiment.db"
    with closing(SqliteStore(path)) as store:
        rows = store.metrics(run_id=RunId(1), source=MetricSource.STEP)
    done_s = {row.step: row.time_s for row in rows}
    return [shown_s - done_s[step] for shown_s, step in seen if step in done_s]


def _effects(page: "Page", num_commands: int) -> list[float]:
    found = []
    page.locator("tr[data-run='2'] .cell-status").click()
    status = page.locator("tr[data-run='2'] .pill")
    for _ in range(num_commands):
        for key, word in (("s", "stopped"), ("r", "queued")):
            begin_s = time.perf_counter()
            page.keyboard.press(key)
            if word == "stopped":
                status.filter(has_text=word).wait_for()
            else:
                status.filter(has_not_text="stopped").wait_for()
            found.append(time.perf_counter() - begin_s)
    return found


def _size_rows(browser: "Browser", stage: Stage) -> list[Row]:
    page = _opened(browser, stage)
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    begin_s = time.perf_counter()
    page.goto(f"{stage.address}/#/experiments/big")
    page.locator("tr[data-run='1']").wait_for()
    table_s = time.perf_counter() - begin_s
    page.wait_for_load_state("networkidle")
    curves_s = time.perf_counter() - begin_s
    rows = [
        Row(name="until the table is there", value=table_s, unit="s"),
        Row(name="until 100 curves of each chart are there", value=curves_s, unit="s"),
        Row(name="script until then", value=_script_s(session), unit="s"),
    ]
    before_s = _script_s(session)
    begin_s = time.perf_counter()
    page.locator(".table-scroll").hover()
    for _ in range(60):
        page.mouse.wheel(0, 400)
        page.wait_for_timeout(16)
    took_s = time.perf_counter() - begin_s
    rows.append(
        Row(
            name="**script while the table is scrolled, of a second**",
            value=(_script_s(session) - before_s) / took_s,
            unit="s",
            goal="< 0.5",
        )
    )
    before_s = _script_s(session)
    page.get_by_label("Curves drawn").select_option("all")
    page.wait_for_timeout(_ALL_CURVES_MS)
    rows.append(
        Row(name="script to draw all curves", value=_script_s(session) - before_s, unit="s")
    )
    page.context.close()
    return rows


def _script_s(session: Any) -> float:
    """Seconds that the page's script has run so far."""
    metrics = session.send("Performance.getMetrics")["metrics"]
    return float(next(one["value"] for one in metrics if one["name"] == "ScriptDuration"))


if __name__ == "__main__":
    main()
