"""The store on disk keeps the contract, also across processes, kills and damaged files."""

import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from rapidfireai._version import __version__
from rapidfireai.core.commands import Command, Verb
from rapidfireai.core.events import ChunkAssigned
from rapidfireai.core.ids import RunId, WorkerId
from rapidfireai.core.run import Run, RunStatus, apply
from rapidfireai.errors import StaleRunError, StoreError
from rapidfireai.store import SqliteStore, Store, _codec, sqlite
from rapidfireai.testing.stores import (
    EVENTS,
    FIRST,
    SECOND,
    StoreContract,
    example_experiment,
    example_run,
    metric,
)

SPAWN = get_context("spawn")
PATIENCE_S = 60
"""A test that waits this long for a process has failed."""


class TestSqliteStore(StoreContract):
    @pytest.fixture
    def store(self, path: Path) -> Iterator[Store]:
        with closing(SqliteStore(path)) as store:
            yield store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "experiment.db"


def fill(path: Path, num_runs: int = 2) -> None:
    with closing(SqliteStore(path)) as store:
        store.create(example_experiment(), [example_run(RunId(i + 1)) for i in range(num_runs)])


@contextmanager
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    """The file as any other program would open it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        yield db


def assign(store: SqliteStore, run: Run, worker_id: int) -> None:
    event = ChunkAssigned(run_id=run.id, worker_id=WorkerId(worker_id), chunk=0)
    store.record(run, event, apply(run, event), float(worker_id))


@contextmanager
def child(target: Callable[..., None], *args: Any) -> Iterator[tuple[Connection, Any]]:
    """A process that runs `target(pipe, *args)`: our end of the pipe, and the process."""
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=target, args=(theirs, *args))
    process.start()
    theirs.close()
    try:
        yield ours, process
    finally:
        process.kill()
        process.join()
        process.close()
        ours.close()


def told(pipe: Connection) -> Any:
    assert pipe.poll(PATIENCE_S), "the other process did not answer"
    return pipe.recv()


def write_and_wait(pipe: Connection, path: Path) -> None:
    store = SqliteStore(path)
    assign(store, store.runs()[0], worker_id=3)
    store.save_progress([store.runs()[1]], [metric()])
    pipe.send("written")
    pipe.recv()


def write_and_exit(_: Connection, path: Path) -> None:
    store = SqliteStore(path)
    assign(store, store.runs()[0], worker_id=3)
    store.save_progress([store.runs()[1]], [metric()])
    os._exit(7)


def write_half_and_wait(pipe: Connection, path: Path) -> None:
    with raw(path) as db:
        db.execute("PRAGMA cache_spill = 1")
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE runs SET status = 'running'")
        db.execute("INSERT INTO metrics VALUES (1, 'step', 1, 'loss', 0.5, 1.0)")
        pipe.send("half written")
        pipe.recv()


def read_and_wait(pipe: Connection, path: Path) -> None:
    with raw(path) as db:
        db.execute("BEGIN")
        before = db.execute("SELECT status FROM runs WHERE id = 1").fetchone()[0]
        pipe.send(before)
        pipe.recv()
        during = db.execute("SELECT status FROM runs WHERE id = 1").fetchone()[0]
        db.execute("COMMIT")
        after = db.execute("SELECT status FROM runs WHERE id = 1").fetchone()[0]
        pipe.send((during, after))


def claim_all(pipe: Connection, path: Path, worker_id: int, start: Barrier) -> None:
    won: list[int] = []
    lost: list[str] = []
    with closing(SqliteStore(path)) as store:
        runs = store.runs()
        start.wait(PATIENCE_S)
        for run in runs:
            try:
                assign(store, run, worker_id)
            except StaleRunError as error:
                lost.append(str(error))
            else:
                won.append(run.id)
    pipe.send((won, lost))


def test_is_the_same_when_opened_again(path: Path) -> None:
    with closing(SqliteStore(path)) as store:
        store.create(example_experiment(), [example_run(FIRST)])
        for event in EVENTS:
            store.record(example_run(FIRST), event, example_run(FIRST), 1.0)
        store.save_progress([], [metric(value=float("nan"))])
        contents = repr((store.experiment(), store.runs(), store.events(), store.metrics()))
    with closing(SqliteStore(path)) as store:
        assert contents == repr((store.experiment(), store.runs(), store.events(), store.metrics()))


def test_closing_leaves_one_file(path: Path) -> None:
    fill(path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def check_written(path: Path) -> None:
    with closing(SqliteStore(path)) as store:
        first, second = store.runs()
        assert (first.status, first.worker_id) == (RunStatus.RUNNING, 3)
        assert second.status is RunStatus.QUEUED
        assert [type(row.event) for row in store.events()] == [ChunkAssigned]
        assert store.metrics() == [metric()]


def test_what_was_written_survives_a_kill(path: Path) -> None:
    fill(path)
    with child(write_and_wait, path) as (pipe, process):
        assert told(pipe) == "written"
        process.kill()
        process.join()
    check_written(path)


def test_what_was_written_survives_an_exit_without_close(path: Path) -> None:
    fill(path)
    with child(write_and_exit, path) as (_, process):
        process.join(PATIENCE_S)
        assert process.exitcode == 7
    check_written(path)


def test_half_a_transaction_vanishes_with_a_kill(path: Path) -> None:
    fill(path)
    with child(write_half_and_wait, path) as (pipe, process):
        assert told(pipe) == "half written"
        process.kill()
        process.join()
        with closing(SqliteStore(path)) as store:
            assert [run.status for run in store.runs()] == [RunStatus.QUEUED] * 2
            assert store.metrics() == []
            store.save_progress(store.runs(), [metric()])
            assert store.metrics() == [metric()]


def test_reader_does_not_wait_for_an_open_write(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_PRAGMAS", ("PRAGMA busy_timeout = 0",))
    fill(path)
    with child(write_half_and_wait, path) as (pipe, _):
        assert told(pipe) == "half written"
        with closing(SqliteStore(path)) as store:
            assert store.experiment().name == "exp1"
            assert [run.status for run in store.runs()] == [RunStatus.QUEUED] * 2
            assert (store.metrics(), store.events()) == ([], [])


def test_writer_does_not_wait_for_an_open_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_PRAGMAS", ("PRAGMA busy_timeout = 0",))
    fill(path)
    with child(read_and_wait, path) as (pipe, _):
        assert told(pipe) == "queued"
        with closing(SqliteStore(path)) as store:
            assign(store, store.runs()[0], worker_id=1)
            assert store.runs()[0].status is RunStatus.RUNNING
        pipe.send("go on")
        assert told(pipe) == ("queued", "running")


def test_each_transition_is_made_by_exactly_one_process(path: Path) -> None:
    num_runs = 40
    fill(path, num_runs)
    start = SPAWN.Barrier(2)
    with (
        child(claim_all, path, 0, start) as (pipe_0, _),
        child(claim_all, path, 1, start) as (pipe_1, _),
    ):
        (won_0, lost_0), (won_1, lost_1) = told(pipe_0), told(pipe_1)
    assert sorted(won_0 + won_1) == list(range(1, num_runs + 1))
    assert len(lost_0 + lost_1) == num_runs
    assert all("is running in the store, not queued" in message for message in lost_0 + lost_1)
    with closing(SqliteStore(path)) as store:
        assert [run.id for run in store.runs() if run.worker_id == 0] == won_0
        assert sorted(row.event.run_id for row in store.events()) == sorted(won_0 + won_1)


def test_many_may_open_a_new_file_at_once(tmp_path: Path) -> None:
    num_threads = 4
    failures: list[StoreError] = []

    def open_one(path: Path) -> None:
        start.wait(PATIENCE_S)
        try:
            SqliteStore(path).close()
        except StoreError as error:
            failures.append(error)

    start = threading.Barrier(num_threads)
    for i in range(25):
        path = tmp_path / f"{i}.db"
        threads = [threading.Thread(target=open_one, args=(path,)) for _ in range(num_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


def test_one_of_many_creates_the_experiment(path: Path) -> None:
    with closing(SqliteStore(path)) as first, closing(SqliteStore(path)) as second:
        second.create(example_experiment(), [example_run(FIRST)])
        with pytest.raises(StoreError, match="holds the experiment 'exp1' already"):
            first.create(replace(example_experiment(), name="exp2"), [])
        assert first.experiment().name == "exp1"


def test_lock_that_is_never_released_is_an_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_PRAGMAS", ("PRAGMA busy_timeout = 0",))
    fill(path)
    with raw(path) as db, closing(SqliteStore(path)) as store:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked; another program keeps it locked"):
            assign(store, example_run(FIRST), worker_id=1)
        db.execute("ROLLBACK")
        assign(store, example_run(FIRST), worker_id=1)
        assert store.runs()[0].status is RunStatus.RUNNING


def test_use_in_another_thread_is_an_error(path: Path) -> None:
    errors: list[StoreError] = []

    def use() -> None:
        for attempt in (store.runs, store.close, lambda: store.save_progress([], [])):
            try:
                attempt()
            except StoreError as error:
                errors.append(error)

    with closing(SqliteStore(path)) as store:
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        assert store.runs() == []
    assert len(errors) == 3
    assert all("open another store, in the thread that uses it" in str(e) for e in errors)


def test_interrupt_within_a_transaction_undoes_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(path)

    def interrupt(_: object) -> str:
        raise KeyboardInterrupt

    with closing(SqliteStore(path)) as store:
        first, second = store.runs()
        with monkeypatch.context() as patch:
            patch.setattr(sqlite, "_metric_columns", interrupt)
            with pytest.raises(KeyboardInterrupt):
                store.save_progress([replace(first, step=30)], [metric()])
        assert store.runs()[0].step == first.step
        store.save_progress([replace(first, step=31), second], [])
        assert store.runs()[0].step == 31


def test_full_disk_undoes_the_write(path: Path) -> None:
    fill(path)
    with closing(SqliteStore(path)) as store:
        store._db.execute("PRAGMA max_page_count = 1")
        first = replace(store.runs()[0], path="x" * 100_000)
        with pytest.raises(StoreError, match="full; free some space"):
            store.save_progress([first], [metric()])
        assert store.runs()[0].path == "runs/1"
        assert store.metrics() == []


def test_newer_schema_is_refused_and_left_as_it_is(path: Path) -> None:
    fill(path)
    with raw(path) as db:
        db.execute(f"PRAGMA user_version = {sqlite.SCHEMA_VERSION + 1}")
    content = path.read_bytes()
    with pytest.raises(StoreError) as caught:
        SqliteStore(path)
    message = str(caught.value)
    assert f"schema version {sqlite.SCHEMA_VERSION + 1} of a newer rapidfireai" in message
    assert f"this one ({__version__}) reads up to {sqlite.SCHEMA_VERSION}" in message
    assert "open it with the newer one" in message
    assert path.read_bytes() == content


def test_database_of_another_program_is_refused_and_left_as_it_is(path: Path) -> None:
    with raw(path) as db:
        db.execute("CREATE TABLE runs (id)")
    content = path.read_bytes()
    with pytest.raises(StoreError, match="another program's database: move it away"):
        SqliteStore(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("num_bytes", [10, 50, 100, 4096, 4097, 20_000])
def test_truncated_file_is_refused(path: Path, num_bytes: int) -> None:
    fill(path, num_runs=50)
    assert path.stat().st_size > 20_000
    os.truncate(path, num_bytes)
    with pytest.raises(StoreError, match=r"experiment\.db: .*; it is (damaged|no SQLite file)"):
        SqliteStore(path)


def test_file_of_another_kind_is_refused_and_left_as_it_is(path: Path) -> None:
    path.write_text("step,loss\n1,0.5\n" * 100)
    with pytest.raises(StoreError, match="it is no SQLite file: move it away"):
        SqliteStore(path)
    assert path.read_text() == "step,loss\n1,0.5\n" * 100


def test_damaged_body_is_an_error(path: Path) -> None:
    fill(path)
    with raw(path) as db:
        db.execute("UPDATE runs SET body = '{' WHERE id = 1")
    with closing(SqliteStore(path)) as store, pytest.raises(StoreError, match="is not JSON"):
        store.runs()


@pytest.mark.parametrize("place", ["file/experiment.db", "missing/experiment.db", "folder"])
def test_place_that_cannot_be_written_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match="check that its folder exists and can be written"):
        SqliteStore(tmp_path / place)


def test_file_that_cannot_be_written_is_an_error(path: Path) -> None:
    fill(path)
    with closing(SqliteStore(path)) as store:
        store._db.execute("PRAGMA query_only = ON")
        with pytest.raises(StoreError, match="make the file and its folder writable"):
            assign(store, example_run(SECOND), worker_id=1)
        assert store.events() == []


def test_new_file_kept_locked_by_another_program_is_an_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_PRAGMAS", ("PRAGMA busy_timeout = 0",))
    with raw(path) as db:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="another program keeps it locked"):
            SqliteStore(path)


def test_switch_to_wal_that_never_succeeds_is_an_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_WAL_ATTEMPTS", 0)
    with pytest.raises(StoreError, match="being opened by too many processes"):
        SqliteStore(path)


def test_old_sqlite_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 36, 0))
    with pytest.raises(StoreError, match=r"3\.37 or newer is needed"):
        SqliteStore(path)
    assert not path.exists()


def test_every_statement_keeps_to_the_columns_it_knows(path: Path) -> None:
    """A newer version may add columns with defaults without this one failing to write."""
    fill(path)
    with raw(path) as db:
        for table in ("runs", "events", "metrics"):
            db.execute(f"ALTER TABLE {table} ADD COLUMN extra TEXT")
    with closing(SqliteStore(path)) as store:
        assign(store, store.runs()[0], worker_id=1)
        store.save_progress(store.runs(), [metric()])
        assert (len(store.events()), store.metrics()) == (1, [metric()])


def test_values_of_a_run_are_found_by_index(path: Path) -> None:
    fill(path)
    with raw(path) as db:
        plans = [
            db.execute(f"EXPLAIN QUERY PLAN {query}").fetchall()
            for query in (
                "SELECT * FROM metrics WHERE run_id = 1 ORDER BY run_id, source, step, name",
                "SELECT * FROM events WHERE seq > 5 AND run_id = 1 ORDER BY seq",
            )
        ]
    for plan in plans:
        assert len(plan) == 1, "neither a second pass nor a sort"
        assert "SEARCH" in plan[0][3]


def test_a_file_of_version_1_is_brought_up_to_date_with_all_that_it_holds(path: Path) -> None:
    run = example_run(FIRST)
    since = {"deleted_from", "fork", "modified", "parent_id", "pinned", "purged", "undo_until_s"}
    body = {name: v for name, v in _codec.encode(run).items() if name not in since}
    with raw(path) as db:
        db.execute("PRAGMA journal_mode = WAL")
        for statement in sqlite._SCHEMA:
            db.execute(statement)
        db.execute("PRAGMA user_version = 1")
        db.execute("INSERT INTO experiment VALUES (1, ?)", (_codec.to_text(example_experiment()),))
        db.execute("INSERT INTO runs VALUES (1, ?, ?)", (run.status, json.dumps(body)))
        event = _codec.to_text(ChunkAssigned(run_id=FIRST, worker_id=WorkerId(0), chunk=0))
        db.execute("INSERT INTO events VALUES (1, 1, 2.5, ?)", (event,))
    with closing(SqliteStore(path)) as store:
        (taken,) = store.runs()
        unset = Run(id=FIRST, name="", config={}, path="")
        assert repr(taken) == repr(replace(run, **{name: getattr(unset, name) for name in since}))
        assert repr(store.experiment()) == repr(example_experiment())
        assert [row.time_s for row in store.events()] == [2.5]
        assert (store.commands(), store.schemas()) == ([], {})
        given = store.submit(Command(verb=Verb.PIN, run_id=FIRST), 3.0)
        assert store.commands() == [given]
    with closing(SqliteStore(path)) as store:
        assert store.commands() == [given]


def test_changes_of_others_are_noticed_and_own_ones_need_not_be(path: Path) -> None:
    fill(path)
    with closing(SqliteStore(path)) as store, closing(SqliteStore(path)) as other:
        before = store.num_changes()
        assert store.num_changes() == before
        other.submit(Command(verb=Verb.PIN, run_id=FIRST), 1.0)
        assert store.num_changes() != before
