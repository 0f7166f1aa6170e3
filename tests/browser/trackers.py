"""Makes the pictures of docs/trackers.md: `python -m tests.browser.trackers FOLDER`.

A real experiment is trained and told to MLflow, TensorBoard and Trackio, whose own pages are then
looked at. W&B's are its server's.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.browser.stage import ROOT, Stage, browsing, missing, staged

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAME: Final = "rates"
_SIZE: Final = {"width": 1280, "height": 720}
_SETTLE_MS: Final = 8_000
_START_S: Final = 120.0

_SCRIPT: Final = f"""
import sys
from rapidfireai import Experiment
from rapidfireai.automl import List, RFGridSearch, RFSFTConfig
from rapidfireai.testing.tiny import text_rows, tiny_model, tiny_tokenizer

def create_model(config):
    return tiny_model(), tiny_tokenizer()

Experiment("{NAME}", experiment_path=sys.argv[1]).run_fit(
    RFGridSearch([RFSFTConfig(max_steps=80, logging_steps=1, max_length=64, lora_rank=List([4, 16]),
                              learning_rate=List([3e-2, 3e-3]))]),
    create_model, text_rows(64), text_rows(16), num_chunks=4,
    trackers=["mlflow", "tensorboard", "trackio"],
)
"""


_TRACKIO: Final = """
import sys
import trackio

trackio.show(server_port=int(sys.argv[1]), open_browser=False, block_thread=True)
"""


def main(target: Path) -> None:
    """Make all pictures."""
    reason = missing()
    if reason is not None:
        sys.exit(f"no pictures can be made: {reason}")
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, staged(Path(folder) / "stage") as stage:
        os.environ["TRACKIO_DIR"] = f"{folder}/trackio"
        subprocess.run([sys.executable, "-c", _SCRIPT, stage.experiments], cwd=ROOT, check=True)
        sync = ("-m", "rapidfireai", "sync", "--path", str(stage.experiments))
        subprocess.run([sys.executable, *sync], cwd=ROOT, check=True)
        with browsing() as browser:
            _mlflow(browser, stage, target / "trackers-mlflow.png")
            logs = stage.experiments / NAME / "trackers" / "tensorboard" / "logs" / NAME
            with _serving("-m", "tensorboard.main", "--logdir", str(logs), "--port") as url:
                _take(browser, f"{url}/#timeseries", target / "trackers-tensorboard.png")
            with _serving("-c", _TRACKIO) as url:
                _take(browser, f"{url}/?project={NAME}", target / "trackers-trackio.png")


def _mlflow(browser: "Browser", stage: Stage, picture: Path) -> None:
    page = browser.new_page(viewport=_SIZE)
    page.goto(stage.link)
    page.goto(f"{stage.address}/mlflow/{NAME}/#/experiments/1/runs?compareRunsMode=CHART")
    page.locator("#root *").first.wait_for(timeout=1000 * _START_S)
    page.wait_for_timeout(2 * _SETTLE_MS)
    with suppress(Exception):  # the assistant that nobody called, in versions that have one
        page.get_by_role("button", name="Close").first.click(timeout=1000)
    page.wait_for_timeout(1000)
    page.screenshot(path=picture)
    page.close()


def _take(browser: "Browser", url: str, picture: Path) -> None:
    page = browser.new_page(viewport=_SIZE)
    page.goto(url)
    page.wait_for_timeout(_SETTLE_MS)
    page.screenshot(path=picture)
    page.close()


@contextmanager
def _serving(*program: str) -> Iterator[str]:
    """A program of Python that listens at the port that is its last argument."""
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    server = subprocess.Popen([sys.executable, *program, str(port)], cwd=ROOT)
    try:
        deadline_s = time.monotonic() + _START_S
        while time.monotonic() < deadline_s:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
