"""The API: routes that read requests, ask the view or `control`, and write answers."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final, Literal

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import JSONResponse, Response

from rapidfireai._version import __version__
from rapidfireai.control import check, give
from rapidfireai.core.commands import Command
from rapidfireai.core.events import Json, MetricSource
from rapidfireai.core.ids import RunId
from rapidfireai.core.metrics import shown_name
from rapidfireai.core.run import Run, RunStatus
from rapidfireai.errors import ConfigError, RapidFireError
from rapidfireai.server import messages
from rapidfireai.server.answers import (
    TOKENS,
    axis,
    command_message,
    difference,
    event_message,
    knob_message,
    metric_names,
    run_detail,
    runs_answer,
    series_answer,
    timeline_message,
    trackers_answer,
    used_values,
)
from rapidfireai.server.catalog import Catalog
from rapidfireai.server.knobs import differences, forecast, knobs
from rapidfireai.server.limits import TokenBucket
from rapidfireai.server.log import log_part
from rapidfireai.server.mlflow_ui import page_of
from rapidfireai.server.series import Metric, Point
from rapidfireai.server.stream import Streams
from rapidfireai.server.timeline import KINDS, timeline
from rapidfireai.server.view import RunRow, View, differing
from rapidfireai.store.plain import encoded

PREFIX: Final = "/api/v1"

MAX_POINTS: Final = 400_000
"""Of all series in one answer."""

_MAX_GIVING: Final = 8
"""Requests that may wait for their commands at a time: those who only read have other threads."""


class UnknownRunError(RapidFireError):
    """The experiment has no run of that number."""


class TooMuchError(RapidFireError):
    """More is asked for than is answered at once."""


class TooOftenError(RapidFireError):
    """Commands come faster than anybody could mean them."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"too many commands: try again in {wait_s:.0f} s")
        self.wait_s = wait_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """What the routes work with."""

    catalog: Catalog
    streams: Streams
    commands: TokenBucket
    """A token for each command."""
    clock: Callable[[], float]
    """Seconds since the Unix epoch."""
    started_s: float
    giving: CapacityLimiter


def new_limiter() -> CapacityLimiter:
    """For `Service.giving`."""
    return CapacityLimiter(_MAX_GIVING)


class JsonAnswer(JSONResponse):
    """Strict JSON in ASCII, whatever strings hold."""

    def render(self, content: Any) -> bytes:
        """Bytes are JSON already."""
        return content if isinstance(content, bytes) else encoded(content)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


InService = Annotated[Service, Depends(_service)]

ExperimentName = Annotated[
    str,
    Path(max_length=120, examples=["first"], description="The name of an experiment that exists."),
]
RunInPath = Annotated[
    int, Path(ge=1, le=messages.MAX_INTEGER, examples=[1], description="A run's number.")
]
Number = Annotated[int, Query(ge=0, le=messages.MAX_INTEGER)]
OfRun = Annotated[
    int | None, Query(ge=1, le=messages.MAX_INTEGER, description="Only those of this run.")
]
RunList = Annotated[
    str | None,
    Query(
        pattern=r"^[0-9]{1,15}(,[0-9]{1,15})*$",
        max_length=20_000,
        examples=["1,2,3"],
        description="Numbers of runs; without it, all that are not deleted.",
    ),
]
Limit = Annotated[int, Query(ge=1, le=5000, description="At most as many.")]


def _view(experiment: ExperimentName, service: InService) -> Iterator[View]:
    with service.catalog.view(experiment) as view:
        yield view


InView = Annotated[View, Depends(_view)]

_PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    400: {"model": messages.Problem, "description": "The request cannot be read."},
    401: {"model": messages.Problem, "description": "The token is missing or wrong."},
    403: {"model": messages.Problem, "description": "Another host or origin."},
    404: {"model": messages.Problem, "description": "There is no such experiment or run."},
    422: {"model": messages.Problem, "description": "The request means nothing."},
    429: {"model": messages.Problem, "description": "Too often; see Retry-After."},
    503: {"model": messages.Problem, "description": "The experiment cannot be read now."},
}
_BODY_PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    408: {"model": messages.Problem, "description": "The body did not arrive in time."},
    413: {"model": messages.Problem, "description": "The body is too large."},
    415: {"model": messages.Problem, "description": "The body is not application/json."},
}
_NOT_MODIFIED: Final[dict[int | str, dict[str, Any]]] = {
    304: {"description": "Nothing has changed since the ETag in If-None-Match."}
}

router = APIRouter(prefix=PREFIX, responses=_PROBLEMS, default_response_class=JsonAnswer)


