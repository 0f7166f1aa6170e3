"""How long a command takes, from being given in another process to being carried out.

    python -m benchmarks.commands
    python -m benchmarks.commands --model smollm2 --commands 40

Runs train by turns in this process. Another one gives commands as the command line does, one at a
time and at any moment of a step. A command is settled between two steps; so the time from one
step to the next, measured in the same training, is what nobody can do without.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch

from benchmarks._case import LORA, SEED, TINY, Case
from benchmarks._report import Report, Row, Spread, percentiles
from rapidfireai import Experiment
from rapidfireai.automl import RFLoraConfig, RFModelConfig, RFSFTConfig
from rapidfireai.control import give
from rapidfireai.core.commands import Command, CommandStatus, Verb
from rapidfireai.core.events import Event, StepFinished
from rapidfireai.core.ids import RunId
from rapidfireai.core.run import Run
from rapidfireai.demo.model import smollm2
from rapidfireai.paths import ExperimentFolder, home
from rapidfireai.store import SqliteStore

GOAL_S = 0.05
"""Beyond the time from one step to the next."""

NAME = "commands"
NUM_ENDED = 8
"""Runs that are stopped, and then resumed."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.commands", description=__doc__)
    add = parser.add_argument
    add("--model", default=TINY, help="tiny, smollm2 (needs the demo's extra), or a model's folder")
    add("--runs", type=int, default=16)
    add("--commands", type=int, default=200, help="that change nothing of the training")
    add("--steps-per-chunk", type=int, default=2)
    add("--steps", type=int, default=20_000, help="of each run; more than there is time for")
    add("--threads", type=int, default=1, help="of torch")
    add("--json", type=Path, help="also write the result there")
    add("--give-to", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.give_to is not None:
        _give_all(ExperimentFolder(options.give_to), options.commands)
        return
    torch.set_num_threads(options.threads)
    model = str(smollm2(home() / "models")) if options.model == "smollm2" else options.model
    report = _measure(model, options)
    report.print()
    if options.json is not None:
        report.save(options.json)


@dataclass
class _Steps:
    """Notes when steps end."""

    ends_s: list[float] = field(default_factory=list)

    def on_event(self, before: Run, event: Event, after: Run) -> None:
        if isinstance(event, StepFinished):
            self.ends_s.append(time.perf_counter())


def _measure(model: str, options: argparse.Namespace) -> Report:
    case = Case(
        model=model,
        num_configs=options.runs,
        num_chunks=options.steps // options.steps_per_chunk,
        num_steps=options.steps,
        batch_size=2,
        max_length=64,
    )
    configs = [
        RFModelConfig(
            peft_config=RFLoraConfig(**LORA),
            training_args=RFSFTConfig(**case.arguments(number)),
        )
        for number in range(options.runs)
    ]
    steps = _Steps()
    with tempfile.TemporaryDirectory(prefix="commands-") as folder:
        experiment = Experiment(NAME, experiment_path=folder)
        handle = experiment.run_fit(
            configs,
            case.create_model,
            case.rows()[0],
            num_chunks=case.num_chunks,
            seed=SEED,
            background=True,
            trackers=[steps],
        )
        assert handle is not None, "it trains in the background"
        try:
            _wait_for_all(ExperimentFolder(experiment.path))
            first = len(steps.ends_s)
            answer = subprocess.run(
                [
                    sys.executable, "-m", __spec__.name,
                    "--give-to", str(experiment.path), "--commands", str(options.commands),
                ],
                stdout=subprocess.PIPE,
                encoding="utf-8",
                check=True,
            )  # fmt: skip
        finally:
            handle.cancel()  # all commands have been given
    ends_s = steps.ends_s[first:]
    gaps_s = [later - earlier for earlier, later in pairwise(ends_s)]
    return _report(json.loads(answer.stdout), gaps_s, options)


def _report(
    latencies_s: dict[str, list[float]], gaps_s: list[float], options: argparse.Namespace
) -> Report:
    light, step_s = latencies_s["pin, unpin"], statistics.median(gaps_s)
    p95_s = sorted(light)[int(len(light) * 0.95)]
    return Report(
        title=f"Commands: {options.runs} runs, {Path(options.model).name}",
        rows=[
            Row(
                name="from one step to the next, p50 / p95",
                value=percentiles([1e3 * s for s in gaps_s], "ms"),
                note=f"{len(gaps_s)} steps, evaluations none, changes of run included",
            ),
            Row(name="the same, all", value=Spread.of([1e3 * s for s in gaps_s]), unit="ms"),
            Row(
                name="**pin, unpin: p95 beyond a step's median**",
                value=1e3 * (p95_s - step_s),
                unit="ms",
                goal=f"< {1e3 * GOAL_S:.0f} ms",
                note="these change a row, and nothing of the training",
            ),
            *(
                row
                for verb, found in latencies_s.items()
                for row in (
                    Row(
                        name=f"{verb}: given to settled, p50 / p95",
                        value=percentiles([1e3 * s for s in found], "ms"),
                    ),
                    Row(
                        name=f"{verb}: the same, all",
                        value=Spread.of([1e3 * s for s in found]),
                        unit="ms",
                    ),
                )
            ),
        ],
        settings={"steps of each chunk": options.steps_per_chunk},
    )


def _wait_for_all(folder: ExperimentFolder) -> None:
    """Until every run has finished a step."""
    while True:
        with closing(SqliteStore(folder.store)) as store:
            if all(run.step > 0 for run in store.runs()):
                return
        time.sleep(0.2)


def _give_all(folder: ExperimentFolder, num_commands: int) -> None:
    """In a process of its own: give commands one by one, and print their latencies."""
    with closing(SqliteStore(folder.store)) as store:
        run_ids = [run.id for run in store.runs()]
    ended = run_ids[:NUM_ENDED]
    light = [
        (verb, run_ids[number % len(run_ids)])
        for number in range((num_commands + 1) // 2)
        for verb in (Verb.PIN, Verb.UNPIN)
    ]
    plan: dict[str, list[tuple[Verb, RunId]]] = {
        "pin, unpin": light,
        "stop": [(Verb.STOP, run_id) for run_id in ended],
        "resume": [(Verb.RESUME, run_id) for run_id in ended],
    }
    latencies_s = {
        name: [_latency_s(folder, verb, run_id) for verb, run_id in commands]
        for name, commands in plan.items()
    }
    sys.stdout.write(json.dumps(latencies_s))


def _latency_s(folder: ExperimentFolder, verb: Verb, run_id: RunId) -> float:
    (record,) = give(folder, [Command(verb=verb, run_id=run_id, by="benchmark")])
    assert record.status is CommandStatus.APPLIED, record
    assert record.latency_s is not None, "what is settled has a latency"
    return record.latency_s


if __name__ == "__main__":
    main()
