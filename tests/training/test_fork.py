"""A warm clone goes on from its parent's weights and rows, under arguments of its own."""

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from transformers import Trainer, TrainerCallback

from rapidfireai.automl.search import as_run_configs
from rapidfireai.core.events import RunCompleted, RunFailed
from rapidfireai.core.fork import OptimizerState, Schedule
from rapidfireai.core.ids import RunId
from rapidfireai.errors import ConfigError
from rapidfireai.testing.tiny import tiny_tokenizer
from rapidfireai.training.adapter import refit
from rapidfireai.training.build import RunSpec
from rapidfireai.training.checkpoint import (
    Checkpoint,
    DamagedCheckpointError,
    copy_checkpoint,
    latest_state,
    read_checkpoint,
)
from rapidfireai.training.config import RunConfig
from rapidfireai.training.fork import Fork
from rapidfireai.training.fork_check import CheckedFork, ForkChoices, check_fork
from rapidfireai.training.task import TrainingTask
from rapidfireai.training.workload import Makers, TrainingData, TrainingWorkload
from tests.training.scenarios import case, rows
from tests.training.solo import Case, create_model, weights_hash
from tests.training.test_checkpoint import Witness, disturb
from tests.training.test_exactness import template

PARENT, CLONE = RunId(1), RunId(2)
CPU = torch.device("cpu")
KEEP, RESET = OptimizerState
CONTINUE, RESTART = Schedule


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def config_of(case: Case) -> RunConfig:
    (config,) = as_run_configs(template(case), 42, custom=False)
    return config


@dataclass
class Lab:
    """Runs of one experiment."""

    path: Path
    num_rows: int = 24
    num_eval_rows: int = 0
    stream: bool = False

    def spec(self, run_id: RunId, config: RunConfig, fork: Fork | None = None) -> RunSpec:
        folder = self.path / str(run_id)
        return RunSpec(
            run_id=run_id,
            config=config,
            folder=folder,
            final=folder / "final",
            default_seed=42,
            num_chunks=2,
            device=CPU,
            checkpoint_every_s=math.inf,
            fork=fork,
        )

    def task(self, run_id: RunId, case: Case, fork: Fork | None = None) -> TrainingTask:
        train = Dataset.from_list(rows(self.num_rows, seed=0))
        config = config_of(case)
        workload = TrainingWorkload(
            [self.spec(run_id, config, fork)],
            Makers(create_model=lambda _: (create_model(config.trainer_type), tiny_tokenizer())),
            TrainingData(
                train=train.to_iterable_dataset() if self.stream else train,
                eval=Dataset.from_list(rows(self.num_eval_rows, seed=1))
                if self.num_eval_rows
                else None,
            ),
            folder=self.path / "data",
            device=CPU,
        )
        workload.prepare()
        return workload.task(run_id)

    def final(self, run_id: RunId) -> str:
        return weights_hash(self.path / str(run_id) / "final")


