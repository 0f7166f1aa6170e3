"""A real server: in the foreground and the background, found, stopped, and in the way of others."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from rapidfireai import cli
from rapidfireai.server import process
from rapidfireai.server.home import ServerError, ServerHome, ServerRecord
from rapidfireai.server.process import Place, start_detached, stop
from tests.server.laboratory import Laboratory, wait_until


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home folder of its own; its server has ended afterwards."""
    place = tmp_path / "home"
    monkeypatch.setenv("RF_HOME", str(place))
    monkeypatch.setenv("RF_EXPERIMENT_PATH", str(tmp_path))
    yield place
    stop(place)


def test_in_the_background(
    lab: Laboratory, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["start", "--detach", "--port", "0"]) == 0
    link = capsys.readouterr().out.split()[-1]
    record = ServerHome(home).running()
    assert record is not None
    token = ServerHome(home).token()
    assert link == f"http://localhost:{record.port}/?token={token}"
    server = psutil.Process(record.pid)
    assert os.getsid(record.pid) == record.pid
    assert not [one.laddr for one in server.net_connections() if one.laddr.ip != "127.0.0.1"]

    with httpx.Client(follow_redirects=True) as http:
        page = http.get(link)
        assert page.status_code == 200
        assert "token" not in str(page.url)
        runs = http.get(f"{record.url}/api/v1/experiments/first/runs").json()["runs"]
        assert len(runs) == 3
        with http.stream("GET", f"{record.url}/api/v1/experiments/first/stream") as followed:
            lines = followed.iter_lines()
            while "event: hello" not in next(lines):
                pass
            lab.begin(1, chunk=1)
            while not next(lines).startswith('data: {"trained_by"'):
                pass

            assert cli.main(["status", "--json"]) == 0
            found = json.loads(capsys.readouterr().out)
            assert found["server"]["link"] == link
            assert [one["name"] for one in found["experiments"]] == ["first"]
            assert cli.main(["start", "--port", "0"]) == 1
            assert f"running already: process {record.pid}" in capsys.readouterr().err

            # Although somebody follows.
            assert cli.main(["stop"]) == 0
            assert not [line for line in lines if line.startswith("event: problem")]
    assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE
    assert cli.main(["stop"]) == 0
    assert "no server runs" in capsys.readouterr().out
    assert cli.main(["status"]) == 0
    assert "none runs" in capsys.readouterr().out
    assert token not in ServerHome(home).log.read_text()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_in_the_foreground_until_a_signal(
    lab: Laboratory, home: Path, number: int, status: int
) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "rapidfireai", "start", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline().startswith("RapidFire AI is at http://localhost:")
        server.send_signal(number)
        assert server.wait(20) == status
    assert not (home / "server" / "server.json").exists()


def test_a_killed_server_leaves_nothing_in_the_way(lab: Laboratory, home: Path) -> None:
    place = Place(home=home, experiments=lab.folder.path.parent, port=0)
    first, _ = start_detached(place)
    os.kill(first.pid, signal.SIGKILL)
    wait_until(lambda: ServerHome(home).running() is None)
    second, _ = start_detached(place)
    assert second.pid != first.pid


def test_a_port_in_use_says_whose(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments in (["start"], ["start", "--detach"]):
            assert cli.main([*arguments, "--port", str(port)]) == 1
            told = capsys.readouterr().err
            assert f"port {port} is in use by process {os.getpid()}" in told
            assert "--port" in told
        assert ServerHome(home).running() is None


def test_only_the_server_is_ended(home: Path) -> None:
    """A number that another process has got since is not enough."""
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    began_s = psutil.Process(bystander.pid).create_time()
    try:
        for created_s in (began_s, began_s - 1000):
            record = ServerRecord(
                pid=bystander.pid,
                created_s=created_s,
                host="127.0.0.1",
                port=1,
                experiments="",
                version="",
            )
            with (
                ServerHome(home).claimed(),
                ServerHome(home).recorded(record),
                pytest.raises(ServerError, match="nothing has been ended"),
            ):
                stop(home)
        assert bystander.poll() is None
    finally:
        bystander.communicate()


def test_a_host_that_is_not_this_machine(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["start", "--host", "192.0.2.1", "--port", "0"]) == 1
    assert "cannot listen on 192.0.2.1" in capsys.readouterr().err
    assert cli.main(["start", "--host", "no.such.host.invalid"]) == 1
    assert "--host no.such.host.invalid" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["-1", "65536", "x"])
def test_ports_that_are_none(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["start", f"--port={port}"])
    assert stopped.value.code == 2
    assert "is no port" in capsys.readouterr().err


def test_without_the_libraries(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    place = Place(home=home, experiments=home, port=0)
    with pytest.raises(ServerError, match='pip install "fastapi'):
        process.serve(place, lambda record, token: None)


def test_init_prepares_the_home(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = cli.main(["init"])
    told = capsys.readouterr().out
    assert status == (0 if "Ready to train" in told else 1)
    assert (home / "server" / "token").exists()
    assert str(home) in told.replace("\n", "")
