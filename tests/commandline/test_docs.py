"""What docs/cli.md shows in its blocks of `console` is what the commands print."""

import contextlib
import io
import os
import re
import shlex
import time
from pathlib import Path

import pytest

from rapidfireai import cli
from tests.commandline.laboratory import laboratory

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
_BLOCK = re.compile(r"(?<=```console\n).*?(?=```)", re.DOTALL)


def session(block: str) -> str:
    """The block's commands, each with what it prints."""
    shown = ""
    for line in block.splitlines():
        if line.startswith("$ "):
            printed = io.StringIO()
            arguments = shlex.split(line)[2:]
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                cli.main(arguments)
            shown += f"{line}\n{printed.getvalue()}"
    return shown.replace(os.getcwd(), "/home/you")


def rendered(page: str) -> str:
    """The page as it should be, by an experiment made for the occasion."""
    return _BLOCK.sub(lambda block: session(block.group()), page)


def test_console_blocks_show_what_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RF_EXPERIMENT_PATH", str(tmp_path / "root"))
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    monkeypatch.chdir(tmp_path)
    laboratory(tmp_path / "root")
    page = PAGE.read_text(encoding="utf-8")
    assert len(_BLOCK.findall(page)) == 4
    # How much room SQLite takes is its own business.
    assert _without_sizes(rendered(page)) == _without_sizes(page)


def _without_sizes(page: str) -> str:
    return re.sub(r"\d+\.\d KiB", "SIZE", page)