@dataclass
class Watched:
    """A task with what it does at each step."""

    task: TrainingTask
    witness: Witness = field(default_factory=Witness)
    rows: list[list[Any]] = field(default_factory=list)
    """Of each step: the rows that it trained on."""
    groups: list[list[dict[str, Any]]] = field(default_factory=list)
    """Of each step: the optimizer's arguments while it was done."""
    _open: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.witness.take(self.task.resume())
        if isinstance(self.witness.end, RunFailed):
            raise AssertionError(self.witness.end.traceback)
        trainer, self._open = self.trainer, []
        train_step = trainer.training_step

        def training_step(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            self._open += _ids(inputs)
            return train_step(model, inputs, *args, **kwargs)

        trainer.training_step = training_step
        trainer.add_callback(_BeforeStep(self))

    def before_step(self) -> None:
        """The optimizer is about to do its step."""
        self.rows.append(self._open)
        self._open = []
        self.groups.append(
            [{k: v for k, v in group.items() if k != "params"} for group in self.groups_now]
        )

    @property
    def trainer(self) -> Any:
        return self.task._trainer

    @property
    def groups_now(self) -> Any:
        return self.trainer.optimizer.param_groups

    def train(self, num_steps: int | None = None) -> "Watched":
        """Some steps, or all that remain."""
        if num_steps is None:
            self.witness.train(self.task)
            return self
        goal = len(self.witness.losses) + num_steps
        while len(self.witness.losses) < goal:
            self.witness.take(self.task.resume())
            assert self.witness.end is None, self.witness.end
        return self

    @property
    def rates(self) -> list[float]:
        return [groups[0]["lr"] for groups in self.groups]


class _BeforeStep(TrainerCallback):
    def __init__(self, watched: Watched) -> None:
        self._watched = watched

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._watched.before_step()


def _ids(inputs: Any) -> list[Any]:
    """What tells rows apart: their tokens without padding, or their prompts."""
    if isinstance(inputs, list):
        return [row["prompt"] for row in inputs]
    ids = inputs["input_ids"]
    return [tuple(token for token in row if token) for row in ids.tolist()]


@dataclass(frozen=True)
class Parent:
    """A run that was written down at some of its steps and went on to its end."""

    lab: Lab
    case: Case
    watched: Watched
    saved: Mapping[int, Checkpoint]

    def fork(self, step: int, clone: Case | None = None, **choices: Any) -> Watched:
        """A clone from that step, under way."""
        return Watched(self.lab.task(CLONE, clone or self.case, self.spec(step, clone, **choices)))

    def spec(self, step: int, clone: Case | None = None, **choices: Any) -> Fork:
        shutil.rmtree(self.lab.path / str(CLONE), ignore_errors=True)
        checked = self.check(step, clone or self.case, **choices)
        return checked.at(self.saved[step].folder)

    def check(self, step: int, clone: Case, **choices: Any) -> CheckedFork:
        return check_fork(
            config_of(self.case),
            self.saved[step],
            config_of(clone),
            ForkChoices(**choices),
            device=CPU,
            default_seed=42,
        )

    def refuses(self, clone: Case, step: int | None = None, **choices: Any) -> str:
        """Why."""
        with pytest.raises(ConfigError) as refused:
            self.check(min(self.saved) if step is None else step, clone, **choices)
        return str(refused.value)


def changed(case: Case, lora: Mapping[str, Any] | None = None, **args: Any) -> Case:
    """The case with other arguments."""
    own = None if case.lora is None else {**case.lora, **(lora or {})}
    return replace(case, args={**case.args, **args}, lora=own)


def bring_up(folder: Path, case: Case, saved_at: tuple[int, ...], **lab: Any) -> Parent:
    place = Lab(folder, **lab)
    watched, saved = Watched(place.task(PARENT, case)), {}
    for step in saved_at:
        watched.train(step - max(watched.witness.losses, default=0))
        written = watched.task.save()
        assert written is not None
        saved[step] = copy_checkpoint(written, folder / f"saved-{step}")
    watched.train()
    end = latest_state(folder / str(PARENT))
    assert end is not None
    saved[end.progress.step] = copy_checkpoint(end.folder, folder / "saved-at-end")
    return Parent(place, case, watched, saved)


# 22 rows in batches of 4: six steps an epoch, the last one smaller.
SFT = case("SFT", seed=1, max_steps=-1, num_train_epochs=2, weight_decay=0.1,
           lr_scheduler_type="cosine", warmup_steps=2, logging_steps=2)  # fmt: skip


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory) -> Parent:
    return bring_up(tmp_path_factory.mktemp("sft"), SFT, (1, 3, 5, 6, 8), num_rows=22)


def assert_same_from(step: int, clone: Watched, parent: Watched) -> None:
    """The clone's steps after that one are the parent's."""
    mine, theirs = clone.witness, parent.witness
    assert mine.begun_at == [step]
    assert mine.losses == {k: v for k, v in theirs.losses.items() if k > step}
    assert mine.values == {k: v for k, v in theirs.values.items() if k[1] > step}
    assert clone.rows == parent.rows[step:]
    assert isinstance(mine.end, RunCompleted)


def exam(*values: Any) -> Any:
    """Values of a test that takes long."""
    return pytest.param(*values, marks=pytest.mark.exam)


