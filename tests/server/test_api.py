"""The API answers what the page needs, and gives commands."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from rapidfireai.core.commands import CommandStatus
from rapidfireai.core.events import ChunkAssigned, MetricSource, RunRecovered
from rapidfireai.core.ids import RunId, WorkerId
from rapidfireai.core.run import RunStatus
from rapidfireai.store.plain import MASK
from tests.server.laboratory import Laboratory, application, client, filled, laboratory, queued

BASE = "/api/v1/experiments"


def asked(root: Path, *paths: str) -> list[Any]:
    """The JSON that is answered to some paths below the experiments', in this order."""

    async def ask() -> list[Any]:
        async with client(application(root)) as http:
            answers = [await http.get(f"{BASE}{path}") for path in paths]
        assert [answer.status_code for answer in answers] == [200] * len(paths)
        return [answer.json() for answer in answers]

    return asyncio.run(ask())


def talk(root: Path, conversation: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
    """Have a conversation with one server."""

    async def run() -> None:
        async with client(application(root)) as http:
            await conversation(http)

    asyncio.run(run())


def test_experiments_with_state_progress_and_best_run(lab: Laboratory, tmp_path: Path) -> None:
    with lab.folder.locked():
        (answer,) = asked(tmp_path, "")
    (one,) = answer["experiments"]
    assert (one["name"], one["state"], one["num_runs"]) == ("first", "training", 3)
    assert one["statuses"] == {"waiting": 2, "failed": 1}
    assert one["best"] == {"run_id": 1, "metric": "eval_loss", "value": 2.5}
    assert one["progress"] == pytest.approx((10 / 40 + 1 + 2 / 40) / 3)
    assert one["trained_by"] > 0
    assert asked(tmp_path, "/first")[0]["state"] == "interrupted"


def test_a_damaged_and_a_newer_store_do_not_hide_the_others(
    lab: Laboratory, tmp_path: Path
) -> None:
    for name, content in (("damaged", b"SQLite format 3\0" + b"x" * 5000), ("empty", b"")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "experiment.db").write_bytes(content)
    with laboratory(tmp_path, name="newer") as newer:
        newer.store._db.execute("PRAGMA user_version = 99")

    async def conversation(http: httpx.AsyncClient) -> None:
        found = (await http.get(BASE)).json()["experiments"]
        states = {one["name"]: one["state"] for one in found}
        unreadable = dict.fromkeys(["damaged", "empty", "newer"], "unreadable")
        assert states == {"first": "interrupted", **unreadable}
        assert "newer rapidfireai" in next(o["problem"] for o in found if o["name"] == "newer")
        answer = await http.get(f"{BASE}/damaged/runs")
        assert answer.status_code == 503
        assert answer.json()["code"] == "unreadable_experiment"

    talk(tmp_path, conversation)


def test_the_table_of_runs(lab: Laboratory, tmp_path: Path) -> None:
    (answer,) = asked(tmp_path, "/first/runs")
    first, second, third = answer["runs"]
    assert first["metrics"] == {
        "eval_loss": 2.5,
        "host_memory_gib": 1.5,
        "logged_loss": 3.5,
        "loss": pytest.approx(3.1),
        "num_tokens": 1000.0,
    }
    assert first["sparkline"] == pytest.approx([4.0 - 0.1 * step for step in range(10)])
    assert first["remaining_s"] == 30.0
    assert (second["status"], second["error"]) == ("failed", "ValueError: bad row")
    assert (second["loss"], second["sparkline"]) == (None, [5.0, None])
    assert third["step"] == 2


def test_only_what_has_changed_since_a_version(lab: Laboratory, tmp_path: Path) -> None:
    async def conversation(http: httpx.AsyncClient) -> None:
        whole = await http.get(f"{BASE}/first/runs")
        version, tag = whole.json()["version"], whole.headers["etag"]
        again = await http.get(f"{BASE}/first/runs", headers={"If-None-Match": tag})
        assert (again.status_code, again.content) == (304, b"")
        nothing = await http.get(f"{BASE}/first/runs", params={"since": version})
        assert nothing.json()["runs"] == []
        lab.begin(1, chunk=1)
        lab.train(1, [2.0])
        some = await http.get(f"{BASE}/first/runs", params={"since": version})
        assert [row["run_id"] for row in some.json()["runs"]] == [1]
        assert some.json()["runs"][0]["loss"] == 2.0
        assert some.headers["etag"] != tag
        lab.train(1, [1.5])  # without an event
        last = await http.get(f"{BASE}/first/runs", params={"since": some.json()["version"]})
        assert last.json()["runs"][0]["metrics"]["loss"] == 1.5
        restarted = await http.get(f"{BASE}/first/runs", params={"since": 10_000})
        assert len(restarted.json()["runs"]) == 3

    talk(tmp_path, conversation)


def test_a_runs_detail_has_no_secrets(lab: Laboratory, tmp_path: Path) -> None:
    (detail,) = asked(tmp_path, "/first/runs/2")
    assert detail["traceback"].startswith("Traceback")
    assert detail["config"]["training_args"] == {"learning_rate": 0.01, "hub_token": MASK}
    assert detail["config"]["model"]["model_kwargs"] == {"api_key": MASK}
    assert detail["resolved"]["training_args"]["hub_token"] == MASK
    paths = ["", "/runs", "/runs/1", "/configs", "/runs/1/knobs", "/events", "/commands", "/log"]
    everything = str(asked(tmp_path, *(f"/first{path}" for path in paths)))
    assert "s3cret" not in everything
    assert "hf_abc" not in everything


def test_configurations_side_by_side(lab: Laboratory, tmp_path: Path) -> None:
    (both,) = asked(tmp_path, "/first/configs?runs=1,3")
    assert both["differing"] == ["training_args.learning_rate"]
    assert list(both["configs"]) == ["1", "3"]
    assert both["configs"]["3"]["training_args.learning_rate"] == 0.001


def test_series_of_many_runs_by_each_axis(lab: Laboratory, tmp_path: Path) -> None:
    names = ["step", "samples", "tokens", "time"]
    by = dict(
        zip(names, asked(tmp_path, *(f"/first/series?runs=1&x={x}" for x in names)), strict=True)
    )
    series = {x: answer["series"][0] for x, answer in by.items()}
    assert series["step"]["steps"] == list(range(1, 11))
    assert series["step"]["x"] is None
    assert series["samples"]["x"] == [8 * step for step in range(1, 11)]
    assert series["tokens"]["x"] == pytest.approx([100.0 * step for step in range(1, 11)])
    assert series["time"]["x"] == sorted(series["time"]["x"])
    every, chunk = asked(tmp_path, "/first/series", "/first/series?metric=eval_loss&source=chunk")
    assert [one["run_id"] for one in every["series"]] == [1, 2, 3]
    assert every["series"][1]["values"] == [5.0, None]
    assert [one["values"] for one in chunk["series"]] == [[2.5], [2.75]]


def test_sources_of_the_same_metric_are_merged(lab: Laboratory, tmp_path: Path) -> None:
    lab.log(1, 5, MetricSource.LOG, eval_loss=2.9)
    (answer,) = asked(tmp_path, "/first/series?metric=eval_loss&runs=1")
    assert (answer["series"][0]["steps"], answer["series"][0]["values"]) == ([5, 10], [2.9, 2.5])
    (logged,) = asked(tmp_path, "/first/series?metric=logged_loss")
    assert logged["series"][0]["values"] == [3.5]


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/none", 404, "unknown_experiment"),
        ("/none/runs", 404, "unknown_experiment"),
        ("/first/runs/9", 404, "unknown_run"),
        ("/first/series?runs=1,9", 404, "unknown_run"),
        ("/first/series?points=2", 422, "invalid_request"),
        ("/first/series?points=4000&runs=1;2", 422, "invalid_request"),
        ("/first/runs/x", 422, "invalid_request"),
        ("/first/runs?since=-1", 422, "invalid_request"),
        ("/first/events?after=99999999999999999999", 422, "invalid_request"),
        ("/first/nothing", 404, "unknown_path"),
    ],
)
def test_what_does_not_exist(
    lab: Laboratory, tmp_path: Path, path: str, status: int, code: str
) -> None:
    async def conversation(http: httpx.AsyncClient) -> None:
        answer = await http.get(f"{BASE}{path}")
        assert (answer.status_code, answer.json()["code"]) == (status, code)

    talk(tmp_path, conversation)


