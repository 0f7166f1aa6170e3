"""What only a CUDA device can show; skipped where there is none."""

from pathlib import Path

import pytest
import torch

from rapidfireai.core.ids import RunId
from rapidfireai.workers.adapters import Grouped, Kernels, OneByOne, Stacked, Way
from rapidfireai.workers.memory import MemoryTiers, Tier
from rapidfireai.workers.process_state import ProcessState
from rapidfireai.workers.shared_backbone import MAX_DISAGREEMENT
from tests.training.scenarios import Scenario, case
from tests.training.solo import SoloRuns
from tests.training.test_exactness import assert_equal_to_solo, start_solo, train_together
from tests.training.test_fused import dpo_gang, outcomes, sft_gang, train
from tests.workers.test_adapters import Layer, assert_as_near_as_can_be
from tests.workers.test_apart import decoder, study

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_mixed_precisions_side_by_side_equal_solo(tmp_path: Path) -> None:
    # Without each run's own accelerate state, autocast would fall back to float16 silently, and
    # gradients of an fp16 run would be clipped while they are still scaled.
    scenario = Scenario(
        (
            case("SFT", bf16=True, seed=1),
            case("SFT", fp16=True, seed=2, max_grad_norm=0.1),
            case("SFT", seed=3),
            case("DPO", bf16=True, seed=4),
            case("GRPO", bf16=True, seed=5, max_steps=4),
        ),
        num_chunks=4,
    )
    solo = SoloRuns()
    try:
        start_solo(scenario, solo)
        assert_equal_to_solo(scenario, train_together(scenario, tmp_path), solo)
    finally:
        solo.close()


def test_every_run_has_cuda_random_numbers_of_its_own() -> None:
    first, second = ProcessState(), ProcessState()
    with first:
        torch.cuda.manual_seed(1)
        expected = torch.rand(8, device="cuda")
        torch.cuda.manual_seed(1)
        drawn = [torch.rand(4, device="cuda")]
    with second:
        torch.cuda.manual_seed(2)
        torch.rand(1000, device="cuda")
    with first:
        drawn.append(torch.rand(4, device="cuda"))
    assert torch.equal(torch.cat(drawn), expected)


@pytest.mark.parametrize("way", [OneByOne, Stacked, Grouped])
def test_adapters_are_those_of_one_run_after_the_other(way: Way) -> None:
    even = Layer(torch.bfloat16, (8, 8), device="cuda", num_tokens=(24, 24))
    assert_as_near_as_can_be(way, even)


def test_both_ways_are_measured(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "rapidfireai")
    layer = Layer(torch.bfloat16, device="cuda")
    assert layer.choose(Kernels(torch.device("cuda"))) in (OneByOne, Grouped)
    assert "Grouped" in caplog.text
    assert "cannot be computed" not in caplog.text


def test_padding_is_left_out_by_a_kernel_for_sequences(caplog: pytest.LogCaptureFixture) -> None:
    for kind in ("llama", "qwen2", "mistral", "gemma3_text"):
        base = decoder(kind).to("cuda", torch.bfloat16)
        for student, hidden, grads in study(base):
            alone = student.alone()
            for got, expected in zip(
                [student.real(hidden), *grads],
                [student.real(alone), *student.take_grads()],
                strict=True,
            ):
                error = (got.float() - expected.float()).norm() / expected.float().norm()
                assert error < MAX_DISAGREEMENT
    assert "padding is not left out" not in caplog.text


def test_a_gang_learns_what_its_runs_learn_by_turns(tmp_path: Path) -> None:
    """In bfloat16 only the beginning can be compared: Adam makes roundings large."""
    gang = [*sft_gang(bf16=True), *dpo_gang(bf16=True)]
    together = outcomes(train(tmp_path, gang), len(gang))
    by_turns = outcomes(train(tmp_path, gang, fuse="off"), len(gang))
    for one, other in zip(together, by_turns, strict=True):
        first, expected = (float.fromhex(outcome.losses[0]) for outcome in (one, other))
        assert abs(first - expected) <= MAX_DISAGREEMENT * abs(expected)


class Owner:
    def __init__(self) -> None:
        self.tensors = [torch.randn(64, 32, device="cuda").t(), torch.randn(5, device="cuda")]

    def own_tensors(self) -> list[torch.Tensor]:
        return self.tensors


@pytest.mark.parametrize(("host_limit", "tier"), [(None, Tier.WARM), (0, Tier.COLD)])
def test_paused_runs_leave_the_device_and_come_back(
    host_limit: int | None, tier: Tier, tmp_path: Path
) -> None:
    device = torch.device("cuda", 0)
    tiers = MemoryTiers(device, tmp_path / "paused", hot_limit_bytes=0, warm_limit_bytes=host_limit)
    owners = {RunId(1): Owner(), RunId(2): Owner()}
    before = {run_id: [t.clone() for t in owner.tensors] for run_id, owner in owners.items()}
    for run_id, owner in owners.items():
        tiers.before_training(run_id)
        tiers.after_training(run_id, owner)
    tiers.before_training(RunId(2))
    assert tiers.tier(RunId(1)) is tier
    assert all(t.device.type == "cpu" for t in owners[RunId(1)].tensors)
    tiers.before_training(RunId(1))
    assert tiers.tier(RunId(1)) is Tier.HOT
    for tensor, expected in zip(owners[RunId(1)].tensors, before[RunId(1)], strict=True):
        assert tensor.device == expected.device
        assert torch.equal(tensor, expected)
    assert owners[RunId(1)].tensors[0].stride() == (1, 32)
    tiers.close()
