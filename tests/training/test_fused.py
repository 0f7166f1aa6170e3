"""Runs that share their passes compute what each computes alone, and stay independent."""

import copy
import inspect
import math
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from rapidfireai import Experiment, RFModelConfig
from rapidfireai.control import give
from rapidfireai.core.commands import Command, Verb
from rapidfireai.core.events import ChunkFinished, MetricSource, ModeChosen, StepFinished
from rapidfireai.core.ids import RunId
from rapidfireai.core.run import Run
from rapidfireai.errors import ConfigError
from rapidfireai.paths import ExperimentFolder
from rapidfireai.store import SqliteStore
from rapidfireai.testing.tiny import tiny_tokenizer
from rapidfireai.workers.budget import NUM_BEFORE_GROWTH
from rapidfireai.workers.gang import Forward
from rapidfireai.workers.modes import NUM_MEASURED, NUM_WARM_UP
from rapidfireai.workers.rows import Slice
from rapidfireai.workers.shared_backbone import SharedBackbone
from tests.training.scenarios import case, lora, rows
from tests.training.solo import Case, Outcome, SoloRuns, create_model
from tests.training.test_exactness import merged, outcome, template


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def solo() -> Iterator[SoloRuns]:
    runs = SoloRuns()
    yield runs
    runs.close()


class Passes:
    """Counts the runs in each pass, and may let passes fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.evaluating: list[int] = []
        """Runs in each pass of an evaluation; these are not among `sizes`."""
        self.generating: list[int] = []
        """Likewise in each pass that generates a token."""
        self.forward_room = self.backward_room = math.inf
        """Runs for which there is memory in a pass."""
        passes, forward, backward = self, SharedBackbone.forward, SharedBackbone.backward

        def counted(self: SharedBackbone, slices: Sequence[Slice], **how: Any) -> Any:
            if len(slices) > passes.forward_room:
                raise torch.OutOfMemoryError("out of memory in a shared forward pass")
            others = passes.evaluating if slices[0].cache is None else passes.generating
            (passes.sizes if how["trains"] else others).append(len(slices))
            return forward(self, slices, **how)

        def checked(self: SharedBackbone, grads: Sequence[torch.Tensor | None]) -> None:
            if len(grads) > passes.backward_room:
                raise torch.OutOfMemoryError("out of memory in a shared backward pass")
            backward(self, grads)

        monkeypatch.setattr(SharedBackbone, "forward", counted)
        monkeypatch.setattr(SharedBackbone, "backward", checked)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    return Passes(monkeypatch)


CHECKPOINTED = {"gradient_checkpointing": True}
WHOLE = {"gradient_checkpointing": False}


def quiet(spec: Case) -> Case:
    """On a base without dropout of its own."""
    return replace(spec, base_dropout=0.0)


def sft_gang(**common: Any) -> list[Case]:
    """Everything different: ranks, alphas, dropouts, targets, batches, schedules, lengths."""
    return [
        quiet(spec)
        for spec in (
            case("SFT", r=4, seed=1, **common),
            replace(
                case("SFT", seed=2, per_device_train_batch_size=2, gradient_accumulation_steps=3,
                     learning_rate=1e-3, lr_scheduler_type="cosine", max_grad_norm=0.1, **common),
                lora=lora(8, lora_alpha=4, lora_dropout=0.3, target_modules="all-linear"),
            ),
            replace(
                case("SFT", seed=3, per_device_train_batch_size=1, max_length=24, max_steps=5,
                     warmup_steps=2, optim="sgd", weight_decay=0.1, **common),
                lora=lora(2, lora_dropout=0.0, target_modules=["down_proj"], use_rslora=True),
            ),
            case("SFT", r=16, seed=1, max_steps=-1, num_train_epochs=1, logging_steps=3, **common),
        )
    ]  # fmt: skip


def dpo_gang(**common: Any) -> list[Case]:
    return [
        quiet(spec)
        for spec in (
            case("DPO", r=4, seed=1, **common),
            replace(
                case("DPO", seed=2, beta=0.5, per_device_train_batch_size=2, disable_dropout=False,
                     gradient_accumulation_steps=2, max_steps=5, **common),
                lora=lora(8, lora_dropout=0.2, target_modules="all-linear"),
            ),
            case("DPO", r=2, seed=1, max_length=20, loss_type="ipo", **common),
        )
    ]  # fmt: skip


GANGS: Mapping[str, Callable[[], list[Case]]] = {
    "sft": lambda: sft_gang(**CHECKPOINTED),
    "sft, activations kept": lambda: sft_gang(**WHOLE),
    "sft in bf16": lambda: sft_gang(bf16=True, **CHECKPOINTED),
    "dpo": lambda: dpo_gang(**CHECKPOINTED),
    "dpo in bf16, activations kept": lambda: dpo_gang(bf16=True, **WHOLE),
    "mixed": lambda: [
        *sft_gang(**WHOLE)[1:3],
        *dpo_gang(**CHECKPOINTED)[:2],
        sft_gang(bf16=True)[0],
    ],
}

MORE_GANGS: Mapping[str, Callable[[], list[Case]]] = {
    "sft in bf16, activations kept": lambda: sft_gang(bf16=True, **WHOLE),
    "dpo, activations kept": lambda: dpo_gang(**WHOLE),
    "dpo in bf16": lambda: dpo_gang(bf16=True, **CHECKPOINTED),
    "mixed in bf16": lambda: [
        *sft_gang(bf16=True, **CHECKPOINTED)[:2],
        *dpo_gang(bf16=True, **WHOLE)[1:],
    ],
}


def train(
    folder: Path,
    configs: Sequence[Case | RFModelConfig],
    fuse: str = "on",
    num_eval_rows: int = 6,
    base_dropout: float = 0.0,
    **options: Any,
) -> Experiment:
    experiment = Experiment("fused", experiment_path=folder)
    data = {
        "train_dataset": Dataset.from_list(rows(24, seed=0)),
        "eval_dataset": Dataset.from_list(rows(num_eval_rows, seed=1)) if num_eval_rows else None,
    }
    experiment.run_fit(
        [template(spec) if isinstance(spec, Case) else spec for spec in configs],
        lambda config: (
            create_model("Reward" if config.get("model_type") == "seq_cls" else "", base_dropout),
            tiny_tokenizer(),
        ),
        **{"num_chunks": 3, "fuse": fuse, **data, **options},
    )
    return experiment


def outcomes(experiment: Experiment, num: int) -> list[Outcome]:
    info = experiment.get_runs_info()
    assert list(info["status"]) == ["completed"] * num, list(info["traceback"])
    return [outcome(experiment, run_id) for run_id in range(1, num + 1)]


def alone(folder: Path, spec: Case, **options: Any) -> Outcome:
    """The control: the same run by itself, which is plain TRL (`test_exactness`)."""
    return outcomes(train(folder, [spec], fuse="off", **options), 1)[0]


def notes(experiment: Experiment) -> list[str]:
    return [" ".join(run.notes) for run in stored_runs(experiment)]


def stored_runs(experiment: Experiment) -> list[Run]:
    with closing(SqliteStore(experiment.path / "experiment.db")) as store:
        return store.runs()


def passes_of(experiment: Experiment) -> list[str]:
    """How each run's passes are computed, and why."""
    return list(experiment.get_runs_info()["passes"])


