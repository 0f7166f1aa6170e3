"""Does sharing passes through the base pay, and when?

    python -m benchmarks.fused --threads 1
    python -m benchmarks.fused --accumulation 4   # on a GPU

N configurations of SFT with LoRA are trained one after the other with plain TRL, by turns, fused,
and as measuring chooses ("auto"), again and again in one process, in an order that moves on by one
each time. Building trainers is left out of all figures: it is the same in each way and hides what
is compared in short runs. With several micro-batches in a step, plain TRL is also measured with
more rows in each and fewer of them, which is what a user might do instead. On a machine with
neighbours only ratios within one run mean something, and of them the ratio of processor time most.
Without a GPU the rows about GPUs say so.
"""

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks._case import LORA, SEED, SHAPES, TINY, Case
from benchmarks._report import Report, Row, Spread
from benchmarks._ways import PlainTrainers, now_s
from benchmarks.time_slicing import quiet_libraries
from rapidfireai import (
    Experiment,
    RFDPOConfig,
    RFGRPOConfig,
    RFLoraConfig,
    RFModelConfig,
    RFSFTConfig,
)
from rapidfireai.core.events import ChunkFinished, Event, RunStarted
from rapidfireai.core.ids import RunId
from rapidfireai.core.run import Run, RunStatus

CONFIGS: Mapping[str, Any] = {"SFT": RFSFTConfig, "DPO": RFDPOConfig, "GRPO": RFGRPOConfig}

Shape = tuple[int, int] | str
"""(hidden size, layers) of a model that is made up, or one of `SHAPES`."""

CPU_SHAPES = ((64, 2), (64, 8), (256, 8))
"""(hidden size, layers) of the models that are made up for CPUs."""


@dataclass(slots=True)
class Clock:
    """What training takes, without the building of trainers."""

    device: torch.device
    wall_s: float = 0.0
    cpu_s: float = 0.0
    compared_s: list[float] = field(default_factory=list)
    """From the beginning until each configuration has done its first chunk, building included."""
    peak_gib: float | None = None
    passes: str = ""
    """How the first configuration's passes were computed in the end."""
    _begin_s: float = 0.0
    _last: tuple[float, float] = (0.0, 0.0)

    def start(self) -> None:
        _forget_peak(self.device)
        self._begin_s = now_s(self.device)
        self._last = (self._begin_s, time.process_time())

    def skip(self) -> None:
        """What has been done since the last call is not counted."""
        self._last = (now_s(self.device), time.process_time())

    def count(self) -> None:
        """What has been done since the last call is training."""
        now = (now_s(self.device), time.process_time())
        self.wall_s += now[0] - self._last[0]
        self.cpu_s += now[1] - self._last[1]
        self._last = now

    def compared(self) -> None:
        self.compared_s.append(now_s(self.device) - self._begin_s)

    def stop(self) -> None:
        self.peak_gib = _peak_gib(self.device)


class PlainMarks(TrainerCallback):
    """Tells a clock when a plain trainer's first step begins, and its first chunk ends."""

    def __init__(self, clock: Clock, steps_per_chunk: int) -> None:
        self._clock = clock
        self._steps_per_chunk = steps_per_chunk

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            self._clock.skip()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self._steps_per_chunk:
            self._clock.compared()


