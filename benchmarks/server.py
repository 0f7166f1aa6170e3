"""What the server costs, and how quickly it answers.

    python -m benchmarks.server

An experiment of many runs with long series is written by hand, and a server in a process of its own
is asked for what the page asks for. Then something trains, and commands are given over HTTP; and
the same is trained with nobody watching, with a server, and with somebody who follows the stream.
"""

import argparse
import json
import math
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import psutil

from benchmarks._report import Report, Row, Spread, percentiles
from rapidfireai.core.events import ChunkAssigned, MetricSource, RunStarted
from rapidfireai.core.ids import RunId, WorkerId
from rapidfireai.core.run import Run, apply
from rapidfireai.paths import ExperimentFolder
from rapidfireai.server.process import Place, start_detached, stop
from rapidfireai.store import ExperimentRecord, MetricRow, SqliteStore

_MIB = 1 << 20

TRAINING = """
import sys, torch
torch.set_num_threads(1)
from rapidfireai import Experiment
from rapidfireai.automl import List, RFGridSearch, RFSFTConfig
from rapidfireai.testing.tiny import instruction_rows, tiny_model, tiny_tokenizer
import time
steps = int(sys.argv[2])
experiment = Experiment(sys.argv[1])
search = RFGridSearch(RFSFTConfig(learning_rate=List([1e-3, 1e-4]), lora_rank=4, max_steps=steps,
    logging_steps=1, per_device_train_batch_size=2))
begin = time.perf_counter(), time.process_time()
experiment.run_fit(search, lambda config: (tiny_model(), tiny_tokenizer()),
    instruction_rows(), num_chunks=4)
print("TOOK", time.perf_counter() - begin[0], time.process_time() - begin[1])
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.server", description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--points", type=int, default=10_000, help="of each run's loss")
    parser.add_argument("--steps", type=int, default=300, help="of each of two runs that train")
    parser.add_argument("--repeats", type=int, default=3, help="of trainings; 0 leaves them out")
    parser.add_argument("--commands", type=int, default=20)
    parser.add_argument("--json", type=Path, help="also write the result there")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["RF_HOME"] = str(root)
        os.environ["RF_EXPERIMENT_PATH"] = str(root / "experiments")
        rows = _size_rows(root, options.runs, options.points)
        if options.repeats:
            rows += _training_rows(root, options.steps, options.repeats, options.commands)
    report = Report(
        title=f"Server: {options.runs} runs with {options.points} points",
        rows=rows,
        settings={"steps of each run that trains": options.steps},
    )
    report.print()
    if options.json is not None:
        report.save(options.json)


class _Client:
    """Asks a server of its own."""

    def __init__(self, root: Path) -> None:
        place = Place(home=root, experiments=root / "experiments", port=0)
        self.record, token = start_detached(place)
        self.http = httpx.Client(
            base_url=f"{self.record.url}/api/v1",
            headers={"Authorization": f"Bearer {token}"},
            timeout=300,
        )
        self._process = psutil.Process(self.record.pid)

    def time_s(self, path: str) -> float:
        """Seconds that an answer takes, read to its end."""
        begin_s = time.perf_counter()
        answer = self.http.get(path)
        assert answer.status_code == 200, answer.text
        return time.perf_counter() - begin_s

    def memory_mib(self) -> float:
        """What the server occupies."""
        return self._process.memory_info().rss / _MIB


@contextmanager
def _server(root: Path) -> Iterator[_Client]:
    client = _Client(root)
    try:
        yield client
    finally:
        client.http.close()
        stop(root)


def _size_rows(root: Path, num_runs: int, num_points: int) -> list[Row]:
    folder = written(root / "experiments", num_runs, num_points)
    with _server(root) as client:
        empty_mib = client.memory_mib()
        asked = {
            "the table of runs, first time": "/experiments/big/runs",
            "the table of runs, again": "/experiments/big/runs",
            "the list of experiments": "/experiments",
            "the loss of all runs, 200 points each, first time": "/experiments/big/series",
            "the loss of all runs, 200 points each, again": "/experiments/big/series",
            "the loss of one run, 2000 points": "/experiments/big/series?runs=1&points=2000",
            "configurations of all runs": "/experiments/big/configs",
        }
        rows = [
            Row(name=name, value=1000 * client.time_s(path), unit="ms")
            for name, path in asked.items()
        ]
        rows += _live_rows(client, folder)
        memory = Row(
            name="**memory of the server after all of this**",
            value=client.memory_mib(),
            unit="MiB",
            goal="< 150",
            note=f"{empty_mib:.0f} before",
        )
    size = Row(name="the experiment's file", value=folder.store.stat().st_size / _MIB, unit="MiB")
    return [size, memory, *rows]


def _live_rows(client: _Client, folder: ExperimentFolder) -> list[Row]:
    """What one more step of one run costs those who look."""
    table, series = [], []
    with closing(SqliteStore(folder.store)) as store:
        run = store.runs()[0]
        for number in range(20):
            run = replace(run, step=run.step + 1)
            value = _value(run.id, run.step, 1.0, time.time() + number)
            store.save_progress([run], [value])
            version = client.http.get("/experiments/big/runs?since=1").json()["version"]
            table.append(1000 * client.time_s(f"/experiments/big/runs?since={version}"))
            series.append(1000 * client.time_s("/experiments/big/series?runs=1"))
    return [
        Row(name="what is new in the table, p50 / p95", value=percentiles(table, "ms")),
        Row(name="one run's loss after another step, p50 / p95", value=percentiles(series, "ms")),
    ]


def written(root: Path, num_runs: int, num_points: int) -> ExperimentFolder:
    """An experiment as training would have left it."""
    folder = ExperimentFolder.claim(root, "big")
    runs = [
        Run(
            id=RunId(number),
            name=f"run-{number}",
            config={
                "trainer_type": "SFT",
                "model": {"model_name": "model"},
                "training_args": {f"argument_{i}": number % (i + 2) for i in range(20)},
                "peft": None,
            },
            path="",
        )
        for number in range(1, num_runs + 1)
    ]
    resolved = {f"argument_{i}": i for i in range(150)}
    with closing(SqliteStore(folder.store)) as store:
        store.create(
            ExperimentRecord(name="big", created_s=time.time(), seed=0, num_chunks=4), runs
        )
        for run in runs:
            _train_by_hand(store, run, num_points, resolved)
        with closing(sqlite3.connect(folder.store)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return folder


def _train_by_hand(store: SqliteStore, run: Run, num_points: int, resolved: dict[str, int]) -> None:
    now_s = time.time()
    for event in (
        ChunkAssigned(run_id=run.id, worker_id=WorkerId(0), chunk=0),
        RunStarted(run_id=run.id, num_steps=2 * num_points, num_chunks=4, resolved=resolved),
    ):
        before, run = run, apply(run, event)
        store.record(before, event, run, now_s)
    run = replace(run, step=num_points, active_s=1000.0, loss=1.0)
    losses = [
        _value(run.id, step, 4.0 * math.exp(-step / 3000) + 0.1 * math.sin(step * run.id), now_s)
        for step in range(1, num_points + 1)
    ]
    logged = [
        replace(row, source=MetricSource.LOG, name=name)
        for row in losses[:: max(1, num_points // 100)]
        for name in ("loss", "grad_norm", "learning_rate", "num_tokens", "epoch")
    ]
    store.save_progress([run], losses + logged)


def _value(run_id: RunId, step: int, value: float, time_s: float) -> MetricRow:
    return MetricRow(
        run_id=run_id,
        source=MetricSource.STEP,
        step=step,
        name="loss",
        value=value,
        time_s=time_s,
    )


def _training_rows(root: Path, num_steps: int, repeats: int, num_commands: int) -> list[Row]:
    took: dict[str, list[tuple[float, float]]] = {"alone": [], "served": [], "followed": []}
    for number in range(repeats):  # alternating, so that what else the machine does hits all
        took["alone"].append(_train(f"alone-{number}", num_steps))
        with _server(root) as client:
            took["served"].append(_train(f"served-{number}", num_steps))
            with _following(client, f"followed-{number}"):
                took["followed"].append(_train(f"followed-{number}", num_steps))
    with _server(root) as client:
        latencies, effects = _command_latencies(client, num_steps, num_commands)
    rows = [
        Row(name="**from a command's request to its answer, applied, p50 / p95**", value=latencies),
        Row(name="from being given to being applied, p50 / p95", value=effects),
    ]
    for index, what in enumerate(("time", "processor time")):
        alone = Spread.of([one[index] for one in took["alone"]])
        rows.append(Row(name=f"training alone, {what}", value=alone, unit="s"))
        for name in ("served", "followed"):
            ratios = [
                one[index] / other[index]
                for one, other in zip(took[name], took["alone"], strict=True)
            ]
            rows.append(Row(name=f"**{what}, {name} : alone**", value=Spread.of(ratios)))
    return rows


def _train(name: str, num_steps: int) -> tuple[float, float]:
    """Wall and processor seconds of a training in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", TRAINING, name, str(num_steps)],
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("TOOK"))
    wall_s, processor_s = line.split()[1:]
    return float(wall_s), float(processor_s)