class TestUnmodified:
    @pytest.mark.parametrize("step", [1, 6, 8])
    def test_a_clone_is_its_parent(self, step: int, sft: Parent) -> None:
        disturb()
        clone = sft.fork(step).train()
        assert_same_from(step, clone, sft.watched)
        assert sft.lab.final(CLONE) == sft.lab.final(PARENT)

    @pytest.mark.parametrize(
        ("parent", "step", "num_rows"),
        [
            (case("SFT", r=None, seed=2, max_steps=4, learning_rate=1e-3), 2, 12),
            (case("DPO", seed=3, max_steps=4, gradient_accumulation_steps=2), 1, 16),
            # Two steps for each generation batch: the third is in the middle of one.
            (case("GRPO", r=2, seed=4, max_steps=5, num_iterations=2, beta=0.02,
                  gradient_accumulation_steps=2, logging_steps=2), 3, 8),
            exam(case("RLOO", seed=5, max_steps=4, num_iterations=2), 3, 8),
            exam(case("KTO", seed=6, max_steps=4), 2, 12),
            exam(case("Reward", seed=7, max_steps=4, lr_scheduler_type="cosine"), 2, 12),
            exam(case("Distillation", seed=8, max_steps=3), 2, 8),
        ],
        ids=["full fine-tuning", "DPO", "GRPO", "RLOO", "KTO", "Reward", "Distillation"],
    )  # fmt: skip
    def test_so_it_is_with_other_trainers(
        self, parent: Case, step: int, num_rows: int, tmp_path: Path
    ) -> None:
        family = bring_up(tmp_path, parent, (step,), num_rows=num_rows)
        disturb()
        clone = family.fork(step).train()
        assert_same_from(step, clone, family.watched)
        assert family.lab.final(CLONE) == family.lab.final(PARENT)

    def test_so_it_is_with_streams_and_with_rows_grouped_by_length(self, tmp_path: Path) -> None:
        stream = bring_up(tmp_path / "stream", case("SFT", seed=5, max_steps=4), (2,),
                          num_rows=10, stream=True)  # fmt: skip
        assert_same_from(2, stream.fork(2).train(), stream.watched)
        assert stream.refuses(changed(stream.case, per_device_train_batch_size=8)).startswith(
            "the data is a stream, in which only whole batches of the parent's size can be counted"
        )
        grouped = case("SFT", seed=6, max_steps=4, train_sampling_strategy="group_by_length")
        family = bring_up(tmp_path / "grouped", grouped, (2,), num_rows=12)
        assert_same_from(2, family.fork(2).train(), family.watched)
        assert family.refuses(changed(grouped, gradient_accumulation_steps=2)).startswith(
            "the order of the data (LengthGroupedSampler) depends on the batch size"
        )

    def test_the_parents_best_stays_the_clones(self, tmp_path: Path) -> None:
        """And a schedule that follows from what was measured goes on."""
        parent = case("SFT", seed=7, max_steps=4, eval_strategy="steps", eval_steps=1,
                      save_strategy="steps", save_steps=1, save_total_limit=1,
                      load_best_model_at_end=True, metric_for_best_model="eval_loss",
                      learning_rate=1.0, lr_scheduler_type="reduce_lr_on_plateau",
                      lr_scheduler_kwargs={"patience": 0})  # fmt: skip
        family = bring_up(tmp_path, parent, (2,), num_rows=16, num_eval_rows=4)
        assert len({*family.watched.rates}) > 1, "the rate was reduced"
        final = family.lab.final(PARENT)
        clone = family.fork(2).train(1)
        best = Path(clone.trainer.state.best_model_checkpoint)
        assert best.parent == tmp_path / str(CLONE)
        shutil.rmtree(tmp_path / str(PARENT))
        clone.train()
        assert family.lab.final(CLONE) == final
        assert clone.rates == family.watched.rates[2:]
        assert clone.witness.losses == {
            k: v for k, v in family.watched.witness.losses.items() if k > 2
        }
        assert "value that could be continued" in family.refuses(changed(parent, learning_rate=0.1))
        again = family.fork(2, changed(parent, learning_rate=0.1), schedule=RESTART).train(1)
        assert again.rates == [0.1]
        again.task.close()


def schedule(name: str, step: int, num_steps: int, warmup: int, rate: float) -> float:
    """The learning rate in force while step + 1 is done."""
    if step < warmup:
        return rate * step / warmup
    share = (step - warmup) / (num_steps - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * share))
    return rate * (cosine if name == "cosine" else 1 - share)