@pytest.mark.parametrize(
    ("name", "fuse"),
    [
        *((name, "on") for name in GANGS),
        ("mixed", "auto"),
        *(pytest.param(name, "on", marks=pytest.mark.exam) for name in MORE_GANGS),
    ],
)
def test_in_a_gang_a_run_computes_what_it_computes_alone(
    name: str, fuse: str, tmp_path: Path, passes: Passes
) -> None:
    gang = {**GANGS, **MORE_GANGS}[name]()
    together = outcomes(train(tmp_path, gang, fuse=fuse), len(gang))
    assert max(passes.sizes) > 1, "nothing was shared"
    for spec, got in zip(gang, together, strict=True):
        assert got == alone(tmp_path, spec), spec


TRAINERS = ("KTO", "Reward", "ORPO", "CPO", "GRPO", "RLOO")


@pytest.mark.parametrize("trainer", TRAINERS)
def test_other_trainers_share_passes_with_sft(trainer: str, tmp_path: Path, passes: Passes) -> None:
    is_reward = trainer == "Reward"  # its base has a head of its own, which its seed makes
    gang = [
        quiet(case(trainer, seed=1, r=2, max_steps=4)),
        quiet(case(trainer, seed=1 if is_reward else 2, r=4, max_steps=4)),
    ]
    if not is_reward:
        gang.append(quiet(case("SFT", seed=3, max_steps=4)))
    experiment = train(tmp_path, gang, num_eval_rows=0)
    together = outcomes(experiment, len(gang))
    assert all("fused: shares its passes" in text for text in passes_of(experiment))
    assert max(passes.sizes) > 1, "nothing was shared"
    for spec, got in zip(gang, together, strict=True):
        assert got == alone(tmp_path, spec, num_eval_rows=0), spec