def test_too_many_points_are_refused(tmp_path: Path) -> None:
    async def conversation(http: httpx.AsyncClient) -> None:
        answer = await http.get(f"{BASE}/first/series", params={"points": 4000})
        assert answer.status_code == 422
        assert "points=3960" in answer.json()["message"]

    with laboratory(tmp_path, num_runs=101):
        talk(tmp_path, conversation)


def test_events_in_pages(lab: Laboratory, tmp_path: Path) -> None:
    whole, of_one = asked(tmp_path, "/first/events", "/first/events?run_id=2")
    assert [one["seq"] for one in whole["events"]] == list(range(1, 10))
    assert whole["last"] == 9
    assert {one["run_id"] for one in of_one["events"]} == {2}
    failed = of_one["events"][-1]
    assert failed["type"] == "RunFailed"
    assert set(failed["data"]) == {"error", "active_s", "notes"}
    (page,) = asked(tmp_path, "/first/events?after=3&limit=2")
    assert ([one["seq"] for one in page["events"]], page["last"]) == ([4, 5], 5)


def test_the_log_in_parts(lab: Laboratory, tmp_path: Path) -> None:
    with lab.folder.log.open("ab") as log:
        log.write(b"hf_" + b"a" * 30 + b" run 12\nunfinished")
    (whole,) = asked(tmp_path, "/first/log")
    assert whole["lines"][-1] == f"{MASK} run 12"
    assert whole["next"] == whole["size"] - len("unfinished")
    (of_one, rest) = asked(tmp_path, "/first/log?run_id=1", f"/first/log?after={whole['next']}")
    assert of_one["lines"] == ["2026 INFO run 1 has begun"]
    assert (rest["lines"], rest["next"]) == ([], whole["next"])
    lab.folder.log.write_bytes(b"x" * 100 + b"\n" + b"0123456789\n" * 30_000)
    (tail,) = asked(tmp_path, "/first/log")
    assert set(tail["lines"]) == {"0123456789"}
    assert tail["first"] > 0