class TestArgumentsInForce:
    """From the clone's very first step on."""

    def test_learning_rate_and_decay(self, sft: Parent) -> None:
        clone = changed(SFT, learning_rate=1e-4, weight_decay=0.3, adam_beta1=0.5,
                        adam_epsilon=1e-3, max_grad_norm=0.25)  # fmt: skip
        watched = sft.fork(3, clone)
        moments = watched.trainer.optimizer.state[watched.groups_now[0]["params"][0]]
        assert float(moments["step"]) == 3, "the state is the parent's"
        watched.train(2)
        assert watched.rates == [schedule("cosine", n, 12, 2, 1e-4) for n in (3, 4)]
        group = watched.groups[0][0]
        assert (group["weight_decay"], group["betas"], group["eps"]) == (0.3, (0.5, 0.999), 1e-3)
        assert group["initial_lr"] == 1e-4
        assert watched.trainer.args.max_grad_norm == 0.25
        assert watched.witness.losses[4] == sft.watched.witness.losses[4], "before it has stepped"
        assert watched.witness.losses[5] != sft.watched.witness.losses[5]
        watched.task.close()

    def test_another_schedule_over_more_steps(self, sft: Parent) -> None:
        clone = changed(SFT, lr_scheduler_type="linear", warmup_steps=4, num_train_epochs=3)
        watched = sft.fork(3, clone).train(3)
        assert watched.rates == [schedule("linear", n, 18, 4, 5e-3) for n in (3, 4, 5)]
        assert watched.trainer.state.max_steps == 18
        watched.task.close()

    def test_a_schedule_that_restarts_warms_up_again(self, sft: Parent) -> None:
        watched = sft.fork(8, changed(SFT, learning_rate=1e-3), schedule=RESTART).train()
        assert watched.rates == [schedule("cosine", n, 4, 2, 1e-3) for n in range(4)]

    def test_a_reset_optimizer_has_no_state(self, sft: Parent) -> None:
        watched = sft.fork(5, optimizer=RESET)
        assert not watched.trainer.optimizer.state
        watched.train(1)
        assert watched.rates == [schedule("cosine", 5, 12, 2, 5e-3)]
        watched.task.close()

    def test_another_optimizer(self, sft: Parent) -> None:
        clone = changed(SFT, optim="sgd")
        assert sft.refuses(clone) == (
            "optim is 'sgd' instead of the parent's 'adamw_torch_fused', so that the optimizer's "
            "state does not fit: give optimizer='reset'"
        )
        watched = sft.fork(3, clone, optimizer=RESET).train(1)
        assert "betas" not in watched.groups[0][0]
        watched.task.close()

    def test_how_often_it_logs(self, sft: Parent) -> None:
        watched = sft.fork(3, changed(SFT, logging_steps=1, lora={"lora_dropout": 0.0}))
        assert watched.trainer.model.peft_config["default"].lora_dropout == 0.0
        watched.train(2)
        logged = {step for source, step, _ in watched.witness.values if source == "log"}
        assert logged == {4, 5}
        watched.task.close()

    def test_beta_of_dpo_and_generations_of_grpo(self, tmp_path: Path) -> None:
        dpo = bring_up(tmp_path / "dpo", case("DPO", seed=3, max_steps=3), (1,), num_rows=16)
        watched = dpo.fork(1, changed(dpo.case, beta=0.7)).train(1)
        assert watched.trainer.beta == 0.7
        assert watched.witness.losses[2] != dpo.watched.witness.losses[2]
        watched.task.close()

        grpo = case("GRPO", r=2, seed=4, max_steps=6, num_iterations=2,
                    gradient_accumulation_steps=2)  # fmt: skip
        family = bring_up(tmp_path / "grpo", grpo, (1,), num_rows=8)
        # Two prompts a generation batch; the parent is in the middle of its first.
        clone = changed(grpo, num_generations=2, beta=0.1)
        checked = family.check(1, clone)
        assert "prompts of the generation batch that the parent was training on count as used" in (
            checked.notes
        )
        assert checked.plan is not None
        watched = family.fork(1, clone)
        assert watched.trainer.state.global_step == checked.plan.step
        assert watched.trainer.state.max_steps == checked.plan.num_steps
        watched.train(2)
        (first, second), used = watched.rows, set(family.watched.rows[0])
        assert first == second, "each generation batch serves two steps"
        assert len(used) == 2
        assert len(set(first)) == 4
        assert not used & set(first), "the parent's prompts are behind it"
        watched.task.close()


