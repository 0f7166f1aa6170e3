"""Long series of values, thinned out to as many points as a screen can show.

Of each bucket of steps the least and the greatest value are kept, so that no peak is lost however
far one looks at it. Buckets are powers of two wide and begin at multiples of their width:
neighbours can be merged, and only the last one changes when a run goes on.
"""

import math
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

from rapidfireai.core.events import MetricSource
from rapidfireai.core.ids import RunId
from rapidfireai.store import SqliteReader
from rapidfireai.store.reader import Value

MAX_BUCKETS: Final = 256
"""Of a series that is kept in memory."""

_MAX_SERIES: Final = 2048
"""Kept in memory: some 12 KiB each."""

_FIELDS: Final = 6
"""Of a bucket: step, value and time of its least value, and of its greatest."""


class Metric(NamedTuple):
    """Who measured what."""

    source: MetricSource
    name: str


class Point(NamedTuple):
    """A value of a series; NaN where none of its bucket is finite."""

    step: int
    value: float
    time_s: float


@dataclass(slots=True)
class Buckets:
    """A series by buckets; those without values are left out."""

    width: int
    """Steps in a bucket."""
    values: "array[float]"
    """`_FIELDS` numbers for each bucket, in the order of their steps."""

    def __len__(self) -> int:
        return len(self.values) // _FIELDS

    @property
    def open_from(self) -> int:
        """The first step of the last bucket, to which values may still be added."""
        return _floor(int(self.values[-_FIELDS]), self.width) if self.values else 0

    def widened(self, width: int) -> "Buckets":
        """The same in wider buckets."""
        if width <= self.width:
            return self
        merged = Buckets(width, array("d"))
        for bucket in self._each():
            if merged.values and merged.open_from == _floor(int(bucket[0]), width):
                merged._merge(bucket)
            else:
                merged.values.extend(bucket)
        return merged

    def extend(self, tail: "Buckets") -> None:
        """Replace the last bucket and what follows by newer ones of the same width."""
        if self.values and tail.values:
            while self.values and self.open_from >= _floor(int(tail.values[0]), self.width):
                del self.values[-_FIELDS:]
        self.values.extend(tail.values)

    def points(self) -> Iterator[Point]:
        """The extremes in the order of their steps."""
        for low_step, low, low_s, high_step, high, high_s in self._each():
            points = [Point(int(low_step), low, low_s), Point(int(high_step), high, high_s)]
            if low_step == high_step or math.isnan(low):
                yield points[0]
            else:
                yield from sorted(points)

    def _each(self) -> Iterator[tuple[float, ...]]:
        values = self.values
        for start in range(0, len(values), _FIELDS):
            yield tuple(values[start : start + _FIELDS])

    def _merge(self, bucket: Sequence[float]) -> None:
        """Take another bucket into the last one. NaN is neither less nor greater."""
        last = self.values[-_FIELDS:]
        if math.isnan(last[1]) or bucket[1] < last[1]:
            self.values[-_FIELDS:-3] = array("d", bucket[:3])
        if math.isnan(last[4]) or bucket[4] > last[4]:
            self.values[-3:] = array("d", bucket[3:])


class SeriesCache:
    """The series of an experiment's runs, each read once and then only where it grows.

    Threads may share it: at worst two read the same.
    """

    def __init__(self, reader: SqliteReader) -> None:
        self._reader = reader
        self._kept: OrderedDict[tuple[RunId, Metric], tuple[Value, Buckets]] = OrderedDict()
        """Each with the last value that is in it."""

    def forget(self, run_id: RunId) -> None:
        """Read the run's series anew: steps have been trained again."""
        for key in [key for key in list(self._kept) if key[0] == run_id]:
            self._kept.pop(key, None)

    def points(
        self, run_id: RunId, metric: Metric, num_points: int, steps: tuple[int, int | None]
    ) -> list[Point]:
        """A series with at most about `num_points` points; its first and last value are among them.

        Args:
            run_id: The run's.
            metric: Which.
            num_points: At least 2.
            steps: The first and the last step to look at; None for the end.
        """
        last = self._reader.last_value(run_id, *metric)
        if last is None:
            return []
        start, end = max(0, steps[0]), last.step if steps[1] is None else steps[1]
        width = _width(max(0, end - start), num_points // 2)
        buckets = None
        if start == 0 and end >= last.step:
            kept = self._whole(run_id, metric, last)
            buckets = kept.widened(width) if width >= kept.width else None
        if buckets is None:
            buckets = self._read(run_id, metric, width, (start, end))
        points = [point for point in buckets.points() if start <= point.step <= end]
        if points and points[-1].step < last.step <= end:
            points.append(Point(last.step, last.value, last.time_s))
        first = self._reader.first_value(run_id, *metric) if start == 0 else None
        if points and first is not None and first.step < points[0].step:
            points.insert(0, Point(first.step, first.value, first.time_s))
        return points

    def _whole(self, run_id: RunId, metric: Metric, last: Value) -> Buckets:
        """The whole series as it is kept."""
        key = (run_id, metric)
        end, kept = self._kept.get(key, (None, None))
        if kept is None or end is None:
            fresh = self._read(run_id, metric, _width(last.step, MAX_BUCKETS), (0, None))
        elif (end.step, end.time_s) == (last.step, last.time_s):
            return kept
        else:
            fresh = kept.widened(_width(last.step, MAX_BUCKETS))
            if fresh is kept:  # others may be looking at it
                fresh = Buckets(kept.width, kept.values[:])
            fresh.extend(self._read(run_id, metric, fresh.width, (fresh.open_from, None)))
        self._kept[key] = (last, fresh)
        self._kept.move_to_end(key)
        while len(self._kept) > _MAX_SERIES:
            self._kept.popitem(last=False)
        return fresh

    def _read(
        self, run_id: RunId, metric: Metric, width: int, steps: tuple[int, int | None]
    ) -> Buckets:
        least, greatest = self._reader.extremes(run_id, metric, width, steps)
        buckets = Buckets(width, array("d"))
        highest = {extreme.bucket: extreme for extreme in greatest}
        for low in least:
            # A value that came between the two queries is in the next answer.
            high = highest.get(low.bucket, low)
            buckets.values.extend((low.step, low.value, low.time_s))
            buckets.values.extend((high.step, high.value, high.time_s))
        return buckets


def interpolated(steps: Sequence[int], known: Sequence[Point]) -> list[float | None]:
    """What a metric that only grows, such as a number of tokens, was at some steps.

    Args:
        steps: Any.
        known: The metric's points; it is taken to be 0 at step 0, and to grow evenly in between.

    Returns:
        None for each step after the last that is known, and for all if nothing is.
    """
    points = [point for point in known if math.isfinite(point.value)]
    if not points:
        return [None] * len(steps)
    if points[0].step > 0:
        points.insert(0, Point(0, 0.0, 0.0))
    slopes = [(b.value - a.value) / (b.step - a.step) for a, b in pairwise(points)]
    ends = [point.step for point in points]
    found: list[float | None] = []
    for step in steps:
        place = bisect_right(ends, step) - 1
        if place < 0 or step > ends[-1]:
            found.append(None)
        elif place == len(slopes):
            found.append(points[-1].value)
        else:
            found.append(points[place].value + slopes[place] * (step - ends[place]))
    return found


def _width(num_steps: int, max_buckets: int) -> int:
    """The least power of two by which so many steps make no more than so many buckets."""
    width = 1
    while num_steps // width + 1 > max(1, max_buckets):
        width *= 2
    return width


def _floor(step: int, width: int) -> int:
    return step - step % width
