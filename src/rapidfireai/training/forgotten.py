"""What a trainer keeps in attributes, and its checkpoints forget.

Sums behind the next log row, TRL's metrics, completions that were generated and not trained on yet,
a reference model that follows the trained one, what callbacks and reward objects have counted. All
of it is taken as plain data, and put back into the objects of a trainer that was built anew.
"""

import inspect
from collections import deque
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import nn

_BY_TRAINERS = (
    # transformers: what `train` resets although a checkpoint is given.
    "_tr_loss",
    "_total_loss_scalar",
    "_globalstep_last_logged",
    "_initial_global_step",
    "_initial_num_input_tokens_seen",
    "current_flos",
    # TRL: metrics since the last log row.
    "_metrics",
    "_total_train_tokens",
    # GRPO and RLOO: where in a generation batch the run stands.
    "_step",
    "_buffered_inputs",
    "_last_loaded_step",
    "_last_world_entropy",
    "_entropy_window_stats",
)
"""Attributes of transformers' and TRL's trainers that decide about the numbers to come."""

_FOR_SHOW = ("_logs", "_pending_extra_logs", "_pending_metrics")
"""Likewise, but left out where they hold what is no plain data, such as images."""

_LIBRARIES = ("transformers", "trl")


class NotPlainError(TypeError):
    """A value that cannot be written down."""


class Forgotten:
    """Takes what a trainer would forget, and gives it to another.

    Args:
        trainer: As it was built; its `train` has not been called.
        shared: Addresses of the storages that it shares with other runs, which nobody writes to.
    """

    def __init__(self, trainer: Any, shared: set[int]) -> None:
        self._trainer = trainer
        self._shared = shared
        self._is_own = not _is_of_library(trainer)
        self._built = dict(_plain_items(vars(trainer))) if self._is_own else {}

    def take(self) -> dict[str, Any]:
        """All of it, in types that `torch.load(weights_only=True)` reads.

        Raises:
            NotPlainError: Something without which the numbers would change is no plain data.
        """
        trainer = self._trainer
        present = vars(trainer)
        attributes = {name: plain(present[name]) for name in _BY_TRAINERS if name in present}
        attributes.update(_plain_items({k: present[k] for k in _FOR_SHOW if k in present}))
        if self._is_own:
            # A trainer of the user's own: whatever its training has changed.
            attributes.update(
                (name, value)
                for name, value in _plain_items(present)
                if name not in self._built or not _are_same(value, self._built[name])
            )
        reference = self._own_reference()
        return {
            "attributes": attributes,
            "reference": None if reference is None else plain(reference),
            "companions": [_state(companion) for companion in _companions(trainer)],
        }

    def give(self, saved: Mapping[str, Any]) -> None:
        """Put back what `take` took from a trainer that was built in the same way."""
        for name, value in saved["attributes"].items():
            _restore(vars(self._trainer), name, value)
        reference = self._own_reference()
        if reference is not None and saved["reference"] is not None:
            reference.load_state_dict(saved["reference"])
        companions = list(_companions(self._trainer))
        for companion, state in zip(companions, saved["companions"], strict=False):
            if state is not None and state["type"] == _type_name(companion):
                for name, value in state["attributes"].items():
                    _restore(vars(companion), name, value)

    def _own_reference(self) -> nn.Module | None:
        """The reference model, unless it is made of weights that never change."""
        reference = getattr(self._trainer, "ref_model", None)
        if not isinstance(reference, nn.Module):
            return None
        pointers = {weight.untyped_storage().data_ptr() for weight in reference.parameters()}
        return None if pointers <= self._shared else reference


def plain(value: Any) -> Any:
    """A copy of the value in types that `torch.load(weights_only=True)` reads.

    Raises:
        NotPlainError: There is something in it that is no data.
    """
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, nn.Module):
        return {name: tensor.detach().clone() for name, tensor in value.state_dict().items()}
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | deque):
        return [plain(item) for item in value]
    if type(value) is tuple:
        return tuple(plain(item) for item in value)
    if hasattr(value, "dtype") and hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return plain(value.item())  # a number of NumPy's
    raise NotPlainError(f"{value!r} is a {type(value).__name__}, which cannot be written down")


def _plain_items(items: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The entries that are plain data, models left out."""
    for name, value in items.items():
        if isinstance(value, nn.Module):
            continue
        try:
            yield name, plain(value)
        except NotPlainError:
            continue


def _companions(trainer: Any) -> Iterator[Any]:
    """Objects beside the trainer that may keep something: callbacks and rewards."""
    yield from trainer.callback_handler.callbacks
    yield from map(inspect.unwrap, getattr(trainer, "reward_funcs", ()))


def _state(companion: Any) -> dict[str, Any] | None:
    """What the object keeps, if all of that is data: half of it could contradict the rest."""
    if isinstance(companion, nn.Module) or not hasattr(companion, "__dict__"):
        return None
    if type(companion).__module__.startswith("transformers.integrations"):
        return None  # a connection, which another process has to make anew
    asks_a_model = any(isinstance(value, nn.Module) for value in vars(companion).values())
    if asks_a_model and not _is_of_library(companion):
        return None  # the model is big, and hardly part of what the user's object keeps
    try:
        return {"type": _type_name(companion), "attributes": plain(vars(companion))}
    except NotPlainError:
        return None


def _type_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _is_of_library(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] in _LIBRARIES


def _are_same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return (
            isinstance(one, torch.Tensor)
            and isinstance(other, torch.Tensor)
            and one.shape == other.shape
            and torch.equal(one, other)
        )
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_are_same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_are_same, one, other))
    return bool(one == other)


def _restore(target: MutableMapping[str, Any], name: str, saved: Any) -> None:
    """Set `target[name]`; containers, tensors and models stay the same objects with new contents,
    since others may refer to them."""
    present = target.get(name) if name in target else _default(target, name)
    if isinstance(present, nn.Module):
        present.load_state_dict(saved)
    elif isinstance(present, MutableMapping) and isinstance(saved, dict):
        for key in [key for key in present if key not in saved]:
            del present[key]
        for key, value in saved.items():
            _restore(present, key, value)
    elif isinstance(present, deque):
        present.clear()
        present.extend(saved)
    elif isinstance(present, list) and isinstance(saved, list) and len(present) == len(saved):
        for index, value in enumerate(saved):
            place = {"item": present[index]}
            _restore(place, "item", value)
            present[index] = place["item"]
    elif isinstance(present, torch.Tensor) and _have_same_form(present, saved):
        with torch.no_grad():
            present.copy_(saved)
    else:
        target[name] = saved


def _have_same_form(one: torch.Tensor, other: Any) -> bool:
    if not isinstance(other, torch.Tensor):
        return False
    return one.shape == other.shape and one.dtype == other.dtype


def _default(target: MutableMapping[str, Any], name: str) -> Any:
    factory = getattr(target, "default_factory", None)
    if factory is None:
        return None
    target[name] = factory()
    return target[name]
