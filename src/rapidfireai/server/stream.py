"""Server-sent events: who follows an experiment is told what changes.

One task for each experiment that somebody follows looks whether it has changed, a few times a
second. Followers are only places in what the view remembers: one who is slow gets more at once, one
who is too slow is told to begin anew, and one who takes nothing any more is dropped. Nothing is
kept for anybody.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, suppress
from typing import Any, Final

import anyio
import anyio.to_thread
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rapidfireai.errors import RapidFireError
from rapidfireai.server.answers import batch_answer
from rapidfireai.server.catalog import Catalog
from rapidfireai.server.view import View
from rapidfireai.store.plain import encoded

logger = logging.getLogger(__name__)

POLL_S: Final = 0.25
"""Between two looks at an experiment that somebody follows."""

HEARTBEAT_S: Final = 15.0
"""Without anything new, so that proxies and browsers keep the connection."""

SEND_TIMEOUT_S: Final = 20.0
"""For a client to take what it is sent."""

MAX_LISTENERS: Final = 64

_RETRY_MS: Final = 1000


class TooManyListenersError(RapidFireError):
    """So many follow already that no further one is let in."""


class Streams:
    """Everybody who follows some experiment; belongs to one event loop.

    Args:
        catalog: The experiments.
        poll_s: Seconds between two looks.
    """

    def __init__(self, catalog: Catalog, poll_s: float = POLL_S) -> None:
        self._catalog = catalog
        self._poll_s = poll_s
        self._watches: dict[str, _Watch] = {}
        self._is_closing = False
        self.num_listeners = 0

    def follow(self, name: str, cursor: str | None) -> Response:
        """An answer that goes on until the client leaves.

        Args:
            name: Of an experiment.
            cursor: What the client has seen; None to begin with what comes next.

        Raises:
            TooManyListenersError: There is no place left.
        """
        if self.num_listeners >= MAX_LISTENERS:
            raise TooManyListenersError(
                f"{MAX_LISTENERS} streams are open already: close some tabs of the dashboard"
            )
        return _EventStream(self, name, cursor)

    def hurry(self, name: str) -> None:
        """Tell those who follow an experiment what is new now, not at the next look."""
        if name in self._watches:
            self._watches[name].due.set()

    def close(self) -> None:
        """Let everybody go. Also from a signal's handler."""
        self._is_closing = True
        for watch in self._watches.values():
            watch.changed.set()

    async def messages(self, name: str, cursor: str | None) -> AsyncIterator[bytes]:
        """What is sent to a client who follows an experiment."""
        self.num_listeners += 1
        try:
            watch = await self._enter(name)
            try:
                async for message in self._batches(watch, cursor):
                    yield message
            finally:
                await self._leave(name, watch)
        except RapidFireError as error:
            yield _message("problem", encoded({"message": str(error)}))
        finally:
            self.num_listeners -= 1

    async def _enter(self, name: str) -> "_Watch":
        watch = self._watches.get(name)
        if watch is None:
            watch = self._watches[name] = _Watch(self._catalog.view(name))
            watch.opening = asyncio.ensure_future(watch.open())
        watch.num_listeners += 1
        try:
            await asyncio.shield(watch.opening)
        except BaseException:
            watch.num_listeners -= 1
            if self._watches.get(name) is watch:
                del self._watches[name]
            raise
        if watch.task is None:
            watch.task = asyncio.create_task(watch.look(self._poll_s))
        return watch

    async def _leave(self, name: str, watch: "_Watch") -> None:
        watch.num_listeners -= 1
        if watch.num_listeners > 0:
            return
        if self._watches.get(name) is watch:
            del self._watches[name]
        if watch.task is not None:
            watch.task.cancel()
        with anyio.CancelScope(shield=True):
            await watch.close()

    async def _batches(self, watch: "_Watch", cursor: str | None) -> AsyncIterator[bytes]:
        yield f"retry: {_RETRY_MS}\n\n".encode()
        view = watch.view
        seen, here = view.place
        if cursor is not None:
            known = view.seen_by(cursor)
            if known is not None:
                seen = known
            else:
                yield await anyio.to_thread.run_sync(_caught_up, view, cursor)
        yield _message("hello", b"{}", here if cursor is None else None)
        while not self._is_closing:
            if watch.problem is not None:
                yield _message("problem", encoded({"message": str(watch.problem)}))
                return
            if view.version == seen:
                yield await watch.wait()
                continue
            seen, message = await anyio.to_thread.run_sync(watch.news, seen)
            yield message