async def give(http: httpx.AsyncClient, *commands: dict[str, Any], wait_s: float = 0.0) -> Any:
    answer = await http.post(
        f"{BASE}/first/commands", json={"commands": commands, "wait_s": wait_s}
    )
    assert answer.status_code == 200, answer.text
    return answer.json()["commands"]


def test_commands_are_given_and_logged(lab: Laboratory, tmp_path: Path) -> None:
    async def conversation(http: httpx.AsyncClient) -> None:
        stop, again, clone = await give(
            http,
            {"verb": "stop", "run_id": 1, "reason": "plateau"},
            {"verb": "restore", "run_id": 2},
            {"verb": "clone", "run_id": 3, "modify": {"learning_rate": 0.5}},
        )
        assert (stop["status"], stop["by"], stop["step"]) == ("applied", "http", 10)
        assert (again["status"], clone["status"]) == ("rejected", "pending")
        assert "nothing to restore" in again["outcome"]
        logged = (await http.get(f"{BASE}/first/commands")).json()
        assert [one["status"] for one in logged["commands"]] == ["applied", "rejected", "pending"]
        assert logged["last"] == 3
        runs = (await http.get(f"{BASE}/first/runs")).json()["runs"]
        assert runs[0]["status"] == "stopped"

    talk(tmp_path, conversation)
    stored = lab.store.commands()
    assert [one.command.by for one in stored] == ["http"] * 3
    assert lab.store.runs()[0].notes == ("stopped: plateau",)


def test_a_dry_run_changes_nothing(lab: Laboratory, tmp_path: Path) -> None:
    commands = [
        {"verb": "clone", "run_id": 1, "modify": {"learning_rate": 0.5}, "warm_start": True},
        {"verb": "clone", "run_id": 1, "modify": {"learning_rat": 0.5}},
        {"verb": "clone", "run_id": 1, "modify": {"learning_rate": "much"}},
        {"verb": "clone", "run_id": 1, "modify": {"hub_token": "hf_0000000000000000000"}},
        {"verb": "stop", "run_id": 99},
    ]

    async def conversation(http: httpx.AsyncClient) -> None:
        answer = await http.post(f"{BASE}/first/commands/check", json={"commands": commands})
        warm, misspelt, wrong, secret, missing = answer.json()["checked"]
        assert warm["refusal"] is None
        assert warm["differences"] == {"training_args.learning_rate": [0.1, 0.5]}
        assert warm["forecast"]["remaining_steps"] == 30
        assert "did you mean 'learning_rate'" in misspelt["refusal"]
        assert "allowed: float" in wrong["refusal"]
        assert secret["differences"] == {"training_args.hub_token": [MASK, MASK]}
        assert "there is no run 99" in missing["refusal"]

    before = lab.store.runs()
    talk(tmp_path, conversation)
    assert lab.store.commands() == []
    assert str(lab.store.runs()) == str(before)


def test_a_process_that_trains_is_waited_for(lab: Laboratory, tmp_path: Path) -> None:
    async def conversation(http: httpx.AsyncClient) -> None:
        (pending,) = await give(http, {"verb": "stop", "run_id": 1}, wait_s=0.05)
        assert pending["status"] == "pending"

    with lab.folder.locked():
        talk(tmp_path, conversation)
        assert lab.store.commands()[0].status is CommandStatus.PENDING
        assert lab.store.runs()[0].status is RunStatus.WAITING