class TestRows:
    """What parent and clone train on, row by row."""

    @pytest.mark.parametrize(
        ("step", "batch_size", "accumulation"),
        [(3, 8, 1), (5, 8, 1), (3, 2, 1), (5, 6, 1), (8, 6, 1), (3, 3, 2), (5, 4, 2)],
    )
    def test_each_epoch_has_each_row_once(
        self, step: int, batch_size: int, accumulation: int, sft: Parent
    ) -> None:
        clone = changed(SFT, per_device_train_batch_size=batch_size,
                        gradient_accumulation_steps=accumulation)  # fmt: skip
        plan = sft.check(step, clone).plan
        assert plan is not None
        watched = sft.fork(step, clone).train()
        order = [row for rows in sft.watched.rows for row in rows]
        seen = [row for rows in sft.watched.rows[:step] + watched.rows for row in rows]
        assert seen == order, "in the parent's order"
        assert len(set(order[:22])) == len(set(order[22:])) == 22
        assert len(watched.rows) == plan.remaining
        assert watched.witness.begun_at == [plan.step]
        assert max(watched.witness.losses) == plan.num_steps
        assert isinstance(watched.witness.end, RunCompleted)
        assert plan.num_rows == 4 * step - 2 * (step > 5)

    def test_its_log_begins_anew(self, sft: Parent) -> None:
        clone = changed(SFT, per_device_train_batch_size=8)
        watched = sft.fork(5, clone)
        assert watched.trainer.state.log_history == []
        assert any("counted anew" in note for note in sft.check(5, clone).notes)
        watched.task.close()


class TestRecovery:
    """A clone is killed, and taken up again."""

    @pytest.mark.parametrize("saves", [False, True], ids=["before its first", "after"])
    @pytest.mark.parametrize(
        ("clone", "choices"),
        [
            (changed(SFT, per_device_train_batch_size=6, learning_rate=1e-3), {}),
            (changed(SFT, lora={"r": 8}), {"schedule": RESTART}),
        ],
        ids=["batch", "rank"],
    )
    def test_the_numbers_are_the_same(
        self, saves: bool, clone: Case, choices: Mapping[str, Any], sft: Parent
    ) -> None:
        fork = sft.spec(3, clone, **choices)
        expected = Watched(sft.lab.task(CLONE, clone, fork)).train()
        weights = sft.lab.final(CLONE)
        shutil.rmtree(sft.lab.path / str(CLONE))

        first = Watched(sft.lab.task(CLONE, clone, fork)).train(1)
        if saves:
            assert first.task.save() is not None
        first.train(1)
        first.task.close()
        disturb()
        again = Watched(sft.lab.task(CLONE, clone, fork)).train()
        begin = min(expected.witness.losses) - 1
        assert again.witness.begun_at == [begin + saves]
        assert again.rows == expected.rows[saves:]
        assert again.rates == expected.rates[saves:]
        # What its chunk had reported is reported again.
        assert again.witness.losses == expected.witness.losses
        assert again.witness.values == expected.witness.values
        assert sft.lab.final(CLONE) == weights

    def test_a_clone_of_the_clone_goes_on_from_there(self, sft: Parent, tmp_path: Path) -> None:
        clone = changed(SFT, per_device_train_batch_size=6)
        watched = sft.fork(3, clone).train(1)
        written = watched.task.save()
        assert written is not None
        copy_checkpoint(written, tmp_path / "copy")
        watched.train()
        fork = Fork(folder=tmp_path / "copy")
        again = Watched(sft.lab.task(RunId(3), clone, fork)).train()
        assert again.witness.notes == [
            "warm start: starts at step 3 of 8 with 18 samples behind it: 5 steps remain"
        ]
        assert again.rows == watched.rows[1:]
        assert again.witness.losses == {
            k: v for k, v in watched.witness.losses.items() if k in again.witness.losses
        }
        assert len(again.witness.losses) == len(watched.witness.losses) - 1

    def test_a_damaged_copy_fails_the_clone_and_says_so(self, sft: Parent, tmp_path: Path) -> None:
        shutil.copytree(sft.saved[3].folder, tmp_path / "copy")
        (tmp_path / "copy" / "optimizer.pt").write_bytes(b"")
        task = sft.lab.task(RunId(4), SFT, Fork(folder=tmp_path / "copy"))
        (failed,) = task.resume()
        assert isinstance(failed, RunFailed)
        assert "optimizer.pt has been changed" in failed.error
        assert not (sft.lab.path / "4" / "final").exists()