@router.get("/server", response_model=messages.ServerStatus, tags=["server"])
def server_status(service: InService) -> Response:
    """The server itself."""
    return JsonAnswer(
        {
            "version": __version__,
            "pid": os.getpid(),
            "started_s": service.started_s,
            "now_s": service.clock(),
            "experiments_path": str(service.catalog.root),
            "num_listeners": service.streams.num_listeners,
        }
    )


@router.get("/experiments", response_model=messages.Experiments, tags=["experiments"])
def list_experiments(service: InService) -> Response:
    """All experiments with their state, progress and best run; the latest first."""
    return JsonAnswer({"experiments": service.catalog.summaries()})


@router.get("/experiments/{experiment}", response_model=messages.Experiment, tags=["experiments"])
def show_experiment(experiment: ExperimentName, service: InService) -> Response:
    """One experiment. An unreadable one is shown as such here, and is a problem elsewhere."""
    return JsonAnswer(service.catalog.summary(experiment))


@router.get(
    "/experiments/{experiment}/trackers", response_model=messages.Trackers, tags=["experiments"]
)
def list_trackers(view: InView) -> Response:
    """The experiment's trackers: what each of them has not been told yet, and why."""
    return JsonAnswer({"trackers": trackers_answer(view)})


@router.get(
    "/experiments/{experiment}/runs",
    response_model=messages.Runs,
    responses=_NOT_MODIFIED,
    tags=["runs"],
)
def list_runs(request: Request, view: InView, since: Number = 0) -> Response:
    """The table of runs: all of them, or those that changed after the version `since`.

    Versions count as long as the server keeps the experiment open. It begins anew with small ones
    after a restart; one who gives a larger one then gets all runs.
    """
    is_known = since <= view.version
    return _tagged(request, _etag(view), lambda: runs_answer(view, since if is_known else 0))


@router.get(
    "/experiments/{experiment}/runs/{run_id}", response_model=messages.RunDetail, tags=["runs"]
)
def show_run(view: InView, run_id: RunInPath) -> Response:
    """All that is known of a run: configuration, arguments in force, notes, traceback."""
    run, row = _run(view, run_id)
    return JsonAnswer(run_detail(run, row, page_of(view.folder, run.id)))


@router.get("/experiments/{experiment}/configs", response_model=messages.Configs, tags=["runs"])
def list_configs(view: InView, runs: RunList = None) -> Response:
    """Configurations side by side, and the knobs by which they differ."""
    rows = _rows(view, runs)
    return JsonAnswer(
        {
            "differing": differing(rows),
            "configs": {str(run_id): row.knobs for run_id, row in rows.items()},
        }
    )


@router.get(
    "/experiments/{experiment}/runs/{run_id}/knobs", response_model=messages.Knobs, tags=["runs"]
)
def list_knobs(view: InView, run_id: RunInPath) -> Response:
    """What a clone of the run may have other values of: types, choices, defaults, used values."""
    run, _ = _run(view, run_id)
    found = knobs(run, view.reader.schemas(), used_values(dict(view.rows)))
    return JsonAnswer({"run_id": run_id, "knobs": [knob_message(knob) for knob in found]})


@router.get(
    "/experiments/{experiment}/schemas", response_model=dict[str, Any], tags=["experiments"]
)
def list_schemas(view: InView) -> Response:
    """The schemas of the arguments of the experiment's trainers and adapters, as stored."""
    return JsonAnswer(view.reader.schemas())


@router.get(
    "/experiments/{experiment}/metrics", response_model=messages.MetricNames, tags=["metrics"]
)
def list_metrics(view: InView) -> Response:
    """The metrics that there are."""
    return JsonAnswer({"metrics": metric_names(view)})


@dataclass(frozen=True, slots=True)
class SeriesQuery:
    """What of a metric is asked for."""

    metric: Annotated[
        str, Query(max_length=200, examples=["loss"], description="As rows show it.")
    ] = "loss"
    source: Annotated[
        MetricSource | None, Query(description="Who measured it; without it, all who did.")
    ] = None
    x: Literal["step", "samples", "tokens", "time"] = "step"
    points: Annotated[
        int,
        Query(ge=4, le=4000, description=f"Of each run; {MAX_POINTS:,} together at most."),
    ] = 200
    first_step: Number = 0
    last_step: Annotated[int | None, Query(ge=0, le=messages.MAX_INTEGER)] = None


