"""What all trials share."""

import gc
from collections.abc import Iterator

import pytest

from tests.compatibility import page


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-compatibility",
        action="store_true",
        help="write docs/compatibility.md from what the trials show",
    )


@pytest.fixture
def writes_page(request: pytest.FixtureRequest) -> bool:
    """Whether the page is to be written."""
    # Without a default it would be unknown to a session over all tests, which finds this file late.
    wanted: bool = request.config.getoption("--write-compatibility", default=False)
    if wanted:
        page.write_versions()
    return wanted


@pytest.fixture(scope="session", autouse=True)
def quick_collections() -> Iterator[None]:
    """Each run collects garbage as it begins and ends; what was imported is left out of that."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
