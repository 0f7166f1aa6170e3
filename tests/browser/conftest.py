"""Fixtures of the tests in a browser; where it cannot be had, they are skipped and say why."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.browser.stage import Stage, browsing, missing, staged

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

LIMIT_MS = 60_000
"""For whatever a test waits for; the machine may be busy with others."""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with staged(tmp_path_factory.mktemp("browser") / "stage") as stage:
        yield stage


@pytest.fixture(scope="module")
def browser(stage: Stage) -> Iterator["Browser"]:
    with browsing() as browser:
        yield browser


@pytest.fixture
def page(browser: "Browser", stage: Stage) -> Iterator["Page"]:
    """A page that has been let in; an error in its script fails the test."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    context.set_default_timeout(LIMIT_MS)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(stage.link)
    yield page
    context.close()
    assert errors == []
