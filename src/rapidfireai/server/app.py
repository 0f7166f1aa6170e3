"""The application: API and pages behind the gate."""

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp

from rapidfireai._version import __version__
from rapidfireai.errors import ConfigError, ExperimentPathError, RapidFireError, StoreError
from rapidfireai.server import api
from rapidfireai.server.catalog import Catalog, UnknownExperimentError
from rapidfireai.server.limits import TokenBucket
from rapidfireai.server.mlflow_ui import PREFIX as MLFLOW_PREFIX
from rapidfireai.server.mlflow_ui import Asked, MLflowPages, content_policy
from rapidfireai.server.pages import BUILT, Pages
from rapidfireai.server.security import Access, Gate
from rapidfireai.server.stream import POLL_S, Streams, TooManyListenersError

logger = logging.getLogger(__name__)

_FAILURES: Final = (10, 0.2)
"""Wrong tokens that a client may try at once, and a second."""

_COMMANDS: Final = (2000, 50)
"""Commands at once, and a second."""

_STATUSES: Final[tuple[tuple[type[Exception], int, str], ...]] = (
    (UnknownExperimentError, 404, "unknown_experiment"),
    (api.UnknownRunError, 404, "unknown_run"),
    (api.TooMuchError, 422, "too_much"),
    (api.TooOftenError, 429, "too_often"),
    (TooManyListenersError, 429, "too_many_streams"),
    (ConfigError, 422, "not_possible"),
    (StoreError, 503, "unreadable_experiment"),
    (ExperimentPathError, 503, "unreadable_experiment"),
    (RapidFireError, 503, "not_now"),
    (OSError, 503, "not_now"),
)
"""What errors are answered with; the first that fits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSettings:
    """What a server serves, where and to whom."""

    root: Path
    """Folder of all experiments."""
    token: str
    host: str
    port: int
    static: Path = BUILT
    poll_s: float = POLL_S
    """Seconds between two looks at an experiment that somebody follows."""
    clock: Callable[[], float] = time.time
    """Seconds since the Unix epoch."""


@dataclass(frozen=True, slots=True)
class Application:
    """An ASGI application, and the streams that have to end before the server can."""

    asgi: ASGIApp
    streams: Streams


def create_app(settings: ServerSettings) -> Application:
    """The application."""
    catalog = Catalog(settings.root)
    streams = Streams(catalog, settings.poll_s)
    mlflow = MLflowPages()
    service = api.Service(
        catalog=catalog,
        streams=streams,
        commands=TokenBucket(*_COMMANDS, settings.clock),
        clock=settings.clock,
        started_s=settings.clock(),
        giving=api.new_limiter(),
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        streams.close()
        catalog.close()
        mlflow.close()

    app = FastAPI(
        title="RapidFire AI",
        version=__version__,
        description="Shows experiments and controls their runs. Every request needs the token.",
        openapi_url=f"{api.PREFIX}/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    app.include_router(api.router)
    _handle_errors(app)
    _serve_mlflow(app, catalog, mlflow)
    _serve_pages(app, Pages(settings.static))
    access = Access(
        token=settings.token,
        host=settings.host,
        port=settings.port,
        failures=TokenBucket(*_FAILURES, settings.clock),
    )
    return Application(Gate(app, access, "/api", content_policy), streams)


def _serve_mlflow(app: FastAPI, catalog: Catalog, mlflow: MLflowPages) -> None:
    @app.api_route(
        MLFLOW_PREFIX + "/{experiment}/{path:path}",
        methods=["GET", "HEAD", "POST", "PATCH", "PUT", "DELETE"],
        include_in_schema=False,
    )
    async def forward(experiment: str, path: str, request: Request) -> Response:
        asked = Asked(
            method=request.method,
            path=f"{quote(path)}?{request.url.query}",
            headers=request.headers,
            body=await request.body(),
        )
        folder = await anyio.to_thread.run_sync(catalog.folder, experiment)
        return await anyio.to_thread.run_sync(mlflow.answer, folder, asked)


def _serve_pages(app: FastAPI, pages: Pages) -> None:
    @app.get("/{path:path}", include_in_schema=False)
    async def show(request: Request) -> Response:
        path = request.url.path
        if path == "/api" or path.startswith("/api/"):
            raise HTTPException(404)
        return await anyio.to_thread.run_sync(pages.get, path)


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return _problem(422, "invalid_request", _told(error))

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = {400: "invalid_request", 404: "unknown_path", 405: "unknown_method"}
        found = code.get(error.status_code, "refused")
        headers = dict(error.headers or {})
        return _problem(error.status_code, found, str(error.detail), headers)

    async def known(request: Request, error: Exception) -> Response:
        status, code = next((s, c) for kind, s, c in _STATUSES if isinstance(error, kind))
        headers = {}
        if isinstance(error, api.TooOftenError):
            headers["Retry-After"] = str(int(error.wait_s) + 1)
        return _problem(status, code, str(error), headers)

    for kind in (RapidFireError, OSError):
        app.add_exception_handler(kind, known)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        logger.error("%s %s", request.method, request.url.path, exc_info=error)
        return _problem(500, "internal", "an error of the server's; its log says more")


def _told(error: RequestValidationError) -> str:
    """What is wrong with a request, in a line."""
    problems = [
        f"{'.'.join(str(part)[:50] for part in one['loc'])}: {one['msg'][:200]}"
        for one in error.errors()[:5]
    ]
    return "; ".join(problems)


def _problem(
    status: int, code: str, message: str, headers: dict[str, str] | None = None
) -> Response:
    return api.JsonAnswer({"code": code, "message": message}, status, headers)
