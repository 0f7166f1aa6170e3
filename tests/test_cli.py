import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rapidfireai import cli, doctor
from rapidfireai._version import __version__
from rapidfireai.demo import run as demo_run
from rapidfireai.errors import ConfigError

HEAVY = ("torch", "trl", "transformers", "datasets", "pandas", "peft", "rich")


def python(program: str) -> subprocess.CompletedProcess[str]:
    """Runs a program in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        encoding="utf-8",
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")},
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["demo", "--help"],
        ["runs", "--help"],
        ["clone-run", "--help"],
        ["export", "--help"],
        ["fit", "--help"],
        [],
    ],
)
def test_help_and_version_load_nothing_heavy(arguments: list[str]) -> None:
    result = python(
        "import sys\n"
        "from rapidfireai.cli import main\n"
        "try:\n"
        f"    main({arguments!r})\n"
        "except SystemExit as stop:\n"
        "    assert stop.code == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    assert result.stderr == "[]\n"
    assert "rapidfireai" in result.stdout


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = f"import rapidfireai, sys\nprint([n for n in {HEAVY!r} if n in sys.modules])"
    assert python(program).stdout == "[]\n"


def test_python_dash_m_is_the_command() -> None:
    program = "import runpy, sys\nsys.argv[1:] = ['--version']\nrunpy.run_module('rapidfireai')"
    assert python(program).stdout == f"rapidfireai {__version__}\n"


def test_without_arguments_it_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    output = capsys.readouterr().out
    assert "demo" in output
    assert "doctor" in output


def test_unknown_command_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["dmeo"])
    assert stop.value.code == 2
    assert "dmeo" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ConfigError("no run has it"), 1, "rapidfireai: error: no run has it\n"),
        (PermissionError(13, "Permission denied", "/x"), 1, "Permission denied: '/x'"),
        (ModuleNotFoundError("pip install that"), 1, "that\n`rapidfireai doctor` shows"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_errors_become_a_message_and_a_status(
    error: BaseException,
    status: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(demo_run, "main", fail)
    assert cli.main(["demo"]) == status
    assert message in capsys.readouterr().err


def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(demo_run, "main", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["demo"])


def test_demo_passes_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[dict[str, object]] = []
    monkeypatch.setattr(demo_run, "main", lambda **options: calls.append(options))
    assert cli.main(["demo"]) == cli.main(["demo", "--quick", "--cache", str(tmp_path)]) == 0
    assert calls == [{"quick": False, "cache": None}, {"quick": True, "cache": tmp_path}]


@pytest.mark.parametrize("problem", [None, "out of range"])
def test_doctor_exits_by_what_it_finds(
    problem: doctor.Problem | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = doctor.Report(
        version="1.2.3",
        python=doctor.Package(
            name="python", version="3.11.7", wanted="", problem=problem, install="install it"
        ),
        required=(),
        optional=(),
        machine=doctor.Machine(
            system="Linux", cpu_cores=2, torch_threads=2, memory_gib=None, devices=()
        ),
        folder=doctor.Folder(path="/experiments", problem=None, free_gib=1.0),
        notes=(),
    )
    monkeypatch.setattr(doctor, "examine", lambda: report)
    assert cli.main(["doctor"]) == (1 if problem else 0)
    assert ("install it" in capsys.readouterr().out) == bool(problem)
    assert cli.main(["doctor", "--json"]) == (1 if problem else 0)
    assert json.loads(capsys.readouterr().out)["ok"] == (problem is None)
