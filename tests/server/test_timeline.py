"""Turns of runs, as events tell of them."""

from contextlib import closing

import pytest

from rapidfireai.server.timeline import KINDS, timeline
from rapidfireai.store import SqliteReader
from tests.server.laboratory import Laboratory


def test_turns_gaps_and_utilisation(lab: Laboratory) -> None:
    lab.begin(1, chunk=1)
    with closing(SqliteReader(lab.folder.store)) as reader:
        found = timeline(reader.events(limit=100, kinds=KINDS), {})
    assert [(turn.run_id, turn.chunk, turn.end) for turn in found.turns] == [
        (1, 0, "paused"),
        (2, 0, "failed"),
        (3, 0, "paused"),
        (1, 1, None),
    ]
    assert [turn.gap_s for turn in found.turns] == pytest.approx([None, 1.0, 1.0, 1.0])
    assert [turn.started_s is not None for turn in found.turns] == [True, True, True, False]
    assert found.turns[1].active_s == 2.0
    assert found.busy_s == pytest.approx(found.span_s - 2.0)
    assert (found.first_seq, found.last_seq) == (1, 10)


def test_turns_that_began_before_are_left_out(lab: Laboratory) -> None:
    with closing(SqliteReader(lab.folder.store)) as reader:
        found = timeline(reader.events(limit=2, kinds=KINDS, newest=True), {})
        assert found.turns == []
        assert timeline([], {}).first_seq == 0
