"""`clean`, and `export` of what a training has left on disk."""

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rapidfireai import Experiment, cli
from rapidfireai.cleaning import Kind, clean, find_waste
from rapidfireai.core.events import RunPurged
from rapidfireai.errors import ConfigError, ExperimentBusyError, ExperimentPathError
from rapidfireai.export import export
from rapidfireai.paths import ExperimentFolder
from rapidfireai.store import SqliteStore
from tests.commandline.laboratory import laboratory, stored, write

HEAVY = ("torch", "trl", "transformers", "datasets", "pandas", "peft")


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ExperimentFolder:
    monkeypatch.setenv("RF_EXPERIMENT_PATH", str(tmp_path / "root"))
    return laboratory(tmp_path / "root")


def files(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("experiment.") and path.name != "lock"
    }


def checkpoint(folder: Path, step: int, weights: bytes = b"weights") -> Path:
    """A checkpoint with a manifest, as a training writes it."""
    path = folder / "checkpoints" / f"checkpoint-{step}"
    path.mkdir(parents=True, exist_ok=True)
    names = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "engine_state.pt", "tokenizer.json")
    for name in ("model.safetensors", *names, "trainer_state.json"):
        (path / name).write_bytes(weights)
    content = {
        "progress": {"step": step, "chunks_done": 1, "active_s": 1.0},
        "files": {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in path.iterdir()},
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps({**content, "digest": digest}))
    return path


