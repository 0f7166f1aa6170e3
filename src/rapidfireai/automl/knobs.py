"""Knobs, and what searches do with a value that holds some: expand it, sample it, measure it.

A knob may sit anywhere: in dicts, lists, tuples, `Composite`s and inside other knobs. This module
knows neither trainers nor configurations.
"""

import itertools
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Self

from rapidfireai.errors import ConfigError


class Knob:
    """A place that a search fills with a value."""


class List(Knob):
    """Alternatives, which may hold knobs themselves.

    Args:
        values: At least one; the order is kept.
    """

    def __init__(self, values: Iterable[Any]) -> None:
        if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
            raise ConfigError(f"List({values!r}): List takes a list, as in List([{values!r}, ...])")
        # NumPy arrays turn into Python numbers, which TRL's types and JSON know.
        self.values: list[Any] = list(values.tolist() if hasattr(values, "tolist") else values)
        if not self.values:
            raise ConfigError("List([]) has no alternatives: give at least one value")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, List) and self.values == other.values

    __hash__ = None  # type: ignore[assignment]  # the values need not have one

    def __repr__(self) -> str:
        return f"List({self.values!r})"


@dataclass(frozen=True, slots=True)
class Range(Knob):
    """Numbers from `start` to `end`, both included; only random search draws from it."""

    start: float
    end: float
    dtype: str | None = None
    """"int" or "float"; None means "int" where start, end and step all are ints."""
    log: bool = False
    """True draws the logarithm evenly."""
    step: float | None = None
    """None draws any number in between (of integers: every one)."""

    def __post_init__(self) -> None:
        numbers = {"start": self.start, "end": self.end}
        if self.step is not None:
            numbers["step"] = self.step
        for name, number in numbers.items():
            if isinstance(number, bool) or not isinstance(number, Real):
                raise ConfigError(f"{self!r}: {name} must be a number, written without quotes")
            if not math.isfinite(number):
                raise ConfigError(f"{self!r}: {name} must be finite")
        whole = all(isinstance(number, Integral) for number in numbers.values())
        dtype = self.dtype or ("int" if whole else "float")
        if dtype not in ("int", "float"):
            raise ConfigError(f'{self!r}: dtype must be "int" or "float"')
        if dtype == "int" and any(number != int(number) for number in numbers.values()):
            raise ConfigError(f'{self!r}: dtype="int" needs whole numbers')
        for name, number in numbers.items():
            object.__setattr__(self, name, int(number) if dtype == "int" else float(number))
        self._check_bounds()

    def _check_bounds(self) -> None:
        if not self.start < self.end:
            raise ConfigError(f"{self!r}: start must be less than end")
        if self.log and self.start <= 0:
            raise ConfigError(f"{self!r}: log=True needs a start above 0")
        if self.log and self.step is not None:
            raise ConfigError(f"{self!r}: log and step do not go together; give one of them")
        if self.step is not None and not 0 < self.step <= self.end - self.start:
            raise ConfigError(f"{self!r}: step must be above 0 and at most end - start")

    def __repr__(self) -> str:
        named = {"dtype": self.dtype, "log": self.log, "step": self.step}
        rest = "".join(f", {name}={value!r}" for name, value in named.items() if value)
        return f"Range({self.start!r}, {self.end!r}{rest})"

    @property
    def whole(self) -> bool:
        """Whether it draws whole numbers."""
        return isinstance(self.start, int)

    def points(self) -> Sequence[Any] | None:
        """Returns every number that can be drawn, or None where they are countless."""
        if self.whole:
            return range(int(self.start), int(self.end) + 1, int(self.step or 1))
        if self.step is None:
            return None
        # The tolerance lets Range(0.0, 0.3, step=0.1) reach its end in spite of rounding.
        num_steps = math.floor((self.end - self.start) / self.step + 1e-9)
        return [min(self.start + k * self.step, self.end) for k in range(num_steps + 1)]

    def draw(self, rng: random.Random) -> Any:
        """Returns one of the numbers."""
        points = self.points()
        if points is not None and not self.log:
            return rng.choice(points)
        if self.whole:
            # Half a unit more at both ends: they get the share of the scale that they stand for.
            drawn = math.exp(rng.uniform(math.log(self.start - 0.5), math.log(self.end + 0.5)))
            return min(max(round(drawn), int(self.start)), int(self.end))
        if self.log:
            drawn = math.exp(rng.uniform(math.log(self.start), math.log(self.end)))
            return min(max(drawn, self.start), self.end)
        return rng.uniform(self.start, self.end)


class Composite(ABC):
    """A value made of named parts, each of which may hold knobs."""

    @abstractmethod
    def parts(self) -> Mapping[str, Any]:
        """Returns the parts in the order in which they vary: the first one slowest."""

    @abstractmethod
    def with_parts(self, parts: Mapping[str, Any]) -> Self:
        """Returns a new value with these parts in place of its own."""


