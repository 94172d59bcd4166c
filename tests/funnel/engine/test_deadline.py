from __future__ import annotations

import time

import pytest

from funnel.errors import InputError
from funnel.request import Deadline


@pytest.mark.parametrize("ms", [0, -1.0, float("nan"), float("inf"), True, "5", None])
def test_what_is_no_deadline(ms: object) -> None:
    with pytest.raises(InputError, match=r"deadline_ms is .*; expected milliseconds above 0"):
        Deadline(ms)  # type: ignore[arg-type]


def test_it_passes_when_the_time_is_up_and_not_before() -> None:
    started = time.perf_counter()
    deadline = Deadline(30)
    while not deadline.passed():
        pass
    assert 0.030 <= time.perf_counter() - started < 1
    assert not Deadline(60_000).passed()


def slow_and_wrong() -> None:
    time.sleep(0.06)
    raise ValueError("inside")


def test_paused_time_does_not_count() -> None:
    deadline = Deadline(40)
    with deadline.paused():
        time.sleep(0.06)
    assert not deadline.passed()
    with pytest.raises(ValueError, match="inside"), deadline.paused():  # also where the work fails
        slow_and_wrong()
    assert not deadline.passed()
