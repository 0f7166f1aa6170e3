"""One copy of the base for all runs, and nobody can harm it unnoticed."""

import copy
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rapidfireai.errors import CreateModelError, SharedWeightsError
from rapidfireai.testing.tiny import tiny_model, tiny_tokenizer
from rapidfireai.workers.process_state import ProcessState
from rapidfireai.workers.shared_weights import Base, Bases

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


@pytest.fixture(autouse=True)
def _own_process_state() -> Iterator[None]:
    """As the workload does it: making a base seeds the random generators."""
    with ProcessState():
        yield


def lora(r: int = 2, **changes: Any) -> LoraConfig:
    return LoraConfig(r=r, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **changes)


def base(make: Callable[[], nn.Module] = tiny_model) -> Base:
    return Base(make(), tiny_tokenizer(), make)


def storages(*models: nn.Module) -> dict[int, int]:
    """Address -> bytes of each distinct storage."""
    tensors = [t for model in models for t in (*model.parameters(), *model.buffers())]
    return {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in tensors
        if t.untyped_storage().nbytes()
    }


def num_bytes(*models: nn.Module) -> int:
    return sum(storages(*models).values())


def adapter_bytes(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


def logits(model: nn.Module) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=IDS).logits
    return result


def tied_model() -> LlamaForCausalLM:
    config = copy.deepcopy(tiny_model().config)
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


class TestClones:
    def test_n_runs_cost_one_base_and_n_adapters(self) -> None:
        shared = base()
        trees = [get_peft_model(shared.clone(private=False), lora(r)) for r in (2, 4, 8)]
        assert num_bytes(shared.model, *trees) == shared.num_bytes + sum(map(adapter_bytes, trees))
        assert num_bytes(shared.model) == shared.num_bytes
        assert len({adapter_bytes(tree) for tree in trees}) == 3

    def test_trees_share_tensors_but_nothing_else(self) -> None:
        shared = base()
        one, other = (shared.clone(private=False) for _ in range(2))
        assert storages(one) == storages(other) == storages(shared.model)
        modules = [set(map(id, tree.modules())) for tree in (one, other, shared.model)]
        assert not modules[0] & modules[1] | modules[0] & modules[2]
        configs = [tree.config for tree in (one, other, shared.model)]
        assert len(set(map(id, configs))) == 3
        assert torch.equal(logits(one), logits(shared.model))

    def test_shared_weights_are_frozen(self) -> None:
        shared = base()
        assert not any(p.requires_grad for p in shared.clone(private=False).parameters())

    def test_a_private_clone_has_its_own_weights_and_the_original_flags(self) -> None:
        def partly_frozen() -> nn.Module:
            model = tiny_model()
            model.lm_head.requires_grad_(False)
            return model

        flags = {name: p.requires_grad for name, p in partly_frozen().named_parameters()}
        shared = base(partly_frozen)
        private = shared.clone(private=True)
        assert not storages(private).keys() & storages(shared.model).keys()
        assert {name: p.requires_grad for name, p in private.named_parameters()} == flags
        assert set(flags.values()) == {True, False}
        for (_, mine), (_, theirs) in zip(
            private.named_parameters(), shared.model.named_parameters(), strict=True
        ):
            assert torch.equal(mine, theirs)

    def test_training_a_private_clone_changes_nobody_else(self) -> None:
        shared = base()
        sharer = shared.clone(private=False)
        before = logits(sharer)
        private = shared.clone(private=True)
        private(input_ids=IDS, labels=IDS).loss.backward()
        torch.optim.SGD(private.parameters(), lr=1.0).step()
        assert not torch.equal(logits(private), before)
        assert torch.equal(logits(sharer), before)
        shared.verify()

    @pytest.mark.parametrize("private", [False, True])
    def test_tied_embeddings_stay_tied(self, private: bool) -> None:
        shared = base(tied_model)
        tree: Any = shared.clone(private=private)
        assert tree.lm_head.weight is tree.model.embed_tokens.weight
        assert num_bytes(tree) == shared.num_bytes

    def test_a_peft_model_of_the_users_shares_its_base_and_owns_its_adapter(self) -> None:
        shared = base(lambda: get_peft_model(tiny_model(), lora()))
        trees = [shared.clone(private=False) for _ in range(3)]
        adapter = adapter_bytes(shared.model)
        assert adapter > 0
        assert num_bytes(*trees) == shared.num_bytes - adapter + 3 * adapter
        for tree in trees:
            assert {n for n, p in tree.named_parameters() if p.requires_grad} == {
                n for n, p in tree.named_parameters() if "lora_" in n
            }
        for parameter in trees[0].parameters():
            if parameter.requires_grad:
                parameter.data.add_(1)
        assert not torch.equal(logits(trees[0]), logits(trees[1]))
        assert torch.equal(logits(trees[1]), logits(shared.model))
        shared.verify()

    def test_what_the_users_adapter_trains_of_the_base_is_the_runs_own(self) -> None:
        config = lora(modules_to_save=["lm_head"])
        shared = base(lambda: get_peft_model(tiny_model(), config))
        one, other = (shared.clone(private=False) for _ in range(2))
        trained = {n for n, p in one.named_parameters() if p.requires_grad}
        assert any("lm_head" in name for name in trained)
        own = dict(one.named_parameters())
        for name, parameter in other.named_parameters():
            assert (parameter is own[name]) == (name not in trained and "lora_" not in name), name

    def test_num_bytes_counts_tied_weights_once(self) -> None:
        model = tied_model()
        embedding = model.lm_head.weight
        untied = sum(t.numel() * 4 for t in tiny_model().parameters())
        buffers = sum(b.numel() * b.element_size() for b in model.buffers())
        assert base(tied_model).num_bytes == untied - embedding.numel() * 4 + buffers

    def test_the_clones_of_a_used_tree_are_pristine(self) -> None:
        shared = base()
        used: Any = shared.clone(private=False)
        used.forward = lambda **_: None
        used.lm_head.register_forward_hook(lambda *_: torch.zeros(1))
        fresh = shared.clone(private=False)
        assert torch.equal(logits(fresh), logits(shared.model))


