"""What does it save to compute a reference's log-probabilities once for all runs?

    python -m benchmarks.reuse --threads 1

N configurations of DPO with LoRA that see the same batches are trained one after the other with
plain TRL, by turns with nothing kept, by turns, and fused, again and again in one process, in an
order that moves on by one each time. What is kept then serves the runs by turns and the fused ones.
Building trainers is left out of all figures. On a machine with neighbours only ratios within one
run mean something, and of them the ratio of processor time most.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks._case import TINY, Case
from benchmarks._report import Report, Row, Spread
from benchmarks.fused import Clock, Ways, measure, train_by_turns, train_fused, train_stock
from benchmarks.time_slicing import quiet_libraries
from rapidfireai.workers import shared_weights

BASELINE = "nothing kept"


def train_with_nothing_kept(case: Case, folder: Path) -> Clock:
    """By turns, each run asking its reference by itself."""
    room, shared_weights.KEPT_BYTES = shared_weights.KEPT_BYTES, 0
    try:
        return train_by_turns(case, folder)
    finally:
        shared_weights.KEPT_BYTES = room


WAYS: Ways = {
    "stock": train_stock,
    BASELINE: train_with_nothing_kept,
    "by turns": train_by_turns,
    "fused": train_fused,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and save."""
    options = _options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="reuse-") as folder, quiet_libraries():
        # What is done once in a process, such as imports, is nobody's cost.
        measure(WAYS, _case(options, 2, num_steps=2), Path(folder) / "warm-up", 1)
        for num_configs in options.configs:
            case = _case(options, num_configs, num_steps=options.steps)
            clocks = measure(WAYS, case, Path(folder) / str(num_configs), options.repeats)
            rows += _rows(f"N={num_configs}", clocks)
    title = "Reuse: reference log-probabilities of N configurations of DPO"
    settings = {
        "model": options.model
        if options.model != TINY
        else f"{options.width} wide, {options.layers} layers",
        "steps of each configuration": options.steps,
        "pairs in a batch": options.batch_size,
        "tokens in a row": options.max_length,
        "rows of each evaluation": options.eval_rows,
    }
    report = Report(title=title, rows=rows, settings=settings)
    report.print()
    if options.json is not None:
        report.save(options.json)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reuse", description=__doc__)
    add = parser.add_argument
    add("--model", default=TINY, help="tiny, or a model's folder; its texts may be shorter")
    add("--width", type=int, default=64, help="of tiny")
    add("--layers", type=int, default=8, help="of tiny")
    add("--configs", type=int, nargs="+", default=[2, 4, 8])
    add("--batch-size", type=int, default=2, help="pairs in a batch")
    add("--max-length", type=int, default=32, help="tokens in a row")
    add("--eval-rows", type=int, default=0, help="pairs evaluated at the end of each chunk")
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
        trainer="DPO",
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
    def ratios(way: str, to: str, what: str) -> Spread:
        pairs = zip(clocks[way], clocks[to], strict=True)
        return Spread.of([getattr(b, what) / getattr(a, what) for a, b in pairs])

    rows = [
        Row(
            name=f"**{name}: by turns, times as fast as with nothing kept, processor time**",
            value=ratios("by turns", BASELINE, "cpu_s"),
            unit="x",
        ),
        Row(name=f"{name}: the same in wall time", value=ratios("by turns", BASELINE, "wall_s"),
            unit="x"),
        Row(name=f"{name}: fused, times as fast as by turns with nothing kept, processor time",
            value=ratios("fused", BASELINE, "cpu_s"), unit="x"),
        Row(name=f"{name}: by turns, times as fast as stock TRL, processor time",
            value=ratios("by turns", "stock", "cpu_s"), unit="x"),
    ]  # fmt: skip
    for way, measured in clocks.items():
        rows.append(
            Row(
                name=f"{name}: {way}, processor time",
                value=Spread.of([clock.cpu_s for clock in measured]),
                unit="s",
            )
        )
    return rows


if __name__ == "__main__":
    main()
