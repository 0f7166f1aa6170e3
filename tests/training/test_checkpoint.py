"""A run that is written down and taken up again goes on as if nothing had happened."""

import errno
import json
import logging
import math
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from transformers import EarlyStoppingCallback, Trainer

from rapidfireai import faults
from rapidfireai.automl.search import as_run_configs
from rapidfireai.core.events import (
    Event,
    MetricsLogged,
    RunCompleted,
    RunFailed,
    RunNoted,
    RunStarted,
    RunStopped,
    StepFinished,
)
from rapidfireai.core.fork import Standing, Walk
from rapidfireai.core.ids import RunId
from rapidfireai.store import Room
from rapidfireai.testing.tiny import tiny_model, tiny_tokenizer
from rapidfireai.training import checkpoint
from rapidfireai.training.build import RunSpec
from rapidfireai.training.checkpoint import (
    Checkpoint,
    CheckpointPace,
    Progress,
    RunState,
    latest_checkpoint,
)
from rapidfireai.training.task import TrainingTask
from rapidfireai.training.workload import Makers, TrainingData, TrainingWorkload
from tests.recovery import GrowingReward
from tests.training.scenarios import case, rows
from tests.training.solo import OWN_TRAINERS, Case, create_model, weights_hash
from tests.training.test_exactness import StepCounter, create_trainer, template

RUN_ID = RunId(1)
ENDS = (RunCompleted, RunFailed, RunStopped)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_faults() -> Iterator[None]:
    yield
    faults.listen(None)


@dataclass(frozen=True)
class Setting:
    """A case and the data it trains on."""

    case: Case
    num_rows: int = 24
    num_eval_rows: int = 5
    stream: bool = False

    def workload(self, folder: Path, room: Room | None = None) -> TrainingWorkload:
        """A workload of this run alone, as each process makes one."""
        own = self.case.trainer in OWN_TRAINERS
        (config,) = as_run_configs(template(self.case), 42, custom=own)
        train = Dataset.from_list(rows(self.num_rows, seed=0))
        workload = TrainingWorkload(
            [spec(config, folder)],
            Makers(
                create_model=lambda config: (
                    create_model("Reward" if config.get("model_type") == "seq_cls" else ""),
                    tiny_tokenizer(),
                ),
                create_trainer=create_trainer if own else None,
            ),
            TrainingData(
                train=train.to_iterable_dataset() if self.stream else train,
                eval=Dataset.from_list(rows(self.num_eval_rows, seed=1))
                if self.num_eval_rows
                else None,
            ),
            folder=folder / "data",
            device=torch.device("cpu"),
            room=room,
        )
        workload.prepare()
        return workload


def spec(config: Any, folder: Path) -> RunSpec:
    return RunSpec(
        run_id=RUN_ID,
        config=config,
        folder=folder / "run",
        final=folder / "run" / "final",
        default_seed=42,
        num_chunks=3,
        device=torch.device("cpu"),
        checkpoint_every_s=math.inf,
    )


_CLOCKWORK = ("runtime", "per_second", "step_time", "preparation_time")


@dataclass
class Witness:
    """What a run reported, with values replaced as a store replaces them; exact to the bit."""

    losses: dict[int, str] = field(default_factory=dict)
    values: dict[tuple[str, int, str], str] = field(default_factory=dict)
    begun_at: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    end: Event | None = None

    def take(self, events: Any) -> None:
        for event in events:
            match event:
                case StepFinished():
                    self.losses[event.step] = event.loss.hex()
                case MetricsLogged():
                    for name, value in event.values.items():
                        if not any(word in name for word in _CLOCKWORK):
                            self.values[event.source.value, event.step, name] = float(value).hex()
                case RunStarted():
                    self.begun_at.append(event.step)
                case RunNoted():
                    self.notes.append(event.note)
                case _ if isinstance(event, ENDS):
                    self.end = event

    def train(self, task: TrainingTask, num_steps: int | None = None) -> None:
        """Let the task train, to its end or for some steps."""
        self.end = None
        goal = None if num_steps is None else max(self.losses, default=0) + num_steps
        while self.end is None and (goal is None or goal not in self.losses):
            self.take(task.resume())
        if isinstance(self.end, RunFailed):
            raise AssertionError(self.end.traceback)

    def stop(self, task: TrainingTask) -> None:
        self.take(task.stop("a pause"))
        assert isinstance(self.end, RunStopped), self.end


