"""Two ways to train the same configurations: one after the other with plain TRL, and by turns.

Both load the base once, prepare the data, build a trainer for each configuration, train it and
save its adapter. Nothing of the engine is in the plain way.
"""

import copy
import gc
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from datasets import load_from_disk
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from benchmarks._case import LORA, SEED, Case
from rapidfireai import Experiment, RFLoraConfig, RFModelConfig, RFSFTConfig
from rapidfireai.core.events import ChunkAssigned, ChunkFinished, RunStarted
from rapidfireai.core.run import Run


@dataclass(slots=True)
class Timeline:
    """When what happened, in seconds since the beginning."""

    total_s: float = 0.0
    cpu_s: float = 0.0
    """Processor time of the whole process; neighbours on the machine change it less."""
    setup_s: list[float] = field(default_factory=list)
    """Of each configuration, until its first step begins."""
    finish_s: list[float] = field(default_factory=list)
    """Of each configuration, from its last step's end until its adapter is saved."""
    first_chunk_s: list[float] = field(default_factory=list)
    """When each configuration's first chunk was done."""
    step_s: float = 0.0
    """Inside all optimizer steps together."""
    gap_s: list[float] = field(default_factory=list)
    """From a step's end to the next one's begin, both of the same configuration."""
    switch_s: list[float] = field(default_factory=list)
    """From a step's end to the next one's begin, of another configuration and not its first."""
    adapters: list[Path] = field(default_factory=list)


class Marks(TrainerCallback):
    """Notes when steps begin and end. One for all trainers, also where each would get a copy."""

    def __init__(self, device: torch.device) -> None:
        self.steps: list[tuple[str, float, float]] = []
        """(output folder, begin, end) in the order in which they were done."""
        self._device = device
        self._begin = 0.0

    def __deepcopy__(self, memo: dict[int, Any]) -> "Marks":
        return self

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._begin = now_s(self._device)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.steps.append((args.output_dir, self._begin, now_s(self._device)))


