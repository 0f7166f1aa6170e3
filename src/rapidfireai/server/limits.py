"""How often somebody may do something."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

_MAX_KEYS: Final = 1024


class TokenBucket:
    """Allows bursts of `size`, and in the long run `per_s` a second, for each key.

    Args:
        size: Tokens in a full bucket; each is full at first.
        per_s: Tokens that come back in a second.
        clock: Tells seconds.
    """

    def __init__(self, size: float, per_s: float, clock: Callable[[], float]) -> None:
        self._size = size
        self._per_s = per_s
        self._clock = clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Key -> tokens left, and when that was so; who came last is last."""

    def take(self, key: str = "", num: float = 1.0) -> float:
        """Take tokens if there are enough.

        A bucket that is full may be overdrawn by one who wants more than it holds.

        Returns:
            0 if they were taken, else the seconds after which to ask again.
        """
        now_s = self._clock()
        level, then_s = self._levels.pop(key, (self._size, now_s))
        level = min(self._size, level + (now_s - then_s) * self._per_s)
        wanted = min(num, self._size)
        missing = wanted - level
        if missing <= 0:
            level -= num
        self._levels[key] = (level, now_s)
        while len(self._levels) > _MAX_KEYS:
            self._levels.popitem(last=False)
        return max(0.0, missing / self._per_s)