def _opened(value: Any) -> tuple[Mapping[Any, Any], Callable[[Iterable[Any]], Any]] | None:
    """Returns the children by label and how to build the value again, or None for a leaf."""
    if isinstance(value, Composite):
        parts = value.parts()
        return parts, lambda items: value.with_parts(dict(zip(parts, items, strict=True)))
    if type(value) is dict:
        return value, lambda items: dict(zip(value, items, strict=True))
    if type(value) in (list, tuple):
        return dict(enumerate(value)), type(value)
    return None


def _label(path: str, key: Any) -> str:
    if isinstance(key, str) and key.isidentifier():
        return f"{path}.{key}" if path else key
    return f"{path}[{key!r}]"


def expand(value: Any, path: str = "") -> list[Any]:
    """Returns the full product over the `List`s, the one that was written first varying slowest.

    Args:
        value: Anything; without knobs it is its only expansion.
        path: Where the value stands, for the message.

    Raises:
        ConfigError: The value holds a `Range`.
    """
    if isinstance(value, Range):
        raise ConfigError(
            f"{path or 'the configuration'} is {value!r}: a grid cannot enumerate a Range; write "
            f"List([...]) there, or use RFRandomSearch(..., num_runs=...)"
        )
    return _expanded(value, path, expand)


def expand_points(value: Any, path: str = "") -> list[Any]:
    """Like `expand`, but a `Range` stands for all its points; it must be countable."""
    if isinstance(value, Range):
        points = value.points()
        assert points is not None, "ask num_points first"
        return list(points)
    return _expanded(value, path, expand_points)


def _expanded(value: Any, path: str, expand: Callable[[Any, str], list[Any]]) -> list[Any]:
    if isinstance(value, List):
        return [leaf for item in value.values for leaf in expand(item, path)]
    opened = _opened(value)
    if opened is None:
        return [value]
    children, rebuild = opened
    choices = [expand(child, _label(path, key)) for key, child in children.items()]
    return [rebuild(chosen) for chosen in itertools.product(*choices)]


def sample(value: Any, rng: random.Random) -> Any:
    """Returns the value with every knob replaced by one that was drawn."""
    if isinstance(value, Range):
        return value.draw(rng)
    if isinstance(value, List):
        return sample(rng.choice(value.values), rng)
    opened = _opened(value)
    if opened is None:
        return value
    children, rebuild = opened
    return rebuild([sample(child, rng) for child in children.values()])


def filled(value: Any, choose: Callable[[str, Knob], Any], path: str = "") -> Any:
    """Returns the value with every knob replaced by what was chosen for it, outer ones first.

    What an alternative holds is asked for only if the alternative was chosen.

    Args:
        value: Anything.
        choose: (path, knob) -> a number for a Range, for a List the place of an alternative.
        path: Where the value stands.
    """
    if isinstance(value, Range):
        return choose(path, value)
    if isinstance(value, List):
        place = choose(path, value)
        return filled(value.values[place], choose, f"{path}[{place}]" if path else "")
    opened = _opened(value)
    if opened is None:
        return value
    children, rebuild = opened
    return rebuild([filled(child, choose, _label(path, key)) for key, child in children.items()])


def num_points(value: Any) -> float:
    """Returns how many expansions there are, repeated ones counted; infinite with an open Range."""
    if isinstance(value, Range):
        points = value.points()
        return math.inf if points is None else len(points)
    if isinstance(value, List):
        return sum(num_points(item) for item in value.values)
    opened = _opened(value)
    return 1 if opened is None else math.prod(num_points(child) for child in opened[0].values())


def knobs_in(value: Any) -> Iterator[Knob]:
    """Yields every knob, an outer one before those inside it."""
    if isinstance(value, Knob):
        yield value
    opened = _opened(value.values if isinstance(value, List) else value)
    for child in opened[0].values() if opened else ():
        yield from knobs_in(child)


def covering(value: Any) -> list[Any]:
    """Returns a few values without knobs in which every alternative appears at least once.

    Of a `Range` that is its two ends.
    """
    if isinstance(value, Range):
        return [value.start, value.end]
    if isinstance(value, List):
        return [leaf for item in value.values for leaf in covering(item)]
    opened = _opened(value)
    if opened is None:
        return [value]
    children, rebuild = opened
    columns = [covering(child) for child in children.values()]
    rows = max(map(len, columns), default=1)
    return [rebuild([column[row % len(column)] for column in columns]) for row in range(rows)]


def fresh(value: Any) -> Any:
    """Returns the value in containers of its own; what they hold at the leaves is shared."""
    opened = _opened(value)
    if opened is None:
        return value
    children, rebuild = opened
    return rebuild([fresh(child) for child in children.values()])
