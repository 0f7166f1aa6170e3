"""The token, and who the server is."""

import logging
import os
import stat
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from rapidfireai import fit
from rapidfireai.paths import ExperimentFolder
from rapidfireai.server.home import ServerError, ServerHome, ServerRecord, running

RECORD = ServerRecord(
    pid=1, created_s=0.0, host="127.0.0.1", port=3000, experiments="/e", version="0"
)


def test_the_token_is_made_once_and_for_nobody_else(tmp_path: Path) -> None:
    home = ServerHome(tmp_path / "home")
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(home.token())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 8
    assert len(found[0]) >= 40
    token = home.path / "token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
    assert [path.name for path in home.path.iterdir()] == ["token"]
    token.chmod(0o644)
    assert home.token() == found[0]
    assert stat.S_IMODE(token.stat().st_mode) == 0o600


def test_a_token_that_is_none(tmp_path: Path) -> None:
    home = ServerHome(tmp_path)
    home.prepare()
    (home.path / "token").write_text("short")
    with pytest.raises(ServerError, match="delete it"):
        home.token()


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServerError, match="RF_HOME"):
        ServerHome(tmp_path / "file").token()


def test_a_server_is_found_while_it_lives(tmp_path: Path) -> None:
    home = ServerHome(tmp_path)
    assert running(tmp_path) is None
    with home.claimed():
        assert running(tmp_path) is None
        with home.recorded(RECORD):
            assert running(tmp_path) == RECORD
            assert stat.S_IMODE((home.path / "server.json").stat().st_mode) == 0o600
            with pytest.raises(ServerError, match="running already: process 1"), home.claimed():
                pass
        with pytest.raises(ServerError, match="starting or ending"), home.claimed():
            pass
    assert running(tmp_path) is None


@pytest.mark.parametrize("left", ["", "{}", "[]", '{"pid": 1}', "\xff"])
def test_what_is_left_of_a_server_that_was_killed(tmp_path: Path, left: str) -> None:
    home = ServerHome(tmp_path)
    home.prepare()
    (home.path / "server.json").write_text(left, encoding="latin-1")
    (home.path / "lock").touch()
    assert running(tmp_path) is None
    with home.claimed():
        assert running(tmp_path) is None
    with home.claimed(), home.recorded(RECORD):
        assert running(tmp_path) == RECORD
    assert os.listdir(home.path) == ["lock"]


def test_run_fit_says_where_to_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RF_HOME", str(tmp_path))
    caplog.set_level(logging.INFO, "rapidfireai")
    home, folder = ServerHome(tmp_path), ExperimentFolder(tmp_path / "experiments" / "my first")
    fit._tell_of_server(folder)
    other = replace(RECORD, experiments="/elsewhere")
    with home.claimed(), home.recorded(other):
        fit._tell_of_server(folder)
    assert caplog.messages == []
    here = replace(RECORD, experiments=str(tmp_path / "experiments"))
    with home.claimed(), home.recorded(here):
        fit._tell_of_server(folder)
    (message,) = caplog.messages
    assert "http://localhost:3000/experiments/my%20first" in message
    assert home.token() not in message


def test_addresses() -> None:
    assert RECORD.link("abc") == "http://localhost:3000/?token=abc"
    assert RECORD.experiment_url("a b") == "http://localhost:3000/experiments/a%20b"
    other = ServerRecord(pid=1, created_s=0.0, host="fe80::1", port=1, experiments="", version="")
    assert other.url == "http://[fe80::1]:1"