SHARING: dict[str, list[dict[str, Any]]] = {
    "LoraConfig": [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"]},
                   {"trainable_token_indices": [1, 2]}, {"init_lora_weights": "eva"},
                   {"init_lora_weights": "orthogonal"}, {"init_lora_weights": "gaussian"},
                   {"target_parameters": ["mlp.up_proj.weight"]}],
    "IA3Config": [{}],
    "LoKrConfig": [{}],
    "VeraConfig": [{}],
    "OFTConfig": [{}],
    "LNTuningConfig": [{"target_modules": ["input_layernorm"]}],
    "PromptTuningConfig": [{"num_virtual_tokens": 2}],
    "PrefixTuningConfig": [{"num_virtual_tokens": 2}],
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize(
    ("method", "arguments"),
    [(method, arguments) for method, variants in SHARING.items() for arguments in variants],
    ids=lambda value: value if isinstance(value, str) else json.dumps(value),
)
def test_adapters_that_leave_a_shared_base_alone(method: str, arguments: dict[str, Any]) -> None:
    shared = base()
    cls = getattr(peft, method)
    if "target_modules" in inspect.signature(cls).parameters:
        arguments = {"target_modules": ["q_proj", "v_proj"], **arguments}
    tree = get_peft_model(shared.clone(private=False), cls(task_type="CAUSAL_LM", **arguments))
    trained = [p for p in tree.parameters() if p.requires_grad]
    for _ in range(2):
        tree(input_ids=IDS, labels=IDS).loss.backward()
        torch.optim.SGD(trained, lr=0.1).step()
    shared.verify()


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
def test_adapters_that_rewrite_the_base_are_caught(init: str) -> None:
    shared = base()
    get_peft_model(shared.clone(private=False), lora(init_lora_weights=init))
    with pytest.raises(SharedWeightsError):
        shared.verify()
    shared.verify()


def query(model: nn.Module) -> nn.Parameter:
    return dict(model.named_parameters())["model.layers.0.self_attn.q_proj.weight"]


def _in_place(model: nn.Module) -> None:
    with torch.no_grad():
        query(model).mul_(2)


def _one_value(model: nn.Module) -> None:
    query(model).data[3, 5] += 1e-3


def _data(model: nn.Module) -> None:
    query(model).data += 1


def _storage(model: nn.Module) -> None:
    query(model).data = torch.zeros_like(query(model))


def _same_values_elsewhere(model: nn.Module) -> None:
    query(model).data = query(model).data.clone()


def _dtype(model: nn.Module) -> None:
    query(model).data = query(model).data.to(torch.bfloat16)


def _whole_dtype(model: nn.Module) -> None:
    model.to(torch.bfloat16)


def _shape(model: nn.Module) -> None:
    model.resize_token_embeddings(600)  # type: ignore[operator]


def _buffer(model: nn.Module) -> None:
    next(model.buffers()).mul_(2)


def _trained(model: nn.Module) -> None:
    model.requires_grad_(True)
    model(input_ids=IDS, labels=IDS).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def _merged_and_unmerged(model: nn.Module) -> None:
    adapted = get_peft_model(model, lora(init_lora_weights=False))
    adapted.merge_adapter()
    adapted.unmerge_adapter()


WRITES = (_in_place, _one_value, _data, _storage, _same_values_elsewhere, _dtype, _whole_dtype,
          _buffer, _trained, _merged_and_unmerged)  # fmt: skip


class TestGuard:
    @pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__[1:])
    def test_a_write_is_noticed_and_undone(self, write: Callable[[nn.Module], None]) -> None:
        shared = base()
        guilty, sharer = (shared.clone(private=False) for _ in range(2))
        before, places = logits(sharer), storages(sharer)
        write(guilty)
        with pytest.raises(SharedWeightsError, match="share_base=False") as caught:
            shared.verify()
        assert "have been restored" in str(caught.value)
        assert torch.equal(logits(sharer), before)
        assert storages(sharer) == storages(shared.model) == places
        assert all(p.dtype == torch.float32 and p.grad is None for p in sharer.parameters())
        assert not any(p.requires_grad for p in sharer.parameters())
        shared.verify()
        later = shared.clone(private=False)
        assert torch.equal(logits(later), before)

    @pytest.mark.parametrize(
        "write", (_in_place, _data, _storage, _trained, _merged_and_unmerged),
        ids=lambda write: write.__name__[1:],
    )  # fmt: skip
    def test_a_glance_finds_writes_to_whole_tensors(
        self, write: Callable[[nn.Module], None]
    ) -> None:
        shared = base()
        shared.glance()
        write(shared.clone(private=False))
        with pytest.raises(SharedWeightsError, match="have been restored"):
            shared.glance()
        shared.glance()

    def test_new_embeddings_of_a_tree_are_its_own(self) -> None:
        shared = base()
        guilty, sharer = (shared.clone(private=False) for _ in range(2))
        before = logits(sharer)
        _shape(guilty)
        with pytest.raises(SharedWeightsError):
            shared.verify()
        assert torch.equal(logits(sharer), before)

    def test_base_weights_that_a_run_unfreezes_are_frozen_again(self) -> None:
        # Their gradients would count when a neighbour clips its own.
        shared = base()
        guilty, sharer = (shared.clone(private=False) for _ in range(2))
        query(guilty).requires_grad_(True)
        with pytest.raises(SharedWeightsError):
            shared.verify()
        assert not any(p.requires_grad for p in sharer.parameters())
        shared.verify()

    def test_reading_is_no_write(self) -> None:
        shared = base()
        tree = get_peft_model(shared.clone(private=False), lora(lora_dropout=0.5))
        optimizer = torch.optim.AdamW([p for p in tree.parameters() if p.requires_grad])
        for _ in range(3):
            tree(input_ids=IDS, labels=IDS).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        with tree.disable_adapter():
            assert torch.equal(logits(tree), logits(shared.model))
        shared.verify()

    def test_an_undone_write_under_the_version_counter_is_none(self) -> None:
        shared = base()
        weight = query(shared.clone(private=False))
        with torch.no_grad():
            weight.mul_(2)
            weight.div_(2)
        shared.verify()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_other_dtypes(self, dtype: torch.dtype) -> None:
        shared = base(lambda: tiny_model().to(dtype))
        tree = shared.clone(private=False)
        shared.verify()
        query(tree).data[0, 0] += 1
        with pytest.raises(SharedWeightsError):
            shared.verify()

    def test_tensors_of_odd_sizes(self) -> None:
        def make() -> nn.Module:
            model = nn.Linear(3, 5)
            nn.init.ones_(model.weight)
            nn.init.ones_(model.bias)
            model.register_buffer("scalar", torch.tensor(2.0))
            model.register_buffer("empty", torch.empty(0))
            model.register_buffer("mask", torch.tensor([True, False, True]))
            return model

        shared = base(make)
        for name in ("weight", "bias", "scalar", "mask"):
            shared.verify()
            tensor = getattr(shared.clone(private=False), name)
            tensor.data = tensor.data.clone().logical_not_()
            with pytest.raises(SharedWeightsError):
                shared.verify()

    def test_a_model_that_cannot_be_made_again_is_not_trusted(self) -> None:
        calls = []

        def make() -> nn.Module:
            calls.append(1)
            if len(calls) > 1:
                raise OSError("the hub is gone")
            return tiny_model()

        shared = base(make)
        _data(shared.clone(private=False))
        for _ in range(2):
            with pytest.raises(SharedWeightsError, match="OSError: the hub is gone"):
                shared.verify()

    def test_nor_one_that_comes_out_differently(self) -> None:
        seeds = iter(range(10))
        shared = base(lambda: tiny_model(seed=next(seeds)))
        _data(shared.clone(private=False))
        for _ in range(2):
            with pytest.raises(SharedWeightsError, match="cannot be restored: create_model gives"):
                shared.verify()

    def test_nor_one_that_create_model_keeps(self) -> None:
        kept = tiny_model()
        shared = base(lambda: kept)
        _data(shared.clone(private=False))
        with pytest.raises(SharedWeightsError, match="or the same model"):
            shared.verify()