@router.get(
    "/experiments/{experiment}/series",
    response_model=messages.SeriesOfRuns,
    responses=_NOT_MODIFIED,
    tags=["metrics"],
)
def list_series(
    request: Request, view: InView, query: Annotated[SeriesQuery, Depends()], runs: RunList = None
) -> Response:
    """A metric of many runs, each thinned out to about `points`: a bucket's extremes are kept."""
    rows = _rows(view, runs)
    if len(rows) * query.points > MAX_POINTS:
        raise TooMuchError(
            f"{len(rows)} runs with {query.points} points each are too much for one answer; give "
            f"points={MAX_POINTS // len(rows)}, or ask for fewer runs"
        )
    return _tagged(request, _etag(view), lambda: _series(view, rows, query))


@router.get("/experiments/{experiment}/events", response_model=messages.Events, tags=["events"])
def list_events(
    view: InView, after: Number = 0, run_id: OfRun = None, limit: Limit = 1000
) -> Response:
    """What happened, in order. Steps and metrics are no events here."""
    number = None if run_id is None else RunId(run_id)
    events = view.reader.events(after=after, limit=limit, run_id=number)
    last = events[-1].seq if events else after
    return JsonAnswer({"last": last, "events": [event_message(row) for row in events]})


@router.get("/experiments/{experiment}/timeline", response_model=messages.Timeline, tags=["events"])
def show_timeline(
    view: InView,
    after: Annotated[
        int | None,
        Query(
            ge=0,
            le=messages.MAX_INTEGER,
            description="Number of an event; without it, the latest turns.",
        ),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=20_000, description="Events that are read.")] = 4000,
) -> Response:
    """Which run's chunk held which worker when, and how busy the workers were."""
    events = view.reader.events(after=after or 0, limit=limit, kinds=KINDS, newest=after is None)
    return JsonAnswer(timeline_message(timeline(events, {})))


@router.get("/experiments/{experiment}/log", response_model=messages.LogPart, tags=["events"])
def show_log(
    experiment: ExperimentName,
    service: InService,
    after: Annotated[
        int | None,
        Query(ge=0, le=messages.MAX_INTEGER, description="`next` of the part before."),
    ] = None,
    run_id: OfRun = None,
) -> Response:
    """The last lines of the experiment's log, or those that follow a place in it."""
    folder = service.catalog.folder(experiment)
    number = None if run_id is None else RunId(run_id)
    return JsonAnswer(log_part(folder.log, after, number))


@router.get(
    "/experiments/{experiment}/commands", response_model=messages.Commands, tags=["commands"]
)
def list_commands(
    view: InView,
    after: Annotated[
        int | None,
        Query(
            ge=0,
            le=messages.MAX_INTEGER,
            description="Number of a command; without it, the latest ones.",
        ),
    ] = None,
    limit: Limit = 1000,
) -> Response:
    """The log of commands: who asked for what, when, why, and what became of it."""
    found = view.reader.commands(after=after or 0, limit=limit, newest=after is None)
    last = found[-1].id if found else after or 0
    return JsonAnswer({"last": last, "commands": [command_message(one) for one in found]})


@router.post(
    "/experiments/{experiment}/commands",
    response_model=messages.Commands,
    responses=_BODY_PROBLEMS,
    tags=["commands"],
)
async def give_commands(
    experiment: ExperimentName, given: messages.CommandsRequest, service: InService
) -> Response:
    """Give commands. A rejected one says why; a pending one is carried out at the next step."""
    folder = await anyio.to_thread.run_sync(service.catalog.folder, experiment)
    _count(service, given)
    records = await anyio.to_thread.run_sync(
        lambda: give(folder, _commands(given), wait_s=given.wait_s), limiter=service.giving
    )
    service.streams.hurry(experiment)
    return JsonAnswer(
        {"last": records[-1].id, "commands": [command_message(one) for one in records]}
    )


@router.post(
    "/experiments/{experiment}/commands/check",
    response_model=messages.CheckedCommands,
    responses=_BODY_PROBLEMS,
    tags=["commands"],
)
def check_commands(view: InView, given: messages.CommandsRequest, service: InService) -> Response:
    """What would become of commands, without giving them."""
    _count(service, given)
    commands = _commands(given)
    refusals = check(view.folder, commands)
    schemas = view.reader.schemas()
    return JsonAnswer(
        {
            "checked": [
                _checked(view, command, refused, schemas)
                for command, refused in zip(commands, refusals, strict=True)
            ]
        }
    )


