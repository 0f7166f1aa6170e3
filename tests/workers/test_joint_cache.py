"""Tokens that several models generate in one pass are those that each generates alone."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from transformers import DynamicCache, LlamaForCausalLM, StaticCache

from rapidfireai.testing.tiny import tiny_model
from rapidfireai.workers.joint_cache import is_plain, rewind
from rapidfireai.workers.routed import SharedBackbone, Slice

BASE = tiny_model(dropout=0.0).requires_grad_(False)
NUM_TOKENS = 24


def tree() -> LlamaForCausalLM:
    """Over the weights of the one base."""
    shared = {id(tensor): tensor for tensor in (*BASE.parameters(), *BASE.buffers())}
    return copy.deepcopy(BASE, shared)


class Writer:
    """A model with an adapter of its own that goes on with some prompts, the likeliest token first.

    Args:
        seed: Of its adapter, and of its prompts.
        shape: Of its prompts: (rows, tokens).
    """

    def __init__(self, seed: int, shape: tuple[int, int]) -> None:
        torch.manual_seed(seed)
        adapter = LoraConfig(
            r=2 * seed, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
        )
        model = get_peft_model(tree(), adapter)
        assert isinstance(model, PeftModel)
        self.model = model.eval()
        self.ids = torch.randint(2, 400, shape)
        self.mask = torch.ones(shape, dtype=torch.long)
        self.mask[0, :2] = 0
        self.cache = DynamicCache(config=BASE.config)
        self.seen: list[torch.Tensor] = []
        """Hidden states of each token."""
        backbone = self.model.get_base_model().base_model
        self._adapters = {
            name: m for name, m in backbone.named_modules() if isinstance(m, LoraLinear)
        }
        with torch.no_grad():
            states = backbone(
                input_ids=self.ids,
                attention_mask=self.mask,
                position_ids=(self.mask.cumsum(-1) - 1).clamp(min=0),
                past_key_values=self.cache,
                use_cache=True,
            )
        self._take(states.last_hidden_state[:, -1:])

    def _take(self, hidden: torch.Tensor) -> None:
        self.seen.append(hidden)
        token = BASE.lm_head(hidden).argmax(-1)
        self.ids = torch.cat([self.ids, token], dim=1)
        self.mask = torch.cat([self.mask, torch.ones_like(token)], dim=1)

    def slice(self) -> Slice:
        return Slice(
            input_ids=self.ids[:, -1:],
            attention_mask=self.mask,
            position_ids=self.mask.cumsum(-1)[:, -1:] - 1,
            adapters=self._adapters,
            generator=None,
            cache=self.cache,
            num_cached=self.cache.get_seq_length(),
        )

    def go_on(self, hidden: torch.Tensor) -> None:
        self._take(hidden)


def writers() -> list[Writer]:
    return [Writer(1, (4, 9)), Writer(2, (1, 11)), Writer(3, (3, 7)), Writer(4, (17, 9))]


def write(backbone: SharedBackbone, together: Sequence[Writer]) -> set[int]:
    """Generate with all of them, those of one width in one pass; how many there were in passes."""
    sizes: set[int] = set()
    while len(together[0].seen) < NUM_TOKENS:
        groups: dict[int, list[tuple[Writer, Slice]]] = {}
        for writer in together:
            own = writer.slice()
            groups.setdefault(own.width, []).append((writer, own))
        for group in groups.values():
            sizes.add(len(group))
            states = backbone.forward([own for _, own in group], trains=False)
            for (writer, _), hidden in zip(group, states, strict=True):
                writer.go_on(hidden)
    return sizes


@pytest.fixture
def backbone() -> SharedBackbone:
    torch.set_num_threads(1)
    base_model: Any = tree().base_model
    return SharedBackbone(base_model, torch.device("cpu"))


def test_together_alone_and_by_transformers_they_write_the_same(backbone: SharedBackbone) -> None:
    together, alone = writers(), writers()
    assert max(write(backbone, together)) == len(together)
    for ours, own in zip(together, alone, strict=True):
        write(backbone, [own])
        assert all(map(torch.equal, ours.seen, own.seen)), "to the last bit"
        num_prompt = own.ids.shape[1] - NUM_TOKENS
        expected = own.model.generate(
            input_ids=own.ids[:, :num_prompt],
            attention_mask=own.mask[:, :num_prompt],
            max_new_tokens=NUM_TOKENS,
            eos_token_id=None,
            do_sample=False,
        )
        assert torch.equal(ours.ids, expected)


def test_a_pass_that_breaks_off_can_be_repeated(
    backbone: SharedBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, disturbed = writers()[:2], writers()[:2]
    write(backbone, undisturbed)
    whole: Any = backbone._backbone
    second = whole.layers[1]

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory behind the first layer")

    slices = [writer.slice() for writer in disturbed]
    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr(second, "forward", fail)
        backbone.forward(slices, trains=False)
    assert [own.cache.get_seq_length() - own.num_cached for own in slices if own.cache] == [1, 1]
    for own in slices:
        assert own.cache is not None
        rewind(own.cache, own.num_cached)
        assert {layer.get_seq_length() for layer in own.cache.layers} == {own.num_cached}
    write(backbone, disturbed)
    for before, after in zip(undisturbed, disturbed, strict=True):
        assert torch.equal(before.ids, after.ids)


def test_caches_that_drop_or_place_tokens_are_not_joined() -> None:
    assert not is_plain(None)
    assert not is_plain(DynamicCache(config=BASE.config)), "it holds nothing yet"
    assert not is_plain(StaticCache(config=BASE.config, max_cache_len=8))
    assert is_plain(Writer(1, (2, 5)).cache)
