"""Where things are kept: roots, names and the folders of experiments."""

import os
from pathlib import Path

import pytest

from rapidfireai.core.ids import RunId
from rapidfireai.errors import ConfigError, ExperimentBusyError, ExperimentPathError
from rapidfireai.paths import ExperimentFolder, experiments_root, home


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RF_HOME", raising=False)
    monkeypatch.delenv("RF_EXPERIMENT_PATH", raising=False)


def trained(root: Path, name: str) -> ExperimentFolder:
    """A claimed folder in which something has been trained."""
    folder = ExperimentFolder.claim(root, name)
    folder.store.touch()
    return folder


class TestRoots:
    def test_the_argument_comes_first(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RF_EXPERIMENT_PATH", "/elsewhere")
        assert experiments_root(tmp_path) == tmp_path
        assert experiments_root(str(tmp_path)) == tmp_path

    def test_then_the_variables(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RF_HOME", str(tmp_path))
        assert home() == tmp_path
        assert experiments_root() == tmp_path / "rapidfire_experiments"
        monkeypatch.setenv("RF_EXPERIMENT_PATH", str(tmp_path / "mine"))
        assert experiments_root() == tmp_path / "mine"
        monkeypatch.setenv("RF_EXPERIMENT_PATH", "")
        assert experiments_root() == tmp_path / "rapidfire_experiments"

    def test_then_the_users_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        assert home() == tmp_path / "rapidfireai"
        assert experiments_root("~/mine") == tmp_path / "mine"

    def test_they_are_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert experiments_root("mine") == tmp_path / "mine"
        monkeypatch.setenv("RF_HOME", "here")
        assert home() == tmp_path / "here"


class TestClaim:
    def test_it_creates_the_folder_and_all_above(self, tmp_path: Path) -> None:
        folder = ExperimentFolder.claim(tmp_path / "a" / "b", "mine")
        assert folder.path == tmp_path / "a" / "b" / "mine"
        assert folder.path.is_dir()
        assert folder.name == "mine"

    def test_names_are_numbered(self, tmp_path: Path) -> None:
        names = [trained(tmp_path, "mine").name for _ in range(4)]
        assert names == ["mine", "mine_2", "mine_3", "mine_4"]

    def test_one_in_which_nothing_was_trained_is_used_again(self, tmp_path: Path) -> None:
        first = ExperimentFolder.claim(tmp_path, "mine")
        assert ExperimentFolder.claim(tmp_path, "mine") == first
        trained(tmp_path, "mine")
        second = ExperimentFolder.claim(tmp_path, "mine")
        assert second.name == "mine_2"
        assert ExperimentFolder.claim(tmp_path, "mine") == second

    def test_a_file_of_that_name_is_stepped_over(self, tmp_path: Path) -> None:
        (tmp_path / "mine").write_text("a file")
        assert ExperimentFolder.claim(tmp_path, "mine").name == "mine_2"
        assert (tmp_path / "mine").read_text() == "a file"

    @pytest.mark.parametrize(
        "name", ["a", "sft-comparison", "lr 1e-3", "v1.2+x", "_x", "9", "größe", "a" * 100]
    )
    def test_names_that_can_be_used(self, name: str, tmp_path: Path) -> None:
        assert ExperimentFolder.claim(tmp_path, name).path == tmp_path / name

    @pytest.mark.parametrize(
        "name", ["", " ", ".", "..", ".a", "-a", "a/b", "../a", "a\\b", "a\n", "a:b", "a" * 101, 3]
    )
    def test_names_that_cannot(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError) as caught:
            ExperimentFolder.claim(tmp_path / "root", name)
        assert f"experiment_name={name!r} cannot be used" in str(caught.value)
        assert "letters, digits, spaces and . _ + -" in str(caught.value)
        assert not (tmp_path / "root").exists()

    def test_a_root_that_cannot_be_created(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(ExperimentPathError, match="cannot be written: Not a directory"):
            ExperimentFolder.claim(tmp_path / "file" / "root", "mine")

    def test_a_root_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(ExperimentPathError, match="cannot be written: File exists"):
            ExperimentFolder.claim(tmp_path / "file", "mine")

    def test_a_folder_that_is_there_but_cannot_be_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ExperimentFolder.claim(tmp_path, "mine")
        # Permissions do not stop root, as whom tests may run.
        monkeypatch.setattr(Path, "touch", _read_only)
        with pytest.raises(ExperimentPathError, match="Read-only file system"):
            ExperimentFolder.claim(tmp_path, "mine")


def _read_only(path: Path, *args: object, **kwargs: object) -> None:
    raise OSError(30, "Read-only file system")


class TestLatest:
    def test_none_before_anything_was_trained(self, tmp_path: Path) -> None:
        assert ExperimentFolder.latest(tmp_path, "mine") is None
        ExperimentFolder.claim(tmp_path, "mine")
        assert ExperimentFolder.latest(tmp_path, "mine") is None

    def test_the_highest_number_in_which_something_was(self, tmp_path: Path) -> None:
        trained(tmp_path, "mine")
        second = trained(tmp_path, "mine")
        ExperimentFolder.claim(tmp_path, "mine")
        trained(tmp_path, "other")
        assert ExperimentFolder.latest(tmp_path, "mine") == second

    def test_a_file_of_that_name_does_not_end_the_search(self, tmp_path: Path) -> None:
        (tmp_path / "mine").write_text("a file")
        second = trained(tmp_path, "mine")
        assert ExperimentFolder.latest(tmp_path, "mine") == second


class TestLock:
    def test_only_one_at_a_time(self, tmp_path: Path) -> None:
        folder = ExperimentFolder.claim(tmp_path, "mine")
        with (
            folder.locked(),
            pytest.raises(ExperimentBusyError, match=r"'mine' is being trained by process \d+;"),
            folder.locked(),
        ):
            pass
        with folder.locked():
            pass

    def test_another_experiment_is_free(self, tmp_path: Path) -> None:
        one, other = (ExperimentFolder.claim(tmp_path, name) for name in ("one", "other"))
        with one.locked(), other.locked():
            pass


def test_the_layout(tmp_path: Path) -> None:
    folder = ExperimentFolder(tmp_path / "mine")
    assert folder.store == tmp_path / "mine" / "experiment.db"
    assert folder.log == tmp_path / "mine" / "experiment.log"
    assert folder.data == tmp_path / "mine" / "data"
    assert folder.run(RunId(3)) == tmp_path / "mine" / "runs" / "3"
    assert folder.final(RunId(3)) == tmp_path / "mine" / "runs" / "3" / "final"


class TestWhatThereIs:
    def test_all_experiments_that_have_begun(self, tmp_path: Path) -> None:
        assert ExperimentFolder.all(tmp_path / "nowhere") == []
        trained(tmp_path, "second")
        trained(tmp_path, "first")
        ExperimentFolder.claim(tmp_path, "claimed only")
        (tmp_path / "file").touch()
        assert [folder.name for folder in ExperimentFolder.all(tmp_path)] == ["first", "second"]

    def test_who_trains(self, tmp_path: Path) -> None:
        folder = trained(tmp_path, "lab")
        assert folder.trained_by() is None
        with folder.locked():
            assert folder.trained_by() == folder.trained_by() == os.getpid()
        assert folder.trained_by() is None

    def test_asking_who_trains_keeps_nobody_from_it(self, tmp_path: Path) -> None:
        folder = trained(tmp_path, "lab")
        for _ in range(3):
            with folder.locked():
                pass
            assert folder.trained_by() is None

    def test_a_folder_that_cannot_be_read(self, tmp_path: Path) -> None:
        folder = trained(tmp_path, "lab")
        (folder.path / "lock").symlink_to(folder.path / "lock")
        with pytest.raises(ExperimentPathError, match="cannot be read"):
            folder.trained_by()