def test_in_a_gang_a_run_computes_what_plain_trl_computes(
    tmp_path: Path, passes: Passes, solo: SoloRuns
) -> None:
    train_rows, held_out = rows(24, seed=0), rows(6, seed=1)
    own = {"eval_strategy": "steps", "eval_steps": 3, "max_steps": 6}
    gang = [
        replace(spec, args={**spec.args, **own, **more})
        for spec, more in zip(
            [*sft_gang(), *dpo_gang()[:2]],
            ({}, {"bf16": True}, WHOLE, {"bf16": True, **WHOLE}, WHOLE, {"bf16": True}),
            strict=True,
        )
    ]
    for spec in gang:
        solo.start(spec, train_rows, held_out)
    together = outcomes(train(tmp_path, gang), len(gang))
    assert min(max(passes.sizes), max(passes.evaluating)) > 1, "nothing was shared"
    for spec, got in zip(gang, together, strict=True):
        expected = solo.start(spec, train_rows, held_out).result(timeout=300)
        assert got.losses == expected.losses, spec
        assert got.rows == merged(expected.rows), spec
        assert got.weights == expected.weights, spec


def evaluated(experiment: Experiment, num: int) -> list[dict[tuple[int, str], str]]:
    """What each run measured at its chunks' ends, by step and name."""
    with closing(SqliteStore(experiment.path / "experiment.db")) as store:
        rows = [row for row in store.metrics() if row.source is MetricSource.CHUNK]
    return [
        {(row.step, row.name): row.value.hex() for row in rows if row.run_id == run_id}
        for run_id in range(1, num + 1)
    ]


EVALUATING: Mapping[str, Callable[[], list[Case]]] = {
    "sft": lambda: [
        quiet(case("SFT", r=4, seed=1, max_steps=6)),
        quiet(case("SFT", r=8, seed=2, max_steps=6, learning_rate=1e-3)),
        replace(quiet(case("SFT", seed=3, max_steps=6)), lora=lora(2, target_modules="all-linear")),
    ],
    "dpo in bf16 and kto": lambda: [
        quiet(case("DPO", r=4, seed=1, max_steps=6, bf16=True)),
        quiet(case("DPO", r=8, seed=2, max_steps=6, bf16=True, disable_dropout=False)),
        quiet(case("KTO", r=4, seed=1, max_steps=6)),
        quiet(case("KTO", r=8, seed=2, max_steps=6)),
    ],
    "rewards": lambda: [
        quiet(case("Reward", r=4, seed=1, max_steps=6)),
        quiet(case("Reward", r=8, seed=1, max_steps=6, learning_rate=1e-3)),
    ],
}


@pytest.mark.parametrize("name", EVALUATING)
def test_evaluations_of_a_gang_share_their_passes_and_measure_what_each_measures_alone(
    name: str, tmp_path: Path, passes: Passes
) -> None:
    gang = EVALUATING[name]()
    experiment = train(tmp_path, gang)
    together, measured = outcomes(experiment, len(gang)), evaluated(experiment, len(gang))
    assert max(passes.evaluating) > 1, "nothing was shared"
    for spec, got, values in zip(gang, together, measured, strict=True):
        by_itself = train(tmp_path, [spec], fuse="off")
        assert (got, values) == (outcomes(by_itself, 1)[0], evaluated(by_itself, 1)[0]), spec
        unseen = alone(tmp_path, spec, num_eval_rows=0)
        assert (got.losses, got.weights) == (unseen.losses, unseen.weights), spec


def test_an_evaluation_that_runs_do_not_begin_together_changes_no_number(
    tmp_path: Path, passes: Passes
) -> None:
    own: dict[str, Any] = {"eval_strategy": "steps", "per_device_eval_batch_size": 2}
    gang = [
        quiet(case("SFT", seed=1, max_steps=6, eval_steps=2, **own)),
        quiet(case("SFT", seed=2, max_steps=6, eval_steps=3, **own)),
        quiet(case("SFT", seed=3, max_steps=9)),
    ]
    experiment = train(tmp_path, gang)
    together, measured = outcomes(experiment, 3), evaluated(experiment, 3)
    assert 2 in passes.evaluating
    for spec, got, values in zip(gang, together, measured, strict=True):
        by_itself = train(tmp_path, [spec], fuse="off")
        assert (got, values) == (outcomes(by_itself, 1)[0], evaluated(by_itself, 1)[0]), spec


def test_an_evaluation_without_memory_for_all_is_done_in_parts(
    tmp_path: Path, passes: Passes
) -> None:
    gang = EVALUATING["sft"]()
    undisturbed = evaluated(train(tmp_path, gang), len(gang))
    assert max(passes.evaluating) == len(gang)
    passes.forward_room = 1
    assert evaluated(train(tmp_path, gang), len(gang)) == undisturbed


