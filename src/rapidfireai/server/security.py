"""The gate in front of everything: who may ask, from where, how often, and how much he may send.

A plain ASGI application around another, so that nothing behind it can be reached without passing
here: no route, no file, no description of the API.

- The Host header has to be the server's own: a name that somebody else has pointed at this machine
  (DNS rebinding) is none.
- The Origin header, where there is one, too: other sites' pages get nothing and change nothing.
- The token comes as `Authorization: Bearer ...`, or in the cookie that the first visit with
  `?token=...` sets. Wrong ones are answered ever more slowly.
- Bodies are JSON, complete and small before anybody reads them.
"""

import asyncio
import hmac
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rapidfireai.server.limits import TokenBucket
from rapidfireai.server.pages import page
from rapidfireai.store.plain import encoded

MAX_BODY_BYTES: Final = 1 << 20

BODY_TIMEOUT_S: Final = 20.0

_MAX_TOKEN: Final = 256

_UNSAFE: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})

_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}

_ANYWHERE: Final = frozenset({"0.0.0.0", "::"})
"""Addresses that stand for all of the machine's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """Who may reach the server, and as what."""

    token: str
    host: str
    """That it listens on."""
    port: int
    failures: TokenBucket
    """A token for each attempt with a wrong token, for each client."""

    @property
    def cookie(self) -> str:
        """Name of the cookie. Cookies do not know ports: each server has its own."""
        return f"rapidfireai_{self.port}"

    def is_host(self, given: str) -> bool:
        """Whether a Host header names this server."""
        name, _, port = given.rpartition(":")
        if not name or given.endswith("]"):  # browsers leave out the port that is the default
            name, port = given, "80"
        if not (port.isdecimal() and port.isascii() and len(port) <= 5 and int(port) == self.port):
            return False
        name = name.lower()
        if name in {"localhost", "127.0.0.1", "[::1]", _bracketed(self.host)}:
            return True
        if self.host not in _ANYWHERE:
            return False
        # An address is always the one that was meant; only names can be pointed elsewhere.
        return name == socket.gethostname().lower() or _is_address(name)

    def is_token(self, given: str) -> bool:
        """Whether this is the token; takes the same time wherever it differs."""
        return hmac.compare_digest(given[:_MAX_TOKEN].encode(), self.token.encode())


class Gate:
    """See the module.

    Args:
        app: What is behind it.
        access: Who may pass.
        api_prefix: Paths below it are answered in JSON, others in HTML.
        policy: The content policy of a host's path, where it is another than ours.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        api_prefix: str,
        policy: Callable[[str, str], str | None] = lambda host, path: None,
    ) -> None:
        self._app = app
        self._access = access
        self._api_prefix = api_prefix
        self._policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request pass, or answer it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        answer = self._checked(scope)
        policy = None
        if answer is None:  # the host is the server's
            policy = self._policy(Headers(scope=scope)["host"], scope["path"])
        send = _with_headers(send, is_api=self._is_api(scope), policy=policy)
        if answer is None and scope["method"] in _UNSAFE:
            received = await _body(receive, Headers(scope=scope))
            if isinstance(received, Response):
                answer = received
            else:
                receive = _once(received, receive)
        if answer is not None:
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_api(self, scope: Scope) -> bool:
        path: str = scope["path"]
        return path == self._api_prefix or path.startswith(f"{self._api_prefix}/")

    def _checked(self, scope: Scope) -> Response | None:
        """The answer to a request that may not pass."""
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._access.is_host(hosts[0]):
            return _refused(403, "wrong_host", "this name is not the server's; see docs/server.md")
        origin = headers.get("origin")
        if origin is not None and origin != f"http://{hosts[0]}":
            return _refused(403, "wrong_origin", "requests from other sites are refused")
        if headers.get("sec-fetch-site") == "cross-site" and scope["method"] in _UNSAFE:
            return _refused(403, "wrong_origin", "requests from other sites are refused")
        return self._authenticated(scope, headers)

    def _authenticated(self, scope: Scope, headers: Headers) -> Response | None:
        in_query = None if self._is_api(scope) else _query_token(scope)
        given = in_query or _bearer(headers) or self._in_cookie(headers)
        if given is not None and self._access.is_token(given):
            return self._welcome(scope) if in_query is not None else None
        client = (scope.get("client") or ("",))[0]
        wait_s = 0.0 if given is None else self._access.failures.take(client)
        if wait_s > 0:
            return _refused(429, "too_many_failures", "too many wrong tokens", wait_s)
        if self._is_api(scope):
            message = "send the token that `rapidfireai start` printed: Authorization: Bearer ..."
            return _refused(401, "no_token", message)
        return HTMLResponse(page("locked.html"), status_code=401)

    def _in_cookie(self, headers: Headers) -> str | None:
        for cookie in headers.getlist("cookie"):
            found = cookie_parser(cookie).get(self._access.cookie)
            if found:
                return found
        return None

    def _welcome(self, scope: Scope) -> Response:
        """Set the cookie, and go to the same page without the token in its address."""
        rest = [(key, value) for key, value in _query(scope) if key != "token"]
        # More than one slash at the beginning would be another site.
        path = "/" + quote(scope["path"].lstrip("/\\"), safe="/")
        response = RedirectResponse(f"{path}?{urlencode(rest)}" if rest else path, status_code=303)
        response.set_cookie(
            self._access.cookie, self._access.token, httponly=True, samesite="strict"
        )
        return response


def _refused(status: int, code: str, message: str, wait_s: float = 0.0) -> Response:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    if wait_s > 0:
        headers["Retry-After"] = str(int(wait_s) + 1)
    content = encoded({"code": code, "message": message})
    return Response(content, status, headers, media_type="application/json")


async def _body(receive: Receive, headers: Headers) -> bytes | Response:
    """A request's whole body, or the answer to one that cannot be taken."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    too_large = _refused(
        413, "too_large", f"a request may have {MAX_BODY_BYTES} bytes; send several"
    )
    length = headers.get("content-length", "0")
    if not length.isdecimal() or len(length) > 12 or int(length) > MAX_BODY_BYTES:
        return too_large
    if kind != "application/json":
        return _refused(415, "not_json", "send JSON, with Content-Type: application/json")
    body: bytes = b""
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while True:
                message = await receive()
                body += message.get("body", b"")
                if len(body) > MAX_BODY_BYTES:
                    return too_large
                if not message.get("more_body", False):
                    return body
    except TimeoutError:
        return _refused(408, "too_slow", f"the body did not arrive within {BODY_TIMEOUT_S:g} s")


def _once(body: bytes, receive: Receive) -> Receive:
    """Receives the body that has been read already, then what comes after it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed


def _with_headers(send: Send, *, is_api: bool, policy: str | None) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers[name] = value
            if policy is not None:
                headers["Content-Security-Policy"] = policy
            if is_api:
                headers.setdefault("Cache-Control", "private, no-cache")
        await send(message)

    return sent


def _bearer(headers: Headers) -> str | None:
    kind, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() or None if kind.lower() == "bearer" else None


def _query_token(scope: Scope) -> str | None:
    if scope["method"] not in ("GET", "HEAD"):
        return None
    return next((value for key, value in _query(scope) if key == "token"), None)


def _query(scope: Scope) -> Sequence[tuple[str, str]]:
    try:
        return parse_qsl(scope["query_string"].decode("latin-1"), max_num_fields=100)
    except ValueError:
        return ()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host.lower()


def _is_address(name: str) -> bool:
    try:
        ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True
