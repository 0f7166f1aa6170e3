"""Where paused runs keep their tensors: on the device, in host memory, or on disk.

A run that is about to train is hot: its tensors are on the device. Others stay there as long as
there is room. When there is not, the run that was paused last goes first, since by turns it is the
one that will be needed last; it goes to host memory (warm), or to disk when that is short as well
(cold). Base weights never move. A tensor keeps its identity: only its storage is exchanged, so
whoever refers to it - an optimizer, a gradient - finds it again, bit for bit.
"""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file, save_file

from rapidfireai.core.ids import RunId
from rapidfireai.workers.peak import PeakMemory, free_bytes

_GROWTH = 4
"""What a run holds once it trains, for each byte of its weights: a gradient and, as most optimizers
have them, two moments come on top."""


class Tier(StrEnum):
    """Where a run's tensors are."""

    HOT = "hot"
    WARM = "warm"
    COLD = "cold"


class Owner(Protocol):
    """Somebody with tensors that can be moved while it is paused."""

    def own_tensors(self) -> Iterable[torch.Tensor]:
        """Its tensors, those that it shares with nobody; always the same while it is paused."""
        ...


@dataclass(frozen=True, slots=True)
class _Place:
    """Where and how a tensor lay: another memory layout could mean another rounding."""

    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "_Place":
        return cls(tensor.shape, tensor.stride(), tensor.dtype, tensor.device)

    def empty(self) -> torch.Tensor:
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=self.device)


@dataclass(slots=True)
class _Resident:
    owner: Owner
    tier: Tier = Tier.HOT
    tensors: list[torch.Tensor] = field(default_factory=list)
    places: list["_Place"] = field(default_factory=list)
    """Of the tensors when hot, in the same order."""
    num_bytes: int = 0
    working_bytes: int = 0
    """What a chunk needs on top while it trains, activations above all, as last measured."""


