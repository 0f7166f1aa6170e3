"""Who may not pass does not pass, learns nothing, and changes nothing."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from rapidfireai.server.app import Application
from rapidfireai.server.limits import TokenBucket
from rapidfireai.server.security import MAX_BODY_BYTES, Access
from tests.ids import plain
from tests.server.laboratory import BEARER, HOST, TOKEN, Laboratory, application, client

RUNS = "/api/v1/experiments/first/runs"
COMMANDS = "/api/v1/experiments/first/commands"
STOP = {"commands": [{"verb": "stop", "run_id": 1}]}
COOKIE = {"Cookie": f"rapidfireai_3000={TOKEN}"}


def talk(
    app: Application,
    conversation: Callable[[httpx.AsyncClient], Awaitable[None]],
    headers: dict[str, str],
) -> None:
    async def run() -> None:
        async with client(app, headers) as http:
            await conversation(http)

    asyncio.run(run())


def refused(lab: Laboratory, headers: dict[str, str], status: int, code: str) -> None:
    """Reading and commanding are both refused, and nothing has changed."""

    async def conversation(http: httpx.AsyncClient) -> None:
        answers = [await http.get(RUNS), await http.post(COMMANDS, json=STOP)]
        answers.append(await http.get("/api/v1/openapi.json"))
        for answer in answers:
            assert (answer.status_code, answer.json()["code"]) == (status, code)
            assert "run-1" not in answer.text

    talk(application(lab.folder.path.parent), conversation, headers)
    assert lab.store.commands() == []


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Cookie": "rapidfireai_3000=wrong"},
        {"Cookie": f"rapidfireai_3001={TOKEN}"},
        {"Cookie": f"token={TOKEN}"},
    ],
    ids=str,
)
def test_no_token(lab: Laboratory, headers: dict[str, str]) -> None:
    refused(lab, headers, 401, "no_token")


def test_a_token_in_an_apis_address_is_none(lab: Laboratory, tmp_path: Path) -> None:
    async def conversation(http: httpx.AsyncClient) -> None:
        assert (await http.get(RUNS, params={"token": TOKEN})).status_code == 401

    talk(application(tmp_path), conversation, {})


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:3000",
        "localhost",
        "localhost:3001",
        "localhost:3000:3000",
        "localhost.evil.example:3000",
        "127.0.0.1:80",
        "192.168.0.1:3000",
        "[::2]:3000",
        "localhost:+3000",
        "127.0.0.1.:3000",
        "",
    ],
)
def test_other_hosts(lab: Laboratory, host: str) -> None:
    refused(lab, {**BEARER, "Host": host}, 403, "wrong_host")
    refused(lab, {**COOKIE, "Host": host}, 403, "wrong_host")


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "",
        "https://localhost:3000",
        "http://localhost:3001",
        "http://localhost",
        "http://127.0.0.1:3000",
        "http://localhost:3000.evil.example",
    ],
)
def test_other_origins(lab: Laboratory, origin: str) -> None:
    refused(lab, {**COOKIE, "Origin": origin}, 403, "wrong_origin")
    refused(lab, {**BEARER, "Origin": origin}, 403, "wrong_origin")


@pytest.mark.parametrize("host", [HOST, "127.0.0.1:3000", "[::1]:3000", "LOCALHOST:3000"])
@pytest.mark.parametrize("pass_", [BEARER, COOKIE], ids=["bearer", "cookie"])
def test_who_may_pass(lab: Laboratory, tmp_path: Path, host: str, pass_: dict[str, str]) -> None:
    async def conversation(http: httpx.AsyncClient) -> None:
        assert (await http.get(RUNS)).status_code == 200
        answer = await http.post(COMMANDS, json=STOP, headers={"Origin": f"http://{host}"})
        assert answer.json()["commands"][0]["status"] == "applied"

    talk(application(tmp_path), conversation, {**pass_, "Host": host})


def test_a_server_for_other_machines_knows_addresses_and_no_names() -> None:
    def is_host(host: str, name: str) -> bool:
        failures = TokenBucket(1, 1, lambda: 0.0)
        return Access(token=TOKEN, host=host, port=3000, failures=failures).is_host(name)

    assert is_host("0.0.0.0", "192.168.0.7:3000")
    assert is_host("::", "[fe80::1]:3000")
    assert not is_host("0.0.0.0", "evil.example:3000")
    assert is_host("gpu.example", "gpu.example:3000")
    assert not is_host("gpu.example", "192.168.0.7:3000")
    failures = TokenBucket(1, 1, lambda: 0.0)
    access = Access(token=TOKEN, host="127.0.0.1", port=80, failures=failures)
    assert access.is_host("localhost")
    assert access.is_host("[::1]")


@pytest.mark.parametrize(
    ("path", "to"),
    [
        ("/", "/"),
        ("/experiments/first?tab=runs", "/experiments/first?tab=runs"),
        ("//evil.example/x", "/evil.example/x"),
        ("/\\evil.example", "/evil.example"),
        ("/a%0d%0ab", "/a%0D%0Ab"),
    ],
)
def test_the_first_visit(lab: Laboratory, tmp_path: Path, path: str, to: str) -> None:
    async def conversation(http: httpx.AsyncClient) -> None:
        separator = "&" if "?" in path else "?"
        url = f"http://{HOST}{path}{separator}token={TOKEN}"
        answer = await http.get(url)
        assert (answer.status_code, answer.headers["location"]) == (303, to)
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith(f"rapidfireai_3000={TOKEN}; ")
        assert {"HttpOnly", "Path=/", "SameSite=strict"} <= set(cookie.split("; "))
        assert (await http.get(RUNS)).status_code == 200  # the client keeps cookies

    talk(application(tmp_path), conversation, {})


def test_pages_need_the_token_as_well(lab: Laboratory, tmp_path: Path) -> None:
    async def conversation(http: httpx.AsyncClient) -> None:
        for path in ("/", "/?token=wrong", "/experiments/first", "/assets/index.js"):
            answer = await http.get(path)
            assert answer.status_code == 401
            assert "rapidfireai start" in answer.text
            assert "set-cookie" not in answer.headers

    talk(application(tmp_path), conversation, {})


def test_wrong_tokens_are_slowed_down_and_the_right_one_is_not(
    lab: Laboratory, tmp_path: Path
) -> None:
    now_s = [0.0]

    async def conversation(http: httpx.AsyncClient) -> None:
        wrong = {"Authorization": "Bearer wrong"}
        statuses = [(await http.get(RUNS, headers=wrong)).status_code for _ in range(12)]
        assert statuses == [401] * 10 + [429] * 2
        assert (await http.get(RUNS, headers=BEARER)).status_code == 200
        now_s[0] += 60.0
        assert (await http.get(RUNS, headers=wrong)).status_code == 401

    talk(application(tmp_path, clock=lambda: now_s[0]), conversation, {})


def test_every_answer_has_the_headers(lab: Laboratory, tmp_path: Path) -> None:
    async def conversation(http: httpx.AsyncClient) -> None:
        for path in ("/", RUNS, "/api/v1/nothing", "/api/v1/experiments/none", "/x.js"):
            for headers in (BEARER, {"Authorization": "no"}, {"Host": "evil.example"}):
                answer = await http.get(path, headers=headers)
                assert "default-src 'none'" in answer.headers["content-security-policy"]
                assert answer.headers["x-content-type-options"] == "nosniff"
                assert answer.headers["x-frame-options"] == "DENY"
                assert answer.headers["referrer-policy"] == "no-referrer"
                assert not [name for name in answer.headers if name.startswith("access-control")]

    talk(application(tmp_path), conversation, {})


def test_another_site_may_not_even_ask_whether_it_may(lab: Laboratory, tmp_path: Path) -> None:
    async def conversation(http: httpx.AsyncClient) -> None:
        asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
        assert (await http.options(COMMANDS, headers=asked)).status_code == 403
        form = {"Sec-Fetch-Site": "cross-site"}
        assert (await http.post(COMMANDS, json=STOP, headers=form)).status_code == 403

    talk(application(tmp_path), conversation, dict(BEARER))
    assert lab.store.commands() == []


async def endless() -> AsyncIterator[bytes]:
    for _ in range(100):
        yield b" " * (MAX_BODY_BYTES // 50)


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"x" * (MAX_BODY_BYTES + 1), "application/json", 413),
        (endless(), "application/json", 413),
        (json.dumps(STOP), "text/plain", 415),
        (json.dumps(STOP), "application/x-www-form-urlencoded", 415),
        (json.dumps(STOP), "multipart/form-data", 415),
        (json.dumps(STOP), "", 415),
        (b"{", "application/json", 422),
        (b"\xff\xfe", "application/json", (400, 422)),
        (b"[" * 100_000, "application/json", (400, 422)),
        (b'{"commands":' + b"[" * 5_000 + b"]" * 5_000 + b"}", "application/json", (400, 422)),
        (b"9" * 10_000, "application/json", (400, 422)),
        (b"", "application/json", 422),
    ],
    ids=lambda value: (value if isinstance(value, str) else plain(value))[:40],
)
def test_malformed_bodies(
    lab: Laboratory, tmp_path: Path, content: Any, kind: str, status: int | tuple[int, ...]
) -> None:
    async def conversation(http: httpx.AsyncClient) -> None:
        answer = await http.post(COMMANDS, content=content, headers={"Content-Type": kind})
        assert answer.status_code in (status if isinstance(status, tuple) else (status,))
        assert set(answer.json()) == {"code", "message"}

    talk(application(tmp_path), conversation, dict(BEARER))
    assert lab.store.commands() == []


@pytest.mark.parametrize("length", ["-1", "x", str(1 << 40), "9" * 40])
def test_lengths_that_are_none(lab: Laboratory, tmp_path: Path, length: str) -> None:
    async def conversation(http: httpx.AsyncClient) -> None:
        headers = {"Content-Type": "application/json", "Content-Length": length}
        assert (await http.post(COMMANDS, content=b"{}", headers=headers)).status_code == 413

    talk(application(tmp_path), conversation, dict(BEARER))


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "/assets/../../secret.txt",
        "/assets/%2e%2e/%2e%2e/secret.txt",
        "/%00.txt",
        "/link.txt",
        "/..\\secret.txt",
    ],
)
def test_no_file_but_the_dashboards(lab: Laboratory, tmp_path: Path, path: str) -> None:
    static = tmp_path / "static"
    (static / "assets").mkdir(parents=True)
    (static / "index.html").write_text("<title>dashboard</title>")
    (static / "assets" / "index-1.js").write_text("1")
    (tmp_path / "secret.txt").write_text("geheim")
    (static / "link.txt").symlink_to(tmp_path / "secret.txt")

    async def conversation(http: httpx.AsyncClient) -> None:
        request = http.build_request("GET", f"http://{HOST}/")
        request.url = request.url.copy_with(raw_path=path.encode())
        assert (await http.send(request)).status_code == 404
        script = await http.get("/assets/index-1.js")
        assert script.headers["content-type"].startswith("text/javascript")
        assert "immutable" in script.headers["cache-control"]
        for page in ("/", "/index.html", "/experiments/llama-3.2", f"http://{HOST}//etc/passwd"):
            answer = await http.get(page)
            assert "dashboard" in answer.text
            assert answer.headers["cache-control"] == "no-cache"

    talk(application(tmp_path, static=static), conversation, dict(BEARER))


@pytest.mark.parametrize(
    "name",
    [
        "..",
        ".",
        "%2e%2e",
        "..%2f..%2fetc",
        "first%2f..%2ffirst",
        "first%00",
        "%2e%2e%2ffirst",
        "first%2fexperiment.db",
        "~",
        "*",
        "first%20",
        "x" * 119,
    ],
)
def test_names_of_experiments_are_no_paths(lab: Laboratory, tmp_path: Path, name: str) -> None:
    async def conversation(http: httpx.AsyncClient) -> None:
        for below in ("", "/runs", "/log", "/stream", "/commands"):
            answer = await http.get(f"http://{HOST}/api/v1/experiments/{name}{below}")
            assert answer.status_code in (200, 404)
            if answer.status_code == 200:  # a client may resolve dots by itself
                assert answer.url.path in ("/api/v1/experiments", "/api/v1/experiments/")
        answer = await http.post(f"http://{HOST}/api/v1/experiments/{name}/commands", json=STOP)
        assert answer.status_code in (404, 405)

    before = sorted(str(path) for path in tmp_path.rglob("*"))
    talk(application(tmp_path), conversation, dict(BEARER))
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    assert lab.store.commands() == []


def test_buckets_fill_with_time() -> None:
    now_s = [0.0]
    bucket = TokenBucket(2, 1.0, lambda: now_s[0])
    assert [bucket.take("a") for _ in range(3)] == [0.0, 0.0, 1.0]
    assert bucket.take("b") == 0.0
    now_s[0] = 1.0
    assert bucket.take("a") == 0.0
    assert bucket.take("c", 10.0) == 0.0
    assert bucket.take("c") == pytest.approx(9.0)
    for number in range(5000):
        bucket.take(str(number))
    assert len(bucket._levels) <= 1024