def now_s(device: torch.device) -> float:
    """The time at which all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def timed(case: Case, timeline: Timeline) -> Iterator[float]:
    """Measures what is done inside; gives the begin."""
    gc.collect()
    cpu_s, begin = time.process_time(), now_s(case.device)
    yield begin
    timeline.total_s = now_s(case.device) - begin
    timeline.cpu_s = time.process_time() - cpu_s


def train_plain(case: Case, folder: Path) -> Timeline:
    """One after the other, with TRL alone."""
    timeline, marks = Timeline(), Marks(case.device)
    with timed(case, timeline) as begin:
        base, tokenizer = case.create_model({})
        base.to(case.device)
        train, evaluation = on_disk(case, folder)
        begins, ends = [begin], []
        for number in range(case.num_configs):
            trainer = plain_trainer(
                case, number, folder / str(number), base, tokenizer, (train, evaluation), [marks]
            )
            trainer.train()
            save(trainer, folder / str(number) / "final")
            ends.append(now_s(case.device))
            begins.append(ends[-1])
    steps = by_run(marks)
    timeline.setup_s = [s[0][0] - b for s, b in zip(steps, begins, strict=False)]
    timeline.finish_s = [e - s[-1][1] for s, e in zip(steps, ends, strict=True)]
    timeline.first_chunk_s = [s[case.chunk_ends_at - 1][1] - begin for s in steps]
    timeline.adapters = [folder / str(number) / "final" for number in range(case.num_configs)]
    add_steps(timeline, marks)
    return timeline


def plain_trainer(  # noqa: PLR0913 - the parts of a trainer
    case: Case,
    number: int,
    folder: Path,
    base: Any,
    tokenizer: Any,
    data: tuple[Any, Any],
    callbacks: list[TrainerCallback],
    **arguments: Any,
) -> Any:
    """A trainer as anybody would build it, over a base that is in memory already.

    It does not copy the frozen weights, which is more than most scripts do: the comparison is with
    the quickest sequence there is.
    """
    shared = {id(t): t for t in [*base.parameters(), *base.buffers()]}
    given = {"save_strategy": "no", **case.arguments(number), **arguments}
    cpu = case.device.type == "cpu"
    trainer = SFTTrainer(
        model=copy.deepcopy(base, shared),
        args=SFTConfig(
            output_dir=str(folder),
            use_cpu=cpu,
            dataloader_pin_memory=not cpu,
            disable_tqdm=True,
            **given,
        ),
        train_dataset=data[0],
        eval_dataset=data[1],
        processing_class=copy.deepcopy(tokenizer),
        peft_config=LoraConfig(**LORA),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def on_disk(case: Case, folder: Path) -> tuple[Any, Any]:
    """The datasets in files, so that all trainers share what the first has tokenised."""
    datasets = []
    for name, rows in zip(("train", "eval"), case.rows(), strict=True):
        if rows is not None:
            rows.save_to_disk(folder / name)
            rows = load_from_disk(folder / name)
        datasets.append(rows)
    return datasets[0], datasets[1]


def save(trainer: Any, folder: Path) -> None:
    """What the engine keeps of an ended run."""
    trainer.save_model(str(folder))
    trainer.state.save_to_json(str(folder / "trainer_state.json"))


class Watch:
    """Notes when runs start, finish a chunk and end; a tracker of `run_fit`."""

    def __init__(self, device: torch.device) -> None:
        self.assigned: dict[int, float] = {}
        self.started: dict[int, float] = {}
        self.first_chunk: dict[int, float] = {}
        self.ended: dict[int, float] = {}
        self._device = device

    def on_event(self, before: Run, event: Any, after: Run) -> None:
        """Called after the event is in the store."""
        at = now_s(self._device)
        if isinstance(event, ChunkAssigned):
            self.assigned.setdefault(after.id, at)
        elif isinstance(event, RunStarted):
            self.started[after.id] = at
        elif isinstance(event, ChunkFinished) or after.ended:
            self.first_chunk.setdefault(after.id, at)
        if after.ended:
            self.ended[after.id] = at


def train_engine(case: Case, folder: Path) -> Timeline:
    """All by turns, through the public API."""
    timeline, marks, watch = Timeline(), Marks(case.device), Watch(case.device)
    with timed(case, timeline) as begin:
        train, evaluation = case.rows()
        experiment = Experiment("benchmark", experiment_path=folder)
        configs = [
            RFModelConfig(
                peft_config=RFLoraConfig(**LORA),
                training_args=RFSFTConfig(**case.arguments(number)),
                callbacks=[marks],
            )
            for number in range(case.num_configs)
        ]
        experiment.run_fit(
            configs,
            case.create_model,
            train,
            evaluation,
            num_chunks=case.num_chunks,
            seed=SEED,
            trackers=[watch],
        )
    runs = experiment.get_runs_info()
    experiment.end()
    if set(runs["status"]) != {"completed"}:
        raise RuntimeError(f"runs did not complete; see {experiment.get_log_file_path()}")
    steps = by_run(marks)
    order = sorted(watch.assigned)
    timeline.setup_s = [
        s[0][0] - watch.assigned[number] for s, number in zip(steps, order, strict=True)
    ]
    # The first one's includes the preparation of all.
    timeline.setup_s[0] += watch.assigned[order[0]] - begin
    timeline.finish_s = [
        watch.ended[number] - s[-1][1] for s, number in zip(steps, order, strict=True)
    ]
    timeline.first_chunk_s = [watch.first_chunk[number] - begin for number in order]
    timeline.adapters = [Path(path) for path in runs["path"]]
    add_steps(timeline, marks)
    return timeline


def by_run(marks: Marks) -> list[list[tuple[float, float]]]:
    """(begin, end) of the steps of each configuration, in the order of their first steps."""
    runs = defaultdict(list)
    for folder, begin, end in marks.steps:
        runs[folder].append((begin, end))
    return list(runs.values())


def add_steps(timeline: Timeline, marks: Marks) -> None:
    """Fill in the times in and between steps."""
    seen = set()
    timeline.step_s = sum(end - begin for _, begin, end in marks.steps)
    for (before, _, end), (after, begin, _) in pairwise(marks.steps):
        seen.add(before)
        if before == after:
            timeline.gap_s.append(begin - end)
        elif after in seen:
            timeline.switch_s.append(begin - end)