class MemoryTiers:
    """Keeps what runs hold on the device within a limit.

    Args:
        device: The device of hot runs. On a CPU host memory is the device: there is no warm tier.
        folder: For cold runs.
        hot_limit_bytes: For the tensors of all hot runs together, the training one included; it is
            exceeded only if that one alone needs more. None means what the device has.
        warm_limit_bytes: For all warm runs together. None means no limit.
        peak: Of the device.
    """

    def __init__(
        self,
        device: torch.device,
        folder: Path,
        hot_limit_bytes: int | None = None,
        warm_limit_bytes: int | None = None,
        peak: PeakMemory | None = None,
    ) -> None:
        self._device = device
        self._folder = folder
        self._peak = peak or PeakMemory(device)
        self._hot_limit = hot_limit_bytes
        self._warm_limit = 0 if device.type == "cpu" else warm_limit_bytes
        # In the order in which they were last paused.
        self._residents: dict[RunId, _Resident] = {}
        self._training: dict[RunId, int] = {}
        """They are hot, and stay so until they pause; bytes that they are known to need."""
        self.num_moves = 0
        """How often a run has been moved from the device."""

    def tier(self, run_id: RunId) -> Tier:
        """Where the run is; hot if it has never been paused."""
        resident = self._residents.get(run_id)
        return Tier.HOT if resident is None else resident.tier

    def hot_bytes(self) -> int:
        """Bytes that the hot runs hold on the device, as far as they have been paused before."""
        return sum(r.num_bytes for r in self._residents.values() if r.tier is Tier.HOT)

    def before_training(self, run_id: RunId) -> None:
        """Bring the run's tensors to the device, and others away if there is no room for both."""
        resident = self._residents.get(run_id)
        self._training[run_id] = 0 if resident is None else resident.num_bytes
        needed = 0 if resident is None or resident.tier is Tier.HOT else resident.num_bytes
        self._make_room(needed, self._working_bytes(resident))
        if resident is not None and resident.tier is not Tier.HOT:
            self._heat(run_id, resident)
        self._peak.begin("training")

    def has_room(self, run_id: RunId) -> bool:
        """Whether the run can train beside those that do.

        A run of which nothing is known needs as much as the largest that is.
        """
        resident = self._residents.get(run_id)
        sizes = (*self._training.values(), *(one.num_bytes for one in self._residents.values()))
        needed = resident.num_bytes if resident is not None else max(sizes, default=0)
        if self._hot_limit is not None:
            return sum(self._training.values()) + needed <= self._hot_limit
        free = free_bytes(self._device)
        if free is None:
            return True
        if resident is not None and resident.tier is Tier.HOT:
            needed = 0
        movable = sum(
            one.num_bytes
            for other, one in self._residents.items()
            if one.tier is Tier.HOT and other not in self._training and other != run_id
        )
        return needed + self._working_bytes(resident) <= free + movable

    def begun(self, run_id: RunId, owner: Owner) -> None:
        """Take note of a run that is about to do its first step: what it is going to need."""
        if run_id in self._training:
            held = sum(
                tensor.untyped_storage().nbytes() for tensor in _distinct(owner.own_tensors())
            )
            self._training[run_id] = max(self._training[run_id], held * _GROWTH)

    def after_training(self, run_id: RunId, owner: Owner) -> None:
        """Take note of the run's tensors, now that it is paused."""
        self._residents.pop(run_id, None)
        self._training.pop(run_id, None)
        tensors = _distinct(owner.own_tensors())
        self._residents[run_id] = _Resident(
            owner=owner,
            tensors=tensors,
            places=[_Place.of(tensor) for tensor in tensors],
            num_bytes=sum(tensor.untyped_storage().nbytes() for tensor in tensors),
        )
        peak = self._peak.since("training")
        if peak is not None:
            now = torch.cuda.memory_allocated(self._device)
            self._residents[run_id].working_bytes = peak - now
        self._make_room(0, 0, keep=run_id)

    def forget(self, run_id: RunId) -> None:
        """The run has ended."""
        self._training.pop(run_id, None)
        if self._residents.pop(run_id, None) is not None:
            self._file(run_id).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove what is on disk."""
        self._residents.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _working_bytes(self, resident: _Resident | None) -> int:
        """Of a run that has not trained yet as much as the most that another needed."""
        if resident is not None:
            return resident.working_bytes
        return max((r.working_bytes for r in self._residents.values()), default=0)

    def _make_room(self, needed: int, working: int, keep: RunId | None = None) -> None:
        for run_id, resident in reversed(list(self._residents.items())):
            if not self._is_short(needed, working):
                return
            if resident.tier is Tier.HOT and run_id != keep and run_id not in self._training:
                self._cool(run_id, resident)

    def _is_short(self, needed: int, working: int) -> bool:
        if self._hot_limit is not None:
            return self.hot_bytes() + needed > self._hot_limit
        free = free_bytes(self._device)
        return free is not None and needed + working > free

    def _cool(self, run_id: RunId, resident: _Resident) -> None:
        self.num_moves += 1
        warm = sum(r.num_bytes for r in self._residents.values() if r.tier is Tier.WARM)
        if self._warm_limit is None or warm + resident.num_bytes <= self._warm_limit:
            for tensor in resident.tensors:
                host = torch.empty_like(tensor, device="cpu", pin_memory=True)
                tensor.data = host.copy_(tensor)
            resident.tier = Tier.WARM
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {str(i): t.detach().cpu().contiguous() for i, t in enumerate(resident.tensors)},
            self._file(run_id),
        )
        for tensor in resident.tensors:
            tensor.data = torch.empty(0, dtype=tensor.dtype)
        resident.tier = Tier.COLD

    def _heat(self, run_id: RunId, resident: _Resident) -> None:
        if resident.tier is Tier.WARM:
            held: Sequence[torch.Tensor] = [tensor.detach() for tensor in resident.tensors]
        else:
            saved = load_file(self._file(run_id))
            held = [saved[str(i)] for i in range(len(resident.tensors))]
        for tensor, data, place in zip(resident.tensors, held, resident.places, strict=True):
            tensor.data = place.empty().copy_(data)
        self._file(run_id).unlink(missing_ok=True)
        resident.tier = Tier.HOT

    def _file(self, run_id: RunId) -> Path:
        return self._folder / f"{run_id}.safetensors"


def _distinct(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Each tensor object once."""
    return list({id(tensor): tensor for tensor in tensors}.values())
