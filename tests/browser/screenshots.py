"""Makes the pictures of the documentation: `python -m tests.browser.screenshots FOLDER`.

Real experiments of tiny models are trained meanwhile, and commands given as a person would.
"""

import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trl

from tests.browser.stage import ROOT, Stage, browsing, missing, staged

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

WIDE: Final = (1280, 800)
PHONE: Final = (390, 844)
_SETTLE_MS: Final = 1200
_HIDE: Final = """(paths) => {
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode())
        for (const path of paths)
            walker.currentNode.data = walker.currentNode.data.replaceAll(path, '~');
}"""
"""Whose machine it was does not matter."""

_LIMIT_MS: Final = 300_000


def main(target: Path) -> None:
    """Make all pictures."""
    reason = missing()
    if reason is not None:
        sys.exit(f"no pictures can be made: {reason}")
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, staged(Path(folder) / "stage") as stage:
        stage.train("failing").wait(300)
        training = stage.train("search")
        try:
            with browsing() as browser:
                _prepare(browser, stage)
                for theme in ("light", "dark"):
                    _take_all(browser, stage, theme, WIDE, target / f"dashboard-{{}}-{theme}.png")
                _take_all(browser, stage, "light", PHONE, target / "dashboard-{}-phone.png")
        finally:
            training.send_signal(signal.SIGTERM)
            training.wait(120)


def _prepare(browser: "Browser", stage: Stage) -> None:
    """Wait until all runs have begun, then steer some of them."""
    page = browser.new_page()
    page.set_default_timeout(_LIMIT_MS)
    page.goto(stage.link)
    page.get_by_role("link", name="search", exact=True).click()
    page.locator("tr[data-run='12'] .progress-text", has_text="/160").wait_for()
    _row(page, 7).click()
    page.keyboard.press("p")
    page.locator("tr[data-run='7'] .pill", has_text="pruned").wait_for()
    _row(page, 9).click()
    page.keyboard.press("b")
    _row(page, 8).click()
    page.keyboard.press("s")
    page.locator("tr[data-run='8'] .pill", has_text="stopped").wait_for()
    _row(page, 2).click()
    page.keyboard.press("c")
    _fill_clone(page)
    page.get_by_role("dialog").get_by_role("button", name="Clone", exact=True).click()
    page.locator("tr[data-run='13'] .pill").wait_for(state="attached")
    page.locator("tr[data-run='13'] .progress-text", has_text="/160").wait_for(state="attached")
    page.close()


def _fill_clone(page: "Page") -> None:
    dialog = page.get_by_role("dialog")
    dialog.locator("[name='training_args.learning_rate']").fill("5e-3")
    dialog.locator("input[value=warm]").check()
    dialog.get_by_label("Why").fill("the loss has stopped falling")
    dialog.locator(".forecast").wait_for()


def _open_clone(page: "Page") -> None:
    _row(page, 4).click()
    page.keyboard.press("c")
    _fill_clone(page)


def _row(page: "Page", run_id: int) -> "Locator":
    return page.locator(f"tr[data-run='{run_id}'] .cell-status")


VIEWS: Final[Mapping[str, tuple[str, Callable[["Page"], object]]]] = {
    "overview": ("", lambda page: None),
    "runs": ("experiments/search?smooth=0.6", lambda page: None),
    "selected": (
        "experiments/search?sel=1,3,5&metrics=loss,eval_loss&x=samples&show=selected&smooth=0.6",
        lambda page: None,
    ),
    "grouped": (
        "experiments/search?group=training_args.learning_rate&sort=eval_loss&metrics=eval_loss",
        lambda page: None,
    ),
    "clone": ("experiments/search", _open_clone),
    "run": ("experiments/search/runs/1?smooth=0.6", lambda page: None),
    "failed": ("experiments/failing/runs/2", lambda page: None),
    "timeline": ("experiments/search/timeline", lambda page: None),
    "parallel": ("experiments/search/parallel", lambda page: None),
    "compare": ("experiments/search/compare?sel=2,3,13", lambda page: None),
    "lineage": ("experiments/search/lineage", lambda page: None),
    "log": ("experiments/search/log", lambda page: None),
    "keyboard": ("experiments/search", lambda page: page.keyboard.press("?")),
}


MOST_IMPORTANT: Final = ("overview", "runs", "clone", "timeline")
"""Views that are also shown dark, and on a phone."""


def _take_all(
    browser: "Browser", stage: Stage, theme: str, size: tuple[int, int], name: Path
) -> None:
    width, height = size
    is_usual = theme == "light" and size == WIDE
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if theme == "dark" else "light",
    )
    page = context.new_page()
    page.goto(stage.link)
    for view, (place, act) in VIEWS.items():
        if not is_usual and view not in MOST_IMPORTANT:
            continue
        page.goto("about:blank")
        page.goto(f"{stage.address}/#/{place}")
        page.wait_for_timeout(_SETTLE_MS)
        act(page)
        page.wait_for_timeout(_SETTLE_MS / 3)
        page.evaluate(_HIDE, [str(stage.folder), str(ROOT), str(Path(trl.__file__).parents[1])])
        page.screenshot(path=str(name).format(view))
    context.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
