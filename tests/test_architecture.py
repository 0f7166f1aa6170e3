"""The rules that keep the package in layers, examined on its source."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "rapidfireai"
ROOT = Path(__file__).parents[1] / "src" / PACKAGE
MODULES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))

# Each imports only from those before it.
LAYERS = (
    "core", "policies", "store", "paths", "control", "tracking", "workers", "training", "evals",
    "automl", "server", "experiment", "cli",
)  # fmt: skip
FOR_ALL = {"errors", "faults", "_version"}
# What shows experiments knows nothing of training, and runs where no torch is.
BELOW_SERVER = {"core", "store", "paths", "control", "tracking", "server", *FOR_ALL}
# Where layers meet the user; modules beside the layers (results, demo, ...) belong to it as well.
FACADE = {"experiment", "cli"}

HEAVY = ("torch", "trl", "transformers", "datasets", "pandas", "rich", "mlflow", "wandb", "trackio")
VAGUE = {"utils", "util", "helpers", "helper", "common", "manager"}
CLOCK = Path("core/clock.py")

every_module = pytest.mark.parametrize("module", MODULES, ids=str)
core_modules = pytest.mark.parametrize(
    "module", [module for module in MODULES if module.parts[0] == "core"], ids=str
)


def part_of(module: Path) -> str:
    """The layer or module right below the package: `core` for core/run.py, `cli` for cli.py."""
    return module.parts[0].removesuffix(".py")


def imported(tree: ast.AST, module: Path) -> Iterator[str]:
    """Dotted names that a module imports, at its top or within functions, also for types only."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # `from . import x` in a/b.py is `from rapidfireai.a import x`.
            above = (PACKAGE, *module.parts)[: -node.level] if node.level else ()
            origin = ".".join((*above, *(node.module or "").split("."))).strip(".")
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def parts_imported(tree: ast.AST, module: Path) -> set[str]:
    """Layers and modules right below the package that a module imports."""
    names = [name.split(".") for name in imported(tree, module)]
    return {
        # What is no module is a name that the package itself offers, as in `import Experiment`.
        name[1] if _is_module(name[1:]) else "__init__"
        for name in names
        if name[0] == PACKAGE
    }


def _is_module(below: list[str]) -> bool:
    return bool(below) and ((ROOT / below[0]).is_dir() or (ROOT / f"{below[0]}.py").is_file())


def forbidden(part: str, imports: set[str]) -> set[str]:
    """What of `imports` the part of the package may not import."""
    if part == "testing":
        return set()
    if part == "core":
        return imports - {"core", "errors"}
    if part in FOR_ALL:
        return imports - {part}
    if part not in LAYERS:
        return imports & {"testing"}
    if part == "server":
        return imports - BELOW_SERVER
    below = {*LAYERS[: LAYERS.index(part) + 1], *FOR_ALL}
    beside = imports - set(LAYERS) - {"testing"} if part in FACADE else set()
    return imports - below - beside


def impure(tree: ast.AST) -> set[str]:
    """Uses of the time of day, of sleep, and of global randomness."""
    from_name = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    modules = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    attributes = {
        f"{modules.get(node.value.id)}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    return {
        use
        for use in from_name | attributes
        if use.split(".")[0] in {"time", "datetime", "random", "secrets"}
        and use != "random.Random"  # which is seeded and handed in
    }


def parse(module: Path) -> ast.Module:
    return ast.parse((ROOT / module).read_text(encoding="utf-8"), filename=str(module))


@every_module
def test_imports_go_one_way(module: Path) -> None:
    imports = parts_imported(parse(module), module)
    assert not forbidden(part_of(module), imports)


@core_modules
def test_core_imports_the_standard_library_only(module: Path) -> None:
    roots = {name.split(".")[0] for name in imported(parse(module), module)}
    assert roots <= {*sys.stdlib_module_names, PACKAGE}


@core_modules
def test_core_takes_time_and_chance_from_outside(module: Path) -> None:
    assert module == CLOCK or not impure(parse(module))


@every_module
def test_modules_are_named_for_what_they_are(module: Path) -> None:
    names = {part.removesuffix(".py").strip("_") for part in module.parts}
    assert not names & VAGUE


@pytest.mark.parametrize("part", ["core", "tracking", "server"])
def test_it_can_be_imported_without_heavy_libraries(part: str) -> None:
    modules = [
        ".".join((PACKAGE, *module.with_suffix("").parts))
        for module in MODULES
        if module.parts[0] == part
    ]
    program = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({HEAVY!r}))\n"  # None makes an import fail
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        encoding="utf-8",
        check=False,
        env={"PYTHONPATH": str(ROOT.parent)},
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("core/run.py", "from rapidfireai.core.ids import RunId", set()),
        ("core/run.py", "from rapidfireai import errors", set()),
        ("core/run.py", "from rapidfireai._version import __version__", {"_version"}),
        ("core/run.py", "import rapidfireai.store.sqlite", {"store"}),
        ("core/run.py", "def f():\n    from rapidfireai.store import Store", {"store"}),
        ("core/run.py", "from ..store import Store", {"store"}),
        ("store/sqlite.py", "from . import _codec", set()),
        ("store/sqlite.py", "from .. import cli", {"cli"}),
        ("store/sqlite.py", "from rapidfireai.core.run import Run", set()),
        ("store/sqlite.py", "from rapidfireai import Experiment", {"__init__"}),
        ("store/sqlite.py", "import rapidfireai", {"__init__"}),
        ("store/sqlite.py", "from rapidfireai.results import best_run", {"results"}),
        ("training/columns.py", "from rapidfireai.testing.tiny import model", {"testing"}),
        ("server/api.py", "from rapidfireai.control import give", set()),
        ("server/api.py", "from rapidfireai.training.config import RunConfig", {"training"}),
        ("server/api.py", "from rapidfireai.results import best_run", {"results"}),
        ("experiment.py", "from rapidfireai.results import best_run", set()),
        ("experiment.py", "from rapidfireai import cli, testing", {"cli", "testing"}),
        ("results.py", "from rapidfireai.testing.tiny import model", {"testing"}),
        ("errors.py", "import rapidfireai.core", {"core"}),
        ("testing/tiny.py", "from rapidfireai.cli import main", set()),
    ],
)
def test_import_rule_finds_what_it_looks_for(module: str, source: str, expected: set[str]) -> None:
    path = Path(module)
    assert forbidden(part_of(path), parts_imported(ast.parse(source), path)) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import time\ntime.sleep(1)", {"time.sleep"}),
        ("import time as t\nt.time()", {"time.time"}),
        ("from time import monotonic", {"time.monotonic"}),
        ("import random\nrandom.shuffle([])", {"random.shuffle"}),
        ("import random\nrandom.Random(0).random()", set()),
        ("from random import Random", set()),
        ("run.time", set()),
    ],
)
def test_purity_rule_finds_what_it_looks_for(source: str, expected: set[str]) -> None:
    assert impure(ast.parse(source)) == expected
