"""Experiments that the server's tests ask about."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.server.laboratory import Laboratory, filled


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Laboratory]:
    with closing(filled(tmp_path)) as lab:
        yield lab
