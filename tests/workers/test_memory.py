"""Memory tiers: who moves, where to, and that nothing is lost on the way."""

from pathlib import Path

import pytest
import torch
from torch import nn

from rapidfireai.core.ids import RunId
from rapidfireai.workers.memory import MemoryTiers, Tier

CPU = torch.device("cpu")
A, B, C = RunId(1), RunId(2), RunId(3)
ROOM_FOR_ONE = 4 * 100


class Owner:
    """Holds a weight and a moment of an optimizer, 50 floats each."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(10, 5, generator=generator))
        self.moment = torch.randn(5, 10, generator=generator).t()

    def own_tensors(self) -> list[torch.Tensor]:
        return [self.weight, self.moment, self.weight]

    def values(self) -> list[torch.Tensor]:
        return [self.weight.detach().clone(), self.moment.clone()]


@pytest.fixture
def owners() -> dict[RunId, Owner]:
    return {run_id: Owner(run_id) for run_id in (A, B, C)}


def take_turns(tiers: MemoryTiers, owners: dict[RunId, Owner], *order: RunId) -> None:
    for run_id in order:
        tiers.before_training(run_id)
        tiers.after_training(run_id, owners[run_id])


def tiers_of(tiers: MemoryTiers) -> list[Tier]:
    return [tiers.tier(run_id) for run_id in (A, B, C)]


def test_nobody_moves_without_need(owners: dict[RunId, Owner], tmp_path: Path) -> None:
    tiers = MemoryTiers(CPU, tmp_path / "paused")
    take_turns(tiers, owners, A, B, C, A, B, C)
    assert tiers_of(tiers) == [Tier.HOT] * 3
    assert tiers.num_moves == 0
    assert tiers.hot_bytes() == 3 * ROOM_FOR_ONE
    assert not (tmp_path / "paused").exists()


def test_the_run_that_is_needed_last_moves_first(
    owners: dict[RunId, Owner], tmp_path: Path
) -> None:
    tiers = MemoryTiers(CPU, tmp_path / "paused", hot_limit_bytes=2 * ROOM_FOR_ONE)
    take_turns(tiers, owners, A, B)
    assert tiers_of(tiers) == [Tier.HOT] * 3
    take_turns(tiers, owners, C)
    # By turns A comes next and B after it: of those that may go, B waits longest.
    assert tiers_of(tiers) == [Tier.HOT, Tier.COLD, Tier.HOT]
    tiers.before_training(A)
    assert tiers.num_moves == 1


def test_a_moved_run_comes_back_bit_for_bit_into_the_same_tensors(
    owners: dict[RunId, Owner], tmp_path: Path
) -> None:
    tiers = MemoryTiers(CPU, tmp_path / "paused", hot_limit_bytes=ROOM_FOR_ONE)
    owner, before = owners[A], owners[A].values()
    weight, moment = owner.weight, owner.moment
    take_turns(tiers, owners, A, B)
    assert tiers.tier(A) is Tier.COLD
    assert weight.numel() == moment.numel() == 0
    assert len(list((tmp_path / "paused").iterdir())) == 1
    tiers.before_training(A)
    assert tiers.tier(A) is Tier.HOT
    assert owner.weight is weight
    assert isinstance(weight, nn.Parameter)
    assert all(map(torch.equal, owner.values(), before))
    assert moment.stride() == (1, 10), "another layout could mean another rounding"
    assert [path.name for path in (tmp_path / "paused").iterdir()] == ["2.safetensors"]


def test_a_run_that_alone_needs_more_than_the_limit_trains_all_the_same(
    owners: dict[RunId, Owner], tmp_path: Path
) -> None:
    tiers = MemoryTiers(CPU, tmp_path / "paused", hot_limit_bytes=0)
    take_turns(tiers, owners, A, B, C, A)
    assert tiers_of(tiers) == [Tier.HOT, Tier.COLD, Tier.COLD]


def test_an_ended_run_makes_room_and_leaves_no_file(
    owners: dict[RunId, Owner], tmp_path: Path
) -> None:
    tiers = MemoryTiers(CPU, tmp_path / "paused", hot_limit_bytes=ROOM_FOR_ONE)
    take_turns(tiers, owners, A, B)
    tiers.forget(A)
    assert list((tmp_path / "paused").iterdir()) == []
    tiers.forget(B)
    take_turns(tiers, owners, C)
    assert tiers.num_moves == 1
    tiers.close()
    assert not (tmp_path / "paused").exists()


def test_a_run_joins_others_that_train_while_there_is_room_for_all(
    owners: dict[RunId, Owner], tmp_path: Path
) -> None:
    tiers = MemoryTiers(CPU, tmp_path / "paused", hot_limit_bytes=2 * ROOM_FOR_ONE)
    take_turns(tiers, owners, A, B, C)
    tiers.before_training(A)
    assert tiers.has_room(B)
    tiers.before_training(B)
    assert not tiers.has_room(C)
    tiers.after_training(A, owners[A])
    assert tiers.has_room(C)
    tiers.before_training(C)
    assert tiers_of(tiers) == [Tier.COLD, Tier.HOT, Tier.HOT]


def test_a_run_that_begins_is_reckoned_with_what_it_will_hold(
    owners: dict[RunId, Owner], tmp_path: Path
) -> None:
    """Of four times its weights, before its optimizer has made any state; a run that has not
    begun at all needs as much as the largest that is known."""
    for limit, has_room in ((8 * ROOM_FOR_ONE - 1, False), (8 * ROOM_FOR_ONE, True)):
        tiers = MemoryTiers(CPU, tmp_path / "paused", hot_limit_bytes=limit)
        tiers.before_training(A)
        assert tiers.has_room(B), "nothing is known yet"
        tiers.begun(A, owners[A])
        assert tiers.has_room(B) is has_room


def test_without_a_limit_a_cpu_has_room_for_everybody(
    owners: dict[RunId, Owner], tmp_path: Path
) -> None:
    tiers = MemoryTiers(CPU, tmp_path / "paused")
    for run_id, owner in owners.items():
        assert tiers.has_room(run_id)
        tiers.before_training(run_id)
        tiers.begun(run_id, owner)
