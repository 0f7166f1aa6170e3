"""What trackers cost the training: with all four, and with none, by turns.

    python -m benchmarks.trackers
    python -m benchmarks.trackers --steps 400 --repeats 5

Every step is logged. The training does nothing for a tracker, so what can be measured is what the
processes beside it take: cores that it would have used, and the end, where it waits for them.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks._case import LORA, SEED, TINY, Case
from benchmarks._report import Report, Row, Spread
from rapidfireai import Experiment
from rapidfireai.automl import RFLoraConfig, RFModelConfig, RFSFTConfig
from rapidfireai.core.events import Event, StepFinished
from rapidfireai.core.run import Run
from rapidfireai.demo.model import smollm2
from rapidfireai.paths import home
from rapidfireai.tracking import MLflow, TensorBoard, Trackio, WandB

GOAL_S = 20e-6
"""Of the training thread, for each step that is logged."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trackers", description=__doc__)
    add = parser.add_argument
    add("--model", default=TINY, help="tiny, smollm2 (needs the demo's extra), or a model's folder")
    add("--runs", type=int, default=4)
    add("--steps", type=int, default=200, help="of each run")
    add("--chunks", type=int, default=4)
    add("--repeats", type=int, default=3, help="of each of the two, by turns")
    add("--threads", type=int, default=1, help="of torch")
    add("--json", type=Path, help="also write the result there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    model = str(smollm2(home() / "models")) if options.model == "smollm2" else options.model
    report = _measure(model, options)
    report.print()
    if options.json is not None:
        report.save(options.json)


@dataclass
class _Training:
    """Notes when steps end, and how much processor time this process has had by then."""

    ends: list[tuple[float, float]] = field(default_factory=list)
    total_s: float = 0.0

    def on_event(self, before: Run, event: Event, after: Run) -> None:
        if isinstance(event, StepFinished):
            self.ends.append((time.perf_counter(), time.process_time()))

    @property
    def num_steps(self) -> int:
        """Between the first that ended and the last."""
        return len(self.ends) - 1

    @property
    def steps_s(self) -> float:
        """From the first step that ended to the last."""
        return self.ends[-1][0] - self.ends[0][0]

    @property
    def cpu_s(self) -> float:
        """Likewise, the processor time."""
        return self.ends[-1][1] - self.ends[0][1]


def _measure(model: str, options: argparse.Namespace) -> Report:
    case = Case(
        model=model,
        num_configs=options.runs,
        num_chunks=options.chunks,
        num_steps=options.steps,
        batch_size=4,
        max_length=64,
    )
    _train(case, trackers=[])  # what is done once for a process is done
    pairs = [
        (_train(case, trackers=[]), _train(case, trackers=_all_four()))
        for _ in range(options.repeats)
    ]
    return _report(pairs, options)


def _all_four() -> list[Any]:
    return [MLflow(), TensorBoard(), Trackio(), WandB(mode="offline")]


def _train(case: Case, trackers: list[Any]) -> _Training:
    noted = _Training()
    configs = [
        RFModelConfig(
            peft_config=RFLoraConfig(**LORA),
            training_args=RFSFTConfig(**{**case.arguments(number), "logging_steps": 1}),
        )
        for number in range(case.num_configs)
    ]
    with tempfile.TemporaryDirectory(prefix="trackers-") as folder:
        os.environ["TRACKIO_DIR"] = f"{folder}/trackio"
        begin_s = time.perf_counter()
        Experiment("trackers", experiment_path=folder).run_fit(
            configs,
            case.create_model,
            case.rows()[0],
            num_chunks=case.num_chunks,
            seed=SEED,
            trackers=[noted, *trackers],
        )
        noted.total_s = time.perf_counter() - begin_s
    return noted


def _report(pairs: list[tuple[_Training, _Training]], options: argparse.Namespace) -> Report:
    def spread(of: Any, unit: float = 1.0) -> Spread:
        return Spread.of([unit * of(without, told) for without, told in pairs])

    extra_s = spread(lambda a, b: b.cpu_s / b.num_steps - a.cpu_s / a.num_steps, 1e6)
    step_s = statistics.median(a.steps_s / a.num_steps for a, _ in pairs)
    return Report(
        title=f"Trackers: {options.runs} runs, {Path(options.model).name}, every step logged",
        rows=[
            Row(
                name="a step without trackers",
                value=spread(lambda a, b: a.steps_s / a.num_steps, 1e3),
                unit="ms",
            ),
            Row(
                name="**processor time of the training process for a step, all four - none**",
                value=extra_s,
                unit="us",
                goal=f"< {1e6 * GOAL_S:.0f} us",
                note=f"{extra_s.median / (1e4 * step_s):.2f} % of a step",
            ),
            Row(
                name="**time from the first step to the last, all four : none**",
                value=spread(lambda a, b: b.steps_s / a.steps_s),
                goal="1",
                note=f"{os.cpu_count()} cores, {options.threads} of them for torch",
            ),
            Row(
                name="time of run_fit, all four : none",
                value=spread(lambda a, b: b.total_s / a.total_s),
                note="with the wait at the end, which is bounded",
            ),
            Row(
                name="time of run_fit, all four - none",
                value=spread(lambda a, b: b.total_s - a.total_s),
                unit="s",
            ),
        ],
        settings={"steps of each run": options.steps, "chunks": options.chunks},
    )


if __name__ == "__main__":
    main()
