"""Events by hand, and terminals made of memory."""

import io
import re
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from rapidfireai.core.engine import Listener
from rapidfireai.core.events import (
    ChunkAssigned,
    ChunkFinished,
    Event,
    MetricsLogged,
    MetricSource,
    RunCompleted,
    RunFailed,
    RunStarted,
    StepFinished,
)
from rapidfireai.core.ids import RunId, WorkerId
from rapidfireai.core.run import Run, apply

ID = RunId(1)


def runs(number: int, **knobs: list[Any]) -> list[Run]:
    """Runs whose configurations take the values of each knob in turn."""
    return [
        Run(
            id=RunId(i + 1),
            name=f"run-{i + 1}",
            config={"training_args": {name: of[i % len(of)] for name, of in knobs.items()}},
            path="",
        )
        for i in range(number)
    ]


class Feed:
    """Applies events to runs as an engine does, and tells a listener."""

    def __init__(self, runs: list[Run], listener: Listener) -> None:
        self.runs = {run.id: run for run in runs}
        self._listener = listener

    def send(self, event: Event) -> None:
        before = self.runs[event.run_id]
        self.runs[event.run_id] = after = apply(before, event)
        self._listener.on_event(before, event, after)

    def start(self, run_id: int = ID, num_steps: int = 40, notes: tuple[str, ...] = ()) -> None:
        run = RunId(run_id)
        self.send(ChunkAssigned(run_id=run, worker_id=WorkerId(0), chunk=0))
        self.send(
            RunStarted(run_id=run, num_steps=num_steps, num_chunks=4, resolved={}, notes=notes)
        )

    def step(self, run_id: int = ID, step: int = 1, loss: float = 2.0) -> None:
        """A step of one second."""
        self.send(StepFinished(run_id=RunId(run_id), step=step, loss=loss, active_s=float(step)))

    def metrics(
        self,
        values: Mapping[str, float],
        run_id: int = ID,
        step: int = 1,
        source: MetricSource = MetricSource.CHUNK,
    ) -> None:
        self.send(MetricsLogged(run_id=RunId(run_id), step=step, source=source, values=values))

    def chunk(self, run_id: int = ID) -> None:
        run = self.runs[RunId(run_id)]
        self.send(ChunkFinished(run_id=run.id, chunk=0, step=run.step, active_s=run.active_s))

    def complete(self, run_id: int = ID) -> None:
        run = self.runs[RunId(run_id)]
        self.send(RunCompleted(run_id=run.id, step=run.step, active_s=run.active_s))

    def fail(self, run_id: int = ID, error: str = "ValueError: boom") -> None:
        run = self.runs[RunId(run_id)]
        self.send(RunFailed(run_id=run.id, error=error, traceback="", active_s=run.active_s))


class Tty(io.TextIOWrapper):
    """A file in memory that says it is a terminal, unless told."""

    def __init__(self, encoding: str = "utf-8", *, is_tty: bool = True) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, write_through=True)
        self._is_tty = is_tty

    def isatty(self) -> bool:
        return self._is_tty

    @property
    def written(self) -> str:
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue().decode(self.encoding)


_CONTROLS = re.compile(r"(?:\r?\x1b\[[0-9;?]*[A-Za-z])+")


def frames(console: Console) -> list[str]:
    """What a console of `terminal` was drawn with, one frame after the other."""
    assert isinstance(console.file, Tty)
    drawn = _CONTROLS.split(console.file.written)
    return [re.sub(r" +$", "", frame, flags=re.M).rstrip() for frame in drawn if frame.strip()]


def terminal(width: int = 120, height: int = 40, encoding: str = "utf-8") -> Console:
    """A console without colours; `frames` has what it shows."""
    return Console(
        file=Tty(encoding),
        width=width,
        height=height,
        force_terminal=True,
        color_system=None,
        legacy_windows=False,
        _environ={},
    )
