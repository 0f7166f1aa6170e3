"""What a reference model computed for one run serves the others, to the last bit."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import Linear as LoraLinear
from transformers import LlamaModel

from rapidfireai.testing.tiny import tiny_model
from tests.training.scenarios import case, lora, rows
from tests.training.solo import Case, Outcome, SoloRuns
from tests.training.test_exactness import merged, outcome
from tests.training.test_fused import outcomes, quiet, struck, train

NUM_ROWS, NUM_EVAL_ROWS = 24, 6


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def solo() -> Iterator[SoloRuns]:
    runs = SoloRuns()
    yield runs
    runs.close()


class References:
    """Counts passes through a base whose adapter is switched off."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num = 0
        references, forward = self, LlamaModel.forward

        def counted(self: LlamaModel, *args: Any, **kwargs: Any) -> Any:
            layer = next((m for m in self.modules() if isinstance(m, LoraLinear)), None)
            if layer is not None and layer.disable_adapters:
                assert not torch.is_grad_enabled()
                references.num += 1
            return forward(self, *args, **kwargs)

        monkeypatch.setattr(LlamaModel, "forward", counted)

    def take(self) -> int:
        num, self.num = self.num, 0
        return num


@pytest.fixture
def references(monkeypatch: pytest.MonkeyPatch) -> References:
    return References(monkeypatch)


def dpo(**args: Any) -> Case:
    return quiet(case("DPO", **{"seed": 1, "max_steps": 6, **args}))


def kto(**args: Any) -> Case:
    return quiet(case("KTO", **{"seed": 1, "max_steps": 6, **args}))


def alone(spec: Case, solo: SoloRuns, num_eval_rows: int) -> Outcome:
    """With plain TRL."""
    started = solo.start(spec, rows(NUM_ROWS, seed=0), rows(num_eval_rows, seed=1))
    done = started.result(timeout=300)
    return replace(done, rows=merged(done.rows))


GROUPS: Mapping[str, tuple[Callable[[], list[Case]], int]] = {
    "dpo": (
        lambda: [
            dpo(r=4),
            dpo(r=8, learning_rate=1e-3, beta=0.5),
            dpo(r=2, loss_type="ipo", lr_scheduler_type="cosine", max_grad_norm=0.1),
            replace(dpo(), lora=lora(4, use_dora=True, target_modules="all-linear")),
        ],
        6,
    ),
    "dpo in bf16, activations kept": (
        lambda: [
            dpo(bf16=True, r=4, gradient_checkpointing=False),
            dpo(bf16=True, r=8, learning_rate=1e-3, ld_alpha=0.5, gradient_checkpointing=False),
        ],
        6,
    ),
    "dpo that accumulates": (
        lambda: [
            dpo(per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=3),
            dpo(per_device_train_batch_size=2, learning_rate=1e-3, max_steps=6),
        ],
        6,
    ),
    "kto, which has a second reference batch": (
        lambda: [
            kto(r=4),
            kto(r=8, learning_rate=1e-3, beta=0.5),
            replace(kto(r=2), lora=lora(2, modules_to_save=["lm_head"])),
        ],
        12,
    ),
}  # fmt: skip
"""By what they show: runs that see the same batches, and how many different ones these are."""


@pytest.mark.parametrize("fuse", ["off", "on"])
@pytest.mark.parametrize("name", GROUPS)
def test_each_batch_is_referred_to_once_by_all_runs_together(
    name: str, fuse: str, tmp_path: Path, references: References, solo: SoloRuns
) -> None:
    make, num_batches = GROUPS[name]
    specs = make()
    experiment = train(tmp_path, specs, fuse=fuse, num_eval_rows=0)
    together = outcomes(experiment, len(specs))
    assert references.take() == num_batches
    for spec, got in zip(specs, together, strict=True):
        if fuse == "off":
            assert got == alone(spec, solo, 0), spec
        else:  # passes of the trained model are padded to their bucket there
            assert got == outcomes(train(tmp_path, [spec], num_eval_rows=0), 1)[0], spec


def test_an_evaluation_refers_to_its_batches_once_for_all_chunks_and_runs(
    tmp_path: Path, references: References, solo: SoloRuns
) -> None:
    own = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 4}
    specs = [dpo(r=4, **own), dpo(r=8, learning_rate=1e-3, **own)]
    together = outcomes(train(tmp_path, specs, fuse="off", num_eval_rows=NUM_EVAL_ROWS), 2)
    assert references.take() == 6 + 2
    assert together == [alone(spec, solo, NUM_EVAL_ROWS) for spec in specs]