class EngineMarks:
    """Tells a clock the same of an engine's runs; a tracker."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._started: set[RunId] = set()

    def on_event(self, before: Run, event: Event, after: Run) -> None:
        """The time before a run has started went into building it, or the base and the data."""
        if after.id in self._started:
            self._clock.count()
        else:
            self._clock.skip()
        if isinstance(event, RunStarted):
            self._started.add(after.id)
        if isinstance(event, ChunkFinished) and event.chunk == 0:
            self._clock.compared()


def train_stock(case: Case, folder: Path) -> Clock:
    """One after the other, with TRL alone."""
    clock = Clock(case.device)
    plain = PlainTrainers(case, folder)
    clock.start()
    for number in range(case.num_configs):
        trainer = plain.build(number, [PlainMarks(clock, case.steps_per_chunk)])
        trainer.train()
        trainer.save_model(str(folder / str(number) / "final"))
        trainer.save_state()
        clock.count()
    clock.stop()
    return clock


def stock_ways(accumulation: int) -> "Ways":
    """Plain TRL with the same rows in a step, in all micro-batches that they can be split into."""

    def way(factor: int) -> Callable[[Case, Path], Clock]:
        def train(case: Case, folder: Path) -> Clock:
            wider = replace(
                case,
                batch_size=case.batch_size * factor,
                accumulation=case.accumulation // factor,
            )
            return train_stock(wider, folder)

        return train

    factors = [factor for factor in range(2, accumulation + 1) if accumulation % factor == 0]
    return {f"stock, {factor} micro-batches as one": way(factor) for factor in factors}


def train_by_turns(case: Case, folder: Path) -> Clock:
    """By turns, through the public API."""
    return _train_engine(case, folder, fuse="off")


def train_fused(case: Case, folder: Path) -> Clock:
    """In shared passes, through the public API."""
    return _train_engine(case, folder, fuse="on")


def train_and_generate_fused(case: Case, folder: Path) -> Clock:
    """In shared passes, those that generate as well, through the public API."""
    return _train_engine(case, folder, fuse="on", fuse_generation=True)


def train_auto(case: Case, folder: Path) -> Clock:
    """In shared passes where these are measured to be quicker, through the public API."""
    return _train_engine(case, folder, fuse="auto")


Ways = Mapping[str, Callable[[Case, Path], Clock]]


WAYS: Ways = {
    "stock": train_stock,
    "by turns": train_by_turns,
    "fused": train_fused,
    "auto": train_auto,
}


def _train_engine(case: Case, folder: Path, **options: Any) -> Clock:
    clock = Clock(case.device)
    train, evaluation = case.rows()
    experiment = Experiment("benchmark", experiment_path=folder)
    configs = [
        RFModelConfig(
            peft_config=RFLoraConfig(**LORA),
            training_args=CONFIGS[case.trainer](**case.arguments(number)),
            **case.objects(),
        )
        for number in range(case.num_configs)
    ]
    clock.start()
    experiment.run_fit(
        configs,
        case.create_model,
        train,
        evaluation,
        num_chunks=case.num_chunks,
        seed=SEED,
        trackers=[EngineMarks(clock)],
        **options,
    )
    clock.stop()
    runs = experiment.get_runs_info()
    clock.passes = str(runs["passes"].iloc[0])
    experiment.end()
    if set(runs["status"]) != {RunStatus.COMPLETED}:
        raise RuntimeError(f"not all runs completed; see {experiment.get_log_file_path()}")
    return clock


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and save."""
    options = _options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="fused-") as folder, quiet_libraries():
        # What is done once in a process, such as imports, is nobody's cost.
        small = _case(options, options.shapes[0], options.tokens[0], 2, num_steps=2)
        ways = {**WAYS, **stock_ways(options.accumulation)}
        measure(WAYS, small, Path(folder) / "warm-up", 1)
        for shape in options.shapes:
            for tokens in options.tokens:
                for number in options.configs:
                    case = _case(options, shape, tokens, number, num_steps=options.steps)
                    name = f"{_name(options, shape)}, {tokens} tokens, N={number}"
                    place = Path(folder) / name.replace(" ", "_").replace("/", "_")
                    total = number * options.steps * tokens * options.accumulation
                    rows += _rows(name, measure(ways, case, place, options.repeats), total)
    if not torch.cuda.is_available():
        rows += [Row(name=f"{name} on a GPU", value="unmeasured") for name in SHAPES]
    title = "Fused: N LoRA configurations in shared passes"
    settings = {
        "steps of each configuration": options.steps,
        "micro-batches in a step": options.accumulation,
        "rows in a micro-batch": options.batch_size,
        "adapters": f"rank {LORA['r']} on {', '.join(LORA['target_modules'])}",
    }
    report = Report(title=title, rows=rows, settings=settings)
    report.print()
    if options.json is not None:
        report.save(options.json)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fused", description=__doc__)
    add, on_gpu = parser.add_argument, torch.cuda.is_available()
    add("--model", default=TINY, help="tiny, or a model's folder; its texts may be shorter")
    add(
        "--shapes",
        type=_shape,
        nargs="+",
        default=list(SHAPES) if on_gpu else CPU_SHAPES,
        help=f"of random weights: as 64x2, or {', '.join(SHAPES)}",
    )
    add(
        "--tokens",
        type=int,
        nargs="+",
        default=[256, 1024, 4096] if on_gpu else [32, 64, 128],
        help="in a micro-batch",
    )
    add("--accumulation", type=int, default=1, help="micro-batches in a step")
    add("--configs", type=int, nargs="+", default=[4, 8])
    add("--batch-size", type=int, default=2, help="rows in a micro-batch")
    add("--chunks", type=int, default=4)
    add("--steps", type=int, default=40, help="of each configuration, a multiple of --chunks")
    add("--repeats", type=int, default=3, help="of all ways")
    add("--threads", type=int, help="of torch; default: its own choice")
    add("--json", type=Path, help="also write the result there")
    options = parser.parse_args(arguments)
    if options.steps % options.chunks:
        parser.error(f"--steps {options.steps} is no multiple of --chunks {options.chunks}")
    if any(tokens % options.batch_size for tokens in options.tokens):
        parser.error(f"--tokens have to be multiples of --batch-size {options.batch_size}")
    if options.model != TINY:
        options.shapes = CPU_SHAPES[:1]  # it has one of its own
    return options