class _Watch:
    """An experiment that somebody follows."""

    def __init__(self, opened: AbstractContextManager[View]) -> None:
        self.num_listeners = 0
        self.changed = asyncio.Event()
        """Set, and replaced by another, whenever there is something new."""
        self.due = asyncio.Event()
        """Ends the pause between two looks."""
        self.problem: RapidFireError | None = None
        """Why it cannot be followed any longer."""
        self.opening: asyncio.Future[None]
        self.task: asyncio.Task[None] | None = None
        self.view: View
        self._opened = opened
        self._is_open = False
        self._latest: tuple[int, int, bytes] | None = None
        """The message that was made last, from which version to which."""

    async def open(self) -> None:
        """Open the experiment."""
        self.view = await anyio.to_thread.run_sync(self._opened.__enter__)
        self._is_open = True

    async def close(self) -> None:
        """Let go of it."""
        if self._is_open:
            await anyio.to_thread.run_sync(self._opened.__exit__, None, None, None)

    async def look(self, poll_s: float) -> None:
        """Look for something new until cancelled."""
        version = self.view.version
        while self.problem is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(poll_s):
                    await self.due.wait()
            self.due.clear()
            try:
                found = await anyio.to_thread.run_sync(self.view.refresh)
            except (RapidFireError, OSError) as error:
                self.problem = RapidFireError(str(error))
                found = -1
            if found != version:
                version = found
                self.changed.set()
                self.changed = asyncio.Event()

    async def wait(self) -> bytes:
        """Until there is something new, or a sign of life is due."""
        try:
            async with asyncio.timeout(HEARTBEAT_S):
                await self.changed.wait()
        except TimeoutError:
            return b": still here\n\n"
        return b""

    def news(self, seen: int) -> tuple[int, bytes]:
        """What is new since a version, and the version that this leads to."""
        latest = self._latest
        if latest is not None and latest[0] == seen and latest[1] == self.view.version:
            return latest[1], latest[2]
        batch = self.view.since(seen)
        if batch is None:
            version, cursor = self.view.place
            return version, _message("reset", b"{}", cursor)
        message = _message("batch", batch_answer(batch), batch.cursor)
        self._latest = (seen, batch.version, message)
        return batch.version, message


class _EventStream(Response):
    """Sends messages until the client leaves or takes no more."""

    media_type = "text/event-stream"

    def __init__(self, streams: Streams, name: str, cursor: str | None) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._messages: Callable[[], AsyncIterator[bytes]] = lambda: streams.messages(name, cursor)
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._leave_with_client, receive, group.cancel_scope)
            await self._send_all(send)
            group.cancel_scope.cancel()

    async def _leave_with_client(self, receive: Receive, scope: anyio.CancelScope) -> None:
        message: Any = {"type": ""}
        while message["type"] != "http.disconnect":
            message = await receive()
        scope.cancel()

    async def _send_all(self, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": 200, "headers": self.raw_headers},
        )
        stream = self._messages()
        try:
            async for message in stream:
                if message:
                    async with asyncio.timeout(SEND_TIMEOUT_S):
                        await send(
                            {"type": "http.response.body", "body": message, "more_body": True}
                        )
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            logger.warning("a client of the stream took nothing for %g s", SEND_TIMEOUT_S)
        finally:
            with anyio.CancelScope(shield=True):
                await stream.aclose()  # type: ignore[attr-defined]


def _caught_up(view: View, cursor: str) -> bytes:
    batch = view.since_another(cursor)
    if batch is None:
        return _message("reset", b"{}", view.place[1])
    return _message("batch", batch_answer(batch), batch.cursor)


def _message(kind: str, data: bytes, cursor: str | None = None) -> bytes:
    """A server-sent event. JSON in ASCII has no line breaks that would have to be marked."""
    place = b"" if cursor is None else b"id: " + cursor.encode() + b"\n"
    return place + b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"
