"""The picture of a run's life in the documentation is the one that the code follows."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_architecture_shows_the_transition_table() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    printed = subprocess.run(
        [sys.executable, ROOT / "tools" / "state_diagram.py"],
        check=True,
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    ).stdout

    _, begin, rest = page.partition("<!-- states:begin -->\n")
    block, end, _ = rest.partition("<!-- states:end -->\n")

    assert begin, "docs/architecture.md has no line <!-- states:begin -->"
    assert end, "docs/architecture.md has no line <!-- states:end --> after it"
    assert block == printed, "paste what tools/state_diagram.py prints between the markers"