@contextmanager
def _following(client: _Client, name: str) -> Iterator[None]:
    """Somebody who has the page open: follows the stream, as soon as there is one."""
    ended = threading.Event()

    def follow() -> None:
        path = f"/experiments/{name}/stream"
        while not ended.is_set():
            with client.http.stream("GET", path) as answer:
                if answer.status_code == 200:
                    for _ in answer.iter_lines():
                        if ended.is_set():
                            return
            ended.wait(0.1)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        # The stream has a line now and then also when nothing happens.
        thread.join()


def _command_latencies(client: _Client, num_steps: int, num_commands: int) -> tuple[str, str]:
    """What it takes until a process that trains has pinned and unpinned runs."""
    training = subprocess.Popen(
        [sys.executable, "-c", TRAINING, "commanded", str(10 * num_steps)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    answers, effects = [], []
    try:
        _wait_for(lambda: _is_training(client))
        for number in range(num_commands):
            command = {"verb": "unpin" if number % 2 else "pin", "run_id": 1}
            begin_s = time.perf_counter()
            answer = client.http.post(
                "/experiments/commanded/commands", json={"commands": [command], "wait_s": 30}
            )
            answers.append(1000 * (time.perf_counter() - begin_s))
            (settled,) = answer.json()["commands"]
            assert settled["status"] == "applied", json.dumps(settled)
            effects.append(1000 * settled["latency_s"])
    finally:
        training.kill()
        training.wait()
    return percentiles(answers, "ms"), percentiles(effects, "ms")


def _is_training(client: _Client) -> bool:
    answer = client.http.get("/experiments/commanded/runs")
    return answer.status_code == 200 and any(row["step"] for row in answer.json()["runs"])


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline_s, "the training did not begin"
        time.sleep(0.1)


if __name__ == "__main__":
    main()
