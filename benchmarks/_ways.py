"""Ways to train the same configurations: one after the other with plain TRL, and by turns.

Each loads the base once, prepares the data, builds a trainer for each configuration, trains it and
saves its adapter. Nothing of the engine is in the plain way.
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
import trl
from datasets import load_from_disk
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback

from benchmarks._case import LORA, SEED, Case
from rapidfireai import Experiment, RFLoraConfig, RFModelConfig, RFSFTConfig
from rapidfireai.core.events import ChunkAssigned, ChunkFinished
from rapidfireai.core.run import Run, RunStatus


@dataclass(slots=True)
class Timeline:
    """How long what took, in seconds."""

    total_s: float = 0.0
    cpu_s: float = 0.0
    """Processor time of the whole process; neighbours on the machine change it less."""
    setup_s: list[float] = field(default_factory=list)
    """Of each configuration, until its first step; the first one's includes the base and data."""
    step_s: float = 0.0
    """Inside all optimizer steps together."""
    gap_s: list[float] = field(default_factory=list)
    """From a step's end to the next one's begin, both of the same configuration."""
    switch_s: list[float] = field(default_factory=list)
    """Likewise, but the next one is of another configuration, which was paused in between."""
    finish_s: list[float] = field(default_factory=list)
    """Of each configuration, from its last step's end until its adapter is saved."""
    compared_s: list[float] = field(default_factory=list)
    """From the beginning until each configuration's first chunk is done, and evaluated."""
    adapters: list[Path] = field(default_factory=list)


class Marks(TrainerCallback):
    """Notes when steps begin and end. One for all trainers, also where each would get a copy."""

    def __init__(self, device: torch.device) -> None:
        self.steps: list[tuple[str, float, float]] = []
        """(output folder, begin, end) in the order in which they were done."""
        self.evaluated: dict[str, float] = {}
        """Output folder -> end of the first evaluation."""
        self._device = device
        self._begin = 0.0

    def __deepcopy__(self, memo: dict[int, Any]) -> "Marks":
        return self

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._begin = now_s(self._device)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.steps.append((args.output_dir, self._begin, now_s(self._device)))

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.evaluated.setdefault(args.output_dir, now_s(self._device))

    def by_run(self) -> dict[str, list[tuple[float, float]]]:
        """Output folder -> (begin, end) of its steps; in the order of the first steps."""
        runs = defaultdict(list)
        for folder, begin, end in self.steps:
            runs[folder].append((begin, end))
        return dict(runs)


