"""Runs that go through a backbone together get what each gets alone, in whatever decoder."""

import copy
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    LlamaForCausalLM,
    PreTrainedModel,
    StaticCache,
)

from rapidfireai.testing.tiny import tiny_model
from rapidfireai.workers import apart
from rapidfireai.workers.apart import Apart, is_plain, rewind, why_not_apart
from rapidfireai.workers.rows import Slice
from rapidfireai.workers.shared_backbone import SharedBackbone

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


def write(backbone: SharedBackbone, together: Sequence[Writer]) -> None:
    """Generate with all of them."""
    while len(together[0].seen) < NUM_TOKENS:
        states = backbone.forward([writer.slice() for writer in together], trains=False)
        for writer, hidden in zip(together, states, strict=True):
            writer.go_on(hidden)


@pytest.fixture
def backbone() -> SharedBackbone:
    torch.set_num_threads(1)
    base_model: Any = tree().base_model
    return SharedBackbone(base_model, torch.device("cpu"))


def test_together_alone_and_by_transformers_they_write_the_same(backbone: SharedBackbone) -> None:
    together, alone = writers(), writers()
    write(backbone, together)
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


DECODERS = (
    *(("llama", how) for how in ("sdpa", "eager")),
    *(("qwen2", how) for how in ("sdpa", "eager")),
    ("gemma2", "eager"),
    *((kind, "sdpa") for kind in (
        "apertus", "cohere2", "exaone4", "gemma", "gemma3_text", "glm4", "gpt2", "gpt_neox",
        "granite", "mistral", "nemotron", "olmo2", "phi", "phi3", "qwen3", "smollm3",
        "starcoder2",
    )),
)  # fmt: skip
"""With biases and without, sliding windows, norms behind as well as in front, shared projections,
capped scores."""

SHAPES = ((2, 12), (3, 9), (2, 12), (1, 20), (2, 12))


