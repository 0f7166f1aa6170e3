"""What does it save to do once for all runs what repeats itself?

    python -m benchmarks.reuse --threads 1
    python -m benchmarks.reuse --threads 1 --trainer GRPO

DPO: N configurations that see the same batches are trained one after the other with plain TRL, by
turns with nothing kept of what the reference says, by turns, and fused; it is kept in the last two.
GRPO: N configurations are trained by turns, fused, and fused with their texts generated together.
All are LoRA, and are measured again and again in one process, in an order that moves on by one each
time. Building trainers is left out of all figures. On a machine with neighbours only ratios within
one run mean something, and of them the ratio of processor time most.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks._case import TINY, Case
from benchmarks._report import Report, Row, Spread
from benchmarks.fused import (
    Clock,
    Ways,
    measure,
    train_and_generate_fused,
    train_by_turns,
    train_fused,
    train_stock,
)
from benchmarks.time_slicing import quiet_libraries
from rapidfireai.workers import shared_weights


def train_with_nothing_kept(case: Case, folder: Path) -> Clock:
    """By turns, each run asking its reference by itself."""
    room, shared_weights.KEPT_BYTES = shared_weights.KEPT_BYTES, 0
    try:
        return train_by_turns(case, folder)
    finally:
        shared_weights.KEPT_BYTES = room


WAYS: Mapping[str, Ways] = {
    "DPO": {
        "by turns, nothing kept": train_with_nothing_kept,
        "stock": train_stock,
        "by turns": train_by_turns,
        "fused": train_fused,
    },
    "GRPO": {
        "by turns": train_by_turns,
        "fused": train_fused,
        "fused, generating together": train_and_generate_fused,
    },
}
"""By trainer; all are compared with the first."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and save."""
    options = _options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    ways = WAYS[options.trainer]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="reuse-") as folder, quiet_libraries():
        # What is done once in a process, such as imports, is nobody's cost.
        measure(ways, _case(options, 2, num_steps=2), Path(folder) / "warm-up", 1)
        for num_configs in options.configs:
            case = _case(options, num_configs, num_steps=options.steps)
            clocks = measure(ways, case, Path(folder) / str(num_configs), options.repeats)
            rows += _rows(f"N={num_configs}", clocks)
    title = f"Reuse: N configurations of {options.trainer}"
    settings = {
        "model": options.model
        if options.model != TINY
        else f"{options.width} wide, {options.layers} layers",
        "steps of each configuration": options.steps,
        "rows (DPO: pairs) in a batch": options.batch_size,
        "tokens in a row (GRPO: generated)": options.max_length,
        "rows of each evaluation": options.eval_rows,
    }
    report = Report(title=title, rows=rows, settings=settings)
    report.print()
    if options.json is not None:
        report.save(options.json)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reuse", description=__doc__)
    add = parser.add_argument
    add("--trainer", choices=list(WAYS), default="DPO")
    add("--model", default=TINY, help="tiny, or a model's folder; its texts may be shorter")
    add("--width", type=int, default=64, help="of tiny")
    add("--layers", type=int, default=8, help="of tiny")
    add("--configs", type=int, nargs="+", default=[2, 4, 8])
    add("--batch-size", type=int, default=2, help="rows, or pairs, in a batch")
    add("--max-length", type=int, default=32, help="tokens in a row")
    add("--eval-rows", type=int, default=0, help="evaluated at the end of each chunk")
    add("--chunks", type=int, default=4)
    add("--steps", type=int, default=24, help="of each configuration, a multiple of --chunks")
    add("--repeats", type=int, default=4, help="of all ways")
    add("--threads", type=int, help="of torch; default: its own choice")
    add("--json", type=Path, help="also write the result there")
    options = parser.parse_args(arguments)
    if options.steps % options.chunks:
        parser.error(f"--steps {options.steps} is no multiple of --chunks {options.chunks}")
    return options


def _case(options: argparse.Namespace, num_configs: int, num_steps: int) -> Case:
    return Case(
        model=options.model,
        trainer=options.trainer,
        num_configs=num_configs,
        num_chunks=min(options.chunks, num_steps),
        num_steps=num_steps,
        batch_size=options.batch_size,
        max_length=options.max_length,
        num_eval_rows=options.eval_rows,
        hidden_size=options.width,
        num_layers=options.layers,
        dropout=0.0,
        num_words=options.max_length,  # of at least one token each
    )


def _rows(name: str, clocks: Mapping[str, list[Clock]]) -> list[Row]:
    baseline, *others = clocks

    def ratios(way: str, what: str) -> Spread:
        pairs = zip(clocks[way], clocks[baseline], strict=True)
        return Spread.of([getattr(b, what) / getattr(a, what) for a, b in pairs])

    rows: list[Row] = []
    for way in others:
        title = f"{name}: {way}, times as fast as {baseline}"
        rows.append(Row(name=f"**{title}, processor time**", value=ratios(way, "cpu_s"), unit="x"))
        rows.append(Row(name=f"{title}, wall time", value=ratios(way, "wall_s"), unit="x"))
    for way, measured in clocks.items():
        seconds = Spread.of([clock.cpu_s for clock in measured])
        rows.append(Row(name=f"{name}: {way}, processor time", value=seconds, unit="s"))
    return rows


if __name__ == "__main__":
    main()