class Created:
    """A `create_model` that counts its calls and reads as it is told."""

    def __init__(
        self,
        read: Callable[[dict[str, Any]], object],
        make: Callable[[], nn.Module] = tiny_model,
    ) -> None:
        self.calls = 0
        self._read = read
        self._make = make

    def __call__(self, config: dict[str, Any]) -> tuple[Any, Any]:
        self.calls += 1
        self._read(config)
        return self._make(), tiny_tokenizer()


def _unpacked(**config: Any) -> object:
    return config


ONE_KEY: Mapping[str, Callable[[dict[str, Any]], object]] = {
    "[]": lambda config: config["name"],
    "get": lambda config: config.get("name"),
    "get with default": lambda config: config.get("name", "none"),
    "in": lambda config: "name" in config and config["name"],
    "pop": lambda config: config.pop("name"),
    "setdefault": lambda config: config.setdefault("name", "none"),
    "[] after a change": lambda config: config.update(other=1) or config["name"],
}
ALL_KEYS: Mapping[str, Callable[[dict[str, Any]], object]] = {
    "items": lambda config: list(config.items()),
    "keys": lambda config: list(config.keys()),
    "values": lambda config: list(config.values()),
    "iteration": lambda config: list(config),
    "dict()": lambda config: dict(config),
    "**": lambda config: _unpacked(**config),
    "{**}": lambda config: {**config},
    "copy": lambda config: config.copy(),
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "|": lambda config: config | {},
    "reversed |": lambda config: {} | config,
    "==": lambda config: config == {},
    "json": json.dumps,
    "sorted": sorted,
}