def now_s(device: torch.device) -> float:
    """The time at which all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def train_plain(case: Case, folder: Path) -> Timeline:
    """One after the other, with TRL alone."""
    timeline, marks = Timeline(), Marks(case.device)
    ends = []
    with _timed(case, timeline) as begin:
        plain = PlainTrainers(case, folder)
        for number in range(case.num_configs):
            trainer = plain.build(number, [marks])
            trainer.train()
            trainer.save_model(str(folder / str(number) / "final"))
            trainer.save_state()
            ends.append(now_s(case.device))
    _fill(timeline, marks, begins=[begin, *ends[:-1]], ends=ends)
    last_steps = {run: s[case.steps_per_chunk - 1][1] for run, s in marks.by_run().items()}
    timeline.compared_s = [at - begin for at in {**last_steps, **marks.evaluated}.values()]
    timeline.adapters = [folder / str(number) / "final" for number in range(case.num_configs)]
    return timeline


class PlainTrainers:
    """Builds trainers as anybody would, over a base that is loaded once.

    They share its frozen weights, which is more than most scripts do, and what the first has
    tokenised: the comparison is with the quickest sequence there is.
    """

    def __init__(self, case: Case, folder: Path) -> None:
        self._case = case
        self._folder = folder
        base, self._tokenizer = case.create_model({})
        self._base = base.to(case.device)
        self._data = [
            _on_disk(rows, folder / name)
            for name, rows in zip(("train", "eval"), case.rows(), strict=True)
        ]

    def build(self, number: int, callbacks: list[TrainerCallback], **arguments: Any) -> Any:
        """The trainer of configuration `number`, which writes to a folder of its own."""
        on_cpu = self._case.device.type == "cpu"
        shared = {id(t): t for t in [*self._base.parameters(), *self._base.buffers()]}
        given = {"save_strategy": "no", **self._case.arguments(number), **arguments}
        kind = self._case.trainer
        trainer = getattr(trl, f"{kind}Trainer")(
            model=copy.deepcopy(self._base, shared),
            args=getattr(trl, f"{kind}Config")(
                output_dir=str(self._folder / str(number)),
                use_cpu=on_cpu,
                dataloader_pin_memory=not on_cpu,
                disable_tqdm=True,
                **given,
            ),
            train_dataset=self._data[0],
            eval_dataset=self._data[1],
            processing_class=copy.deepcopy(self._tokenizer),
            peft_config=LoraConfig(**LORA),
            callbacks=callbacks,
            **self._case.objects(),
        )
        trainer.remove_callback(PrinterCallback)
        return trainer


class Watch:
    """Notes when runs get their first turn, finish their first chunk and end; a tracker."""

    def __init__(self, device: torch.device) -> None:
        self.assigned: dict[int, float] = {}
        self.compared: dict[int, float] = {}
        self.ended: dict[int, float] = {}
        self._device = device

    def on_event(self, before: Run, event: object, after: Run) -> None:
        """Called once the event is in the store."""
        at = now_s(self._device)
        if isinstance(event, ChunkAssigned):
            self.assigned.setdefault(after.id, at)
        if isinstance(event, ChunkFinished) or after.ended:
            self.compared.setdefault(after.id, at)
        if after.ended:
            self.ended[after.id] = at


def train_engine(case: Case, folder: Path) -> Timeline:
    """All by turns, through the public API."""
    timeline, marks, watch = Timeline(), Marks(case.device), Watch(case.device)
    with _timed(case, timeline) as begin:
        train, evaluation = case.rows()
        experiment = Experiment("benchmark", experiment_path=folder)
        experiment.run_fit(
            [
                RFModelConfig(
                    peft_config=RFLoraConfig(**LORA),
                    training_args=RFSFTConfig(**case.arguments(number)),
                    callbacks=[marks],
                )
                for number in range(case.num_configs)
            ],
            case.create_model,
            train,
            evaluation,
            num_chunks=case.num_chunks,
            seed=SEED,
            trackers=[watch],
        )
    runs = experiment.get_runs_info().sort_values("run_id")
    experiment.end()
    if set(runs["status"]) != {RunStatus.COMPLETED}:
        raise RuntimeError(f"not all runs completed; see {experiment.get_log_file_path()}")
    order = list(watch.assigned)
    begins = [begin, *(watch.assigned[run] for run in order[1:])]
    _fill(timeline, marks, begins, [watch.ended[run] for run in order])
    timeline.compared_s = [at - begin for at in watch.compared.values()]
    timeline.adapters = [Path(path) for path in runs["path"]]
    return timeline


def rebuild_costs_s(case: Case, folder: Path, num_chunks: int) -> list[float]:
    """What it costs to resume a configuration for one chunk without an engine.

    A new trainer over the base in memory continues from the checkpoint of the chunk before, and
    writes one at the end of its own. Returns the seconds of each, without those of its steps.
    """
    plain, costs, checkpoint = PlainTrainers(case, folder), [], None
    for chunk in range(num_chunks + 1):
        begin, marks = now_s(case.device), Marks(case.device)
        stop = StopAt((chunk + 1) * case.steps_per_chunk)
        trainer = plain.build(0, [marks, stop], save_total_limit=1)
        trainer.train(resume_from_checkpoint=checkpoint)
        end = now_s(case.device)
        checkpoint = f"{trainer.args.output_dir}/checkpoint-{stop.step}"
        costs.append(end - begin - (marks.steps[-1][2] - marks.steps[0][1]))
    return costs[1:]  # the first has nothing to resume from


class StopAt(TrainerCallback):
    """Ends a training with a checkpoint after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def _on_disk(rows: Any, folder: Path) -> Any:
    if rows is None:
        return None
    rows.save_to_disk(folder)
    return load_from_disk(folder)


@contextmanager
def _timed(case: Case, timeline: Timeline) -> Iterator[float]:
    gc.collect()
    cpu_s, begin = time.process_time(), now_s(case.device)
    yield begin
    timeline.total_s = now_s(case.device) - begin
    timeline.cpu_s = time.process_time() - cpu_s


def _fill(timeline: Timeline, marks: Marks, begins: list[float], ends: list[float]) -> None:
    """The times in, before, between and after steps; runs in the order of their first steps."""
    runs = list(marks.by_run().values())
    timeline.setup_s = [run[0][0] - begin for run, begin in zip(runs, begins, strict=True)]
    timeline.finish_s = [end - run[-1][1] for run, end in zip(runs, ends, strict=True)]
    timeline.step_s = sum(end - begin for run in runs for begin, end in run)
    firsts, lasts = {run[0][0] for run in runs}, {run[-1][1] for run in runs}
    for (run, _, end), (next_run, begin, _) in pairwise(marks.steps):
        if run == next_run:
            timeline.gap_s.append(begin - end)
        elif begin not in firsts and end not in lasts:
            timeline.switch_s.append(begin - end)
