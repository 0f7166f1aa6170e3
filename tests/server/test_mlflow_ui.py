"""MLflow's own pages: behind the gate, started by whoever looks, ended when nobody does."""

import asyncio
import time
from pathlib import Path

import httpx
import pytest

from rapidfireai.server.mlflow_ui import Asked, MLflowPages, content_policy, page_of
from rapidfireai.tracking import MLflow
from rapidfireai.tracking.choice import to_json
from rapidfireai.tracking.ledger import RunLedger, TrackerFolder
from tests.server.laboratory import application, client
from tests.tracking.reading import mlflow_client
from tests.tracking.story import Story

LIMIT_S = 200.0

ASKED = Asked(
    method="POST",
    path="ajax-api/2.0/mlflow/experiments/search?",
    headers={"content-type": "application/json"},
    body=b'{"max_results": 10}',
)


@pytest.fixture
def story(tmp_path: Path) -> Story:
    """An experiment that is told to an MLflow store of its own."""
    story = Story.begin(tmp_path, name="my first")
    tell(story, MLflow().settled(TrackerFolder.of(story.folder, "mlflow").path))
    store = TrackerFolder.of(story.folder, "mlflow").path / "mlflow.db"
    mlflow_client(f"sqlite:///{store}").create_experiment("my first")
    return story


def tell(story: Story, settings: MLflow) -> None:
    folder = TrackerFolder.of(story.folder, "mlflow")
    with folder.claimed(0.0):
        ledger = folder.prepared(to_json(settings))
        ledger.runs[next(iter(story.runs().values())).id] = RunLedger("abc")
        folder.write(ledger)


def test_they_are_started_answer_and_end(story: Story) -> None:
    now_s = [0.0]
    pages = MLflowPages(lambda: now_s[0], idle_s=100.0)
    try:
        assert pages.answer(story.folder, ASKED).status_code == 503
        deadline_s = time.monotonic() + LIMIT_S
        while (answer := pages.answer(story.folder, ASKED)).status_code == 503:
            assert time.monotonic() < deadline_s
            time.sleep(0.2)
        assert answer.status_code == 200
        assert b'"my first"' in answer.body
        (process,) = pages._processes.values()
        assert process.folder.stat().st_mode & 0o077 == 0, "nobody else may enter"
        pages.sweep()
        assert pages.num_processes == 1
        now_s[0] = 100.0
        pages.sweep()
        assert pages.num_processes == 0
        assert process.popen.poll() is not None
        assert not process.folder.exists()
    finally:
        pages.close()


def test_an_experiment_without_a_store_has_none(tmp_path: Path) -> None:
    story = Story.begin(tmp_path)
    assert MLflowPages().answer(story.folder, ASKED).status_code == 404
    assert page_of(story.folder) is None


def test_pages_are_named_where_a_browser_finds_them(story: Story) -> None:
    one, two, _ = (run.id for run in story.runs().values())
    assert page_of(story.folder) == "/mlflow/my%20first/"
    assert page_of(story.folder, one) == "/mlflow/my%20first/#/runs/abc"
    assert page_of(story.folder, two) is None
    tell(story, MLflow(tracking_uri="https://me:secret@mlflow.example/base"))
    assert page_of(story.folder, one) == "https://mlflow.example/base/#/runs/abc"


def test_nobody_gets_there_without_the_token(story: Story) -> None:
    async def ask() -> list[httpx.Response]:
        async with client(application(story.folder.path.parent)) as http:
            admitted = await http.get("/mlflow/none/")
            http.headers.pop("authorization", None)
            http.cookies.clear()
            return [admitted, await http.get("/mlflow/my%20first/")]

    admitted, refused = asyncio.run(ask())
    assert admitted.status_code == 404
    assert refused.status_code == 401


def test_its_pages_cannot_call_the_api() -> None:
    policy = content_policy("localhost:3000", "/mlflow/first/") or ""
    assert "connect-src http://localhost:3000/mlflow/;" in policy
    assert "'self'" not in policy
    assert content_policy("localhost:3000", "/mlflowers") is None
    assert content_policy("localhost:3000", "/api/v1/server") is None
