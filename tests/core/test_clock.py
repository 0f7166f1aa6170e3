"""The machine's clock."""

import time

import pytest

from rapidfireai.core.clock import SystemClock


def test_tells_the_time_since_the_epoch() -> None:
    assert SystemClock().now() == pytest.approx(time.time(), abs=1.0)


def test_never_goes_back_when_the_system_clock_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SystemClock()
    before = clock.now()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert clock.now() >= before