def disturb() -> None:
    """Leave the random generators as another process would find them."""
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)


def unbroken(setting: Setting, folder: Path) -> Witness:
    witness = Witness()
    witness.train(setting.workload(folder).task(RUN_ID))
    return witness


def broken_at_each_step(setting: Setting, folder: Path) -> Witness:
    """Written down at every step, and at the very beginning; each time taken up by a new task."""
    workload, witness = setting.workload(folder), Witness()
    first = workload.task(RUN_ID)
    witness.take(first.resume())
    witness.stop(first)
    for _ in range(100):
        disturb()
        task = workload.task(RUN_ID)
        witness.train(task, num_steps=1)
        if isinstance(witness.end, RunCompleted):
            return witness
        witness.stop(task)
    raise AssertionError("the run does not get on")


def patient() -> list[Any]:
    return [EarlyStoppingCallback(early_stopping_patience=2), StepCounter()]


CASES = {
    "logging every third step, accumulation": Setting(
        case("SFT", seed=1, max_steps=5, gradient_accumulation_steps=2, logging_steps=3)
    ),
    "full fine-tuning, epochs over ragged data": Setting(
        case("DPO", r=None, seed=2, max_steps=-1, num_train_epochs=2, learning_rate=1e-4,
             gradient_accumulation_steps=2, logging_steps=2),
        num_rows=11,
    ),
    "a reference model that follows": Setting(
        case("DPO", r=None, seed=3, max_steps=4, learning_rate=1e-2, sync_ref_model=True,
             ref_model_sync_steps=2)
    ),
    "completions used twice": Setting(
        case("GRPO", r=2, seed=4, max_steps=5, num_iterations=2, beta=0.02,
             gradient_accumulation_steps=2, logging_steps=2),
        num_eval_rows=0,
    ),
    "a reward that keeps a count": Setting(
        replace(
            case("GRPO", seed=4, max_steps=4, num_generations=2),
            trainer_kwargs={}, made_kwargs={"reward_funcs": GrowingReward},
        ),
        num_eval_rows=0,
    ),
    "GRPO's own shuffling over several epochs": Setting(
        case("GRPO", seed=5, max_steps=-1, num_train_epochs=3, num_generations=2),
        num_rows=6, num_eval_rows=0,
    ),
    "early stopping, callbacks with state, own saves": Setting(
        replace(
            case("SFT", seed=6, max_steps=8, eval_strategy="steps", eval_steps=1,
                 save_strategy="steps", save_steps=2, save_total_limit=1, eval_on_start=True,
                 load_best_model_at_end=True, metric_for_best_model="eval_loss",
                 learning_rate=1.0),
            made_kwargs={"callbacks": patient},
        )
    ),
    "a trainer of the user's own that keeps a count": Setting(
        case("Noisy", seed=7, max_steps=5), num_rows=10
    ),
    "samples grouped by length": Setting(
        case("SFT", seed=8, max_steps=5, train_sampling_strategy="group_by_length"),
        num_rows=12, num_eval_rows=0,
    ),
    "a stream that is read more than once": Setting(
        case("SFT", seed=9, max_steps=5), num_rows=10, num_eval_rows=0, stream=True
    ),
}  # fmt: skip

MORE_CASES = {
    "RLOO": Setting(
        case("RLOO", seed=1, max_steps=4, num_iterations=2, gradient_accumulation_steps=2)
    ),
    "KTO": Setting(case("KTO", seed=2, max_steps=4)),
    "Reward": Setting(case("Reward", seed=3, max_steps=4, lr_scheduler_type="cosine")),
    "Distillation": Setting(case("Distillation", seed=4, max_steps=3), num_eval_rows=0),
    "fp16": Setting(case("SFT", fp16=True, seed=5, max_steps=4)),
    "bf16": Setting(case("DPO", bf16=True, seed=6, max_steps=4)),
    "own, all weights": Setting(case("Noisy", r=None, seed=7, max_steps=4, learning_rate=1e-3)),
    "a schedule that looks at the evaluation": Setting(
        case("SFT", seed=8, max_steps=5, lr_scheduler_type="reduce_lr_on_plateau",
             lr_scheduler_kwargs={"patience": 0}, eval_strategy="steps", eval_steps=1,
             learning_rate=0.5)
    ),
    "weights that the optimizer exchanges for evaluation": Setting(
        case("SFT", seed=8, max_steps=5, optim="schedule_free_adamw", eval_strategy="steps",
             eval_steps=2, lr_scheduler_type="constant")
    ),
    "noise, packed rows": Setting(
        case("SFT", seed=9, max_steps=4, neftune_noise_alpha=5.0, packing=True,
             packing_strategy="wrapped")
    ),
    "data loader workers": Setting(case("SFT", seed=10, max_steps=3, dataloader_num_workers=1)),
}  # fmt: skip


