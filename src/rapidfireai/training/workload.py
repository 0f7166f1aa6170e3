"""N configurations, one dataset and a `create_model`: checked together, then trained by turns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import IterableDataset

from rapidfireai.core.ids import RunId
from rapidfireai.errors import ConfigError, RapidFireError
from rapidfireai.store import Room
from rapidfireai.training.build import CreateTrainer, RunParts, RunSpec, check_copyable
from rapidfireai.training.config import CUSTOM
from rapidfireai.training.formatting import AnyDataset, Formatter, check_dataset
from rapidfireai.training.generation import prompt_and_reference
from rapidfireai.training.task import TrainingTask
from rapidfireai.workers.process_state import ProcessState
from rapidfireai.workers.shared_weights import Bases, CreateModel


def default_device() -> torch.device:
    """The first CUDA device, or else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingData:
    """What all runs train and are compared on."""

    train: AnyDataset
    eval: AnyDataset | Mapping[str, AnyDataset] | None = None

    def check(self) -> None:
        """Refuse what cannot be trained on.

        Raises:
            DatasetError: One of the datasets is no dataset, or empty.
        """
        check_dataset(self.train, "train_dataset")
        if isinstance(self.eval, Mapping):
            for name, dataset in self.eval.items():
                check_dataset(dataset, f"eval_dataset[{name!r}]")
        elif self.eval is not None:
            check_dataset(self.eval, "eval_dataset")


@dataclass(frozen=True, kw_only=True, slots=True)
class Makers:
    """The user's functions that make what runs are built from."""

    create_model: CreateModel
    create_trainer: CreateTrainer | None = None
    """None builds TRL's trainer of the configuration's type."""


class TrainingWorkload:
    """Trains TRL configurations; implements `workers.task.Workload`.

    Args:
        specs: The runs.
        makers: Of models, and possibly of trainers.
        data: The datasets.
        folder: For prepared data.
        device: Where the bases live.
        room: How runs that are to be saved wait for room on the disk.
    """

    def __init__(
        self,
        specs: Sequence[RunSpec],
        makers: Makers,
        data: TrainingData,
        folder: Path,
        device: torch.device,
        room: Room | None = None,
    ) -> None:
        self._specs = specs
        self._makers = makers
        self._data = data
        self._formatter = Formatter(folder)
        self._room = room
        self._parts: dict[RunId, RunParts] = {}
        self.bases = Bases(makers.create_model, device)

    def prepare(self) -> None:
        """Check every run as far as that goes without training, and load the bases.

        Raises:
            RapidFireError: A run cannot work; nothing has been trained.
        """
        self._data.check()
        for spec in self._specs:
            try:
                self.add(spec)
            except RapidFireError as error:
                if len(self._specs) > 1:
                    error.add_note(f"(configuration {spec.run_id} of {len(self._specs)})")
                raise

    def add(self, spec: RunSpec) -> None:
        """Check one more run, and load its base; nothing to do for one that is there.

        Raises:
            RapidFireError: The run cannot work.
        """
        if spec.run_id not in self._parts:
            with ProcessState():
                self._parts[spec.run_id] = self._prepare(spec)

    def task(self, run_id: RunId) -> TrainingTask:
        """The task of a run."""
        return TrainingTask(self._parts[run_id], self._room)

    def _prepare(self, spec: RunSpec) -> RunParts:
        if spec.config.trainer_type == CUSTOM and self._makers.create_trainer is None:
            raise ConfigError(
                f"trainer_type={CUSTOM!r} leaves the trainer to you: give "
                "run_fit(create_trainer=...), or name one of TRL's trainers."
            )
        check_copyable(spec.config)
        resolved = spec.resolve()
        args = resolved.args
        is_stream = isinstance(self._data.train, IterableDataset)
        if args is not None and args.max_steps <= 0 and is_stream:
            raise ConfigError(
                "train_dataset is a stream without a length, so the run would not know its end: "
                f"set max_steps in the training arguments (it is {args.max_steps})"
            )
        base = self.bases.get(spec.config.model, resolved.seed)
        chat = getattr(base.tokenizer, "chat_template", None) is not None
        train, notes = self._format(spec, self._data.train, "train_dataset", chat)
        evaluation = self._data.eval
        if isinstance(evaluation, Mapping):
            evaluation = {
                name: self._format(spec, dataset, f"eval_dataset[{name!r}]", chat)[0]
                for name, dataset in evaluation.items()
            }
        elif evaluation is not None:
            evaluation = self._format(spec, evaluation, "eval_dataset", chat)[0]
        if spec.config.compute_metrics is not None:
            _check_generation(evaluation)
        return RunParts(
            spec=spec,
            base=base,
            train_dataset=train,
            eval_dataset=evaluation,
            create_trainer=self._makers.create_trainer,
            notes=notes,
        )

    def _format(
        self, spec: RunSpec, dataset: AnyDataset, name: str, chat: bool
    ) -> tuple[AnyDataset, tuple[str, ...]]:
        return self._formatter.format(dataset, name, spec.config, chat=chat)


def _check_generation(evaluation: AnyDataset | Mapping[str, AnyDataset] | None) -> None:
    if evaluation is None:
        raise ConfigError(
            "compute_metrics scores texts that are generated for the eval_dataset, and there is "
            "none: give run_fit(eval_dataset=...)."
        )
    datasets = evaluation.values() if isinstance(evaluation, Mapping) else [evaluation]
    for dataset in datasets:
        prompt_and_reference(next(iter(dataset)))