@router.get(
    "/experiments/{experiment}/stream",
    response_class=Response,
    responses={200: {"content": {"text/event-stream": {}}, "description": "Server-sent events."}},
    tags=["stream"],
)
async def follow(
    request: Request,
    experiment: ExperimentName,
    service: InService,
    after: Annotated[
        str | None, Query(max_length=100, description="A cursor; Last-Event-ID goes before it.")
    ] = None,
) -> Response:
    """What changes, as it changes: server-sent events of the types `hello`, `batch` and `reset`.

    A `batch` holds runs as they are now (as in the table), new values, events and commands since
    the one before; taking one in twice does no harm. After a `reset` part of it has been
    forgotten: read everything anew. Each has an id, from which a later stream goes on, also after a
    restart of the server.
    """
    folder = await anyio.to_thread.run_sync(service.catalog.folder, experiment)
    cursor = request.headers.get("last-event-id", after)
    return service.streams.follow(folder.name, cursor)


def _tagged(request: Request, etag: str, answer: Callable[[], bytes]) -> Response:
    """The answer, unless the client has that version of it."""
    tag = f'"{etag}"'
    given = {one.strip() for one in request.headers.get("if-none-match", "").split(",")}
    if tag in given:
        return Response(status_code=304, headers={"ETag": tag})
    return JsonAnswer(answer(), headers={"ETag": tag})


def _etag(view: View) -> str:
    return f"{view.birth}.{view.version}"


def _run(view: View, run_id: int) -> tuple[Run, RunRow]:
    row = view.rows.get(RunId(run_id))
    run = None if row is None else view.reader.run(RunId(run_id))
    if row is None or run is None:
        raise UnknownRunError(f"the experiment {view.folder.name!r} has no run {run_id}")
    return run, row


def _rows(view: View, chosen: str | None) -> dict[RunId, RunRow]:
    rows = dict(sorted(view.rows.items()))
    if chosen is None:
        return {id_: row for id_, row in rows.items() if row.status is not RunStatus.DELETED}
    ids = [RunId(int(number)) for number in dict.fromkeys(chosen.split(","))]
    for run_id in ids:
        if run_id not in rows:
            raise UnknownRunError(f"the experiment {view.folder.name!r} has no run {run_id}")
    return {run_id: rows[run_id] for run_id in ids}


def _series(view: View, rows: dict[RunId, RunRow], query: SeriesQuery) -> bytes:
    metrics = [
        Metric(source, name)
        for source, name in sorted(view.names)
        if query.metric == (shown_name(source, name) if query.source is None else name)
        and query.source in (None, source)
    ]
    steps = (query.first_step, query.last_step)
    _, cursor = view.place
    parts = []
    for run_id, row in rows.items():
        points: dict[int, Point] = {}
        for metric in metrics:
            for point in view.series.points(run_id, metric, query.points, steps):
                points[point.step] = point
        if points:
            parts.append(_one_series(view, run_id, row, _ordered(points), query))
    head = encoded({"source": query.source, "metric": query.metric, "x": query.x, "cursor": cursor})
    return head[:-1] + b',"series":[' + b",".join(parts) + b"]}"


def _ordered(points: dict[int, Point]) -> list[Point]:
    return [points[step] for step in sorted(points)]


def _one_series(
    view: View, run_id: RunId, row: RunRow, points: Sequence[Point], query: SeriesQuery
) -> bytes:
    tokens: Sequence[Point] = ()
    if query.x == "tokens":
        tokens = view.series.points(run_id, TOKENS, query.points, (0, None))
    return series_answer(run_id, points, encoded(axis(query.x, points, row, tokens)))


def _commands(given: messages.CommandsRequest) -> list[Command]:
    return [
        Command(
            verb=one.verb,
            run_id=RunId(one.run_id),
            by="http",
            reason=one.reason,
            modify=one.modify,
            warm_start=one.warm_start,
            optimizer=one.optimizer,
            schedule=one.schedule,
        )
        for one in given.commands
    ]


def _count(service: Service, given: messages.CommandsRequest) -> None:
    wait_s = service.commands.take(num=len(given.commands))
    if wait_s > 0:
        raise TooOftenError(wait_s)


def _checked(
    view: View, command: Command, refused: str | None, schemas: dict[str, Json]
) -> dict[str, Json]:
    answer: dict[str, Json] = {"refusal": refused, "differences": {}, "forecast": None}
    run = view.reader.run(command.run_id)
    if run is None:
        return answer
    try:
        answer["differences"] = {
            name: difference(name, values)
            for name, values in differences(command, run, schemas).items()
        }
        found = forecast(command, run, schemas)
    except ConfigError:  # which is the refusal
        return answer
    return {**answer, "forecast": None if found is None else asdict(found)}
