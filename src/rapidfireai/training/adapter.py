"""LoRA adapters of one form made into another: more or fewer directions, other layers.

A grown adapter computes the same function: its new rows of A are random, so that they get
gradients through B's new columns, which are zero. A shrunk one is the best approximation of its
rank, the truncated singular value decomposition of B A.
"""

import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file

from rapidfireai.errors import ConfigError

State = Mapping[str, torch.Tensor]

_PAIRS = (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B"))
"""Ends of the names of A, of shape (rank, in), and of B, of shape (out, rank)."""


def adapter_fits(model: PeftModel, folder: str | Path) -> bool:
    """Whether the adapter saved in the folder has the form of the one that the model trains."""
    if not (Path(folder) / "adapter_model.safetensors").exists():
        return True
    saved, own = _saved_state(folder), _own_state(model)
    return saved.keys() == own.keys() and all(saved[k].shape == own[k].shape for k in own)


def load_refitted(model: PeftModel, folder: str | Path) -> None:
    """Give the model's adapter the weights of the one saved in the folder, in its own form.

    Layers that the saved adapter does not have keep what they were built with, which is no change
    of the function; layers that the model's does not have are left out.

    Raises:
        ConfigError: That is not possible between these two.
    """
    config = model.peft_config[_name(model)]
    saved_config = json.loads((Path(folder) / "adapter_config.json").read_text())
    if not isinstance(config, LoraConfig) or saved_config["peft_type"] != "LORA":
        raise ConfigError(
            "the parent's adapter does not have the form of the clone's, and only LoRA's can be "
            "changed: clone it without warm start"
        )
    ratio = _scaling(saved_config) / _scaling(config.to_dict())
    state = refit(_saved_state(folder), _own_state(model), ratio)
    set_peft_model_state_dict(model, dict(state), adapter_name=_name(model))


def refit(saved: State, own: State, ratio: float) -> State:
    """The saved adapter's weights in the form of the own one.

    Args:
        saved: Weights by name.
        own: Weights as the clone's adapter was built, by name.
        ratio: The saved adapter's scaling (alpha / rank) by the own one's.

    Raises:
        ConfigError: Other weights than A and B differ in form.
    """
    state = dict(own)
    for name, value in own.items():
        if name in saved and saved[name].shape == value.shape:
            state[name] = saved[name]
    for name, a in own.items():
        for end_a, end_b in _PAIRS:
            if not name.endswith(end_a) or name not in saved:
                continue
            name_b = name.removesuffix(end_a) + end_b
            if saved[name].shape != a.shape:
                pair = (saved[name], saved[name_b])
                state[name], state[name_b] = _resized(pair, (a, own[name_b]), ratio)
    wrong = [k for k, v in own.items() if state[k] is v and k in saved]
    if wrong:
        raise ConfigError(
            f"the parent's weights {wrong[0]} have the shape {tuple(saved[wrong[0]].shape)}, and "
            f"the clone's {tuple(own[wrong[0]].shape)}: clone it without warm start"
        )
    return state


def _resized(
    saved: tuple[torch.Tensor, torch.Tensor], own: tuple[torch.Tensor, torch.Tensor], ratio: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B with the rows and columns of the own ones, such that the scaled product is kept."""
    (a, b), (own_a, own_b) = saved, own
    rank, own_rank = a.shape[0], own_a.shape[0]
    if a.ndim != 2 or b.ndim != 2:
        raise ConfigError(
            "the LoRA rank of layers that are no matrices, such as convolutions, cannot be "
            "changed: clone it without warm start"
        )
    if own_rank > rank:
        grown_b = torch.zeros_like(own_b)
        grown_b[:, :rank] = (b * ratio).to(own_b)
        return torch.cat([a.to(own_a), own_a[rank:]]), grown_b
    # Of small matrices: B A = Q_b (R_b R_a^T) Q_a^T.
    q_b, r_b = torch.linalg.qr(b.double())
    q_a, r_a = torch.linalg.qr(a.double().T)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    root = s[:own_rank].sqrt()
    shrunk_a, shrunk_b = torch.zeros_like(own_a), torch.zeros_like(own_b)
    # A layer may have fewer rows or columns than the adapter has directions.
    shrunk_a[: len(root)] = (root[:, None] * (vh[:own_rank] @ q_a.T)).to(own_a)
    shrunk_b[:, : len(root)] = ((q_b @ u[:, :own_rank]) * root * ratio).to(own_b)
    return shrunk_a, shrunk_b


def _scaling(config: Mapping[str, Any]) -> float:
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise ConfigError(
            "rank_pattern and alpha_pattern give layers ranks of their own, so that the rank of "
            "the adapter cannot be changed: clone it without warm start"
        )
    rank = math.sqrt(config["r"]) if config["use_rslora"] else config["r"]
    return float(config["lora_alpha"] / rank)


def _name(model: PeftModel) -> str:
    return str(model.active_adapters[0])


def _saved_state(folder: str | Path) -> State:
    return load_file(Path(folder) / "adapter_model.safetensors")


def _own_state(model: PeftModel) -> State:
    with warnings.catch_warnings():
        # PEFT cannot look up the base's configuration on the hub when offline, and says so.
        warnings.filterwarnings("ignore", category=UserWarning, module="peft")
        state = get_peft_model_state_dict(model, adapter_name=_name(model))
    return {name: tensor.detach() for name, tensor in state.items()}
