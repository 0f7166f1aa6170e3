"""One copy of the base weights for any number of runs.

Every run gets a module tree of its own whose parameters and buffers are the base's own tensors.
Adapters that the trainer puts on top belong to the run alone. The base is never handed to a
trainer, so that it stays pristine: trainers patch the trees they get.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_module
from peft import PeftModel
from torch import nn
from transformers import set_seed

from rapidfireai.core.equality import comparable
from rapidfireai.errors import CreateModelError, RapidFireError, SharedWeightsError
from rapidfireai.workers.kept_outputs import KeptOutputs
from rapidfireai.workers.process_state import RngState

logger = logging.getLogger(__name__)

CreateModel = Callable[[dict[str, Any]], tuple[Any, Any]]
"""The user's function: model configuration -> (model, tokenizer)."""


KEPT_BYTES = 2**29
"""Of host memory, for outputs of a base: a few bytes a token, so enough for tens of millions."""


class _Reads(dict[str, Any]):
    """A dictionary that remembers which of its keys were looked at."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.keys_read: set[str] = set()

    def _all(self) -> None:
        self.keys_read.update(dict.keys(self))

    def __getitem__(self, key: str) -> Any:
        self.keys_read.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.keys_read.add(str(key))
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.keys_read.add(key)
        return super().get(key, default)

    def pop(self, key: str, *default: Any) -> Any:
        self.keys_read.add(key)
        return super().pop(key, *default)

    def setdefault(self, key: str, default: Any = None) -> Any:
        self.keys_read.add(key)
        return super().setdefault(key, default)

    # Defined so that `dict(x)` and `**x` go through it instead of dict's short cut.
    def __iter__(self) -> Iterator[str]:
        self._all()
        return super().__iter__()

    def keys(self) -> Any:
        self._all()
        return super().keys()

    def values(self) -> Any:
        self._all()
        return super().values()

    def items(self) -> Any:
        self._all()
        return super().items()

    def copy(self) -> dict[str, Any]:
        self._all()
        return dict(super().items())

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def __ror__(self, other: Any) -> Any:
        return other | self.copy()

    def __eq__(self, other: object) -> bool:
        self._all()
        return super().__eq__(other)

    __hash__ = None  # mutable


class Base:
    """A pristine model with its tokenizer, resident on one device.

    Args:
        model: The model. It is frozen from here on; private copies get its flags back.
        tokenizer: Its tokenizer or processor; runs get copies.
        recreate: Makes the same model again, for when somebody has written to this one.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, recreate: Callable[[], nn.Module]) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._recreate = recreate
        self._trainable = {n for n, p in model.named_parameters() if p.requires_grad}
        adapters = _adapter_tensor_ids(model)
        self._shared = {
            name: tensor for name, tensor in _named_tensors(model) if id(tensor) not in adapters
        }
        # The parameters are the same objects in all sharing trees: frozen once, for all of them.
        for tensor in self._shared.values():
            tensor.requires_grad_(False)
        # Other tensors on the same storage; they still find it when a run swaps `.data`.
        self._storages = {name: tensor.detach() for name, tensor in self._shared.items()}
        self._places = self._find()
        self._sums = self._read()
        self._samples = [_sample(tensor) for tensor in self._storages.values()]
        self._sampled = self._read_samples().clone()
        self.outputs = KeptOutputs(KEPT_BYTES)
        """What the model without any adapter gave, for runs that ask the same."""

    def with_tokenizer(self, tokenizer: Any) -> "Base":
        """The same weights with another tokenizer."""
        twin = copy.copy(self)
        twin.tokenizer = tokenizer
        return twin

    @property
    def num_bytes(self) -> int:
        """Bytes of all its weights."""
        return sum(t.numel() * t.element_size() for _, t in _named_tensors(self.model))

    def storages(self) -> set[int]:
        """Addresses of the shared weights' storages."""
        return {t.untyped_storage().data_ptr() for t in self._shared.values()}

    def clone(self, *, private: bool) -> nn.Module:
        """A module tree for one run.

        Args:
            private: Copy the weights too, for a run that writes to them. Otherwise the tree shares
                them; adapters that a PeftModel brings along are the run's own either way.
        """
        memo: dict[int, Any] = {}
        if not private:
            memo = {id(tensor): _shareable(tensor) for tensor in self._shared.values()}
        tree = copy.deepcopy(self.model, memo)
        if private:
            for name, parameter in tree.named_parameters():
                parameter.requires_grad_(name in self._trainable)
        return tree

    def verify(self) -> None:
        """Check that nobody wrote to the weights; if somebody did, bring them back first.

        All bits are read, which costs about as much as a forward pass over one token. torch's
        counters of writes would not do: they miss those through `.data`, as when merging adapters.

        Raises:
            SharedWeightsError: They were written to. They are whole again, or the message says
                that they are not; then this goes on being raised.
        """
        if self._is_intact():
            return
        logger.warning("shared weights were written to; restoring them")
        try:
            self._restore()
        except Exception as error:
            # The user's function runs here. Whatever it is, nobody may train on these weights.
            raise _broken(f"create_model raised {type(error).__name__}: {error}") from error
        if not self._is_intact():
            raise _broken("create_model gives other weights than the first time, or the same model")
        raise SharedWeightsError(
            f"{_WRITTEN} They have been restored, so no other run is affected. If the trainer or a "
            f"callback has to change the base, {_ADVICE}"
        )

    def glance(self) -> None:
        """Look at a sample of the weights, and at all of them if that has changed.

        For between two `verify` at which all is read, where that would cost too much: it finds
        what changes a tensor as a whole, such as merging an adapter.

        Raises:
            SharedWeightsError: As `verify` does.
        """
        if not self.looks_intact():
            self.verify()

    def looks_intact(self) -> bool:
        """Whether a sample of the weights is what it was."""
        return self._find() == self._places and torch.equal(self._read_samples(), self._sampled)

    def _restore(self) -> None:
        self.outputs.clear()
        fresh = dict(_named_tensors(self._recreate()))
        for name, tensor in self._shared.items():
            storage = self._storages[name]
            storage.copy_(fresh[name].detach())
            tensor.data = storage
            tensor.requires_grad_(False)
            tensor.grad = None

    def _is_intact(self) -> bool:
        return self._find() == self._places and self._read() == self._sums

    def _find(self) -> list[tuple[Any, ...]]:
        """Where the tensors live and whether they are frozen."""
        return [(t.data_ptr(), t.dtype, t.shape, t.requires_grad) for t in self._shared.values()]

    def _read(self) -> list[int]:
        sums = [_checksum(tensor) for tensor in self._shared.values()]
        return torch.stack(sums).tolist() if sums else []

    def _read_samples(self) -> torch.Tensor:
        return torch.cat(self._samples) if self._samples else torch.empty(0)


