"""What every benchmark prints: the command, versions, hardware and a table in Markdown."""

import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from rapidfireai import __version__

LIBRARIES = ("rapidfireai", "torch", "transformers", "trl", "peft", "accelerate", "datasets")


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure that was measured several times."""

    median: float
    low: float
    high: float
    num: int
    """How often it was measured."""

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The median of the values and the range they cover."""
        return cls(statistics.median(values), min(values), max(values), len(values))


def percentiles(values: Sequence[float], unit: str) -> str:
    """The median and the value that 95 of 100 do not exceed."""
    if not values:
        return "none"
    ordered = sorted(values)
    shown = (ordered[int(len(ordered) * share)] for share in (0.5, 0.95))
    return f"{' / '.join(f'{value:.2f}' for value in shown)} {unit}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A line of the table."""

    name: str
    value: Spread | float | str
    unit: str = ""
    goal: str = ""
    note: str = ""


@dataclass(kw_only=True, slots=True)
class Report:
    """One benchmark's result."""

    title: str
    rows: list[Row]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def print(self) -> None:
        """Print all of it as Markdown."""
        print(f"\n## {self.title}\n\n    {command()}\n")
        for name, value in {**environment(), **self.settings}.items():
            print(f"- {name}: {value}")
        print("\n| what | median | from - to | times | goal | note |\n|---|---:|---:|---:|---|---|")
        for row in self.rows:
            print(f"| {' | '.join(_cells(row))} |")
        print(flush=True)

    def save(self, path: Path) -> None:
        """Write all of it as JSON."""
        content = {
            "title": self.title,
            "command": command(),
            "environment": environment(),
            "settings": dict(self.settings),
            "rows": [asdict(row) for row in self.rows],
        }
        path.write_text(json.dumps(content, indent=2, default=str) + "\n")


def command() -> str:
    """How this process was started, for a shell in the project's folder."""
    main = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["-m", main.name] if main is not None else [sys.argv[0]]
    return shlex.join(["python", *program, *sys.argv[1:]])


def environment() -> dict[str, str]:
    """Date, hardware and versions."""
    gpu = "none"
    if torch.cuda.is_available():
        gpu = f"{torch.cuda.get_device_name()} (CUDA {torch.version.cuda})"
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "CPU": f"{_cpu_model()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "GPU": gpu,
        "torch threads": str(torch.get_num_threads()),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {_version(name)}" for name in LIBRARIES),
    }


def _version(name: str) -> str:
    if name == "rapidfireai":
        return __version__
    return importlib.metadata.version(name)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _cells(row: Row) -> tuple[str, ...]:
    value, unit = row.value, f" {row.unit}" if row.unit else ""
    if isinstance(value, str):
        return row.name, value, "", "", row.goal, row.note
    if isinstance(value, float | int):
        return row.name, f"{_number(value)}{unit}", "", "", row.goal, row.note
    spread = f"{_number(value.low)} - {_number(value.high)}"
    return row.name, f"{_number(value.median)}{unit}", spread, str(value.num), row.goal, row.note


def _number(value: float) -> str:
    return f"{value:,.3f}" if abs(value) < 10 else f"{value:,.1f}"