def _shape(text: str) -> Shape:
    if text in SHAPES:
        return text
    hidden_size, num_layers = map(int, text.split("x"))
    return hidden_size, num_layers


def _name(options: argparse.Namespace, shape: Shape) -> str:
    if options.model != TINY:
        return Path(options.model).name
    if isinstance(shape, str):
        return shape
    return f"{shape[0]} wide, {shape[1]} layers"


def _case(
    options: argparse.Namespace,
    shape: Shape,
    num_tokens: int,
    num_configs: int,
    num_steps: int,
) -> Case:
    max_length = num_tokens // options.batch_size
    case = Case(
        model=options.model,
        num_configs=num_configs,
        num_chunks=min(options.chunks, num_steps),
        num_steps=num_steps,
        batch_size=options.batch_size,
        accumulation=options.accumulation,
        max_length=max_length,
        dropout=0.0,
        num_words=max_length,  # of at least one token each
    )
    if isinstance(shape, str):
        return replace(case, model=shape)
    return replace(case, hidden_size=shape[0], num_layers=shape[1])


def measure(ways: Ways, case: Case, folder: Path, num: int) -> dict[str, list[Clock]]:
    """Each way's clocks, in the order in which they were measured."""
    clocks: dict[str, list[Clock]] = {way: [] for way in ways}
    names = list(ways)
    for repeat in range(num):
        begin = repeat % len(names)
        for way in (*names[begin:], *names[:begin]):
            clocks[way].append(ways[way](case, folder / f"{way.replace(' ', '_')}-{repeat}"))
        last = ", ".join(f"{way} {clocks[way][-1].cpu_s:.1f} s" for way in names)
        print(f"processor time: {last}", file=sys.stderr, flush=True)
    return clocks


def _rows(name: str, clocks: Mapping[str, list[Clock]], num_tokens: int) -> list[Row]:
    """Each row of the data is cut to the length asked for, so all ways train on `num_tokens`."""

    def ratios(of: str, to: str, what: str) -> Spread:
        pairs = zip(clocks[of], clocks[to], strict=True)
        return Spread.of([getattr(b, what) / getattr(a, what) for a, b in pairs])

    rows = [
        Row(
            name=f"**{name}: fused, times as fast as by turns, processor time**",
            value=ratios("fused", "by turns", "cpu_s"),
            unit="x",
        ),
        Row(name=f"{name}: the same in wall time", value=ratios("fused", "by turns", "wall_s"),
            unit="x"),
        Row(name=f"{name}: fused, times as fast as stock TRL, processor time",
            value=ratios("fused", "stock", "cpu_s"), unit="x"),
        Row(name=f"{name}: auto, times as fast as by turns, processor time",
            value=ratios("auto", "by turns", "cpu_s"), unit="x"),
    ]  # fmt: skip
    splits = [way for way in clocks if way.startswith("stock, ")]
    if splits:
        best = min(splits, key=lambda way: statistics.median(c.wall_s for c in clocks[way]))
        name_of_row = f"{name}: fused, times as fast as {best}, plain TRL's best split, wall time"
        rows.append(Row(name=name_of_row, value=ratios("fused", best, "wall_s"), unit="x"))
    for way, measured in clocks.items():
        per_s = Spread.of([num_tokens / clock.wall_s for clock in measured])
        compared = statistics.median(max(clock.compared_s) for clock in measured)
        peaks = [clock.peak_gib for clock in measured if clock.peak_gib is not None]
        peak = f"; peak memory {max(peaks):.2f} GiB" if peaks else ""
        note = f"all compared after {compared:.1f} s, trainers built{peak}"
        if measured[-1].passes:
            note += f"; {measured[-1].passes}"
        rows.append(Row(name=f"{name}: {way}", value=per_s, unit="tokens/s", note=note))
    return rows


_CLEAR_PEAK = Path("/proc/self/clear_refs")


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif os.access(_CLEAR_PEAK, os.W_OK):
        _CLEAR_PEAK.write_text("5")


def _peak_gib(device: torch.device) -> float | None:
    """Of the device's memory, or of the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 2**20


if __name__ == "__main__":
    main()