class TestIdentity:
    @pytest.mark.parametrize("how", ONE_KEY)
    def test_configurations_that_agree_on_what_is_read_share(self, how: str) -> None:
        create = Created(ONE_KEY[how])
        bases = Bases(create, CPU)
        first = bases.get({"name": "a", "other": 1}, seed=1)
        assert bases.get({"name": "a", "other": 2}, seed=2) is first
        assert bases.get({"name": "a"}, seed=2) is first
        assert create.calls == 1
        assert bases.get({"name": "b", "other": 1}, seed=1) is not first
        assert create.calls == 2
        assert bases.num_bases == 2
        assert bases.get({"name": "b", "other": 7}, seed=1) is not first
        assert create.calls == 2

    @pytest.mark.parametrize("how", ALL_KEYS)
    def test_reading_all_makes_all_count(self, how: str) -> None:
        create = Created(ALL_KEYS[how])
        bases = Bases(create, CPU)
        first = bases.get({"name": "a", "other": 1}, seed=1)
        assert bases.get({"other": 1, "name": "a"}, seed=1) is first
        assert bases.get({"name": "a", "other": 2}, seed=1) is not first
        assert create.calls == 2

    def test_a_key_that_was_looked_for_in_vain_counts(self) -> None:
        create = Created(lambda config: config.get("dtype"))
        bases = Bases(create, CPU)
        first = bases.get({"name": "a"}, seed=1)
        assert bases.get({"name": "b"}, seed=1) is first
        assert bases.get({"name": "b", "dtype": "float32"}, seed=1) is not first
        assert bases.get({"name": "b", "dtype": None}, seed=1) is not first

    def test_looking_at_the_size_or_printing_reads_nothing(self) -> None:
        create = Created(lambda config: (repr(config), str(config), len(config), bool(config)))
        bases = Bases(create, CPU)
        assert bases.get({"name": "a"}, 1) is bases.get({"name": "b"}, 1)

    def test_nested_values_are_compared_by_value(self) -> None:
        create = Created(lambda config: config["kwargs"]["dtype"])
        bases = Bases(create, CPU)
        first = bases.get({"kwargs": {"dtype": "float32"}}, seed=1)
        assert bases.get({"kwargs": {"dtype": "float32"}}, seed=1) is first
        assert bases.get({"kwargs": {"dtype": "bfloat16"}}, seed=1) is not first

    def test_create_model_may_change_what_it_is_given(self) -> None:
        create = Created(lambda config: config["kwargs"].pop("dtype"))
        bases = Bases(create, CPU)
        config = {"kwargs": {"dtype": "float32"}}
        assert bases.get(config, seed=1) is bases.get(config, seed=1)
        assert config == {"kwargs": {"dtype": "float32"}}

    def test_the_seed_counts_where_weights_are_drawn(self) -> None:
        def with_new_head() -> nn.Module:
            model = tiny_model()
            nn.init.normal_(model.lm_head.weight)
            return model

        create = Created(lambda config: config["name"], with_new_head)
        bases = Bases(create, CPU)
        one = bases.get({"name": "a"}, seed=1)
        assert bases.get({"name": "a"}, seed=1) is one
        other = bases.get({"name": "a"}, seed=2)
        assert create.calls == 2
        assert not torch.equal(logits(one.model), logits(other.model))
        again = Bases(Created(lambda config: None, with_new_head), CPU)
        assert torch.equal(logits(again.get({}, seed=2).model), logits(other.model))
        # Restoring draws the same head again.
        before = logits(other.model)
        torch.rand(5)
        _data(other.clone(private=False))
        with pytest.raises(SharedWeightsError, match="have been restored"):
            other.verify()
        assert torch.equal(logits(other.model), before)

    def test_a_model_that_create_model_keeps_is_held_once(self) -> None:
        kept = tiny_model()
        created = []

        def create(config: dict[str, Any]) -> tuple[Any, Any]:
            created.append(config["name"])
            return kept, tiny_tokenizer()

        bases = Bases(create, CPU)
        one, other = bases.get({"name": "a"}, seed=1), bases.get({"name": "b"}, seed=1)
        assert created == ["a", "b"]
        assert one.tokenizer is not other.tokenizer
        assert bases.num_bases == 1
        assert all(p.requires_grad for p in other.clone(private=True).parameters())


