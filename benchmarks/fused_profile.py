"""Where does a fused step's time go?

    python -m benchmarks.fused_profile --threads 1

Trains a few configurations in shared passes and looks, again and again, at what the thread that
works is doing. The shares are of samples; a share of a busy machine's time is still a share.
"""

import argparse
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import torch

from benchmarks._case import SEED, TINY, Case
from benchmarks._report import Report, Row
from benchmarks.fused import train_auto, train_by_turns, train_fused
from benchmarks.time_slicing import quiet_libraries

WAYS = {"on": train_fused, "auto": train_auto, "off": train_by_turns}

INTERVAL_S = 0.002

PARTS = (
    ("state of the process, exchanged between runs", "workers/process_state.py", ""),
    ("checks that nobody has written to the base", "workers/shared_weights.py", ""),
    ("adapters in shared passes", "workers/adapters.py", "_AddAdapters"),
    ("adapters in shared passes", "workers/adapters.py", "OneByOne"),
    ("adapters in shared passes", "workers/adapters.py", "Stacked"),
    ("adapters in shared passes", "workers/adapters.py", "Grouped"),
    ("adapters in shared passes", "workers/adapters.py", "Route."),
    ("attention in shared passes", "workers/apart.py", ""),
    ("building of runs", "training/build.py", ""),
    ("shared passes, frozen layers", "workers/gang.py", "Gang._serve"),
    ("optimizer, clipping, schedule", "torch/optim/", ""),
    ("optimizer, clipping, schedule", "accelerate/optimizer.py", ""),
    ("optimizer, clipping, schedule", "clip_grad.py", ""),
    ("hooks of the engine on the trainer", "training/instrument.py", "Instrument._boundary"),
    ("data", "transformers/trainer.py", "Trainer.get_batch_samples"),
    ("own head, loss and what is around them", "transformers/trainer.py", "Trainer.training_step"),
    ("rest of the trainer's loop", "transformers/trainer.py", "Trainer._inner_training_loop"),
    ("engine, store, live view", "core/engine.py", ""),
    ("hand-overs between threads", "workers/fiber.py", ""),
)
"""What a stack belongs to, by its innermost function of these: part, file, how the function's
qualified name begins."""

_WAITS = frozenset({"pause", "_wait", "wait", "get", "select", "accept"})
"""Functions in which a thread of the process waits for another."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Profile, print and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fused_profile", description=__doc__)
    add = parser.add_argument
    add("--fuse", choices=tuple(WAYS), default="on")
    add("--hidden-size", type=int, default=64)
    add("--layers", type=int, default=2)
    add("--tokens", type=int, default=32, help="in a batch of two rows")
    add("--configs", type=int, default=4)
    add("--steps", type=int, default=60)
    add("--threads", type=int, help="of torch; default: its own choice")
    add("--json", type=Path, help="also write the result there")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="profile-") as folder, quiet_libraries():
        train, case = WAYS[options.fuse], _case(options, options.steps)
        train(_case(options, 3), Path(folder) / "warm-up")
        with _Samples() as samples:
            clock = train(case, Path(folder) / "profiled")
    total = max(1, samples.counts.total())
    rows = [
        Row(name=part, value=f"{count / total:.0%}") for part, count in samples.counts.most_common()
    ]
    num_steps = options.steps * options.configs
    per_step = f"{1000 * clock.cpu_s / num_steps:.1f}"
    rows.append(Row(name="processor time of a run's step", value=per_step, unit="ms"))
    settings = {
        "fuse": options.fuse,
        "model": f"{options.hidden_size} wide, {options.layers} layers",
        "tokens in a batch": options.tokens,
        "configurations": options.configs,
        "samples": total,
        "seed": SEED,
    }
    report = Report(title="Where a step's time goes", rows=rows, settings=settings)
    report.print()
    if options.json is not None:
        report.save(options.json)


def _case(options: argparse.Namespace, num_steps: int) -> Case:
    return Case(
        model=TINY,
        num_configs=options.configs,
        num_chunks=3,
        num_steps=num_steps,
        batch_size=2,
        max_length=options.tokens // 2,
        hidden_size=options.hidden_size,
        num_layers=options.layers,
        dropout=0.0,
        num_words=options.tokens // 2,
    )


class _Samples:
    """Counts what the process's working thread does, as long as it is entered."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "_Samples":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        own = threading.get_ident()
        while not self._over.is_set():
            time.sleep(INTERVAL_S)
            for thread, frame in sys._current_frames().items():  # noqa: SLF001 - there is no other way
                if thread != own and frame.f_code.co_name not in _WAITS:
                    self.counts[_part(frame)] += 1


def _part(frame: FrameType) -> str:
    for file, function in _stack(frame):
        for part, of_file, of_function in PARTS:
            if of_file in file and function.startswith(of_function):
                return part
    return "rest"


def _stack(frame: FrameType | None) -> Iterator[tuple[str, str]]:
    """Files and functions' qualified names, the innermost first."""
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_code.co_qualname
        frame = frame.f_back


if __name__ == "__main__":
    main()
