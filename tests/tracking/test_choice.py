"""Which trackers are meant, and what is said of those that cannot be."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from rapidfireai.errors import ConfigError
from rapidfireai.paths import ExperimentFolder
from rapidfireai.tracking import MLflow, Settings, TensorBoard, Trackio, WandB, choice, process
from rapidfireai.tracking.choice import chosen, from_json, to_json


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RF_HOME", str(tmp_path / "home"))
    for name in ("RF_TRACKERS", "MLFLOW_TRACKING_URI", "WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "home").mkdir()


@pytest.fixture
def only_trackio(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_spec(name: str) -> object | None:
        return object() if name == "trackio" else None

    monkeypatch.setattr(choice, "find_spec", find_spec)


def test_names_and_settings_may_stand_side_by_side() -> None:
    own = WandB(mode="offline")
    assert chosen(["mlflow", own, "TensorBoard"]) == (MLflow(), own, TensorBoard())


def test_mlflow_is_on_where_it_is_installed() -> None:
    assert chosen(None) == (MLflow(),)
    assert chosen([]) == ()


@pytest.mark.usefixtures("only_trackio")
def test_nothing_is_on_where_mlflow_is_not_installed() -> None:
    assert chosen(None) == ()


def test_the_environment_goes_before_the_file_and_both_before_the_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "home" / "config.toml").write_text('trackers = ["trackio", "tensorboard"]\n')
    assert chosen(None) == (Trackio(), TensorBoard())
    monkeypatch.setenv("RF_TRACKERS", "tensorboard, mlflow")
    assert chosen(None) == (TensorBoard(), MLflow())
    monkeypatch.setenv("RF_TRACKERS", "none")
    assert chosen(None) == ()
    assert chosen(["mlflow"]) == (MLflow(),)


def test_single_trackers_are_switched_by_variables_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RF_TENSORBOARD_ENABLED", "True")
    assert chosen(None) == (MLflow(), TensorBoard())
    monkeypatch.setenv("RF_MLFLOW_ENABLED", "false")
    assert chosen(None) == (TensorBoard(),)
    assert chosen(["mlflow"]) == (MLflow(),)
    monkeypatch.setenv("RF_MLFLOW_ENABLED", "maybe")
    with pytest.raises(ConfigError, match=r"\$RF_MLFLOW_ENABLED is 'maybe'; it is true or false"):
        chosen(None)
    monkeypatch.setenv("RF_TRACKERS", "none")
    assert chosen(None) == ()


@pytest.mark.usefixtures("only_trackio")
@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (
            ["mlfow"],
            ["did you mean 'mlflow'?", "installed: trackio", 'pip install "mlflow>=3.10"'],
        ),
        (["neptune"], ["trackers holds 'neptune'", "allowed: mlflow, tensorboard, trackio, wandb"]),
        (["wandb"], ["'wandb' is not installed", 'pip install "wandb>=0.31"']),
        (["trackio", Trackio(project="a")], ["'trackio' twice"]),
    ],
)
def test_what_is_unknown_or_not_installed_is_named_with_what_to_do(
    given: list[Any], parts: list[str]
) -> None:
    with pytest.raises(ConfigError) as raised:
        chosen(given)
    assert all(part in str(raised.value) for part in parts), raised.value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trackers = [", "config.toml cannot be read"),
        ("tracker = []", "config.toml sets tracker; it may only set trackers"),
        ('trackers = "mlflow"', "trackers is a list of names"),
        ('trackers = ["mlfow"]', "config.toml holds 'mlfow', which is no tracker"),
    ],
)
def test_a_configuration_file_that_means_nothing(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "home" / "config.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        chosen(None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (MLflow(tracking_uri="htp://localhost:5000"), "'htp://localhost:5000' cannot be used"),
        (MLflow(experiment=""), "it is a string"),
        (WandB(), "there is no key for W&B at https://api.wandb.ai: run `wandb login`"),
        (WandB(mode="off"), "mode 'off' is not known; it is 'online' or 'offline'"),
    ],
)
def test_settings_that_cannot_work(settings: Settings, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message.replace("&", ".")):
        settings.settled(tmp_path)


@pytest.mark.parametrize("settings", [MLflow(experiment="a"), WandB(mode="offline"), Trackio()])
def test_settings_survive_json(settings: Settings) -> None:
    assert from_json(to_json(settings)) == settings


@contextmanager
def server(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        do_POST = do_GET

        def log_message(self, *args: object) -> None:
            """Not in a test."""

    with HTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}"
        finally:
            listening.shutdown()
            thread.join()


def refuse(request: BaseHTTPRequestHandler) -> None:
    body = b'{"error_code": "UNAUTHENTICATED", "message": "wrong", "errors": [{"message": "no"}]}'
    request.send_response(401)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


def reach(tmp_path: Path, settings: Settings) -> None:
    folder = ExperimentFolder.claim(tmp_path, "bad")
    trackers = process.settled(folder, [settings])
    senders = process.start(folder, trackers)
    try:
        senders.await_reached()
    finally:
        senders.kill()


def test_a_server_that_is_not_there_is_an_error_before_the_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'mlflow' cannot be used: .*Connection refused") as said:
        reach(tmp_path, MLflow(tracking_uri="http://127.0.0.1:9"))
    assert "or leave it out of trackers" in str(said.value)


def test_credentials_that_are_refused_are_an_error_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server(refuse) as url:
        with pytest.raises(ConfigError, match=r"refuses.*MLFLOW_TRACKING_TOKEN"):
            reach(tmp_path, MLflow(tracking_uri=url))
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        with pytest.raises(ConfigError, match=r"refuses the key.*wandb login"):
            reach(tmp_path, WandB(base_url=url))
