"""Does training by turns cost anything, and how much sooner can N configurations be compared?

    python -m benchmarks.time_slicing --model tiny
    python -m benchmarks.time_slicing --model smollm2

The same N configurations of SFT with LoRA are trained one after the other with plain TRL and by
turns under the engine, again and again in one process, in alternating order. On a machine with
neighbours only ratios within one run mean something, and of them the ratio of processor time most.
"""

import argparse
import logging
import statistics
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import datasets
import torch
import transformers
from safetensors.torch import load_file

from benchmarks._case import TINY, Case
from benchmarks._handoff import handoffs_s
from benchmarks._report import Report, Row, Spread, percentiles
from benchmarks._ways import Timeline, rebuild_costs_s, train_engine, train_plain
from rapidfireai.demo.model import smollm2
from rapidfireai.paths import home

NUM_HANDOFFS = 2000

Pair = tuple[Timeline, Timeline]
"""Plain, engine."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and save."""
    options = _options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    case = _case(options)
    with tempfile.TemporaryDirectory(prefix="time_slicing-") as folder, quiet_libraries():
        if options.warm_up:
            # What is done once in a process, such as imports, is nobody's cost.
            small = replace(case, num_configs=2, num_chunks=2, num_steps=2)
            _measure(small, Path(folder) / "warm-up", num=1)
        pairs = _measure(case, Path(folder), num=options.repeats)
        rebuilds = rebuild_costs_s(
            case, Path(folder) / "rebuild", min(options.rebuilds, case.num_chunks - 1)
        )
        same = _num_same_adapters(*pairs[-1])
    rows = [
        *_total_rows(case, pairs, same),
        *_comparison_rows(case, pairs),
        *_handoff_rows(pairs, handoffs_s(NUM_HANDOFFS)),
        *_rebuild_rows(case, pairs, rebuilds),
    ]
    title = f"Time slicing: {case.num_configs} configurations, {case.num_chunks} chunks"
    settings = {name: value for name, value in asdict(case).items() if value is not None}
    report = Report(title=title, rows=rows, settings={"case": settings})
    report.print()
    if options.json is not None:
        report.save(options.json)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.time_slicing", description=__doc__)
    add = parser.add_argument
    add("--model", default=TINY, help="tiny, smollm2 (needs the demo's extra), or a model's folder")
    add("--configs", type=int, default=4)
    add("--chunks", type=int, default=16)
    add("--steps", type=int, help="of each configuration, a multiple of --chunks")
    add("--batch-size", type=int)
    add("--max-length", type=int, default=64, help="tokens")
    add("--eval-rows", type=int, default=0, help="evaluated at each chunk's end, in both ways")
    add("--data", type=Path, help="JSON lines with question and answer")
    add("--repeats", type=int, default=3, help="of both ways; odd ones begin with the engine")
    add("--rebuilds", type=int, default=3, help="chunks resumed with plain TRL")
    add("--warm-up", action=argparse.BooleanOptionalAction, default=True)
    add("--threads", type=int, help="of torch; default: its own choice")
    add("--json", type=Path, help="also write the result there")
    options = parser.parse_args(arguments)
    tiny = options.model == TINY
    options.steps = options.steps or options.chunks * (20 if tiny else 2)
    options.batch_size = options.batch_size or (4 if tiny else 1)
    if options.steps % options.chunks:
        parser.error(f"--steps {options.steps} is no multiple of --chunks {options.chunks}")
    if options.configs < 2 or options.chunks < 2:
        parser.error("it takes 2 configurations and 2 chunks to have turns")
    return options