@pytest.mark.parametrize(
    "setting",
    [
        *(pytest.param(setting, id=name) for name, setting in CASES.items()),
        *(pytest.param(s, id=name, marks=pytest.mark.exam) for name, s in MORE_CASES.items()),
    ],
)
def test_stopped_at_each_step_equals_unbroken(setting: Setting, tmp_path: Path) -> None:
    expected = unbroken(setting, tmp_path / "unbroken")
    got = broken_at_each_step(setting, tmp_path / "broken")
    assert got.losses == expected.losses
    assert got.values == expected.values
    assert got.begun_at == [0, 0, *range(1, max(expected.losses))]
    assert histories(tmp_path / "broken") == histories(tmp_path / "unbroken")
    final = Path("run") / "final"
    assert weights_hash(tmp_path / "broken" / final) == weights_hash(tmp_path / "unbroken" / final)
    assert not got.notes


def histories(folder: Path) -> list[dict[str, Any]]:
    state = json.loads((folder / "run" / "final" / "trainer_state.json").read_text())
    return [
        {k: v for k, v in row.items() if not any(word in k for word in _CLOCKWORK)}
        for row in state["log_history"]
    ]


SMALL = Setting(case("SFT", seed=1, max_steps=5), num_eval_rows=0)


@pytest.fixture(scope="module")
def stopped_at_4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was written down at the steps 2, 3 and 4."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("stopped")
    workload, witness = SMALL.workload(folder), Witness()
    for num_steps in (2, 1, 1):
        task = workload.task(RUN_ID)
        witness.train(task, num_steps)
        witness.stop(task)
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Witness:
    torch.set_num_threads(1)
    return unbroken(SMALL, tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture
def stopped(stopped_at_4: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(stopped_at_4 / "run", tmp_path / "run")
    return tmp_path


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "run" / "checkpoints").iterdir())


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def change_progress(path: Path) -> None:
    path.write_text(path.read_text().replace('"step": 4', '"step": 3'))