def _shareable(tensor: Any) -> Any:
    """What a tree holds in place of a tensor of the base; nearly always the tensor itself.

    A layer of bitsandbytes takes the scales off its 8-bit weights at its first forward pass. Each
    tree has a parameter of its own around the same bits, or the next one would find none.
    """
    if type(tensor).__name__ != "Int8Params":
        return tensor
    return type(tensor)(
        tensor.data,
        requires_grad=False,
        has_fp16_weights=tensor.has_fp16_weights,
        CB=tensor.CB,
        SCB=tensor.SCB,
    )


_WRITTEN = "The run wrote to base weights that it shares with other runs."
_ADVICE = "give the run weights of its own: RFModelConfig(..., share_base=False)."


def _broken(why: str) -> SharedWeightsError:
    return SharedWeightsError(
        f"{_WRITTEN[:-1]}, or another run did, and they cannot be restored: {why}. No run can go "
        "on, since none could be trusted. Let create_model load the weights anew at each call, and "
        f"if the trainer or a callback has to change the base, {_ADVICE}"
    )


def _checksum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of the tensor's bits."""
    return _words(tensor).sum(dtype=torch.int64)


def _words(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's bits, in words as wide as fit."""
    flat = tensor.detach().reshape(-1).view(torch.uint8)
    aligned = len(flat) % 8 == 0 and flat.storage_offset() % 8 == 0
    return flat.view(torch.int64) if aligned else flat


_SAMPLE_SIZE = 64
"""Words of a tensor that a glance reads."""


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    """Some of the tensor's bits, spread evenly, on its own storage."""
    words = _words(tensor)
    return words[:: max(1, len(words) // _SAMPLE_SIZE)]


@dataclass(frozen=True, slots=True)
class _Entry:
    read: Mapping[str, Any]
    seed: int | None
    """The seed under which the model was made; None if making it drew no random numbers."""
    base: Base


_MISSING = object()


class Bases:
    """Makes each distinct base once.

    What `create_model` reads from its argument is the base's identity: configurations that agree
    on it share the base. Where making the model draws random numbers, as for a new head, the run's
    seed belongs to the identity too.

    Args:
        create_model: The user's function.
        device: Where the weights live.
    """

    def __init__(self, create_model: CreateModel, device: torch.device) -> None:
        self._create_model = create_model
        self._device = device
        self._entries: list[_Entry] = []

    @property
    def num_bases(self) -> int:
        """How many distinct bases there are."""
        return len({id(entry.base.model) for entry in self._entries})

    def get(self, model_config: Mapping[str, Any], seed: int) -> Base:
        """The base for this configuration, made now if it is the first of its kind.

        Raises:
            CreateModelError: `create_model` raised, or did not return a model and a tokenizer.
        """
        for entry in self._entries:
            if entry.seed in (None, seed) and all(
                comparable(model_config.get(key, _MISSING)) == comparable(value)
                for key, value in entry.read.items()
            ):
                return entry.base
        reads = _Reads(copy.deepcopy(dict(model_config)))
        set_seed(seed)
        before = RngState.capture()
        model, tokenizer = self._create(reads)
        drew = not RngState.capture().equals(before)

        def recreate() -> nn.Module:
            set_seed(seed)
            return self._create(_Reads(copy.deepcopy(dict(model_config))))[0]

        known = next((e.base for e in self._entries if e.base.model is model), None)
        if known is None:
            base = Base(model, tokenizer, recreate)
        else:  # create_model keeps its models
            base = known.with_tokenizer(tokenizer)
        read = {key: model_config.get(key, _MISSING) for key in reads.keys_read}
        self._entries.append(_Entry(read=read, seed=seed if drew else None, base=base))
        return base

    def _create(self, model_config: _Reads) -> tuple[nn.Module, Any]:
        try:
            created = self._create_model(model_config)
        except RapidFireError:
            raise
        except Exception as error:
            raise CreateModelError(
                f"create_model raised {type(error).__name__}: {error}. It was given the keys "
                f"{sorted(dict.keys(model_config))}; call it once by hand with these to see why."
            ) from error
        if not (isinstance(created, tuple | list) and len(created) == 2):
            raise CreateModelError(
                f"create_model returned {_describe(created)}; it has to return two values, "
                "(model, tokenizer)."
            )
        model, tokenizer = created
        if not isinstance(model, nn.Module):
            raise CreateModelError(
                f"create_model returned a {type(model).__name__} as the model; it has to be a "
                "transformers model or a PeftModel (a torch.nn.Module)."
            )
        if tokenizer is None or not hasattr(tokenizer, "save_pretrained"):
            raise CreateModelError(
                f"create_model returned a {type(tokenizer).__name__} as the tokenizer; it has to "
                "be a tokenizer or processor, such as AutoTokenizer.from_pretrained(...) gives."
            )
        return self._place(model), tokenizer

    def _place(self, model: nn.Module) -> nn.Module:
        """Move the model once, here: a trainer would move the tensors under all who share them."""
        device_map = getattr(model, "hf_device_map", {})
        if any(tensor.is_meta for _, tensor in _named_tensors(model)):
            raise CreateModelError(
                f"create_model returned a model that is not wholly loaded (device_map: "
                f"{device_map}); it has to fit on {self._device}. Load it in fewer bits, or choose "
                "a smaller one."
            )
        if len(set(device_map.values())) > 1:
            # device_map="auto" spread it over several devices; a run trains on one.
            remove_hook_from_module(model, recurse=True)
            model.hf_device_map = {"": self._device}  # type: ignore[assignment]
        if all(tensor.device == self._device for _, tensor in _named_tensors(model)):
            return model
        try:
            return model.to(self._device)
        except torch.OutOfMemoryError as error:
            raise CreateModelError(
                f"the model that create_model returned does not fit on {self._device}. Load it in "
                "fewer bits, or choose a smaller one."
            ) from error


def _describe(value: object) -> str:
    if isinstance(value, tuple | list):
        return f"{len(value)} values"
    return "None" if value is None else f"one value, a {type(value).__name__}"


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _adapter_tensor_ids(model: nn.Module) -> set[int]:
    """Ids of the tensors that a PeftModel added to its base and that belong to the run."""
    if not isinstance(model, PeftModel):
        return set()
    prefix = model.base_model.prefix if hasattr(model.base_model, "prefix") else "prompt_encoder"
    return {
        id(tensor)
        for name, tensor in _named_tensors(model)
        if prefix in name or "modules_to_save" in name or tensor.requires_grad
    }