def _case(options: argparse.Namespace) -> Case:
    model = options.model
    if model == "smollm2":
        model = str(smollm2(home() / "models"))
    return Case(
        model=model,
        num_configs=options.configs,
        num_chunks=options.chunks,
        num_steps=options.steps,
        batch_size=options.batch_size,
        max_length=options.max_length,
        num_eval_rows=options.eval_rows,
        data=options.data,
    )


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No progress bars, and no warnings that say nothing about the benchmark."""
    bars = datasets.are_progress_bars_disabled(), transformers.logging.is_progress_bar_enabled()
    verbosity, handler = transformers.logging.get_verbosity(), logging.NullHandler()
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    logging.getLogger().addHandler(handler)
    try:
        with warnings.catch_warnings():
            # TRL 1.16 uses a name that transformers 5.23 has renamed.
            warnings.filterwarnings("ignore", ".*gradient_checkpointing.*", FutureWarning)
            yield
    finally:
        logging.getLogger().removeHandler(handler)
        transformers.logging.set_verbosity(verbosity)
        if not bars[0]:
            datasets.enable_progress_bars()
        if bars[1]:
            transformers.logging.enable_progress_bar()


def _measure(case: Case, folder: Path, num: int) -> list[Pair]:
    pairs = []
    for number in range(num):
        plain, engine = folder / f"plain-{number}", folder / f"engine-{number}"
        if number % 2:
            by_turns = train_engine(case, engine)
            pairs.append((train_plain(case, plain), by_turns))
        else:
            pairs.append((train_plain(case, plain), train_engine(case, engine)))
        seconds = ", ".join(f"{timeline.total_s:.1f} s" for timeline in pairs[-1])
        print(f"plain, engine: {seconds}", file=sys.stderr, flush=True)
    return pairs


def _num_same_adapters(plain: Timeline, engine: Timeline) -> int:
    """How many configurations have the same weights in both ways, to the last bit."""
    num = 0
    for folders in zip(plain.adapters, engine.adapters, strict=True):
        one, other = (load_file(folder / "adapter_model.safetensors") for folder in folders)
        num += one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    return num


def _total_rows(case: Case, pairs: list[Pair], num_same: int) -> list[Row]:
    rows = [
        Row(
            name="same adapters both ways, bit for bit",
            value=f"{num_same} of {case.num_configs}",
            goal="all",
        ),
        Row(
            name="**total time, engine : plain**",
            value=Spread.of([engine.total_s / plain.total_s for plain, engine in pairs]),
            goal="<= 1.03",
        ),
        Row(
            name="**processor time, engine : plain**",
            value=Spread.of([engine.cpu_s / plain.cpu_s for plain, engine in pairs]),
            goal="<= 1.03",
            note="less disturbed by neighbours",
        ),
    ]
    for index, way in enumerate(("plain", "engine")):
        timelines = [pair[index] for pair in pairs]
        rows.append(
            Row(name=f"{way}: all", value=Spread.of([t.total_s for t in timelines]), unit="s")
        )
        parts = {
            "building trainers": [sum(t.setup_s) for t in timelines],
            "in steps": [t.step_s for t in timelines],
            "between steps of a configuration": [sum(t.gap_s) for t in timelines],
            "at changes of configuration": [sum(t.switch_s) for t in timelines],
            "saving and freeing": [sum(t.finish_s) for t in timelines],
        }
        for name, values in parts.items():
            if any(values):
                rows.append(Row(name=f"{way}: {name}", value=Spread.of(values), unit="s"))
    return rows


def _comparison_rows(case: Case, pairs: list[Pair]) -> list[Row]:
    def times_sooner(name: str, plain_s: list[float], engine_s: list[float], **more: str) -> Row:
        ratios = [plain / engine for plain, engine in zip(plain_s, engine_s, strict=True)]
        return Row(name=name, value=Spread.of(ratios), unit="x", **more)

    engine_s = [max(engine.compared_s) for _, engine in pairs]
    soonest_s = [_soonest_s(case, plain) for plain, _ in pairs]
    plain_s = [plain.total_s for plain, _ in pairs]
    return [
        Row(name="engine: all can be compared after", value=Spread.of(engine_s), unit="s"),
        times_sooner(
            "**sooner than plain has trained all**",
            plain_s,
            engine_s,
            goal=f"{case.num_chunks}x",
            note="goal if building a trainer took no time",
        ),
        times_sooner(
            "the same, as far as building trainers lets anybody",
            plain_s,
            soonest_s,
            note="plain's own building and first chunks alone",
        ),
        times_sooner(
            "sooner than plain's last has done its first chunk",
            [max(plain.compared_s) for plain, _ in pairs],
            engine_s,
        ),
    ]


def _soonest_s(case: Case, plain: Timeline) -> float:
    """To build all trainers and train the first chunk of each, at plain TRL's pace."""
    training_s = plain.step_s + sum(plain.gap_s)
    return sum(plain.setup_s) + training_s / case.num_chunks


def _handoff_rows(pairs: list[Pair], handoffs: list[float]) -> list[Row]:
    plain_ms = [1e3 * s for plain, _ in pairs for s in plain.gap_s]
    engine_ms = [1e3 * s for _, engine in pairs for s in engine.gap_s]
    switch_ms = [1e3 * s for _, engine in pairs for s in engine.switch_s]
    fetch_ms = statistics.median(plain_ms)
    return [
        Row(
            name="**hand-off between two runs, p50 / p95**",
            value=percentiles([1e3 * s for s in handoffs], "ms"),
            goal="< 1 ms",
            note=f"random states, accelerate's state, flags, baton; {len(handoffs)} times",
        ),
        Row(
            name="chunk boundary, p50 / p95",
            value=percentiles([ms - fetch_ms for ms in switch_ms], "ms"),
            note="hand-off, guard, metrics, database, scheduler; above plain's gap",
        ),
        Row(name="plain: gap between two steps, p50 / p95", value=percentiles(plain_ms, "ms")),
        Row(
            name="engine: gap between two steps, p50 / p95",
            value=percentiles(engine_ms, "ms"),
            note="of the same configuration",
        ),
    ]


def _rebuild_rows(case: Case, pairs: list[Pair], costs_s: list[float]) -> list[Row]:
    extra_s = case.num_configs * (case.num_chunks - 1) * statistics.median(costs_s)
    ratio = Spread.of([1 + extra_s / plain.total_s for plain, _ in pairs])
    return [
        Row(
            name="resuming a run by a new trainer",
            value=Spread.of(costs_s),
            unit="s",
            note="plain TRL: build, load the checkpoint, write the next",
        ),
        Row(
            name="total time with that at each chunk : plain",
            value=ratio,
            note="computed",
        ),
    ]


if __name__ == "__main__":
    main()