@pytest.mark.parametrize(
    "body",
    [
        {"commands": []},
        {"commands": [{"verb": "explode", "run_id": 1}]},
        {"commands": [{"verb": "stop", "run_id": 0}]},
        {"commands": [{"verb": "stop", "run_id": 1, "by": "policy"}]},
        {"commands": [{"verb": "stop", "run_id": 1}] * 1001},
        {"commands": [{"verb": "stop", "run_id": 1}], "wait_s": 31},
        {"commands": [{"verb": "stop", "run_id": 1, "reason": "x" * 501}]},
        {"commands": [{"verb": "clone", "run_id": 1, "modify": {"learning_rate": math.nan}}]},
        {"commands": [{"verb": "clone", "run_id": 1, "modify": {"learning_rate": MASK}}]},
        {"commands": [{"verb": "clone", "run_id": 1, "modify": {"a": [[[[[[[[[1]]]]]]]]]}}]},
        {"commands": [{"verb": "clone", "run_id": 1, "modify": {"a": "\ud800"}}]},
        {"commands": [{"verb": "clone", "run_id": 1, "modify": {"a": 2**60}}]},
        [],
        None,
    ],
    ids=lambda body: str(body)[:70],
)
def test_commands_that_mean_nothing(lab: Laboratory, tmp_path: Path, body: Any) -> None:
    import json

    async def conversation(http: httpx.AsyncClient) -> None:
        for path in ("commands", "commands/check"):
            answer = await http.post(
                f"{BASE}/first/{path}",
                content=json.dumps(body),
                headers={"Content-Type": "application/json"},
            )
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")

    talk(tmp_path, conversation)
    assert lab.store.commands() == []


def test_commands_have_a_limit(lab: Laboratory, tmp_path: Path) -> None:
    async def run() -> None:
        app = application(tmp_path, clock=lambda: 0.0)
        many = [{"verb": "stop", "run_id": 9}] * 1000
        async with client(app) as http:
            for expected in (200, 200, 429):
                answer = await http.post(f"{BASE}/first/commands/check", json={"commands": many})
                assert answer.status_code == expected
            assert int(answer.headers["retry-after"]) > 0

    asyncio.run(run())


def test_more_experiments_than_are_kept_open(tmp_path: Path) -> None:
    labs = [filled(tmp_path, f"number-{number}") for number in range(9)]

    async def conversation(http: httpx.AsyncClient) -> None:
        for _ in range(2):
            for lab in labs:
                answer = await http.get(f"{BASE}/{lab.folder.name}/runs")
                assert len(answer.json()["runs"]) == 3
        assert len((await http.get(BASE)).json()["experiments"]) == 9

    talk(tmp_path, conversation)
    for lab in labs:
        lab.close()


def test_an_experiment_that_another_took_the_place_of(lab: Laboratory, tmp_path: Path) -> None:
    import shutil

    async def conversation(http: httpx.AsyncClient) -> None:
        assert len((await http.get(f"{BASE}/first/runs")).json()["runs"]) == 3
        shutil.rmtree(lab.folder.path)
        assert (await http.get(f"{BASE}/first/runs")).status_code == 404
        with laboratory(tmp_path, num_runs=5):
            assert len((await http.get(f"{BASE}/first/runs")).json()["runs"]) == 5

    talk(tmp_path, conversation)


def test_steps_that_are_trained_again_after_a_kill(lab: Laboratory, tmp_path: Path) -> None:
    async def conversation(http: httpx.AsyncClient) -> None:
        url = f"{BASE}/first/series?runs=1"
        before = (await http.get(url)).json()["series"][0]["values"]
        lab.begin(1, chunk=1)
        lab.send(RunRecovered(run_id=RunId(1), step=5, chunks_done=0, active_s=5.0))
        lab.send(ChunkAssigned(run_id=RunId(1), worker_id=WorkerId(0), chunk=0))
        lab.train(1, [7.0, 6.0], first=6)
        after = (await http.get(url)).json()["series"][0]["values"]
        assert after == [*before[:5], 7.0, 6.0, *before[7:]]
        row = (await http.get(f"{BASE}/first/runs")).json()["runs"][0]
        assert (row["step"], row["loss"]) == (7, 6.0)

    talk(tmp_path, conversation)


def test_runs_that_a_later_script_adds(lab: Laboratory, tmp_path: Path) -> None:
    async def conversation(http: httpx.AsyncClient) -> None:
        assert len((await http.get(f"{BASE}/first/runs")).json()["runs"]) == 3
        lab.store.add_runs([queued(4)])  # without an event
        assert len((await http.get(f"{BASE}/first/runs")).json()["runs"]) == 4

    talk(tmp_path, conversation)