def test_references_that_are_computed_before_training_are_shared_as_well(
    tmp_path: Path, references: References, solo: SoloRuns
) -> None:
    before = {"precompute_ref_log_probs": True, "precompute_ref_batch_size": 8}
    specs = [
        dpo(r=4, **before),
        dpo(r=8, seed=2, per_device_train_batch_size=2, **before),
        dpo(r=2, seed=3, beta=0.5, **before),
    ]
    together = outcomes(train(tmp_path, specs, fuse="off", num_eval_rows=0), 3)
    assert references.take() == NUM_ROWS // 8, "in batches of 8, whatever is trained on"
    assert together == [alone(spec, solo, 0) for spec in specs]


NOT_SHARED: Mapping[str, tuple[Case, Case]] = {
    "another order of the rows": (dpo(), dpo(seed=2)),
    "another number of rows": (dpo(), dpo(per_device_train_batch_size=2)),
    "another length": (dpo(), dpo(max_length=12)),
    "another precision": (dpo(), dpo(bf16=True)),
    "other values of the head": (dpo(), dpo(use_weighting=True)),
    "noise on the embeddings": (dpo(), dpo(neftune_noise_alpha=5.0)),
    "weights of its own": (dpo(), replace(dpo(), lora=lora(4, init_lora_weights="pissa"))),
    "a base that drops activations": (
        replace(dpo(), base_dropout=0.1),
        replace(dpo(learning_rate=1e-3), base_dropout=0.1),
    ),
}


@pytest.mark.parametrize("name", NOT_SHARED)
def test_whatever_may_change_a_number_keeps_runs_apart(
    name: str, tmp_path: Path, references: References, solo: SoloRuns
) -> None:
    specs = NOT_SHARED[name]
    dropout = specs[0].base_dropout
    together = outcomes(
        train(tmp_path, specs, fuse="off", num_eval_rows=0, base_dropout=dropout), 2
    )
    assert references.take() == 6 + 6
    assert together == [alone(spec, solo, 0) for spec in specs]


def a_reference() -> Any:
    return tiny_model(dropout=0.0, seed=7)


def test_a_reference_model_that_is_given_is_asked_by_each_run(
    tmp_path: Path, references: References, solo: SoloRuns
) -> None:
    given = [
        replace(spec, made_kwargs={"ref_model": a_reference}) for spec in (dpo(), dpo(beta=0.5))
    ]
    together = outcomes(train(tmp_path, given, fuse="off", num_eval_rows=0), 2)
    assert references.take() == 0, "no adapter has been switched off"
    assert together == [alone(spec, solo, 0) for spec in given]


class Noise:
    """Changes what a layer gives."""

    def __call__(self, module: Any, given: Any, output: Any) -> Any:
        return output + 1


def disturb(model: Any) -> None:
    model.get_base_model().base_model.norm.register_forward_hook(Noise())


def test_a_run_that_hooks_its_model_neither_gives_nor_takes(
    tmp_path: Path, references: References
) -> None:
    calm, disturbed = dpo(), dpo(learning_rate=1e-3)
    together = outcomes(
        train(tmp_path, [struck(disturbed, disturb), calm], fuse="off", num_eval_rows=0), 2
    )
    assert references.take() == 6 + 3, "the hook was set at step 3"
    expected = [
        outcomes(train(tmp_path, [spec], fuse="off", num_eval_rows=0), 1)[0]
        for spec in (struck(disturbed, disturb), calm)
    ]
    assert together == expected


def write_to_base(model: Any) -> None:
    weight = next(p for n, p in model.named_parameters() if "q_proj.base" in n)
    weight.data += 1


def test_what_a_changed_base_gave_is_not_kept(tmp_path: Path, references: References) -> None:
    healthy = dpo(learning_rate=1e-3)
    experiment = train(
        tmp_path, [struck(dpo(), write_to_base), healthy], fuse="off", num_eval_rows=0
    )
    info = experiment.get_runs_info()
    assert list(info["status"]) == ["failed", "completed"]
    got = outcome(experiment, 2)
    assert got == outcomes(train(tmp_path, [healthy], fuse="off", num_eval_rows=0), 1)[0]


def test_with_no_room_runs_compute_all_by_themselves(
    tmp_path: Path, references: References, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = [dpo(), dpo(learning_rate=1e-3)]
    shared = outcomes(train(tmp_path, specs, fuse="off", num_eval_rows=0), 2)
    assert references.take() == 6
    monkeypatch.setattr("rapidfireai.workers.shared_weights.KEPT_BYTES", 0)
    assert outcomes(train(tmp_path, specs, fuse="off", num_eval_rows=0), 2) == shared
    assert references.take() == 6 + 6
