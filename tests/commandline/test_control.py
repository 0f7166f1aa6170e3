"""Giving commands where no process trains, and what is left of it when a process is killed."""

import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rapidfireai import control
from rapidfireai.cleaning import clean, find_waste
from rapidfireai.core import commands
from rapidfireai.core.commands import Command, CommandStatus, Verb
from rapidfireai.core.events import RunPurged
from rapidfireai.core.ids import RunId
from rapidfireai.errors import ConfigError, StoreError
from rapidfireai.paths import ExperimentFolder
from rapidfireai.store import SqliteStore
from tests.commandline.laboratory import laboratory, stored


@pytest.fixture
def lab(tmp_path: Path) -> ExperimentFolder:
    return laboratory(tmp_path)


def ask(verb: Verb, run_id: int, **further: Any) -> Command:
    return Command(verb=verb, run_id=RunId(run_id), **further)


def give(lab: ExperimentFolder, *asked: Command, wait_s: float = 0.0) -> list[CommandStatus]:
    return [record.status for record in control.give(lab, asked, wait_s=wait_s)]


APPLIED, REJECTED, PENDING = CommandStatus.APPLIED, CommandStatus.REJECTED, CommandStatus.PENDING


def test_commands_are_carried_out_in_their_order(lab: ExperimentFolder) -> None:
    asked = [ask(Verb.STOP, 2), ask(Verb.DELETE, 2), ask(Verb.RESTORE, 2), ask(Verb.PIN, 2)]
    # A restoration is impossible as things stand, before the others are carried out.
    assert give(lab, *asked) == [APPLIED, APPLIED, REJECTED, REJECTED]
    with closing(SqliteStore(lab.store)) as store:
        kinds = [type(row.event).__name__ for row in store.events(run_id=RunId(2))]
        assert kinds[-2:] == ["RunStopped", "RunDeleted"]
        assert all(record.outcome for record in store.commands())


def test_what_became_impossible_meanwhile_is_rejected(lab: ExperimentFolder) -> None:
    with lab.locked():
        assert give(lab, ask(Verb.STOP, 2), ask(Verb.PRUNE, 2)) == [PENDING, PENDING]
    assert give(lab, ask(Verb.PIN, 1)) == [APPLIED]
    with closing(SqliteStore(lab.store)) as store:
        outcomes = [(record.status, record.outcome) for record in store.commands()]
    assert outcomes[0] == (APPLIED, "run 2 is stopped at step 30")
    assert outcomes[1] == (REJECTED, "run 2 is stopped already: there is nothing to prune")


def test_clones_wait_and_everything_else_does_not(lab: ExperimentFolder) -> None:
    assert give(lab, ask(Verb.CLONE, 1), ask(Verb.STOP, 2), wait_s=60.0) == [PENDING, APPLIED]
    with closing(SqliteStore(lab.store)) as store:
        assert control.leads_on(store)
    assert len(stored(lab)) == 4


def test_a_script_has_something_to_do_for_clones_and_resumed_runs_only(
    lab: ExperimentFolder,
) -> None:
    with lab.locked():
        give(lab, ask(Verb.PIN, 1))
        with closing(SqliteStore(lab.store)) as store:
            assert not control.leads_on(store)
        give(lab, ask(Verb.RESUME, 3))
        with closing(SqliteStore(lab.store)) as store:
            assert control.leads_on(store)


def test_checking_changes_nothing(lab: ExperimentFolder) -> None:
    asked = [ask(Verb.STOP, 2), ask(Verb.STOP, 1), ask(Verb.CLONE, 2, modify={"r": "many"})]
    fine, completed, value = control.check(lab, asked)
    assert fine is None
    assert "completed already" in str(completed)
    assert "r='many' is not possible" in str(value)
    clone = ask(Verb.CLONE, 2, modify={"alpha": 4})
    assert control.differences(lab, clone) == {"peft.lora_alpha": [8, 4]}
    with closing(SqliteStore(lab.store)) as store:
        assert store.commands() == []


def test_there_has_to_be_an_experiment(tmp_path: Path) -> None:
    folder = ExperimentFolder.claim(tmp_path, "new")
    with pytest.raises(ConfigError, match="has no runs yet"):
        control.give(folder, [ask(Verb.STOP, 1)])
    assert not folder.store.exists()
    folder.store.touch()
    with pytest.raises(StoreError, match="has been truncated"):
        control.give(folder, [ask(Verb.STOP, 1)])
    assert folder.store.read_bytes() == b""


def test_files_go_once_a_deletion_cannot_be_undone(
    lab: ExperimentFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(lab, ask(Verb.DELETE, 3))
    give(lab, ask(Verb.PIN, 1))
    assert lab.run(RunId(3)).exists()
    assert control.expired(stored(lab).values(), 0.0) == []
    monkeypatch.setattr(commands, "UNDO_S", 0.0)
    give(lab, ask(Verb.DELETE, 4))
    give(lab, ask(Verb.UNPIN, 1))
    assert (lab.run(RunId(3)).exists(), lab.run(RunId(4)).exists()) == (True, False)
    assert (stored(lab)[3].purged, stored(lab)[4].purged) == (False, True)
    with closing(SqliteStore(lab.store)) as store:
        assert [row.event for row in store.events(run_id=RunId(4))][-1] == RunPurged(
            run_id=RunId(4)
        )


class Killed(BaseException):
    """The process is gone."""


def test_a_kill_while_files_are_removed_leaves_nothing_to_be_restored_without_files(
    lab: ExperimentFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(commands, "UNDO_S", 0.0)
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(Killed):
            give(lab, ask(Verb.DELETE, 4))
    assert lab.run(RunId(4)).exists()
    assert stored(lab)[4].purged
    assert give(lab, ask(Verb.RESTORE, 4)) == [REJECTED]
    # Whoever cleans up finds what has been left.
    (left,) = (waste for waste in find_waste(lab) if waste.run_id == 4)
    clean(lab, [left])
    assert not lab.run(RunId(4)).exists()
