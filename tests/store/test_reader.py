"""The reader sees what writers write, writes nothing, and stands in nobody's way."""

import math
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from rapidfireai.core.events import MetricSource
from rapidfireai.core.ids import RunId
from rapidfireai.errors import StoreError
from rapidfireai.store import SqliteReader, SqliteStore
from rapidfireai.store.sqlite import SCHEMA_VERSION
from tests.server.laboratory import Laboratory, filled, laboratory

RUN = RunId(1)


def test_it_reads_what_the_store_holds(tmp_path: Path) -> None:
    with closing(filled(tmp_path)) as lab, closing(SqliteReader(lab.folder.store)) as reader:
        store = lab.store
        assert reader.experiment() == store.experiment()
        assert reader.run_ids() == [1, 2, 3]
        assert reader.run_ids(above=2) == [3]
        assert reader.run(RUN) == store.runs()[0]
        assert reader.run(RunId(9)) is None
        assert str(reader.events(limit=100)) == str(store.events())
        assert reader.last_event() == store.events()[-1].seq
        newest = reader.events(limit=2, newest=True, kinds=["ChunkFinished"])
        assert [row.event.run_id for row in newest] == [1, 3]
        assert reader.schemas() == store.schemas()
        (loss,) = reader.latest_values(RUN, MetricSource.STEP)
        assert (loss.name, loss.step) == ("loss", 10)
        assert loss == reader.latest_loss(RUN)
        assert [one.step for one in reader.values_from(RUN, MetricSource.STEP, 9, 5)] == [9, 10]
        since = reader.values_since(RUN, MetricSource.STEP, loss.time_s - 0.15, 5)
        assert [one.step for one in since] == [10, 9]
        failed = reader.losses_at(RunId(2), [1, 2, 3])
        assert failed[1] == 5.0
        assert math.isnan(failed[2])
        assert 3 not in failed


def test_it_writes_nothing(tmp_path: Path) -> None:
    with laboratory(tmp_path) as lab, closing(SqliteReader(lab.folder.store)) as reader:
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader._db.execute("DELETE FROM runs")
        assert len(reader.run_ids()) == 3


def test_it_notices_what_others_write(tmp_path: Path) -> None:
    with laboratory(tmp_path) as lab, closing(SqliteReader(lab.folder.store)) as reader:
        before = reader.num_changes()
        assert reader.num_changes() == before
        lab.begin(1)
        assert reader.num_changes() != before


def test_neither_waits_for_the_other(tmp_path: Path) -> None:
    with laboratory(tmp_path) as lab, closing(SqliteReader(lab.folder.store)) as reader:
        lab.begin(1)
        db = lab.store._db
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE runs SET status = 'failed'")
        assert len(reader.run_ids()) == 3  # while a write is not finished
        run = reader.run(RUN)
        assert run is not None
        assert run.status == "running"
        db.execute("ROLLBACK")
        ended = threading.Event()
        failures: list[Exception] = []

        def read() -> None:
            try:
                while not ended.is_set():
                    reader.latest_values(RUN, MetricSource.STEP)
                    reader.events(limit=10)
            except StoreError as error:
                failures.append(error)

        readers = [threading.Thread(target=read) for _ in range(3)]
        for thread in readers:
            thread.start()
        db.execute("PRAGMA busy_timeout = 0")  # a wait would be an error
        for _ in range(200):
            lab.train(1, [1.0])
        ended.set()
        for thread in readers:
            thread.join()
        assert failures == []


def test_a_file_of_an_older_version_is_brought_up_to_date(tmp_path: Path) -> None:
    with laboratory(tmp_path) as lab:
        path = lab.folder.store
        for table in ("commands", "schemas"):
            lab.store._db.execute(f"DROP TABLE {table}")
        lab.store._db.execute("PRAGMA user_version = 1")
    with closing(SqliteReader(path)) as reader:
        assert reader.commands(limit=5) == []
        assert reader.pending() == set()
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)


def test_folders_with_signs_that_mean_something_in_an_address(tmp_path: Path) -> None:
    root = tmp_path / "50%?mode=rw#x y"
    root.mkdir()
    with laboratory(root) as lab, closing(SqliteReader(lab.folder.store)) as reader:
        assert len(reader.run_ids()) == 3


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with pytest.raises(StoreError, match="check that its folder exists"):
        SqliteReader(path)
    path.write_bytes(b"")
    with pytest.raises(StoreError, match="is empty"):
        SqliteReader(path)
    path.write_bytes(b"no database" * 100)
    with pytest.raises(StoreError, match="no SQLite file"):
        SqliteReader(path)
    path.unlink()
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE x (y)")
    with pytest.raises(StoreError, match="another program's"):
        SqliteReader(path)
    path.unlink()
    with closing(SqliteStore(path)):
        pass
    with closing(SqliteReader(path)) as reader, pytest.raises(StoreError, match="no experiment"):
        reader.experiment()
    with closing(SqliteStore(path)) as store:
        store._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(StoreError, match="newer rapidfireai"):
        SqliteReader(path)


def test_a_closed_reader_says_so(tmp_path: Path) -> None:
    lab = Laboratory(tmp_path)
    reader = SqliteReader(lab.folder.store)
    lab.close()
    reader.close()
    reader.close()
    with pytest.raises(StoreError):
        reader.run_ids()
