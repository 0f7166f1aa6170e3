"""The dashboard as a person uses it: a real browser, a real server, real training."""

import re
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.conftest import LIMIT_MS
from tests.browser.stage import Stage
from tests.browser.training import FAILURE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

FIRST_COLOR = (0, 0x72, 0xB2)
"""Of run 1, where the page is light."""


@pytest.fixture(scope="module", autouse=True)
def training(stage: Stage) -> Iterator[None]:
    """Three runs that train for as long as anybody looks."""
    process = stage.train("long")
    yield
    process.send_signal(signal.SIGTERM)
    process.wait(120)


def expect(locator: "Locator") -> Any:
    """What is said of it has to come true within the limit."""
    from playwright.sync_api import expect

    expect.set_options(timeout=LIMIT_MS)
    return expect(locator)


def opened(page: "Page", stage: Stage, place: str = "long") -> "Page":
    """The page of an experiment, once its runs are there."""
    page.goto(f"{stage.address}/#/experiments/{place}")
    expect(row(page, 1)).to_be_visible()
    return page


def row(page: "Page", run_id: int) -> "Locator":
    return page.locator(f"tr[data-run='{run_id}']")


def is_(page: "Page", run_id: int, *statuses: str) -> None:
    """Wait until a run has one of these statuses."""
    expect(row(page, run_id).locator(".pill")).to_have_text(re.compile("|".join(statuses)))


def commanded(page: "Page", text: str) -> None:
    """Wait for an outcome in the log of commands."""
    expect(page.locator(".commands li").filter(has_text=text).first).to_contain_text("applied")


def num_colored(page: "Page") -> int:
    """Pixels of the first chart that have the colour of run 1."""
    count: int = page.evaluate(
        """([r, g, b]) => {
            const canvas = document.querySelector('.chart canvas');
            const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
            let count = 0;
            for (let i = 0; i < data.length; i += 4)
                count += data[i] === r && data[i + 1] === g && data[i + 2] === b;
            return count;
        }""",
        list(FIRST_COLOR),
    )
    return count


def test_wrong_tokens_are_refused(browser: "Browser", stage: Stage) -> None:
    context = browser.new_context()
    page = context.new_page()
    answer = page.goto(f"{stage.address}/?token=wrong")
    assert answer is not None and answer.status == 401
    expect(page.locator("body")).to_contain_text("token is missing or wrong")
    context.close()


def test_the_overview_shows_experiments(page: "Page", stage: Stage) -> None:
    page.goto(f"{stage.address}/#/")
    card = page.locator(".card").filter(has_text="long")
    expect(card.locator(".pill").first).to_have_text("training")
    card.get_by_role("link", name="long", exact=True).click()
    expect(row(page, 3)).to_be_visible()


def test_a_live_curve_appears_and_follows(page: "Page", stage: Stage) -> None:
    opened(page, stage)
    progress = row(page, 1).locator(".progress-text")
    expect(progress).to_have_text(re.compile(r"^([6-9]|\d\d+)/"))
    before = progress.inner_text()
    expect(progress).not_to_have_text(before)
    assert num_colored(page) > 20


def test_stop_and_resume_with_the_keyboard(page: "Page", stage: Stage) -> None:
    opened(page, stage)
    page.keyboard.press("j")
    page.keyboard.press("s")
    is_(page, 1, "stopped")
    commanded(page, "Stop run 1")
    page.keyboard.press("r")
    is_(page, 1, "queued", "running", "waiting")
    commanded(page, "Resume run 1")


def test_a_run_is_cloned_with_changes_and_a_warm_start(page: "Page", stage: Stage) -> None:
    opened(page, stage)
    expect(row(page, 2).locator(".progress-text")).to_have_text(re.compile(r"^[1-9]\d*/"))
    row(page, 2).click()
    page.keyboard.press("c")
    dialog = page.get_by_role("dialog")
    field = dialog.locator("[name='training_args.learning_rate']")
    field.fill("fast")
    expect(dialog.locator(".knob-field .problem")).to_contain_text("allowed: float")
    expect(dialog.get_by_role("button", name="Clone")).to_be_disabled()
    field.fill("3e-4")
    dialog.locator("input[value=warm]").check()
    dialog.get_by_label("Optimizer's state").select_option("reset")
    expect(dialog.locator(".forecast")).to_contain_text("remain")
    expect(dialog.locator(".diff")).to_contain_text("3e-4")
    dialog.get_by_label("Why").fill("plateau")
    dialog.get_by_role("button", name="Clone").click()
    expect(row(page, 4)).to_be_visible()
    commanded(page, "Clone run 2")
    is_(page, 4, "queued", "running", "waiting")
    page.get_by_role("button", name="Lineage").click()
    clone = page.locator(".lineage li").filter(has_text="run 4")
    expect(clone).to_contain_text("warm")
    expect(clone.locator(".diff-new")).to_have_text("3e-4")


def test_deleting_is_undone(page: "Page", stage: Stage) -> None:
    opened(page, stage)
    row(page, 3).click()
    page.keyboard.press("d")
    expect(row(page, 3)).to_have_count(0)
    toast = page.locator(".toast").filter(has_text="Deleted run 3")
    toast.get_by_role("button", name="Undo").click()
    is_(page, 3, "stopped")
    commanded(page, "Restore run 3")


def test_many_runs_are_commanded_with_the_keyboard(page: "Page", stage: Stage) -> None:
    opened(page, stage)
    page.keyboard.press("j")
    page.keyboard.press("x")
    page.keyboard.press("j")
    page.keyboard.press("x")
    expect(page.locator(".counts")).to_contain_text("2 selected")
    assert "sel=1%2C2" in page.url
    page.keyboard.press("p")
    is_(page, 1, "pruned")
    is_(page, 2, "pruned")
    page.keyboard.press("u")
    is_(page, 1, "queued", "running", "waiting")
    is_(page, 2, "queued", "running", "waiting")


def test_filters_take_words_and_comparisons(page: "Page", stage: Stage) -> None:
    opened(page, stage)
    page.keyboard.press("/")
    page.keyboard.type("learning_rate<1e-6")
    expect(page.locator("tr.run-line")).to_have_count(0)
    page.locator(".search input").fill("learning_rate:5e-3")
    expect(page.locator("tr.run-line")).to_have_count(1)
    page.reload()
    expect(page.locator("tr.run-line")).to_have_count(1)


def test_the_page_goes_on_after_a_restart_of_the_server(page: "Page", stage: Stage) -> None:
    opened(page, stage)
    stage.stop_server()
    expect(page.locator(".banner")).to_contain_text("The server does not answer")
    stage.start_server()
    expect(page.locator(".banner")).to_have_count(0)
    before = page.locator(".head .pill").inner_text()
    assert "training" in before
    row(page, 4).click()
    page.keyboard.press("s")
    is_(page, 4, "stopped")


def test_the_timeline_shows_turns(page: "Page", stage: Stage) -> None:
    page.goto(f"{stage.address}/#/experiments/long/timeline")
    expect(page.locator(".lanes canvas")).to_have_attribute("aria-label", re.compile("turns of"))


def test_a_failed_run_shows_its_traceback_as_text(page: "Page", stage: Stage) -> None:
    assert stage.train("failing").wait(300) == 0
    opened(page, stage, "failing")
    is_(page, 2, "failed")
    row(page, 2).get_by_role("button", name="run 2").click()
    expect(page.locator(".traceback")).to_contain_text("on_step_end")
    expect(page.locator(".failure h2")).to_contain_text(FAILURE)
    expect(page.locator(".failure b")).to_have_count(0)
