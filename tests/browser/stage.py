"""A server, experiments that are trained, and a browser that looks at them."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rapidfireai.server.home import ServerRecord
from rapidfireai.server.pages import BUILT
from rapidfireai.server.process import Place, start_detached, stop

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parents[2]


def chromium() -> str | None:
    """The path of a browser; None if there is none."""
    return shutil.which("chromium") or shutil.which("google-chrome")


def missing() -> str | None:
    """What is missing for tests in a browser; None if nothing is."""
    try:
        import playwright.sync_api  # noqa: F401
    except ModuleNotFoundError:
        return "playwright is not installed"
    if chromium() is None:
        return "there is no chromium"
    if not (BUILT / "index.html").exists():
        return "the dashboard is not built: `make dashboard`"
    return None


@dataclass
class Stage:
    """A folder of experiments, and the server that shows them."""

    folder: Path
    record: ServerRecord
    token: str

    @property
    def link(self) -> str:
        """Lets a browser in."""
        return f"{self.address}/?token={self.token}"

    @property
    def address(self) -> str:
        return f"http://localhost:{self.record.port}"

    @property
    def experiments(self) -> Path:
        return self.folder / "experiments"

    def stop_server(self) -> None:
        stop(self.folder / "home")

    def start_server(self) -> None:
        """Start it again where it was."""
        self.record, self.token = start_detached(place(self.folder, self.record.port))

    def train(self, name: str) -> "subprocess.Popen[bytes]":
        """Have a process of its own train one of `training.EXPERIMENTS`."""
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.browser.training", name, str(self.experiments)],
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )


def place(folder: Path, port: int) -> Place:
    return Place(home=folder / "home", experiments=folder / "experiments", port=port)


@contextmanager
def staged(folder: Path) -> Iterator[Stage]:
    """A server for the experiments in a folder."""
    (folder / "experiments").mkdir(parents=True)
    stage = Stage(folder, *start_detached(place(folder, 0)))
    try:
        yield stage
    finally:
        stage.stop_server()


@contextmanager
def browsing() -> Iterator["Browser"]:
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        try:
            yield browser
        finally:
            browser.close()