def _raising(config: dict[str, Any]) -> Any:
    raise KeyError("model_nme")


BAD: Mapping[str, tuple[Callable[..., Any], list[str]]] = {
    "raises": (_raising, ["create_model raised KeyError: 'model_nme'", "['model_name']"]),
    "takes nothing": (lambda: None, ["create_model raised TypeError", "takes 0 positional"]),
    "one value": (
        lambda config: tiny_model(),
        ["returned one value, a LlamaForCausalLM; it has to return two values, (model, tokenizer)"],
    ),
    "three values": (lambda config: (tiny_model(), tiny_tokenizer(), 1), ["returned 3 values"]),
    "nothing": (lambda config: None, ["returned None; it has to return two values"]),
    "a name": (
        lambda config: ("gpt2", tiny_tokenizer()),
        ["returned a str as the model; it has to be a transformers model or a PeftModel"],
    ),
    "swapped": (
        lambda config: (tiny_tokenizer(), tiny_model()),
        ["as the model; it has to be a transformers model"],
    ),
    "no tokenizer": (
        lambda config: (tiny_model(), None),
        ["returned a NoneType as the tokenizer", "AutoTokenizer.from_pretrained(...)"],
    ),
    "tokenizer's name": (lambda config: (tiny_model(), "gpt2"), ["a str as the tokenizer"]),
    "not loaded": (
        lambda config: (tiny_model().to("meta"), tiny_tokenizer()),
        ["a model that is not wholly loaded", "has to fit on cpu"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_create_model_must_not_do(name: str) -> None:
    create, parts = BAD[name]
    bases = Bases(create, CPU)
    with pytest.raises(CreateModelError) as caught:
        bases.get({"model_name": "tiny"}, seed=1)
    for part in parts:
        assert part in str(caught.value)
    assert bases.num_bases == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in bf16 on disk."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model().to(torch.bfloat16).save_pretrained(folder)
    return folder


class TestDeviceMap:
    def load(self, folder: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, device_map="auto", dtype="auto")

    def test_auto_still_shares(self, folder: Path) -> None:
        create = Created(lambda config: config["model_name"], lambda: self.load(folder))
        bases = Bases(create, CPU)
        shared = bases.get({"model_name": str(folder)}, seed=1)
        assert bases.get({"model_name": str(folder)}, seed=2) is shared
        assert create.calls == 1
        trees = [get_peft_model(shared.clone(private=False), lora(r)) for r in (2, 4)]
        assert {p.dtype for p in shared.model.parameters()} == {torch.bfloat16}
        assert num_bytes(shared.model, *trees) == shared.num_bytes + sum(map(adapter_bytes, trees))
        for tree in trees:
            tree(input_ids=IDS, labels=IDS).loss.backward()
        shared.verify()

    def test_a_private_copy_of_it_trains_alone(self, folder: Path) -> None:
        shared = base(lambda: self.load(folder))
        private: Any = shared.clone(private=True)
        assert all(p.requires_grad for p in private.parameters())
        private(input_ids=IDS, labels=IDS).loss.backward()
        torch.optim.SGD(private.parameters(), lr=1.0).step()
        shared.verify()
        assert not torch.equal(logits(private), logits(shared.model))

    def test_a_model_spread_over_devices_is_put_on_one(self, folder: Path) -> None:
        def spread() -> Any:
            model = self.load(folder)
            model.hf_device_map = {"model": 0, "lm_head": 1}
            return model

        model: Any = Bases(Created(lambda config: None, spread), CPU).get({}, seed=1).model
        assert set(model.hf_device_map.values()) == {CPU}


def test_an_adapter_on_a_shared_base_saves_and_loads(tmp_path: Path) -> None:
    shared = base()
    tree = get_peft_model(shared.clone(private=False), lora(init_lora_weights=False))
    tree.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_model(), tmp_path)), logits(tree))


def test_tiny_model_draws_nothing() -> None:
    assert isinstance(tiny_model().config, LlamaConfig)
    before = torch.get_rng_state()
    tiny_model()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore")  # of bitsandbytes, that it rounds
def test_trees_of_an_8_bit_base_share_its_bits_and_each_finds_its_scales() -> None:
    from bitsandbytes.nn import Linear8bitLt

    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(Linear8bitLt(32, 16, bias=False, has_fp16_weights=False)).to(CPU)

    shared, rows = base(make), torch.randn(3, 32)
    trees = [shared.clone(private=False) for _ in range(2)]
    # The first pass through a layer takes the scales off its parameter.
    first, second, alone = (tree(rows) for tree in (*trees, make()))
    assert torch.equal(first, alone)
    assert torch.equal(second, alone)
    assert storages(*trees) == storages(trees[0])
    shared.verify()