class TestDamage:
    def test_two_are_kept(self, stopped: Path) -> None:
        assert checkpoints(stopped) == ["checkpoint-3", "checkpoint-4"]
        latest = latest_checkpoint(stopped / "run" / "checkpoints")
        assert latest is not None
        assert latest.folder.name == "checkpoint-4"
        assert (latest.progress.step, latest.progress.chunks_done) == (4, 2)
        assert latest.progress.active_s > 0

    @pytest.mark.parametrize(
        ("file", "damage"),
        [
            ("adapter_model.safetensors", flip_a_bit),
            ("optimizer.pt", lambda path: path.write_bytes(path.read_bytes()[:100])),
            ("engine_state.pt", Path.unlink),
            ("trainer_state.json", flip_a_bit),
            ("manifest.json", Path.unlink),
            ("manifest.json", lambda path: path.write_text("{")),
            ("manifest.json", lambda path: path.write_text("[]")),
            ("manifest.json", change_progress),
        ],
    )
    def test_a_damaged_one_is_noticed_and_the_one_before_is_used(
        self, file: str, damage: Callable[[Path], Any], stopped: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        folder = stopped / "run" / "checkpoints"
        damage(folder / "checkpoint-4" / file)
        with caplog.at_level(logging.WARNING, "rapidfireai"):
            latest = latest_checkpoint(folder)
        assert latest is not None
        assert latest.folder.name == "checkpoint-3"
        assert "checkpoint-4 is damaged, the one before it is used" in caplog.text

    def test_a_half_written_one_is_none_and_is_cleared_away(
        self, stopped: Path, undisturbed: Witness
    ) -> None:
        folder = stopped / "run" / "checkpoints"
        (folder / "checkpoint-4").rename(folder / "checkpoint-9.unfinished")
        (folder / "checkpoint-9.unfinished" / "manifest.json").unlink()
        self.assert_goes_on(stopped, 3, undisturbed)
        assert checkpoints(stopped) == ["checkpoint-3"]

    def test_from_the_one_before_the_numbers_are_the_same(
        self, stopped: Path, undisturbed: Witness
    ) -> None:
        flip_a_bit(stopped / "run" / "checkpoints" / "checkpoint-4" / "optimizer.pt")
        self.assert_goes_on(stopped, 3, undisturbed)

    def test_without_any_the_run_begins_anew(self, stopped: Path, undisturbed: Witness) -> None:
        for folder in (stopped / "run" / "checkpoints").iterdir():
            (folder / "manifest.json").unlink()
        assert latest_checkpoint(stopped / "run" / "checkpoints") is None
        assert latest_checkpoint(stopped / "nowhere") is None
        self.assert_goes_on(stopped, 0, undisturbed)

    def assert_goes_on(self, folder: Path, step: int, expected: Witness) -> None:
        witness = Witness()
        disturb()
        witness.train(SMALL.workload(folder).task(RUN_ID))
        assert witness.begun_at == [step]
        assert witness.losses == {k: v for k, v in expected.losses.items() if k in witness.losses}
        assert min(witness.losses) <= step + 1
        assert max(witness.losses) == 5


def test_what_its_chunk_had_reported_is_reported_again(stopped: Path, undisturbed: Witness) -> None:
    """The store may not have taken all of it when the process was killed."""
    shutil.rmtree(stopped / "run" / "checkpoints" / "checkpoint-4")
    witness = Witness()
    task = SMALL.workload(stopped).task(RUN_ID)
    (started, *told) = task.resume()
    assert isinstance(started, RunStarted)
    witness.take(told)
    # The second of three chunks in five steps ends with the fourth; the third is its first.
    assert witness.losses == {3: undisturbed.losses[3]}
    assert {step for _, step, _ in witness.values} == {3}
    task.close()


def test_a_run_that_is_stopped_right_away_keeps_its_checkpoint(stopped: Path) -> None:
    before = (stopped / "run" / "checkpoints" / "checkpoint-4" / "manifest.json").read_text()
    witness, task = Witness(), SMALL.workload(stopped).task(RUN_ID)
    witness.take(task.resume())
    witness.stop(task)
    after = (stopped / "run" / "checkpoints" / "checkpoint-4" / "manifest.json").read_text()
    assert after == before
    assert checkpoints(stopped) == ["checkpoint-3", "checkpoint-4"]


def test_one_that_has_not_begun_is_stopped_without_beginning(tmp_path: Path) -> None:
    task = SMALL.workload(tmp_path).task(RUN_ID)
    (stopped,) = task.stop("changed my mind")
    assert isinstance(stopped, RunStopped)
    assert not (tmp_path / "run").exists()


def test_plain_trl_goes_on_from_the_folder(stopped: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    unbroken(SMALL, whole)
    trainer = trl.SFTTrainer(
        model=tiny_model(),
        args=trl.SFTConfig(
            **SMALL.case.args, output_dir=str(tmp_path / "plain"), use_cpu=True, bf16=False,
            report_to="none", save_strategy="no", disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows(SMALL.num_rows, seed=0)),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(**(SMALL.case.lora or {})),
    )  # fmt: skip
    folder = stopped / "run" / "checkpoints" / "checkpoint-4"
    trainer.train(resume_from_checkpoint=str(folder))
    assert trainer.state.global_step == 5
    trainer.save_model(str(tmp_path / "plain" / "final"))
    assert weights_hash(tmp_path / "plain" / "final") == weights_hash(whole / "run" / "final")


STANDING = Standing(
    step=1, epoch=0, num_batches=1, walk=Walk(num_rows=8, group=4, batch_size=4, accumulation=1)
)


class FakeRun:
    """Trains and is written down on a clock that nobody waits for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, every_s: float, cost_s: float) -> None:
        self.now_s = self.active_s = self.spent_s = 0.0
        self.written: list[float] = []
        self.cost_s = cost_s
        self.error: Exception | None = None
        monkeypatch.setattr(checkpoint, "save_checkpoint", self.save)
        self.pace = CheckpointPace(Path("nowhere"), every_s, clock=lambda: self.now_s)
        self.pace.begin(None)
        self.step = 0

    def save(self, state: RunState, folder: Path) -> Checkpoint:
        self.now_s += self.cost_s
        self.spent_s += self.cost_s
        self.written.append(state.progress.active_s)
        if self.error is not None:
            raise self.error
        return Checkpoint(folder=folder, progress=state.progress, standing=STANDING)

    @property
    def progress(self) -> Progress:
        return Progress(step=self.step, chunks_done=0, active_s=self.active_s)

    @property
    def state(self) -> Any:
        return RunState(trainer=None, forgotten=None, position=None, told=(),  # type: ignore[arg-type]
                        progress=self.progress)  # fmt: skip

    def train(self, num_steps: int, step_s: float = 1.0) -> None:
        for _ in range(num_steps):
            self.now_s += step_s
            self.active_s += step_s
            self.step += 1
            if self.pace.is_due(self.progress):
                self.pace.write(self.state)
            self.now_s += 1000  # of other runs' turns, which do not count


class TestPace:
    def test_cheap_ones_come_as_often_as_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        run = FakeRun(monkeypatch, every_s=60, cost_s=0.1)
        run.train(200)
        assert run.written == [60, 120, 180]

    def test_costly_ones_come_less_often(self, monkeypatch: pytest.MonkeyPatch) -> None:
        run = FakeRun(monkeypatch, every_s=60, cost_s=4)
        run.train(700)
        assert run.written == [60, 260, 460, 660]

    @pytest.mark.parametrize("cost_s", [0.01, 0.5, 3, 40])
    @pytest.mark.parametrize("step_s", [0.3, 30])
    def test_they_cost_less_than_2_percent(
        self, cost_s: float, step_s: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = FakeRun(monkeypatch, every_s=60, cost_s=cost_s)
        run.train(round(6000 / step_s), step_s)
        # Each is paid for by the training after it, so that the last one may still be owed.
        assert run.spent_s - cost_s <= run.active_s / 50

    def test_every_step_if_that_is_asked_and_costs_nothing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = FakeRun(monkeypatch, every_s=0, cost_s=0)
        run.train(3)
        assert run.written == [1, 2, 3]

    def test_time_before_the_run_was_taken_up_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        run = FakeRun(monkeypatch, every_s=60, cost_s=0.1)
        run.active_s, run.step = 500.0, 7
        run.pace.begin(Checkpoint(folder=Path("there"), progress=run.progress, standing=STANDING))
        run.pace.write(run.state)
        assert run.written == [], "it has been written at this very step"
        run.train(59)
        assert run.written == []
        run.train(1)
        assert run.written == [560]

    def test_one_that_failed_is_not_tried_again_at_every_step(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = FakeRun(monkeypatch, every_s=10, cost_s=0)
        run.error = OSError(errno.EIO, "Input/output error")
        with pytest.raises(OSError, match="Input"):
            run.train(10)
        run.error = None
        run.train(10)
        assert run.written == [10, 20]


@pytest.fixture
def at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CheckpointPace, "is_due", lambda self, progress: progress.step > 0)


class FullDisk:
    """Has no room at one point for some attempts; room comes by sleeping."""

    def __init__(self, point: str, num_failures: int) -> None:
        self.now_s = 0.0
        self.num_failures = num_failures
        self._point = point
        self.room = Room(sleep=self.sleep, clock=lambda: self.now_s)
        faults.listen(self.reached)

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def reached(self, point: str) -> None:
        if point == self._point and self.num_failures:
            self.num_failures -= 1
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.usefixtures("at_every_step")
class TestFailingDisk:
    @pytest.mark.parametrize(
        "point",
        ["checkpoint.begun", "checkpoint.before_manifest", "checkpoint.before_rename",
         "final.begun", "final.written"],
    )  # fmt: skip
    def test_a_full_one_pauses_says_so_and_goes_on(
        self, point: str, tmp_path: Path, undisturbed: Witness, caplog: pytest.LogCaptureFixture
    ) -> None:
        disk, witness = FullDisk(point, num_failures=3), Witness()
        with caplog.at_level(logging.WARNING, "rapidfireai"):
            witness.train(SMALL.workload(tmp_path, disk.room).task(RUN_ID))
        assert isinstance(witness.end, RunCompleted)
        assert witness.losses == undisturbed.losses
        assert witness.values == undisturbed.values
        (note,) = witness.notes
        what = "run 1" if point.startswith("final") else "the checkpoint of run 1"
        assert note == f"the disk was full: {what} waited 15 s for room"
        assert f"is full: everything waits until {what} can be written" in caplog.text
        assert checkpoints(tmp_path) == ["checkpoint-3", "checkpoint-4"]

    def test_who_ends_the_process_does_not_wait(self, tmp_path: Path) -> None:
        disk, witness = FullDisk("checkpoint.begun", num_failures=10**6), Witness()
        disk.room.is_given_up = lambda: True
        task = SMALL.workload(tmp_path, disk.room).task(RUN_ID)
        witness.train(task, num_steps=3)
        witness.stop(task)
        assert disk.now_s == 0
        assert any("no checkpoint could be written" in note for note in witness.notes)
        assert checkpoints(tmp_path) == []

    def test_a_run_whose_end_cannot_be_saved_then_is_not_given_up(self, tmp_path: Path) -> None:
        disk, witness = FullDisk("final.begun", num_failures=10**6), Witness()
        disk.room.is_given_up = lambda: True
        task = SMALL.workload(tmp_path, disk.room).task(RUN_ID)
        witness.train(task, num_steps=3)
        witness.stop(task)
        assert checkpoints(tmp_path) == ["checkpoint-2", "checkpoint-3"]

    def test_one_that_cannot_be_written_fails_no_run(
        self, tmp_path: Path, undisturbed: Witness, caplog: pytest.LogCaptureFixture
    ) -> None:
        def broken(point: str) -> None:
            if point == "checkpoint.before_manifest":
                raise OSError(errno.EIO, "Input/output error")

        faults.listen(broken)
        witness = Witness()
        witness.train(SMALL.workload(tmp_path).task(RUN_ID))
        assert isinstance(witness.end, RunCompleted)
        assert witness.losses == undisturbed.losses
        assert "no checkpoint could be written: [Errno 5] Input/output error" in witness.notes[0]

    def test_a_final_that_cannot_be_written_fails_its_run(self, tmp_path: Path) -> None:
        def broken(point: str) -> None:
            if point == "final.begun":
                raise OSError(errno.EIO, "Input/output error")

        faults.listen(broken)
        task, witness = SMALL.workload(tmp_path).task(RUN_ID), Witness()
        witness.train(task, num_steps=1)
        witness.take(task.stop("a pause"))
        assert isinstance(witness.end, RunFailed)
        assert "Input/output error" in witness.end.error


@pytest.mark.usefixtures("at_every_step")
class TestTrainersThatCannotGoOn:
    def test_a_loop_of_its_own_starts_over(self, tmp_path: Path) -> None:
        setting = Setting(case("Loop", seed=1, max_steps=3), num_eval_rows=0)
        expected = unbroken(setting, tmp_path / "unbroken")
        workload, witness = setting.workload(tmp_path / "broken"), Witness()
        task = workload.task(RUN_ID)
        witness.train(task, num_steps=2)
        witness.stop(task)
        assert not (tmp_path / "broken" / "run" / "checkpoints").exists()
        disturb()
        witness.train(workload.task(RUN_ID))
        assert witness.begun_at == [0, 0]
        assert witness.losses == expected.losses

    def test_one_that_ignores_the_checkpoint_starts_over(
        self,
        stopped: Path,
        undisturbed: Witness,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        train = Trainer.train
        monkeypatch.setattr(
            trl.SFTTrainer, "train", lambda self, resume_from_checkpoint=None: train(self)
        )
        witness = Witness()
        with caplog.at_level(logging.WARNING, "rapidfireai"):
            witness.train(SMALL.workload(stopped).task(RUN_ID))
        assert witness.begun_at == [0]
        assert witness.losses == undisturbed.losses
        assert "run 1 starts over" in caplog.text

    def test_weights_that_are_no_numbers_replace_no_good_ones(self, tmp_path: Path) -> None:
        setting = replace(SMALL, case=case("SFT", r=None, seed=1, learning_rate=1e30))
        task, witness = setting.workload(tmp_path).task(RUN_ID), Witness()
        while witness.end is None:
            witness.take(task.resume())
        assert isinstance(witness.end, RunFailed)
        bad = [step for step, loss in witness.losses.items() if loss == "nan"]
        assert len(bad) == 3
        steps = [int(name.partition("-")[2]) for name in checkpoints(tmp_path)]
        assert max(steps) < min(bad)


def test_what_a_killed_trainer_saved_later_is_removed(stopped: Path) -> None:
    later, earlier = stopped / "run" / "checkpoint-9", stopped / "run" / "checkpoint-2"
    for folder in (later, earlier):
        folder.mkdir()
    task = SMALL.workload(stopped).task(RUN_ID)
    task.resume()
    assert not later.exists()
    assert earlier.exists()
    task.close()
