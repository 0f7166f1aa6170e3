"""A trial: one row of docs/compatibility.md, run to see what comes of it.

The configurations of a group of trials train by turns in one experiment, and each of them alone
with plain TRL in a fresh process. What is written into the page is what was seen.
"""

import gc
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import Trainer

from rapidfireai import Experiment
from rapidfireai.automl import RFModelConfig
from rapidfireai.automl.peft_configs import PeftTemplate
from rapidfireai.automl.trainer_configs import TrainerTemplate
from rapidfireai.core.events import ChunkFinished, RunStarted
from rapidfireai.core.run import Run
from rapidfireai.errors import RapidFireError
from tests.training.scenarios import case, rows
from tests.training.solo import OWN_TRAINERS, Case, SoloRuns, made_model, own_config
from tests.training.test_exactness import create_trainer, merged, outcome

Rows = list[dict[str, Any]]


class Result(StrEnum):
    """What came of a trial."""

    EXACT = "works exactly"
    """It took turns with others, and gave the numbers that it gives alone, bit for bit."""
    NEEDS_GPU = "needs a GPU"
    """Refused on a machine without one."""
    REFUSED = "refused"
    """An error before any training."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a trial has shown."""

    result: Result
    base: str = ""
    """Whether it held the base's weights together with others, or for itself."""
    reason: str = ""
    """Of a refusal."""


def tiny_rows() -> Rows:
    """Rows that most trainers can train on."""
    return rows(8, seed=0)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What is to be tried."""

    name: str
    """The row's first cell."""
    cases: tuple[Case, ...] = ()
    group: str = ""
    """Trials of one group train in one experiment; they have all but cases and notes in common."""
    attempt: Callable[[Path], object] | None = None
    """What to try instead, where it has to be refused."""
    note: str = ""
    """For the row's last cell."""
    rows: Callable[[], Rows] = tiny_rows
    eval_rows: Callable[[], Rows] = list
    as_dataset: Callable[[Rows], Any] = Dataset.from_list
    exam: bool = False
    """True where it takes too long for every day."""


def small(trainer: str, **changes: Any) -> Case:
    """Two steps of a tiny model, with dropout on."""
    defaults = {"max_steps": 2, "per_device_train_batch_size": 2, "seed": 1}
    return case(trainer, **{**defaults, **changes})


def twice(spec: Case) -> tuple[Case, Case]:
    """The case, and with another seed and learning rate."""
    other = {"seed": spec.args["seed"] + 1, "learning_rate": spec.args["learning_rate"] / 2}
    return spec, replace(spec, args={**spec.args, **other})


def template(spec: Case) -> Any:
    """The case as a user of the engine writes it."""
    if spec.trainer in OWN_TRAINERS:
        return own_config(spec)
    peft_classes = {cls.method: cls for cls in PeftTemplate.__subclasses__()}
    return RFModelConfig(
        model_name="tiny",
        peft_config=None if spec.lora is None else peft_classes[spec.peft](**spec.lora),
        training_args=TrainerTemplate.classes[spec.trainer](**spec.args),
        **spec.kwargs,
    )


def train_together(
    group: Sequence[Trial], folder: Path, trackers: Sequence[Any] = ()
) -> Experiment:
    """The cases of all trials by turns.

    Raises:
        RapidFireError: One of them is refused.
    """
    torch.set_num_threads(1)
    first, cases = group[0], [spec for trial in group for spec in trial.cases]
    evaluation = first.eval_rows()
    experiment = Experiment("trial", experiment_path=folder)
    experiment.run_fit(
        [template(spec) for spec in cases],
        create_model=lambda config: made_model(cases[0]),
        train_dataset=first.as_dataset(first.rows()),
        eval_dataset=first.as_dataset(evaluation) if evaluation else None,
        create_trainer=create_trainer if first.cases[0].trainer in OWN_TRAINERS else None,
        num_chunks=2,
        trackers=list(trackers),
    )
    return experiment