def test_what_a_trainer_generates_for_its_evaluation_does_not_depend_on_the_gang(
    tmp_path: Path,
) -> None:
    gang = [quiet(case("GRPO", seed=1, r=2, max_steps=4, per_device_eval_batch_size=4))]
    gang.append(quiet(case("SFT", seed=2, max_steps=4)))
    experiment = train(tmp_path, gang, num_eval_rows=4)
    together, measured = outcomes(experiment, 2), evaluated(experiment, 2)
    for spec, got, values in zip(gang, together, measured, strict=True):
        by_itself = train(tmp_path, [spec], fuse="off", num_eval_rows=4)
        assert (got, values) == (outcomes(by_itself, 1)[0], evaluated(by_itself, 1)[0]), spec


GENERATING: Mapping[str, Callable[[], list[Case]]] = {
    "grpo": lambda: [
        quiet(case("GRPO", seed=1, r=2, max_steps=4)),
        quiet(case("GRPO", seed=2, r=4, max_steps=4, num_generations=2, top_p=0.8, top_k=20,
                   temperature=0.7, beta=0.02)),
        replace(
            quiet(case("GRPO", seed=3, max_steps=4, num_iterations=2, min_p=0.02,
                       gradient_accumulation_steps=2, max_completion_length=12,
                       repetition_penalty=1.2)),
            lora=lora(8, target_modules="all-linear"),
        ),
    ],
    "rloo in bf16 and grpo": lambda: [
        quiet(case("RLOO", seed=1, r=2, max_steps=4, bf16=True)),
        quiet(case("RLOO", seed=2, r=4, max_steps=4, bf16=True, per_device_train_batch_size=8)),
        quiet(case("GRPO", seed=1, r=4, max_steps=4)),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", GENERATING)
def test_what_a_gang_generates_together_is_what_each_run_generates_alone(
    name: str, tmp_path: Path, passes: Passes
) -> None:
    gang = GENERATING[name]()
    shared: dict[str, Any] = {"num_eval_rows": 0, "fuse_generation": True}
    together = outcomes(train(tmp_path, gang, **shared), len(gang))
    assert max(passes.generating) > 1, "nothing was shared"
    for spec, got in zip(gang, together, strict=True):
        assert got == outcomes(train(tmp_path, [spec], **shared), 1)[0], spec
    assert together == outcomes(train(tmp_path, gang, fuse="auto", **shared), len(gang))


def test_texts_for_an_evaluation_are_generated_together_as_well(
    tmp_path: Path, passes: Passes
) -> None:
    def scored(spec: Case) -> RFModelConfig:
        config: RFModelConfig = template(spec)
        config.compute_metrics = lambda pair: {"letters": float(sum(map(len, pair[0])))}
        config.generation_config = {"max_new_tokens": 12}
        return config

    gang = [scored(spec) for spec in EVALUATING["sft"]()[:2]]
    measured = evaluated(train(tmp_path, gang, fuse_generation=True), 2)
    assert max(passes.generating) == 2
    by_themselves = evaluated(train(tmp_path, gang), 2)
    assert measured == by_themselves, "the likeliest tokens do not hang on last bits"
    assert all("eval_letters" in str(values) for values in measured)


@pytest.mark.parametrize("room", [0, 1])
def test_generation_without_memory_for_all_is_done_in_parts_or_by_each_run(
    room: int, tmp_path: Path, passes: Passes
) -> None:
    gang = GENERATING["rloo in bf16 and grpo"]()
    shared: dict[str, Any] = {"num_eval_rows": 0, "fuse_generation": True}
    undisturbed = outcomes(train(tmp_path, gang, **shared), len(gang))
    passes.forward_room = room
    squeezed = outcomes(train(tmp_path, gang, **shared), len(gang))
    if room:
        assert squeezed == undisturbed
    else:
        assert squeezed == outcomes(train(tmp_path, gang, fuse="off", num_eval_rows=0), len(gang))


def test_dropout_does_not_depend_on_who_else_is_in_the_gang(tmp_path: Path) -> None:
    spec = quiet(case("SFT", seed=5))
    others = [quiet(case("SFT", seed=seed, per_device_train_batch_size=3)) for seed in (6, 7)]
    in_front = outcomes(train(tmp_path, [*others, spec]), 3)[2]
    behind = outcomes(train(tmp_path, [spec, quiet(case("DPO", seed=8))]), 2)[0]
    assert in_front == behind == alone(tmp_path, spec)


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_with_two_threads_a_model_as_narrow_as_this_one_gives_the_same_numbers(
    name: str, tmp_path: Path, passes: Passes
) -> None:
    torch.set_num_threads(2)
    gang = GANGS[name]()
    together = outcomes(train(tmp_path, gang), len(gang))
    assert max(passes.sizes) > 1, "nothing was shared"
    assert together == outcomes(train(tmp_path, gang, fuse="off"), len(gang))


class Strikes(TrainerCallback):
    """Does something at step 3."""

    def __init__(self, strike: Callable[[Any], None]) -> None:
        self.strike = strike

    def __deepcopy__(self, memo: object) -> "Strikes":
        return Strikes(self.strike)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            self.strike(kwargs["model"])


def struck(spec: Case, strike: Callable[[Any], None]) -> RFModelConfig:
    config: RFModelConfig = template(spec)
    config.callbacks = [Strikes(strike)]
    return config


def crash(model: Any) -> None:
    raise RuntimeError("a bug of the user's")


def write_to_base(model: Any) -> None:
    weight = next(p for n, p in model.named_parameters() if "q_proj.base" in n)
    weight.data += 1


class CrashingLoss:
    """Fails in the middle of a step, between a shared forward pass and its backward pass."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        self.calls += 1
        if self.calls == 4:
            raise RuntimeError("a bug of the user's")
        return outputs.logits.float().square().mean()


def failing(kind: str) -> RFModelConfig:
    spec = quiet(case("SFT", seed=9))
    if kind == "in its loss":
        return template(replace(spec, trainer_kwargs={"compute_loss_func": CrashingLoss()}))
    return struck(spec, crash if kind == "after its step" else write_to_base)


@pytest.mark.filterwarnings("ignore:.compute_loss_func. is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("after its step", "RuntimeError: a bug of the user's"),
        ("in its loss", "RuntimeError: a bug of the user's"),
        ("by writing to the base", "SharedWeightsError: The run wrote to base weights"),
    ],
)
def test_a_run_that_fails_in_mid_gang_fails_alone(
    kind: str, error: str, tmp_path: Path, passes: Passes
) -> None:
    healthy = [quiet(case("SFT", seed=1)), quiet(case("DPO", seed=2))]
    experiment = train(tmp_path, [healthy[0], failing(kind), healthy[1]])
    info = experiment.get_runs_info()
    assert list(info["status"]) == ["completed", "failed", "completed"]
    assert info["error"].iloc[1].startswith(error)
    assert max(passes.sizes) > 1, "nothing was shared"
    for number, spec in ((1, healthy[0]), (3, healthy[1])):
        assert outcome(experiment, number) == alone(tmp_path, spec)


class StopsSecond:
    """Stops run 2 when it has done its first chunk."""

    def on_chunk(
        self, run: Run, metrics: Mapping[str, float], runs: Sequence[Run]
    ) -> Sequence[Command]:
        return [Command(verb=Verb.PRUNE, run_id=run.id, reason="enough")] if run.id == 2 else []


def test_members_leave_when_they_are_stopped_and_join_when_there_is_room(
    tmp_path: Path, passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rapidfireai.fit.GANG_SIZE", 3)
    gang = [quiet(case("SFT", seed=seed, max_steps=4 + seed)) for seed in (1, 2, 3, 4, 5)]
    experiment = train(tmp_path, gang, policy=[StopsSecond()])
    info = experiment.get_runs_info()
    assert list(info["status"]) == ["completed", "pruned", *["completed"] * 3]
    assert set(passes.sizes) == {2, 3}
    for number in (1, 3, 4, 5):
        assert outcome(experiment, number) == alone(tmp_path, gang[number - 1])


class StopsInMidStep:
    """A tracker that stops run 2 when run 1 has done its second step."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_event(self, before: Run, event: Any, after: Run) -> None:
        if isinstance(event, StepFinished) and (event.run_id, event.step) == (1, 2):
            folder = ExperimentFolder.latest(self._folder, "fused")
            assert folder is not None
            give(folder, [Command(verb=Verb.STOP, run_id=RunId(2))], wait_s=0)


def test_a_run_that_is_stopped_in_the_middle_of_its_step_ends_that_step(
    tmp_path: Path, passes: Passes
) -> None:
    gang = [quiet(case("SFT", seed=1)), quiet(case("SFT", seed=2, gradient_accumulation_steps=4))]
    experiment = train(tmp_path, gang, trackers=[StopsInMidStep(tmp_path)])
    info = experiment.get_runs_info()
    assert list(info["status"]) == ["completed", "stopped"]
    assert info["step"][1] == 1, "two of four micro-batches were done"
    assert 2 in passes.sizes
    assert outcome(experiment, 1) == alone(tmp_path, gang[0])
    assert outcome(experiment, 2).losses == alone(tmp_path, gang[1]).losses[:1]


class Order:
    """A tracker that keeps who did what."""

    def __init__(self) -> None:
        self.lead = 0
        """By how many chunks a run was ever ahead of another that had not ended."""
        self._done: dict[int, int] = {}
        self.steps: list[int] = []

    def on_event(self, before: Run, event: Any, after: Run) -> None:
        self._done[after.id] = after.chunks_done
        if after.ended:
            del self._done[after.id]
        if isinstance(event, ChunkFinished):
            self.lead = max(self.lead, after.chunks_done - min(self._done.values()))
        if isinstance(event, StepFinished):
            self.steps.append(after.id)


def test_runs_that_cannot_share_passes_take_turns_with_the_gang(tmp_path: Path) -> None:
    sliced = quiet(case("SFT", r=None, seed=3, learning_rate=1e-3))
    gang = [quiet(case("SFT", seed=1)), quiet(case("SFT", seed=2, gradient_accumulation_steps=4))]
    order = Order()
    experiment = train(tmp_path, [*gang, sliced], trackers=[order])
    together = outcomes(experiment, 3)
    assert passes_of(experiment)[2] == "sliced: it trains all weights"
    assert together[2] == outcomes(train(tmp_path, [sliced], fuse="off"), 1)[0]
    assert together[0] == alone(tmp_path, gang[0])
    assert together[1] == alone(tmp_path, gang[1])
    assert order.lead <= 2, "one chunk ahead while the other works on its own"
    assert order.steps[:6] != sorted(order.steps[:6]), "the gang's steps are not interleaved"


NOT_FUSED: Mapping[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "DoRA": ({"use_dora": True}, {}, "is not plain LoRA"),
    "embeddings": ({"target_modules": ["embed_tokens", "q_proj"]}, {}, "tokens is a Embedding"),
    "NEFTune": ({}, {"neftune_noise_alpha": 5.0}, "neftune_noise_alpha=5.0 changes how"),
    "a norm": ({"modules_to_save": ["norm"]}, {}, "which is no part of LoRA"),
    "all of the embeddings": ({"modules_to_save": ["embed_tokens"]}, {}, "which is no part of"),
    "some tokens": ({"trainable_token_indices": [1, 2]}, {}, "which is no part of LoRA"),
    "determinism": ({}, {"full_determinism": True}, "full_determinism=True changes"),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_FUSED)
def test_what_cannot_be_fused_is_time_sliced_with_the_reason_on_the_run(
    name: str, tmp_path: Path, passes: Passes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "rapidfireai")
    changes, args, reason = NOT_FUSED[name]
    spec = replace(quiet(case("SFT", seed=1, max_steps=3, **args)), lora=lora(4, **changes))
    experiment = train(tmp_path, [spec])
    (why,) = passes_of(experiment)
    assert why.startswith("sliced: ")
    assert reason in why
    assert not passes.sizes
    assert outcomes(experiment, 1) == outcomes(train(tmp_path, [spec], fuse="off"), 1)
    assert (
        f"trains by turns, its passes are not shared: {why.removeprefix('sliced: ')}" in caplog.text
    )


def test_by_default_what_can_share_passes_does_and_the_rest_is_not_talked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "rapidfireai")
    Costs(monkeypatch, 0.5)
    default = inspect.signature(Experiment.run_fit).parameters["fuse"].default
    alone = replace(measurable(1)[0], lora=None)
    experiment = measure(tmp_path, [*measurable(2), alone], fuse=default)
    assert passes_of(experiment) == [
        *["fused: 64 tokens a batch 2.00x"] * 2,
        "sliced: it trains all weights",
    ]
    assert "by turns" not in caplog.text


def test_a_head_that_is_trained_as_well_is_fused(tmp_path: Path, passes: Passes) -> None:
    spec = replace(quiet(case("SFT", seed=1)), lora=lora(4, modules_to_save=["lm_head"]))
    gang = [spec, quiet(case("SFT", seed=2))]
    assert outcomes(train(tmp_path, gang), 2)[0] == alone(tmp_path, spec)
    assert 2 in passes.sizes


def test_a_base_with_dropout_of_its_own_is_not_fused(tmp_path: Path, passes: Passes) -> None:
    experiment = Experiment("dropout", experiment_path=tmp_path)
    experiment.run_fit(
        [template(case("SFT", seed=1, max_steps=3))],
        lambda config: (create_model("", 0.1), tiny_tokenizer()),
        Dataset.from_list(rows(24, seed=0)),
        fuse="on",
    )
    assert "drops activations at random itself (attention_dropout=0.1)" in passes_of(experiment)[0]
    assert not passes.sizes


class CopiesModel(TrainerCallback):
    """Keeps a copy of the model at step 3, as averaging weights does, and asks both."""

    agreed: ClassVar[list[bool]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step != 3:
            return
        model = kwargs["model"]
        copied = copy.deepcopy(model).eval()
        model.eval()
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 1
        with torch.no_grad():
            changed, kept = (
                each.get_base_model().base_model(input_ids=torch.arange(8)[None])[0]
                for each in (model, copied)
            )
            self.agreed.append(torch.equal(changed, kept))
        for parameter, before in zip(model.parameters(), copied.parameters(), strict=True):
            parameter.data.copy_(before.data)
        model.train()


def test_a_copy_of_a_fused_model_is_a_model_of_its_own(tmp_path: Path) -> None:
    spec = quiet(case("SFT", seed=1))
    config: RFModelConfig = template(spec)
    config.callbacks = [CopiesModel()]
    (got,) = outcomes(train(tmp_path, [config]), 1)
    assert CopiesModel.agreed == [False]
    assert got.losses[3:] == alone(tmp_path, spec).losses[3:]


def test_other_values_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="fuse='yes' cannot be used; it is one of 'off', 'auto', 'on'"
    ):
        train(tmp_path, [quiet(case("SFT"))], fuse="yes")


def test_generating_together_needs_runs_that_share(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="fuse_generation=True needs runs that share their passes"
    ):
        train(tmp_path, [quiet(case("GRPO"))], fuse="off", fuse_generation=True)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_out_of_memory_splits_the_pass_and_loses_nothing(
    where: str, tmp_path: Path, passes: Passes
) -> None:
    gang = sft_gang()[:3]
    undisturbed = outcomes(train(tmp_path, gang, num_eval_rows=0), len(gang))
    assert max(passes.sizes) > 2
    passes.sizes.clear()
    if where == "forward":
        passes.forward_room = 2
    else:
        passes.backward_room = 2
    assert outcomes(train(tmp_path, gang, num_eval_rows=0), len(gang)) == undisturbed


def test_where_memory_is_short_fewer_runs_train_at_a_time(tmp_path: Path, passes: Passes) -> None:
    gang = [quiet(case("SFT", seed=seed, r=4, max_steps=6)) for seed in (1, 2, 3)]
    unlimited = outcomes(train(tmp_path, gang, num_eval_rows=0), 3)
    assert max(passes.sizes) == 3
    held = train(tmp_path, gang[:1], num_eval_rows=0).get_runs_info()["run_memory_gib"][0]
    for sizes, limit in ((set(), 0.0), ({2}, 2.5 * held)):
        passes.sizes.clear()
        limited = train(tmp_path, gang, num_eval_rows=0, memory_limit_gib=limit)
        assert outcomes(limited, 3) == unlimited
        assert set(passes.sizes) == sizes


def test_after_running_out_of_memory_passes_stay_smaller_for_a_while(
    tmp_path: Path, passes: Passes
) -> None:
    gang = measurable(4)
    passes.forward_room = 3
    outcomes(measure(tmp_path, gang, fuse="on"), 4)
    num_left = 20 - NUM_BEFORE_GROWTH // 2
    assert num_left > 0
    assert passes.sizes == [2, 2] * (NUM_BEFORE_GROWTH // 2) + [3] * num_left


def test_without_memory_for_two_each_run_computes_by_itself(tmp_path: Path, passes: Passes) -> None:
    gang = sft_gang()[:2]
    passes.forward_room = 1
    experiment = train(tmp_path, gang)
    assert not passes.sizes
    assert outcomes(experiment, 2) == [alone(tmp_path, spec) for spec in gang]


def test_a_base_whose_passes_cannot_be_shared_after_all_is_tried_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    def fail(self: SharedBackbone, slices: Sequence[Slice], **how: Any) -> Any:
        tries.append(len(slices))
        raise TypeError("this model wants its mask to be a tensor")

    monkeypatch.setattr(SharedBackbone, "forward", fail)
    gang = sft_gang()[:2]
    experiment = train(tmp_path, gang)
    assert tries == [2]
    for note in notes(experiment):
        assert "at step 1 it computed a pass by itself: TypeError: this model wants its" in note
    assert outcomes(experiment, 2) == [alone(tmp_path, spec) for spec in gang]


def measurable(num: int, **args: Any) -> list[Case]:
    """Runs whose passes are all of one kind, and enough of them to decide about it."""
    common = {"max_steps": 20, "max_length": 16, "logging_steps": 5, **args}
    return [quiet(case("SFT", seed=seed, **common)) for seed in range(1, num + 1)]


LONG = [{"text": " ".join([*row.values(), *row.values()])} for row in rows(24, seed=0)]
"""Texts that are cut to the same length."""


def measure(folder: Path, gang: Sequence[Case], **options: Any) -> Experiment:
    data = {"train_dataset": Dataset.from_list(LONG), "num_eval_rows": 0, "num_chunks": 2}
    return train(folder, gang, **{"fuse": "auto", **data, **options})


def mode_events(experiment: Experiment) -> list[ModeChosen]:
    with closing(SqliteStore(experiment.path / "experiment.db")) as store:
        found = [row.event for row in store.events()]
    return [event for event in found if isinstance(event, ModeChosen) and event.members]


class Costs:
    """A clock of the processor that only passes make go on, shared ones as asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, of_shared: float) -> None:
        self.now_s = 0.0
        monkeypatch.setattr("rapidfireai.workers.in_process.time.process_time", lambda: self.now_s)
        costs, forward = self, SharedBackbone.forward

        def timed(self: SharedBackbone, slices: Sequence[Slice], **how: Any) -> Any:
            costs.now_s += of_shared * len(slices)
            return forward(self, slices, **how)

        def timed_alone(self: Forward, **how: Any) -> None:
            costs.now_s += 1.0
            leave_alone(self, **how)

        leave_alone = Forward.leave_alone
        monkeypatch.setattr(SharedBackbone, "forward", timed)
        monkeypatch.setattr(Forward, "leave_alone", timed_alone)


@pytest.mark.parametrize(("of_shared", "kept"), [(0.5, "fused"), (2.0, "sliced")])
def test_the_quicker_way_is_kept_and_changes_no_number(
    of_shared: float,
    kept: str,
    tmp_path: Path,
    passes: Passes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gang = measurable(2)
    always = outcomes(measure(tmp_path, gang, fuse="on"), 2)
    passes.sizes.clear()
    Costs(monkeypatch, of_shared)
    experiment = measure(tmp_path, gang)
    assert outcomes(experiment, 2) == always
    chosen = mode_events(experiment)
    assert [(event.run_id, event.mode, event.members) for event in chosen] == [
        (1, kept, (1, 2)),
        (2, kept, (1, 2)),
    ]
    assert {(event.fused_s, event.sliced_s) for event in chosen} == {(of_shared, 1.0)}
    assert passes_of(experiment) == [f"{kept}: 64 tokens a batch {1 / of_shared:.2f}x"] * 2
    measured = (NUM_WARM_UP + NUM_MEASURED) // 2
    left = 20 - 2 * measured if kept == "fused" else 0
    assert passes.sizes == [2] * (measured + left)


def test_a_gang_that_has_changed_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Costs(monkeypatch, 0.5)
    gang = [
        replace(spec, args={**spec.args, "max_steps": max_steps})
        for spec, max_steps in zip(measurable(3), (20, 40, 40), strict=True)
    ]
    chosen = mode_events(measure(tmp_path, gang))
    assert [(event.run_id, event.members) for event in chosen] == [
        *((run_id, (1, 2, 3)) for run_id in (1, 2, 3)),
        *((run_id, (2, 3)) for run_id in (2, 3)),
    ]


class Interrupts:
    """A tracker that presses Ctrl-C as soon as something has been measured."""

    def on_event(self, before: Run, event: Any, after: Run) -> None:
        if isinstance(event, ModeChosen) and event.members and event.run_id == 2:
            os.kill(os.getpid(), signal.SIGINT)


def test_what_was_measured_is_not_measured_again_by_the_process_that_goes_on(
    tmp_path: Path, passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    Costs(monkeypatch, 2.0)
    gang = measurable(2)
    undisturbed = outcomes(measure(tmp_path / "whole", gang), 2)
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path / "cut", gang, trackers=[Interrupts()])
    passes.sizes.clear()
    experiment = measure(tmp_path / "cut", gang)
    assert outcomes(experiment, 2) == undisturbed
    assert not passes.sizes, "measured again"
    assert len(mode_events(experiment)) == 2


def test_time_is_charged_to_the_run_that_it_was_spent_for(tmp_path: Path) -> None:
    small = quiet(case("SFT", seed=1, per_device_train_batch_size=1))
    large = quiet(case("SFT", seed=1, per_device_train_batch_size=8))
    info = train(tmp_path, [small, large]).get_runs_info()
    logged, active = info["train_runtime"], info["active_s"]
    assert all(0 < of_trainer <= of_run for of_trainer, of_run in zip(logged, active, strict=True))
    assert active.iloc[0] < active.iloc[1]