class TestFoundOutLater:
    """What shows only when the clone's trainer stands: the clone fails, and says why."""

    def failure(self, sft: Parent, case: Case, num_rows: int = 22) -> str:
        place = Lab(sft.lab.path / "other", num_rows=num_rows)
        shutil.rmtree(place.path, ignore_errors=True)
        task = place.task(CLONE, case, Fork(folder=sft.saved[3].folder))
        *_, failed = task.resume()
        assert isinstance(failed, RunFailed)
        assert not place.spec(CLONE, config_of(case)).final.exists()
        return failed.error

    def test_other_rows(self, sft: Parent) -> None:
        assert self.failure(sft, SFT, num_rows=20) == (
            "ConfigError: the data has 20 rows, and the parent's had 22: the parent's place in it "
            "cannot be found; clone it without warm start"
        )

    def test_other_weights(self, sft: Parent) -> None:
        assert "are not those of the clone's model" in self.failure(sft, replace(SFT, lora=None))

    def test_a_trainer_that_does_not_go_on(
        self, sft: Parent, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        train = Trainer.train
        monkeypatch.setattr(
            trl.SFTTrainer, "train", lambda self, resume_from_checkpoint=None: train(self)
        )
        assert "SFTTrainer.train(resume_from_checkpoint=...) does not go on from a checkpoint" in (
            self.failure(sft, SFT)
        )


class TestCompleted:
    def test_one_that_has_completed_trains_on(self, tmp_path: Path) -> None:
        """As if it had been longer from the beginning."""
        short = case("SFT", seed=1, max_steps=4, lr_scheduler_type="constant", max_length=64)
        longer = changed(short, max_steps=7)
        family = bring_up(tmp_path / "short", short, (), num_rows=12)
        whole = Watched(Lab(tmp_path / "long", num_rows=12).task(PARENT, longer)).train()
        clone = family.fork(4, longer).train()
        theirs = whole.witness
        assert clone.witness.begun_at == [4]
        assert clone.witness.losses == {k: v for k, v in theirs.losses.items() if k > 4}
        assert clone.rows == whole.rows[4:]
        assert family.lab.final(CLONE) == Lab(tmp_path / "long").final(PARENT)
        assert (
            clone.witness.values[("log", 7, "train_loss")]
            == (theirs.values[("log", 7, "train_loss")])
        )
        assert family.refuses(short).startswith("nothing remains to be trained")

    def test_its_next_epoch(self, sft: Parent) -> None:
        watched = sft.fork(12, changed(SFT, num_train_epochs=3)).train()
        seen = [row for rows in watched.rows for row in rows]
        assert len(watched.rows) == 6
        assert sorted(seen) == sorted(row for rows in sft.watched.rows[:6] for row in rows)

    def test_it_is_not_taken_up_from_there(self, sft: Parent) -> None:
        folder = sft.lab.path / str(PARENT)
        assert [path.name for path in (folder / "completed").iterdir()] == ["checkpoint-12"]
        assert not (folder / "checkpoints" / "checkpoint-12").exists()
        state = latest_state(folder)
        assert state is not None
        assert state.standing.completed


class TestSave:
    def test_it_leaves_the_numbers_as_they_are(self, sft: Parent, tmp_path: Path) -> None:
        undisturbed = Watched(Lab(tmp_path, num_rows=22).task(PARENT, SFT)).train()
        assert sft.watched.witness.losses == undisturbed.witness.losses
        assert sft.watched.witness.values == undisturbed.witness.values
        assert Lab(tmp_path).final(PARENT) == sft.lab.final(PARENT)

    def test_one_that_has_not_begun_has_nothing_to_save(self, tmp_path: Path) -> None:
        assert Lab(tmp_path).task(PARENT, SFT).save() is None

    def test_one_that_was_just_taken_up_is_what_was_written(self, sft: Parent) -> None:
        fork = sft.spec(3)
        first = Watched(sft.lab.task(CLONE, SFT, fork))
        assert first.task.save() is None, "a clone that has fetched nothing has nothing of its own"
        first.train(1)
        written = first.task.save()
        assert written is not None
        assert first.task.save() == written
        before = read_checkpoint(written)
        first.task.close()
        again = Watched(sft.lab.task(CLONE, SFT, fork))
        assert again.task.save() == written
        assert read_checkpoint(written) == before
        again.task.close()


def test_a_copy_outlives_its_original(sft: Parent, tmp_path: Path) -> None:
    source = copy_checkpoint(sft.saved[3].folder, tmp_path / "source").folder
    copied = copy_checkpoint(source, tmp_path / "deep" / "copy")
    shutil.rmtree(source)
    assert read_checkpoint(copied.folder) == copied
    assert copied.standing == sft.saved[3].standing
    with pytest.raises(DamagedCheckpointError):
        copy_checkpoint(source, tmp_path / "deep" / "other")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["copy"]


def logits(trainer: Any) -> torch.Tensor:
    ids = torch.arange(1, 41).reshape(2, 20)
    trainer.model.eval()
    with torch.no_grad():
        result: torch.Tensor = trainer.model(input_ids=ids).logits
    trainer.model.train()
    return result


@pytest.fixture(scope="module")
def parent_logits(sft: Parent) -> torch.Tensor:
    watched = sft.fork(3)
    result = logits(watched.trainer)
    watched.task.close()
    return result


class TestRank:
    @pytest.mark.parametrize("alpha", [8, 32], ids=["alpha kept", "alpha grown"])
    def test_a_grown_adapter_computes_the_same(
        self, alpha: int, sft: Parent, parent_logits: torch.Tensor
    ) -> None:
        clone = changed(SFT, lora={"r": 16, "lora_alpha": alpha})
        checked = sft.check(3, clone)
        assert checked.optimizer is RESET
        assert (
            "LoRA rank 4 to 16: the function is kept, the optimizer's state is reset"
            in checked.notes
        )
        watched = sft.fork(3, clone)
        assert not watched.trainer.optimizer.state
        # The products have more terms, all of them zero; how a sum is rounded may still differ.
        torch.testing.assert_close(logits(watched.trainer), parent_logits)
        gradients: dict[str, torch.Tensor] = {}

        def keep(name: str) -> Callable[[torch.Tensor], None]:
            return lambda gradient: gradients.update({name: gradient.clone()})

        for name, parameter in watched.trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.register_hook(keep(name))
        watched.train(1)
        assert len(gradients) == 6
        assert all((gradient[:, 4:] != 0).any() for gradient in gradients.values())
        watched.task.close()

    def test_it_is_the_same_to_the_bit_where_the_ratio_is_a_power_of_two(self) -> None:
        torch.manual_seed(0)
        saved = {"x.lora_A.weight": torch.randn(4, 32), "x.lora_B.weight": torch.randn(24, 4)}
        own = {"x.lora_A.weight": torch.randn(16, 32), "x.lora_B.weight": torch.zeros(24, 16)}
        state = refit(saved, own, 4.0)
        a, b = state["x.lora_A.weight"], state["x.lora_B.weight"]
        assert torch.equal(a[:4], saved["x.lora_A.weight"])
        assert torch.equal(a[4:], own["x.lora_A.weight"][4:])
        assert torch.equal(b[:, :4] / 4.0, saved["x.lora_B.weight"])
        assert not b[:, 4:].any()

    def test_a_layer_may_be_smaller_than_the_rank(self) -> None:
        torch.manual_seed(0)
        saved = {"x.lora_A.weight": torch.randn(8, 32), "x.lora_B.weight": torch.randn(2, 8)}
        own = {"x.lora_A.weight": torch.randn(3, 32), "x.lora_B.weight": torch.zeros(2, 3)}
        state = refit(saved, own, 1.0)
        expected = saved["x.lora_B.weight"] @ saved["x.lora_A.weight"]
        got = state["x.lora_B.weight"] @ state["x.lora_A.weight"]
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)

    def test_a_shrunk_adapter_is_the_truncated_decomposition(self) -> None:
        torch.manual_seed(0)
        saved = {"x.lora_A.weight": torch.randn(8, 32), "x.lora_B.weight": torch.randn(24, 8)}
        own = {"x.lora_A.weight": torch.randn(3, 32), "x.lora_B.weight": torch.zeros(24, 3)}
        state = refit(saved, own, 0.5)
        product = saved["x.lora_B.weight"].double() @ saved["x.lora_A.weight"].double()
        u, s, vh = torch.linalg.svd(product)
        expected = 0.5 * (u[:, :3] * s[:3]) @ vh[:3]
        got = state["x.lora_B.weight"].double() @ state["x.lora_A.weight"].double()
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)

    def test_a_shrunk_clone_trains_on(self, sft: Parent) -> None:
        watched = sft.fork(8, changed(SFT, lora={"r": 2, "lora_alpha": 4})).train()
        assert isinstance(watched.witness.end, RunCompleted)
        assert min(watched.witness.losses) == 9

    def test_other_alpha_scales_the_function_and_is_noted(
        self, sft: Parent, parent_logits: torch.Tensor
    ) -> None:
        clone = changed(SFT, lora={"lora_alpha": 32})
        assert any("scale what the adapter has learned" in n for n in sft.check(3, clone).notes)
        watched = sft.fork(3, clone)
        assert watched.trainer.optimizer.state
        assert not torch.equal(logits(watched.trainer), parent_logits)
        watched.task.close()

    def test_other_layers_begin_anew(self, sft: Parent, parent_logits: torch.Tensor) -> None:
        clone = changed(SFT, lora={"target_modules": ["q_proj", "v_proj", "up_proj", "o_proj"]})
        assert sft.refuses(clone).endswith("on other layers: give optimizer='reset'")
        watched = sft.fork(3, clone, optimizer=RESET)
        assert torch.equal(logits(watched.trainer), parent_logits)
        assert any("begin anew" in note for note in sft.check(3, clone, optimizer=RESET).notes)
        watched.task.close()