def see(group: Sequence[Trial], folder: Path, solo: SoloRuns) -> dict[str, Seen | AssertionError]:
    """What comes of the trials, by name; where a run failed or gave other numbers, the error."""
    first, cases = group[0], [spec for trial in group for spec in trial.cases]
    data = first.rows(), first.eval_rows(), first.as_dataset
    turns, holdings = Turns(), Holdings(cases[0])
    try:
        alone = [solo.start(spec, *data) for spec in cases]
        experiment = train_together(group, folder, [turns, holdings])
    except RapidFireError as error:
        assert not turns.has_begun, "refused only once training had begun"
        guilty = _refused_one(error, group)
        others = [trial for trial in group if trial is not guilty]
        return {guilty.name: _refusal(error), **(see(others, folder, solo) if others else {})}
    info = experiment.get_runs_info()
    seen: dict[str, Seen | AssertionError] = {}
    numbers = iter(range(len(cases)))
    for trial in group:
        mine = [next(numbers) for _ in trial.cases]
        try:
            for number in mine:
                assert info["status"][number] == "completed", info["traceback"][number]
                expected, got = alone[number].result(timeout=600), outcome(experiment, number + 1)
                assert got.losses == expected.losses, f"losses of {cases[number]}"
                assert got.rows == merged(expected.rows), f"log rows of {cases[number]}"
                assert got.weights == expected.weights, f"weights of {cases[number]}"
            first_round = turns.taken[: len(cases)]
            assert len(set(first_round)) == len(first_round), "the runs did not take turns"
            (base,) = {holdings.told(number) for number in mine}
            seen[trial.name] = Seen(result=Result.EXACT, base=base)
        except AssertionError as error:
            seen[trial.name] = error
    return seen


def refusal(attempt: Callable[[Path], object], folder: Path) -> Seen:
    """The answer to what cannot work.

    Raises:
        AssertionError: It was not refused, or only once training had begun.
    """
    try:
        attempt(folder)
    except RapidFireError as error:
        return _refusal(error)
    raise AssertionError("it was not refused")


def _refusal(error: RapidFireError) -> Seen:
    reason = str(error)
    result = Result.NEEDS_GPU if "needs a GPU" in reason else Result.REFUSED
    return Seen(result=result, reason=reason)


def _refused_one(error: RapidFireError, group: Sequence[Trial]) -> Trial:
    """The trial that was refused; errors say which configuration they are about."""
    if len(group) == 1:
        return group[0]
    said = re.search(r"configuration (\d+) of", " ".join(getattr(error, "__notes__", ())))
    if said is None:
        raise error
    owners = [trial for trial in group for _ in trial.cases]
    return owners[int(said[1]) - 1]


def refused(name: str, spec: Case, **parts: Any) -> Trial:
    """A trial of what has to be refused."""
    kept = Trial(name=name, cases=(spec,), **parts)
    return replace(kept, cases=(), attempt=lambda folder: _fit_one(kept, folder))


def _fit_one(trial: Trial, folder: Path) -> None:
    turns = Turns()
    try:
        train_together([trial], folder, [turns])
    finally:
        assert not turns.has_begun, "refused only once training had begun"


class Turns:
    """Whose chunks ended, in order; a tracker."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.has_begun = False

    def on_event(self, before: Run, event: Any, after: Run) -> None:
        self.has_begun = True
        if isinstance(event, ChunkFinished):
            self.taken.append(after.id)


class Holdings:
    """What runs hold beside each other, looked at whenever one has been built; a tracker."""

    def __init__(self, spec: Case) -> None:
        weights = made_model(spec)[0].named_parameters()
        # Adapters that the model brings along are each run's own.
        self._base = _num_bytes(storages(w for name, w in weights if "lora_" not in name))
        self._shared: dict[str, int] = {}
        """Bytes of the weights that a run holds together with another."""
        self._mixed: set[str] = set()
        """Runs that train weights which another holds."""

    def on_event(self, before: Run, event: Any, after: Run) -> None:
        if not isinstance(event, RunStarted):
            return
        gc.collect()
        held, trained = {}, {}
        for trainer in [item for item in gc.get_objects() if issubclass(type(item), Trainer)]:
            run, weights = Path(trainer.args.output_dir).name, list(trainer.model.parameters())
            held[run] = storages(weights)
            trained[run] = set(storages(w for w in weights if w.requires_grad))
        new = str(after.id)
        for other in held.keys() - {new}:
            places = held[new].keys() & held[other].keys()
            shared = _num_bytes({place: held[new][place] for place in places})
            if places & (trained[new] | trained[other]):
                self._mixed |= {new, other}
            for run in (new, other):
                self._shared[run] = max(shared, self._shared.get(run, 0))

    def told(self, number: int) -> str:
        """Whether a run held the base together with another, in the page's words."""
        run = str(number + 1)
        assert run not in self._mixed, "weights that are trained are shared"
        shared = self._shared[run]
        if shared >= self._base:
            return "shared"
        assert not shared, f"{shared} of {self._base} bytes are shared"
        return "a copy"


def storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Bytes by address."""
    found = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in found}


def _num_bytes(held: Mapping[int, int]) -> int:
    return sum(held.values())