def decoder(kind: str, attention: str = "sdpa", **more: Any) -> PreTrainedModel:
    config = AutoConfig.for_model(
        kind,
        **{
            "vocab_size": 256,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 128,
            "sliding_window": 7,
            "pad_token_id": 0,
            **{f"{part}_pdrop": 0.0 for part in ("resid", "embd", "attn")},
            **more,
        },
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    assert isinstance(model, PreTrainedModel)
    return model.requires_grad_(False)


class Student:
    """A model with an adapter of its own, and a batch.

    Args:
        base: Whose weights it shares.
        seed: Of its adapter and its batch.
    """

    def __init__(self, base: PreTrainedModel, seed: int) -> None:
        torch.manual_seed(seed)
        adapter = LoraConfig(
            r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
        )
        model = get_peft_model(cloned(base), adapter).train()
        assert isinstance(model, PeftModel)
        self.backbone: Any = model.get_base_model().base_model
        num_rows, width = SHAPES[seed]
        self.ids = torch.randint(3, 250, SHAPES[seed]).to(base.device)
        self.mask = torch.ones_like(self.ids)
        if seed in (0, 1):
            self.mask[0, -4:] = 0
        if seed == 3:
            self.mask[0, :3] = 0
        self.grad = torch.randn(num_rows, width, base.config.hidden_size).to(
            self.mask.device, base.dtype
        )
        self.grad *= self.mask[..., None]
        self.adapters = {
            name: m for name, m in self.backbone.named_modules() if isinstance(m, LoraLinear)
        }

    def slice(self) -> Slice:
        return Slice(
            input_ids=self.ids,
            attention_mask=self.mask,
            position_ids=None,
            adapters=self.adapters,
            generator=None,
        )

    def alone(self) -> torch.Tensor:
        """Its hidden states, after their backward pass."""
        states = self.backbone(input_ids=self.ids, attention_mask=self.mask, use_cache=False)
        states.last_hidden_state.backward(self.grad)
        hidden: torch.Tensor = states.last_hidden_state
        return hidden.detach()

    def take_grads(self) -> list[torch.Tensor]:
        found = []
        for parameter in self.backbone.parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None
                found.append(parameter.grad)
                parameter.grad = None
        return found

    def real(self, hidden: torch.Tensor) -> torch.Tensor:
        """Without what stands for padding."""
        return hidden[self.mask.bool()]


def cloned(base: PreTrainedModel) -> PreTrainedModel:
    return copy.deepcopy(base, {id(t): t for t in (*base.parameters(), *base.buffers())})


def study(base: PreTrainedModel) -> Iterator[tuple[Student, torch.Tensor, list[torch.Tensor]]]:
    """Each student with its hidden states and gradients from a pass of all of them."""
    students = [Student(base, seed) for seed in range(len(SHAPES))]
    backbone = SharedBackbone(cloned(base).base_model, base.device)
    hidden = backbone.forward([student.slice() for student in students], trains=True)
    backbone.backward([student.grad for student in students])
    for student, own in zip(students, hidden, strict=True):
        yield student, own, student.take_grads()


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
@pytest.mark.parametrize(("kind", "attention"), DECODERS)
def test_together_and_alone_students_learn_the_same_to_the_last_bit(
    kind: str, attention: str
) -> None:
    torch.set_num_threads(1)
    base = decoder(kind, attention)
    assert why_not_apart(base) is None
    for student, hidden, grads in study(base):
        assert torch.equal(student.real(hidden), student.real(student.alone())), "hidden states"
        assert all(map(torch.equal, grads, student.take_grads())), "gradients"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_layers_so_wide_that_rows_round_by_their_number_give_the_same_too(
    num_threads: int, dtype: torch.dtype
) -> None:
    """Whether they do so depends on the processor; it is found out."""
    torch.set_num_threads(num_threads)
    wide: dict[str, Any] = {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 2,
        "head_dim": 144,
    }
    for student, hidden, grads in study(decoder("qwen2", **wide).to(dtype)):
        assert torch.equal(student.real(hidden), student.real(student.alone())), "hidden states"
        assert all(map(torch.equal, grads, student.take_grads())), "gradients"


def in_sequences(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    _: torch.Tensor,
    *longest: int,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> torch.Tensor:
    """What the kernel for CUDA computes, one sequence after the other."""
    outputs = []
    for begin, end in itertools.pairwise(ends.tolist()):
        assert end - begin <= min(longest)
        q, k, v = (states[begin:end].transpose(0, 1) for states in (query, key, value))
        distance = torch.arange(end - begin)[:, None] - torch.arange(end - begin)
        seen = distance >= 0
        if window_size[0] >= 0:
            seen &= distance <= window_size[0]
        output = F.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, scale=scale, enable_gqa=enable_gqa
        )
        outputs.append(output.transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("kind", ["gpt_neox", "phi", "starcoder2"])
def test_leaving_out_padding_changes_nothing_but_roundings(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, whose norms keep it, so that anything else would show."""
    num_tokens: list[int] = []

    def varlen_attn(query: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        num_tokens.append(len(query))
        return in_sequences(query, *args, **options)

    monkeypatch.setattr(apart, "varlen_attn", varlen_attn)
    monkeypatch.setattr(Apart, "can_leave_out_padding", lambda *args: True)
    real = []
    for student, hidden, grads in study(decoder(kind).double()):
        torch.testing.assert_close(student.real(hidden), student.real(student.alone()))
        torch.testing.assert_close(grads, student.take_grads())
        real.append(int(student.mask.sum()))
    assert set(num_tokens) == {sum(real)}, "padding was in the pass"


def sees_all(*args: Any, window_size: tuple[int, int], **options: Any) -> torch.Tensor:
    return in_sequences(*args, window_size=(-1, 0), **options)


def is_for_others(*args: Any, **options: Any) -> torch.Tensor:
    raise RuntimeError("no kernel for this device")


@pytest.mark.parametrize("kernel", [sees_all, is_for_others])
def test_where_leaving_out_padding_is_wrong_it_stays_in(
    kernel: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(apart, "varlen_attn", kernel)
    monkeypatch.setattr(Apart, "can_leave_out_padding", lambda *args: True)
    torch.set_num_threads(1)
    for student, hidden, grads in study(decoder("mistral", sliding_window=3)):
        assert torch.equal(student.real(hidden), student.real(student.alone()))
        assert all(map(torch.equal, grads, student.take_grads()))
    assert "padding is not left out of passes" in caplog.text


@pytest.mark.parametrize(
    ("kind", "more", "reason"),
    [
        ("stablelm", {}, "StableLmForCausalLM does not let its attention be exchanged"),
        ("opt", {"ffn_dim": 96}, "the positions of OPTForCausalLM come from the mask"),
        ("lfm2", {"layer_types": ["conv", "full_attention", "conv"]},
         "in Lfm2ForCausalLM tokens meet outside of plain attention (conv)"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
         "its positions depend on the longest text in a pass (rope_type='dynamic')"),
    ],
)  # fmt: skip
def test_decoders_whose_tokens_cannot_be_told_apart_are_known(
    kind: str, more: dict[str, Any], reason: str
) -> None:
    assert why_not_apart(decoder(kind, **more)) == reason
