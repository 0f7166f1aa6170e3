"""The API is what it says it is, whatever it is asked."""

import json
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.server.laboratory import BEARER, HOST, Laboratory, application, filled
from tests.server.openapi import SNAPSHOT, as_text, described

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    response_schema_conformance,
    response_headers_conformance,
]
STREAM = "/api/v1/experiments/{experiment}/stream"


def test_the_description_is_the_snapshot() -> None:
    assert SNAPSHOT.read_text(encoding="utf-8") == as_text(described()), (
        "the API has changed: if that is meant, run `python -m tests.server.openapi`"
    )


def test_everything_is_described() -> None:
    description = described()
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            assert operation["description"], f"{method} {path}"
            assert {"401", "403", "404", "429"} <= operation["responses"].keys()
    for name, model in description["components"]["schemas"].items():
        if name in ("HTTPValidationError", "ValidationError"):
            continue
        assert model.get("description"), name


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    with closing(filled(tmp_path_factory.mktemp("contract"))) as lab:
        yield lab


def fuzz(lab: Laboratory, num_cases: int, *, with_token: bool) -> int:
    """Send cases that schemathesis makes to every operation; returns how many."""
    app = application(lab.folder.path.parent, clock=_Ticking())
    schema = schemathesis.openapi.from_dict(json.loads(SNAPSHOT.read_text(encoding="utf-8")))
    schema.app = app.asgi
    headers = {"Host": HOST, **(BEARER if with_token else {})}
    num_sent = 0

    def check(case: Any) -> None:
        nonlocal num_sent
        num_sent += 1
        if num_sent % 4:
            _meet(case)
        response = case.call(headers=headers, base_url=f"http://{HOST}")
        if with_token:
            case.validate_response(response, checks=CHECKS)
        else:
            assert response.status_code in (400, 401, 403, 404, 405, 408, 413, 415, 429)

    for result in schema.get_all_operations():
        operation = result.ok()  # type: ignore[union-attr]
        if operation.path == STREAM:
            continue  # it does not end; its own tests do that
        for mode in schemathesis.GenerationMode:
            strategy = operation.as_strategy(generation_mode=mode)
            run = settings(
                max_examples=num_cases,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )(given(case=strategy)(check))
            with suppress(Unsatisfiable):  # where there is nothing that could be wrong
                run()
    return num_sent


def _meet(case: Any) -> None:
    """Have a case ask for what there is; names by chance never do."""
    if "experiment" in case.path_parameters:
        case.path_parameters["experiment"] = "first"
    if isinstance(case.path_parameters.get("run_id"), int):
        case.path_parameters["run_id"] = 1 + case.path_parameters["run_id"] % 3
    commands = case.body.get("commands") if isinstance(case.body, dict) else None
    for command in commands if isinstance(commands, list) else ():
        if isinstance(command, dict) and isinstance(command.get("run_id"), int):
            command["run_id"] = 1 + command["run_id"] % 3


class _Ticking:
    """A clock that runs so fast that no limit is reached."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def __call__(self) -> float:
        self._now_s += 100.0
        return self._now_s


def state_of(lab: Laboratory) -> str:
    """All that readers could have changed."""
    files = sorted(
        str(path)
        for path in lab.folder.path.rglob("*")
        if not path.name.endswith(("-wal", "-shm", "lock"))
    )
    return str((lab.store.runs(), lab.store.events(), lab.store.metrics(), files))


def examine(lab: Laboratory, num_cases: int) -> int:
    before = state_of(lab)
    num_sent = fuzz(lab, max(1, num_cases // 4), with_token=False)
    assert lab.store.commands() == []
    assert state_of(lab) == before
    num_sent += fuzz(lab, num_cases, with_token=True)
    known = {run.id for run in lab.runs.values()}
    applied = [one for one in lab.store.commands() if one.status == "applied"]
    assert {one.command.run_id for one in applied} <= known
    assert {one.command.by for one in lab.store.commands()} <= {"http"}
    return num_sent


def test_a_few_cases_for_every_operation(lab: Laboratory) -> None:
    assert examine(lab, 2) > 50


@pytest.mark.exam
def test_thousands_of_cases(tmp_path: Path) -> None:
    with closing(filled(tmp_path)) as lab:
        assert examine(lab, 100) > 2000
