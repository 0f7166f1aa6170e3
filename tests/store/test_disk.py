"""A full disk: what cannot be written waits until there is room."""

import errno
import logging
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rapidfireai.core.events import RunNoted
from rapidfireai.core.ids import RunId
from rapidfireai.core.run import Run
from rapidfireai.errors import StoreError
from rapidfireai.store import ExperimentRecord, PatientStore, Room
from rapidfireai.store.disk import RETRY_S, is_full

FULL = OSError(errno.ENOSPC, "No space left on device")


class FakeTime:
    """A clock that goes on by sleeping alone."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.wake: Callable[[], None] = lambda: None
        """Called at the end of each sleep."""

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.wake()

    def room(self, is_given_up: Callable[[], bool] = lambda: False) -> Room:
        return Room(is_given_up, sleep=self.sleep, clock=lambda: self.now_s)


class Failing:
    """A write that fails some times."""

    def __init__(self, num_failures: int, error: Exception = FULL) -> None:
        self.num_calls = 0
        self._num_failures = num_failures
        self._error = error

    def __call__(self) -> None:
        self.num_calls += 1
        if self.num_calls <= self._num_failures:
            raise self._error


def test_where_there_is_room_nothing_is_said(tmp_path: Path) -> None:
    time, write = FakeTime(), Failing(0)
    assert time.room().write(write, tmp_path, "it") is None
    assert write.num_calls == 1
    assert time.now_s == 100.0


def test_waits_says_so_and_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    time, write = FakeTime(), Failing(3)
    with caplog.at_level(logging.WARNING, "rapidfireai"):
        note = time.room().write(write, tmp_path, "the checkpoint of run 1")
    assert note == "the disk was full: the checkpoint of run 1 waited 15 s for room"
    assert write.num_calls == 4
    assert time.now_s == 100 + 3 * RETRY_S
    before, after = caplog.messages
    assert f"the disk of {tmp_path} is full" in before
    assert "Free some space" in before
    assert "going on" in after


def test_another_failure_is_raised_at_once(tmp_path: Path) -> None:
    write = Failing(1, OSError(errno.EIO, "Input/output error"))
    with pytest.raises(OSError, match="Input/output"):
        FakeTime().room().write(write, tmp_path, "it")
    assert write.num_calls == 1


def test_who_is_asked_to_end_does_not_wait(tmp_path: Path) -> None:
    time, write = FakeTime(), Failing(9)
    asked = False

    def ask() -> None:
        nonlocal asked
        asked = time.now_s >= 110

    time.wake = ask
    with pytest.raises(OSError, match="No space left"):
        time.room(lambda: asked).write(write, tmp_path, "it")
    assert write.num_calls == 3


def caused(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FULL, True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (caused(RuntimeError("write failed"), FULL), True),
        # As safetensors has it.
        (ValueError("I/O error: No space left on device (os error 28)"), True),
        (ValueError("shapes differ"), False),
    ],
)
def test_errors_of_a_full_disk(error: Exception, expected: bool, tmp_path: Path) -> None:
    assert is_full(error, tmp_path / "not" / "there" / "yet") is expected


def test_errors_that_do_not_say_are_judged_by_the_room_that_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 64 vs 0")
    assert not is_full(error, tmp_path)
    monkeypatch.setattr("rapidfireai.store.disk._free_bytes", lambda folder: 4096)
    assert is_full(error, tmp_path)


RUN = Run(id=RunId(1), name="run-1", config={}, path="")


class TestPatientStore:
    @pytest.fixture
    def time(self) -> FakeTime:
        return FakeTime()

    @pytest.fixture
    def store(self, tmp_path: Path, time: FakeTime) -> PatientStore:
        store = PatientStore(tmp_path / "experiment.db", time.room())
        store.create(ExperimentRecord(name="e", created_s=0.0, seed=1, num_chunks=1), [RUN])
        return store

    def fill(self, store: PatientStore) -> None:
        """Let SQLite find no room for another page, as on a full disk."""
        (pages,) = store._db.execute("PRAGMA page_count").fetchone()
        store._db.execute(f"PRAGMA max_page_count = {pages}")

    def make_room(self, store: PatientStore) -> None:
        store._db.execute("PRAGMA max_page_count = 100000")

    def test_a_change_waits_for_room(self, store: PatientStore, time: FakeTime) -> None:
        self.fill(store)
        time.wake = lambda: self.make_room(store)
        note = RunNoted(run_id=RunId(1), note="x" * 100_000)
        store.record(RUN, note, RUN, 1.0)
        assert [row.event for row in store.events()] == [note]
        assert time.now_s == 100 + RETRY_S
        store.close()

    def test_progress_waits_too(self, store: PatientStore, time: FakeTime) -> None:
        self.fill(store)
        time.wake = lambda: self.make_room(store)
        big = replace(RUN, notes=("x" * 100_000,))
        store.save_progress([big], [])
        assert store.runs() == [big]
        assert time.now_s == 100 + RETRY_S
        store.close()

    def test_other_errors_do_not_wait(self, store: PatientStore, time: FakeTime) -> None:
        store.close()
        with pytest.raises(StoreError):
            store.save_progress([RUN], [])
        assert time.now_s == 100.0

    def test_what_sqlite_reports_is_understood(self, store: PatientStore, tmp_path: Path) -> None:
        self.fill(store)
        with pytest.raises(sqlite3.OperationalError) as full:
            store._db.execute("CREATE TABLE more AS SELECT zeroblob(1000000)")
        assert is_full(full.value, tmp_path)
        store.close()