REFUSALS: Mapping[str, tuple[Case, str]] = {
    "seed": (changed(SFT, seed=2), "seed cannot be changed in a warm clone"),
    "order": (
        changed(SFT, train_sampling_strategy="group_by_length"),
        "train_sampling_strategy cannot be changed in a warm clone",
    ),
    "packing": (changed(SFT, packing=True), "packing cannot be changed in a warm clone"),
    "trainer": (case("KTO", seed=1), "trainer_type cannot be changed in a warm clone, from SFT"),
    "all weights": (replace(SFT, lora=None), "the parent trains an adapter, and the clone would"),
    "DoRA": (changed(SFT, lora={"use_dora": True}), "use_dora of the adapter cannot be changed"),
    "pissa": (
        changed(SFT, lora={"init_lora_weights": "pissa"}),
        "init_lora_weights='pissa' makes the adapter and the base out of each other",
    ),
    "rank pattern": (
        changed(SFT, lora={"r": 8, "rank_pattern": {"q_proj": 2}}),
        "rank_pattern of the adapter cannot be changed",
    ),
    "no steps": (
        changed(SFT, max_steps=1),
        "nothing remains to be trained: the clone would begin at step 1, and max_steps=1; give "
        "max_steps above 1",
    ),
    "no epochs": (
        changed(SFT, num_train_epochs=0.1),
        "num_train_epochs=0.1 end there; give more num_train_epochs",
    ),
    "a schedule that measures": (
        changed(SFT, lr_scheduler_type="reduce_lr_on_plateau", eval_strategy="epoch"),
        "lr_scheduler_type='reduce_lr_on_plateau' follows from what was measured",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name: str, sft: Parent) -> None:
    clone, message = REFUSALS[name]
    reason = sft.refuses(clone)
    assert message in reason
    assert reason.rpartition(";")[2] or reason


def test_another_model_is_refused(sft: Parent) -> None:
    parent, clone = config_of(SFT), replace(config_of(SFT), model={"model_name": "other"})
    with pytest.raises(ConfigError, match="the model cannot be changed in a warm clone"):
        check_fork(parent, sft.saved[3], clone, ForkChoices(), device=CPU, default_seed=42)


def test_what_is_asked_for_goes_through_json(sft: Parent) -> None:
    fork = sft.spec(3, changed(SFT, learning_rate=1e-3), schedule=RESTART)
    assert fork.changed == ("learning_rate",)
    assert Fork.from_json(fork.to_json()) == fork
    assert fork.notes == (
        "warm start: starts at step 3 of 12 with 12 samples behind it: 9 steps remain",
    )


def test_without_any_state_a_run_cannot_be_gone_on_from(tmp_path: Path) -> None:
    assert latest_state(tmp_path) is None