class TestClean:
    @pytest.fixture
    def dirty(self, lab: ExperimentFolder) -> ExperimentFolder:
        assert cli.main(["delete-run", "4"]) == 0
        write(lab.data / "rows.arrow", 20_000)
        write(lab.paused / "run-2.bin", 100)
        write(lab.run(stored(lab)[2].id) / "checkpoints" / "checkpoint-5.unfinished" / "x", 10)
        write(lab.path / "experiment.db.unfinished", 10)
        write(lab.run(stored(lab)[2].id) / "final.replaced" / "x", 10)
        return lab

    def test_finds_all_that_can_go(self, dirty: ExperimentFolder) -> None:
        found = find_waste(dirty)
        assert [(waste.kind, str(waste.path.relative_to(dirty.path))) for waste in found] == [
            (Kind.DATA, "data"),
            (Kind.DELETED, "runs/4"),
            (Kind.CHECKPOINTS, "runs/1/checkpoints"),
            (Kind.PAUSED, "paused"),
            (Kind.LEFT_OVER, "experiment.db.unfinished"),
            (Kind.LEFT_OVER, "runs/2/checkpoints/checkpoint-5.unfinished"),
            (Kind.LEFT_OVER, "runs/2/final.replaced"),
        ]
        assert found[0].num_bytes == 20_000
        assert "can be restored until" in found[1].remark

    def test_removes_it_and_keeps_models_and_what_runs_go_on_from(
        self, dirty: ExperimentFolder
    ) -> None:
        assert cli.main(["clean", "--yes"]) == 0
        assert files(dirty.path) == {
            *(f"runs/{n}/final/{name}" for n in (1, 2, 3)
              for name in ("model.safetensors", "trainer_state.json")),
            *(f"runs/{n}/checkpoints/checkpoint-40/optimizer.pt" for n in (2, 3)),
        }  # fmt: skip
        assert stored(dirty)[4].purged
        with closing(SqliteStore(dirty.store)) as store:
            assert isinstance(store.events()[-1].event, RunPurged)
        assert cli.main(["restore-run", "4"]) == 1
        assert find_waste(dirty) == []

    def test_does_nothing_unless_it_is_confirmed(
        self,
        dirty: ExperimentFolder,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        before = files(dirty.path)
        assert cli.main(["clean", "--dry-run"]) == 0
        assert "runs/1/checkpoints" in capsys.readouterr().out
        monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
        assert cli.main(["clean"]) == 1
        assert "add --yes or --dry-run" in capsys.readouterr().err
        assert cli.main(["clean", "--json"]) == 1
        for answer in ("n\n", "\n", ""):
            monkeypatch.setattr(sys, "stdin", Terminal(answer))
            assert cli.main(["clean"]) == 0
            assert "Remove all of this, " in capsys.readouterr().out
        assert files(dirty.path) == before
        monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
        assert cli.main(["clean"]) == 0
        assert "freed" in capsys.readouterr().out
        assert find_waste(dirty) == []

    def test_leaves_alone_what_a_process_trains(
        self, dirty: ExperimentFolder, capsys: pytest.CaptureFixture[str]
    ) -> None:
        other = laboratory(dirty.path.parent, "other")
        before = files(dirty.path)
        with dirty.locked():
            assert cli.main(["clean", "-e", "lab", "--yes"]) == 1
            assert f"process {os.getpid()} and left alone" in capsys.readouterr().out
            assert cli.main(["clean", "--all", "--yes", "--json"]) == 0
            answer = json.loads(capsys.readouterr().out)
            assert answer["busy"] == {"lab": os.getpid()}
            assert {one["experiment"] for one in answer["found"]} == {"other"}
            with pytest.raises(ExperimentBusyError):
                clean(dirty, find_waste(dirty))
        assert files(dirty.path) == before
        assert find_waste(other) == []

    def test_what_has_been_restored_meanwhile_stays(self, dirty: ExperimentFolder) -> None:
        found = find_waste(dirty)
        assert cli.main(["restore-run", "4"]) == 0
        clean(dirty, found)
        assert dirty.final(stored(dirty)[4].id).exists()
        assert not stored(dirty)[4].purged

    def test_nothing_to_do(self, lab: ExperimentFolder, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["clean", "--yes"]) == cli.main(["clean", "--yes"]) == 0
        assert "there is nothing to remove" in capsys.readouterr().out
        assert cli.main(["clean", "--all", "-e", "lab"]) == 1
        assert "exclude each other" in capsys.readouterr().err

    def test_without_what_replaces_it_an_old_folder_is_all_there_is(
        self, lab: ExperimentFolder
    ) -> None:
        final = lab.final(stored(lab)[3].id)
        final.rename(final.with_name("final.replaced"))
        assert cli.main(["clean", "--yes"]) == 0
        assert final.with_name("final.replaced").exists()


class TestExport:
    def test_a_run_that_has_ended(self, lab: ExperimentFolder, tmp_path: Path) -> None:
        target = tmp_path / "new" / "model"
        assert cli.main(["export", "1", str(target)]) == 0
        assert files(target) == {"model.safetensors", "trainer_state.json"}
        assert not target.with_name("model.unfinished").exists()

    def test_a_run_that_goes_on_is_taken_from_its_latest_whole_checkpoint(
        self, lab: ExperimentFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = stored(lab)[2]
        for step in (10, 20, 30):
            checkpoint(lab.run(run.id), step, b"%d" % step)
        # The latest by number has no manifest; this one's does not fit.
        (lab.run(run.id) / "checkpoints/checkpoint-30/model.safetensors").write_bytes(b"other")
        assert cli.main(["export", "2", str(tmp_path / "out"), "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {
            "run_id": 2, "step": 20, "path": str(tmp_path / "out"),
        }  # fmt: skip
        assert files(tmp_path / "out") == {
            "model.safetensors", "tokenizer.json", "trainer_state.json", "run_config.json",
        }  # fmt: skip
        assert (tmp_path / "out" / "model.safetensors").read_bytes() == b"20"
        config = json.loads((tmp_path / "out" / "run_config.json").read_text())
        assert config["config"] == run.config

    def test_a_resumed_run_is_not_what_it_was_when_it_had_ended(
        self, lab: ExperimentFolder, tmp_path: Path
    ) -> None:
        assert cli.main(["resume-run", "3"]) == 0
        checkpoint(lab.run(stored(lab)[3].id), 25)
        assert export(lab, stored(lab)[3].id, tmp_path / "out") == 25

    def test_an_empty_folder_will_do(self, lab: ExperimentFolder, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        assert cli.main(["export", "1", str(tmp_path / "empty")]) == 0
        assert files(tmp_path / "empty") == {"model.safetensors", "trainer_state.json"}

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["9", "OUT"], "there is no run 9"),
            (["2", "OUT"], "nothing of run 2 is on disk yet: it is waiting at step 30"),
            (["4", "OUT"], "run 4 is deleted: restore run 4 first"),
            (["1", "FULL"], "is there already"),
            (["1", "FILE"], "is there already"),
            (["1", "FILE/below"], "cannot be written"),
            (["1", "OUT", "--base", "x"], "of use for merge only"),
            (["1", "OUT", "--merge"], "has no adapter to merge"),
        ],
    )
    def test_refused(
        self,
        arguments: list[str],
        message: str,
        lab: ExperimentFolder,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        write(tmp_path / "FULL" / "file", 1)
        write(tmp_path / "FILE", 1)
        assert cli.main(["delete-run", "4"]) == 0
        before = files(tmp_path)
        run, target, *more = arguments
        assert cli.main(["export", run, str(tmp_path / target), *more]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1
        assert files(tmp_path) == before
        assert not (tmp_path / "OUT").exists()
        assert not (tmp_path / "OUT.unfinished").exists()

    @pytest.mark.parametrize("verb", ["export", "clean", "runs", "pin-run"])
    def test_no_verb_loads_torch(self, verb: str, lab: ExperimentFolder, tmp_path: Path) -> None:
        checkpoint(lab.run(stored(lab)[2].id), 30)
        further = {"export": ["2", str(tmp_path / "out")], "clean": ["--yes"], "pin-run": ["1"]}
        program = (
            "import sys\n"
            "from rapidfireai.cli import main\n"
            f"assert main({[verb, *further.get(verb, [])]!r}) == 0\n"
            f"sys.exit(str([name for name in {HEAVY!r} if name in sys.modules]))\n"
        )
        result = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, encoding="utf-8", check=False
        )
        assert result.stderr == "[]\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Experiment]:
    import torch

    from rapidfireai.automl import RFSFTConfig
    from rapidfireai.testing.tiny import text_rows, tiny_model, tiny_tokenizer

    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("merge")
    experiment = Experiment("merge", experiment_path=root)
    arguments: dict[str, Any] = {"max_steps": 2, "max_length": 32, "learning_rate": 1e-2}
    experiment.run_fit(
        [RFSFTConfig(**arguments, lora_rank=4), RFSFTConfig(**arguments)],
        lambda config: (tiny_model(dropout=0.0), tiny_tokenizer()),
        text_rows(8),
        num_chunks=1,
    )
    tiny_model(dropout=0.0).save_pretrained(root / "base")
    yield experiment
    experiment.end()


class TestMerge:
    def test_the_full_model_computes_what_base_and_adapter_do(
        self, trained: Experiment, tmp_path: Path
    ) -> None:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        base = trained.path.parent / "base"
        path = trained.export(1, tmp_path / "full", merge=True, base=base)
        full = AutoModelForCausalLM.from_pretrained(path)
        adapted = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base), trained.get_runs_info().loc[0, "path"]
        ).merge_and_unload()
        for name, tensor in adapted.state_dict().items():
            assert torch.equal(full.state_dict()[name], tensor), name
        untouched = AutoModelForCausalLM.from_pretrained(base).state_dict()
        assert any(not torch.equal(full.state_dict()[n], t) for n, t in untouched.items())
        assert AutoTokenizer.from_pretrained(path).chat_template
        names = files(path)
        assert {"model.safetensors", "config.json", "run_config.json", "trainer_state.json"} < names
        assert not any(name.startswith("adapter") for name in names)

    def test_without_merging_it_is_the_adapter(self, trained: Experiment, tmp_path: Path) -> None:
        info = trained.get_runs_info()
        path = trained.export(info.iloc[0], tmp_path / "adapter")
        assert files(path) == files(Path(info["path"][0]))

    @pytest.mark.parametrize(
        ("run", "further", "error", "message"),
        [
            (1, {}, ConfigError, "does not say which base it belongs to"),
            (1, {"base": "/nowhere"}, ConfigError, "the base '/nowhere' of run 1 cannot be loaded"),
            (2, {}, ConfigError, "has no adapter to merge"),
            (9, {}, ConfigError, "there is no run 9"),
            ([1, 2], {}, ConfigError, "one at a time"),
        ],
    )  # fmt: skip
    def test_refused(
        self,
        run: Any,
        further: dict[str, Any],
        error: type[Exception],
        message: str,
        trained: Experiment,
        tmp_path: Path,
    ) -> None:
        with pytest.raises(error, match=message):
            trained.export(run, tmp_path / "out", merge=True, **further)
        assert list(tmp_path.iterdir()) == []

    def test_a_base_that_does_not_fit(self, trained: Experiment, tmp_path: Path) -> None:
        from rapidfireai.testing.tiny import tiny_model

        tiny_model(hidden_size=16).save_pretrained(tmp_path / "other")
        with pytest.raises(ConfigError, match="does not fit the adapter"):
            trained.export(1, tmp_path / "out", merge=True, base=tmp_path / "other")

    def test_a_folder_that_cannot_be_made(self, trained: Experiment, tmp_path: Path) -> None:
        write(tmp_path / "file", 1)
        with pytest.raises(ExperimentPathError, match="cannot be written"):
            trained.export(1, tmp_path / "file" / "out")
