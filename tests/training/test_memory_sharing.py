"""N runs cost one base and N adapters, and the base is loaded once."""

import gc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer

from rapidfireai import Experiment
from rapidfireai.automl import (
    List,
    RFBEMADPOConfig,
    RFDPOConfig,
    RFGridSearch,
    RFLoraConfig,
    RFModelConfig,
    RFSFTConfig,
)
from rapidfireai.core.events import ChunkFinished
from rapidfireai.core.ids import RunId
from rapidfireai.core.run import Run
from rapidfireai.testing.tiny import preference_rows, text_rows, tiny_model, tiny_tokenizer
from rapidfireai.training.registry import trainer_spec
from rapidfireai.workers import memory


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def model() -> Any:
    """Big beside a small adapter."""
    return tiny_model(hidden_size=128, num_layers=3)


def storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Bytes by address."""
    found = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in found}


def all_tensors() -> list[torch.Tensor]:
    """Every tensor of the process that Python knows of."""
    gc.collect()
    return [item for item in gc.get_objects() if issubclass(type(item), torch.Tensor)]


class Census:
    """Counts at the first moment at which all runs are there, between two steps; a tracker."""

    def __init__(self, num_runs: int) -> None:
        self._num_runs = num_runs
        self._running: set[int] = set()
        self._before = sum(storages(all_tensors()).values())
        self.trainers: list[dict[str, dict[int, int]]] = []
        self.num_bytes = 0
        """Of all tensors in the process that were not there before."""

    def on_event(self, before: Run, event: Any, after: Run) -> None:
        if isinstance(event, ChunkFinished):
            self._running.add(after.id)
        if len(self._running) < self._num_runs or self.trainers:
            return
        self.num_bytes = sum(storages(all_tensors()).values()) - self._before
        trainers = [item for item in gc.get_objects() if issubclass(type(item), Trainer)]
        for trainer in trainers:
            weights = list(trainer.model.parameters())
            frozen = [tensor for tensor in weights if not tensor.requires_grad]
            reference = getattr(trainer, "ref_model", None)
            self.trainers.append(
                {
                    "frozen": storages([*frozen, *trainer.model.buffers()]),
                    "trained": storages(tensor for tensor in weights if tensor.requires_grad),
                    "reference": {} if reference is None else storages(reference.parameters()),
                }
            )

    def of(self, kind: str) -> dict[int, int]:
        """Bytes by address over all trainers; what they share is there once."""
        return {address: size for one in self.trainers for address, size in one[kind].items()}


def lora_runs(num_runs: int) -> RFModelConfig:
    return RFModelConfig(
        model_name="m",
        peft_config=RFLoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.1),
        training_args=RFSFTConfig(
            learning_rate=List([10.0**-n for n in range(num_runs)]),
            max_steps=4,
            per_device_train_batch_size=2,
            max_length=32,
        ),
    )


@pytest.mark.parametrize("how", ["made", "loaded with device_map=auto"])
def test_runs_cost_one_base_plus_adapters(how: str, tmp_path: Path) -> None:
    folder, num_runs, loads = tmp_path / "model", 6, []
    model().save_pretrained(folder)
    base_bytes = sum(storages(model().parameters()).values())

    def create_model(config: dict[str, Any]) -> tuple[Any, Any]:
        loads.append(config["model_name"])
        if how == "made":
            return model(), tiny_tokenizer()
        loaded = AutoModelForCausalLM.from_pretrained(folder, device_map="auto", dtype="auto")
        return loaded, tiny_tokenizer()

    census = Census(num_runs)
    experiment = Experiment("sharing", experiment_path=tmp_path)
    experiment.run_fit(
        lora_runs(num_runs), create_model, text_rows(), num_chunks=2, trackers=[census]
    )
    assert list(experiment.get_runs_info()["status"]) == ["completed"] * num_runs
    assert loads == ["m"]
    assert len(census.trainers) == num_runs
    weights = set.intersection(*(set(one["frozen"]) for one in census.trainers))
    assert sum(census.of("frozen")[address] for address in weights) >= base_bytes
    # Beside the weights, each run has buffers of its own: the rotary embedding's frequencies.
    assert sum(census.of("frozen").values()) < 1.001 * base_bytes
    assert len(census.of("trained")) == sum(len(one["trained"]) for one in census.trainers)
    adapters = sum(census.of("trained").values())
    assert adapters == num_runs * 3 * 2 * (2 * 128) * 4
    # Weights and two moments of AdamW; gradients are gone between steps. The rest: tokens and
    # numbers on their way.
    assert census.num_bytes < base_bytes + 3 * adapters + 0.1 * base_bytes


def test_full_finetunes_have_a_copy_each_and_share_the_reference(tmp_path: Path) -> None:
    size = {"max_steps": 2, "per_device_train_batch_size": 2, "max_length": 32}
    configs = [
        RFDPOConfig(**size, learning_rate=List([1e-4, 1e-5]), lora_rank=2),
        RFDPOConfig(**size, learning_rate=List([1e-4, 1e-5])),
        RFDPOConfig(**size, sync_ref_model=True, ref_model_sync_steps=1),
    ]
    census = Census(5)
    experiment = Experiment("sharing", experiment_path=tmp_path)
    experiment.run_fit(
        configs,
        lambda config: (model(), tiny_tokenizer()),
        preference_rows(),
        num_chunks=2,
        trackers=[census],
    )
    # A reference that is written to is the run's own: the guard would have failed the run.
    info = experiment.get_runs_info()
    assert list(info["status"]) == ["completed"] * 5, list(info["error"])
    adapted = [one for one in census.trainers if not one["reference"]]
    tuned = [one for one in census.trainers if one["reference"]]
    assert (len(adapted), len(tuned)) == (2, 3)
    base = set(adapted[0]["frozen"]) & set(adapted[1]["frozen"])
    assert [bool(base & set(one["trained"])) for one in tuned] == [False] * 3
    assert [bool(base & set(one["reference"])) for one in tuned] == [True, True, False]
    base_bytes = sum(storages(model().parameters()).values())
    references = sum(census.of("reference").values())
    assert 2 * base_bytes <= references < 2.001 * base_bytes


def test_a_reference_that_a_callback_updates_is_the_runs_own(tmp_path: Path) -> None:
    # TRL warns of experimental trainers at their import, which the registry keeps quiet.
    trainer_spec("BEMADPO").load_trainer()
    from trl.experimental.bema_for_ref_model import BEMACallback

    follows = BEMACallback(update_freq=1, update_ref_model=True, ref_model_update_freq=1)
    size = {"max_steps": 3, "per_device_train_batch_size": 2, "max_length": 32}
    configs = [
        RFModelConfig(
            training_args=RFBEMADPOConfig(**size, learning_rate=1e-2), callbacks=[follows]
        ),
        RFModelConfig(training_args=RFDPOConfig(**size, learning_rate=1e-2)),
    ]
    experiment = Experiment("bema", experiment_path=tmp_path)
    experiment.run_fit(
        RFGridSearch(configs),
        lambda config: (tiny_model(), tiny_tokenizer()),
        preference_rows(),
        num_chunks=3,
    )
    # The guard would have failed a run that writes to weights which others look at.
    info = experiment.get_runs_info()
    assert list(info["status"]) == ["completed"] * 2, list(info["error"])
    results = experiment.get_results()
    followed, fixed = (results[results["run_id"] == run_id]["loss"].to_list() for run_id in (1, 2))
    assert followed != fixed


def test_a_reference_of_the_users_that_is_synced_is_copied_for_each_run(tmp_path: Path) -> None:
    reference = tiny_model(seed=7)
    before = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    config = RFModelConfig(
        training_args=RFDPOConfig(
            learning_rate=List([1e-2, 1e-2]),
            max_steps=3,
            per_device_train_batch_size=2,
            sync_ref_model=True,
            ref_model_sync_steps=1,
        ),
        ref_model=reference,
    )
    experiment = Experiment("synced", experiment_path=tmp_path)
    experiment.run_fit(
        config, lambda config: (tiny_model(), tiny_tokenizer()), preference_rows(), num_chunks=3
    )
    results = experiment.get_results()
    losses = [results[results["run_id"] == run_id]["loss"].to_list() for run_id in (1, 2)]
    # Equal configurations: a reference that both wrote to would tell them apart.
    assert losses[0] == losses[1]
    for name, tensor in reference.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_reference_moves_with_its_run_unless_others_look_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(seed: int, **changes: Any) -> RFModelConfig:
        size = {"max_steps": 4, "per_device_train_batch_size": 2, "max_length": 32}
        synced = {"sync_ref_model": True, "ref_model_sync_steps": 1} if seed < 3 else {}
        arguments = RFDPOConfig(**size, **synced, learning_rate=1e-2, seed=seed)
        return RFModelConfig(training_args=arguments, **changes)

    users = tiny_model(seed=7)
    configs = [config(1), config(2, ref_model=users), config(3, ref_model=users), config(4)]
    own: dict[int, list[bool]] = {}

    class Watched(memory.MemoryTiers):
        def after_training(self, run_id: RunId, owner: Any) -> None:
            tensors = {id(tensor) for tensor in owner.own_tensors()}
            reference = owner._trainer.ref_model
            own[run_id] = [id(weight) in tensors for weight in reference.parameters()]
            super().after_training(run_id, owner)

    monkeypatch.setattr(memory, "MemoryTiers", Watched)
    trained = []
    for name, limit_gib in (("roomy", None), ("tight", 0.0)):
        experiment = Experiment(name, experiment_path=tmp_path)
        experiment.run_fit(
            configs,
            lambda config: (tiny_model(), tiny_tokenizer()),
            preference_rows(),
            num_chunks=3,
            memory_limit_gib=limit_gib,
        )
        info = experiment.get_runs_info()
        assert list(info["status"]) == ["completed"] * 4, list(info["error"])
        losses = experiment.get_results().dropna(subset=["loss"])
        trained.append(list(losses["loss"]))
        assert {run_id: set(each) for run_id, each in own.items()} == {
            1: {True},
            2: {True},
            3: {False},
            4: {False},
        }
    assert trained[0] == trained[1]
    assert len(trained[0]) == 4 * 4


def test_configurations_of_two_models_load_each_once(tmp_path: Path) -> None:
    for name in ("one", "two"):
        tiny_model(seed=len(name)).save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    loads = []

    def create_model(config: dict[str, Any]) -> tuple[Any, Any]:
        loads.append(Path(config["model_name"]).name)
        name = config["model_name"]
        return AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)

    experiment = Experiment("two", experiment_path=tmp_path)
    experiment.run_fit(
        RFModelConfig(
            model_name=List([tmp_path / "one", tmp_path / "two"]),
            training_args=RFSFTConfig(
                lora_rank=List([2, 4]), max_steps=1, per_device_train_batch_size=2
            ),
        ),
        create_model,
        text_rows(8),
    )
    assert list(experiment.get_runs_info()["status"]) == ["completed"] * 4
    assert loads == ["one", "two"]
