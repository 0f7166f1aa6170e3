"""Who follows an experiment misses nothing, whatever happens to him or to the server."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from rapidfireai.core.commands import Command, Verb
from rapidfireai.core.ids import RunId
from rapidfireai.server import stream
from rapidfireai.server.app import Application
from rapidfireai.server.view import MAX_REMEMBERED
from tests.server.laboratory import BEARER, HOST, Laboratory, application, client, row


@dataclass
class Told:
    """A message of the stream."""

    kind: str
    cursor: str | None
    data: Any


def parsed(message: bytes) -> Told:
    lines = dict(line.split(": ", 1) for line in message.decode().strip().split("\n"))
    return Told(lines["event"], lines.get("id"), json.loads(lines["data"]))


class Follower:
    """Reads a stream message by message."""

    def __init__(self, app: Application, cursor: str | None = None, name: str = "first") -> None:
        self._messages = app.streams.messages(name, cursor)

    async def next(self) -> Told:
        """The next message that says something."""
        while True:
            message = await asyncio.wait_for(anext(self._messages), 20)
            if b"event:" in message:
                return parsed(message)

    async def until(self, kind: str, holds: Callable[[Any], bool]) -> Told:
        """The next message of a kind for which something holds."""
        while True:
            told = await self.next()
            if told.kind == kind and holds(told.data):
                return told

    async def leave(self) -> None:
        await self._messages.aclose()  # type: ignore[attr-defined]


def talk(root: Path, conversation: Callable[[Application], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(conversation(application(root, poll_s=0.01)))


def test_runs_values_events_and_commands_arrive(lab: Laboratory, tmp_path: Path) -> None:
    async def conversation(app: Application) -> None:
        follower = Follower(app)
        assert (await follower.next()).kind == "hello"
        lab.begin(1, chunk=1)
        lab.train(1, [1.0, 0.5])
        told = await follower.until("batch", lambda data: data["series"])
        (series,) = told.data["series"]
        assert (series["run_id"], series["name"], series["source"]) == (1, "loss", "step")
        assert (series["steps"], series["values"]) == ([11, 12], [1.0, 0.5])
        assert [run["run_id"] for run in told.data["runs"]] == [1]
        assert told.data["runs"][0]["step"] == 12
        lab.store.submit(Command(verb=Verb.STOP, run_id=RunId(1)), lab.now_s)
        told = await follower.until("batch", lambda data: data["commands"])
        assert told.data["commands"][0]["status"] == "pending"
        with lab.folder.locked():
            told = await follower.until("batch", lambda data: data["trained_by"])
        await follower.until("batch", lambda data: data["trained_by"] is None)
        await follower.leave()
        assert app.streams.num_listeners == 0

    talk(tmp_path, conversation)


def test_what_a_command_does_is_told_without_waiting_for_the_next_look(
    lab: Laboratory, tmp_path: Path
) -> None:
    async def conversation() -> None:
        app = application(tmp_path, poll_s=3600)
        follower = Follower(app)
        assert (await follower.next()).kind == "hello"
        lab.store.submit(Command(verb=Verb.PIN, run_id=RunId(1)), lab.now_s)
        app.streams.hurry("nobody follows this one")
        app.streams.hurry("first")
        told = await follower.until("batch", lambda data: data["commands"])
        assert told.data["commands"][0]["verb"] == "pin"
        await follower.leave()

    asyncio.run(asyncio.wait_for(conversation(), 60))


async def all_steps(follower: Follower, last: int) -> list[int]:
    """Steps of run 1 that arrive until `last` does."""
    steps: list[int] = []
    while last not in steps:
        told = await follower.until("batch", lambda data: True)
        steps += [step for one in told.data["series"] for step in one["steps"]]
    return steps


def test_batches_are_coalesced_and_nothing_is_missed(lab: Laboratory, tmp_path: Path) -> None:
    async def conversation(app: Application) -> None:
        follower, other = Follower(app), Follower(app)
        await follower.next()
        await other.next()
        lab.begin(1, chunk=1)
        for _ in range(50):
            lab.train(1, [1.0])
            await asyncio.sleep(0.001)
        assert sorted(await all_steps(follower, 60)) == list(range(11, 61))
        assert sorted(await all_steps(other, 60)) == list(range(11, 61))
        await follower.leave()
        assert app.streams.num_listeners == 1
        await other.leave()

    talk(tmp_path, conversation)


@pytest.mark.parametrize("restarts", [False, True], ids=["reconnect", "server restart"])
def test_going_on_where_one_was(lab: Laboratory, tmp_path: Path, restarts: bool) -> None:
    async def conversation(app: Application) -> None:
        follower = Follower(app)
        await follower.next()
        lab.begin(1, chunk=1)
        lab.train(1, [1.0, 1.0])
        told = await follower.until("batch", lambda data: data["series"])
        await follower.leave()

        lab.train(1, [1.0, 1.0])
        lab.pause(1, chunk=1)
        lab.store.submit(Command(verb=Verb.PIN, run_id=RunId(3)), lab.now_s, "refused")
        if restarts:
            app = application(tmp_path, poll_s=0.01)
        follower = Follower(app, told.cursor)
        lab.begin(3, chunk=1)
        lab.train(3, [1.0])

        steps: set[tuple[int, int]] = set()
        kinds: set[str] = set()
        verbs: set[str] = set()
        while (3, 3) not in steps:
            told = await follower.until("batch", lambda data: True)
            steps |= {(one["run_id"], step) for one in told.data["series"] for step in one["steps"]}
            kinds |= {one["type"] for one in told.data["events"]}
            verbs |= {one["verb"] for one in told.data["commands"]}
        assert {(1, 13), (1, 14), (3, 3)} <= steps
        assert {"ChunkFinished", "ChunkAssigned"} <= kinds
        assert verbs == {"pin"}
        await follower.leave()

    talk(tmp_path, conversation)


@pytest.mark.parametrize(
    "cursor", ["", "x", "1.2.3", "a.b.c.d", "0.0.99999999.0", "-1.-1.-1.-1", "9" * 90]
)
def test_what_is_no_cursor_begins_anew(lab: Laboratory, tmp_path: Path, cursor: str) -> None:
    async def conversation(app: Application) -> None:
        follower = Follower(app, cursor)
        assert (await follower.next()).kind == "reset"
        await follower.leave()

    talk(tmp_path, conversation)


def test_who_is_too_slow_begins_anew(lab: Laboratory, tmp_path: Path) -> None:
    async def conversation(app: Application) -> None:
        fast, slow = Follower(app), Follower(app)
        await fast.next()
        await slow.next()
        lab.begin(1, chunk=1)
        for begin in range(11, MAX_REMEMBERED + 5000, 4000):
            lab.store.save_progress(
                [lab.runs[RunId(1)]],
                [row(1, step, 1.0, lab.now_s) for step in range(begin, begin + 4000)],
            )
            await fast.until("batch", partial(_reaches, step=begin + 3999))
        told = await slow.until("reset", lambda data: True)
        assert told.cursor is not None
        await fast.leave()
        await slow.leave()

    talk(tmp_path, conversation)


def _reaches(data: Any, step: int) -> bool:
    return any(step in one["steps"] for one in data["series"])


def test_many_values_at_once_are_a_new_beginning(lab: Laboratory, tmp_path: Path) -> None:
    async def conversation(app: Application) -> None:
        follower = Follower(app)
        await follower.next()
        lab.begin(1, chunk=1)
        lab.train(1, [1.0] * 12_000)
        assert (await follower.until("reset", lambda data: True)).kind == "reset"
        await follower.leave()
        async with client(app) as http:
            runs = (await http.get("/api/v1/experiments/first/runs")).json()["runs"]
            assert runs[0]["step"] == 12_010

    talk(tmp_path, conversation)


def test_there_are_only_so_many_listeners(lab: Laboratory, tmp_path: Path) -> None:
    async def conversation(app: Application) -> None:
        app.streams.num_listeners = stream.MAX_LISTENERS
        async with client(app) as http:
            answer = await http.get("/api/v1/experiments/first/stream")
        assert (answer.status_code, answer.json()["code"]) == (429, "too_many_streams")

    talk(tmp_path, conversation)


def test_an_experiment_that_cannot_be_read_any_more(lab: Laboratory, tmp_path: Path) -> None:
    async def conversation(app: Application) -> None:
        follower = Follower(app)
        await follower.next()
        lab.store._db.execute("UPDATE runs SET body = 'damaged' WHERE id = 1")
        lab.begin(3, chunk=1)
        lab.store._db.execute("UPDATE runs SET body = 'damaged' WHERE id = 3")
        told = await follower.until("problem", lambda data: True)
        assert "not JSON" in told.data["message"]
        with pytest.raises(StopAsyncIteration):
            await follower.next()

    talk(tmp_path, conversation)


class Connection:
    """A client of the ASGI application that may stop taking what it is sent."""

    def __init__(self, *, takes: int) -> None:
        self.messages: list[Message] = []
        self.left = asyncio.Event()
        self._takes = takes
        self._received = False

    async def receive(self) -> Message:
        if not self._received:
            self._received = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.messages.append(message)
        if len(self.messages) >= self._takes:
            await asyncio.Event().wait()


def scope(path: str) -> dict[str, Any]:
    headers = {"host": HOST, **{name.lower(): value for name, value in BEARER.items()}}
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 3000),
    }


@pytest.mark.parametrize("ends", ["client leaves", "client takes nothing", "server ends"])
def test_the_end_of_a_stream(
    lab: Laboratory, tmp_path: Path, ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "SEND_TIMEOUT_S", 0.05)

    async def conversation(app: Application) -> None:
        connection = Connection(takes=3 if ends == "client takes nothing" else 1000)
        answer: asyncio.Future[None] = asyncio.ensure_future(
            app.asgi(scope("/api/v1/experiments/first/stream"), connection.receive, connection.send)
        )
        while len(connection.messages) < 3:
            await asyncio.sleep(0.01)
        assert connection.messages[0]["status"] == 200
        if ends == "client leaves":
            connection.left.set()
        elif ends == "server ends":
            app.streams.close()
        await asyncio.wait_for(answer, 20)
        assert app.streams.num_listeners == 0
        assert app.streams._watches == {}

    talk(tmp_path, conversation)
