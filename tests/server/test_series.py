"""Thinned-out series keep what matters: peaks, ends, gaps."""

import math
import random
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapidfireai.core.events import MetricSource
from rapidfireai.core.ids import RunId
from rapidfireai.server.series import Metric, Point, SeriesCache, interpolated
from rapidfireai.store import SqliteReader
from tests.server.laboratory import Laboratory, laboratory

LOSS = Metric(MetricSource.STEP, "loss")
RUN = RunId(1)
ALL = (0, None)


def values(points: list[Point]) -> list[float]:
    return [point.value for point in points]


@pytest.mark.parametrize("num_points", [4, 50, 200, 1000, 5000])
def test_no_peak_is_lost(tmp_path: Path, num_points: int) -> None:
    rng = random.Random(0)
    losses = [rng.random() for _ in range(3000)]
    losses[1234], losses[2345] = 99.0, -99.0
    with laboratory(tmp_path, num_runs=1) as lab, closing(SqliteReader(lab.folder.store)) as reader:
        lab.begin(1)
        lab.train(1, losses)
        points = SeriesCache(reader).points(RUN, LOSS, num_points, ALL)

    assert len(points) <= num_points + 4
    assert [point.step for point in points] == sorted({point.step for point in points})
    assert max(values(points)) == 99.0
    assert min(values(points)) == -99.0
    assert points[0] == (1, losses[0], points[0].time_s)
    assert points[-1][:2] == (3000, losses[-1])


@settings(max_examples=25, deadline=None)
@given(
    pieces=st.lists(st.integers(1, 400), min_size=1, max_size=6),
    num_points=st.sampled_from([8, 64, 512]),
)
def test_a_series_that_grows_is_as_if_read_at_once(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[int], num_points: int
) -> None:
    rng = random.Random(sum(pieces))
    root = tmp_path_factory.mktemp("series")
    with laboratory(root, num_runs=1) as lab, closing(SqliteReader(lab.folder.store)) as reader:
        lab.begin(1)
        cache = SeriesCache(reader)
        for piece in pieces:
            lab.train(1, [rng.choice([math.nan, rng.random()]) for _ in range(piece)])
            grown = cache.points(RUN, LOSS, num_points, ALL)
        fresh = SeriesCache(reader).points(RUN, LOSS, num_points, ALL)
    assert str(grown) == str(fresh)


def test_gaps_are_gaps_and_infinities_hide_nothing(lab: Laboratory) -> None:
    lab.train(1, [1.0, math.nan, math.inf, 2.0])
    with closing(SqliteReader(lab.folder.store)) as reader:
        points = SeriesCache(reader).points(RUN, LOSS, 100, (11, None))
        coarse = SeriesCache(reader).points(RUN, LOSS, 4, ALL)
    assert [math.isnan(value) for value in values(points)] == [False, True, True, False]
    finite = [value for value in values(coarse) if not math.isnan(value)]
    assert (max(finite), min(finite)) == (4.0, 1.0)


def test_a_part_of_the_steps(lab: Laboratory) -> None:
    with closing(SqliteReader(lab.folder.store)) as reader:
        points = SeriesCache(reader).points(RUN, LOSS, 100, (3, 5))
        assert [point.step for point in points] == [3, 4, 5]
        assert SeriesCache(reader).points(RUN, LOSS, 100, (50, 60)) == []
        assert SeriesCache(reader).points(RUN, Metric(MetricSource.LOG, "x"), 100, ALL) == []


def test_steps_that_are_trained_again_are_read_again(lab: Laboratory) -> None:
    with closing(SqliteReader(lab.folder.store)) as reader:
        cache = SeriesCache(reader)
        cache.points(RUN, LOSS, 100, ALL)
        lab.train(1, [9.0, 9.0], first=2)
        cache.forget(RUN)
        assert values(cache.points(RUN, LOSS, 100, ALL))[:3] == [4.0, 9.0, 9.0]


def test_tokens_grow_evenly_between_what_is_known() -> None:
    known = [Point(10, 1000.0, 0.0), Point(20, 3000.0, 0.0)]
    assert interpolated([0, 5, 10, 15, 20, 21], known) == [0, 500, 1000, 2000, 3000, None]
    assert interpolated([1], []) == [None]


def test_the_queries_are_served_by_an_index(lab: Laboratory) -> None:
    seen: list[str] = []
    with closing(SqliteReader(lab.folder.store)) as reader:
        reader._db.set_trace_callback(seen.append)
        SeriesCache(reader).points(RUN, LOSS, 100, ALL)
        reader.latest_values(RUN, MetricSource.LOG)
        reader.values_from(RUN, MetricSource.LOG, 3, 10)
        reader.losses_at(RUN, [1, 2])
        reader.events(after=1, limit=5)
        reader.commands(after=1, also=[1], limit=5)
        reader._db.set_trace_callback(None)
        plans = [
            row["detail"] for sql in seen for row in reader._db.execute(f"EXPLAIN QUERY PLAN {sql}")
        ]
    assert len(seen) >= 9
    assert any("USING PRIMARY KEY" in plan for plan in plans)
    assert not [plan for plan in plans if plan.startswith("SCAN metrics")]
