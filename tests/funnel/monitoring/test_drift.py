"""Drift: no alarm for queries of the same kind, an alarm soon for others; plans, windows, repeats and threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest

from funnel.monitoring import drift as drift_module
from funnel.monitoring.drift import ALARM, BLOCK, RANKS, WINDOW, Drift
from funnel.plan import FLAT, Plan

Float32 = npt.NDArray[np.float32]


def scores(count: int, seed: int, mean: float = 0.6) -> Float32:
    """Ten falling scores a query."""
    found = np.sort(np.random.default_rng(seed).normal(mean, 0.1, (count, 10)), axis=1)[:, ::-1]
    return np.ascontiguousarray(found, dtype=np.float32)


def watching(reference: Float32, seed: int = 0) -> Drift:
    return Drift(lambda plan: reference[:, RANKS], seed)


def feed(drift: Drift, live: Float32, batch: int = 50, plan: Plan = FLAT) -> int | None:
    """How many queries had come at the alarm."""
    for start in range(0, len(live), batch):
        if drift.see(live[start : start + batch], plan):
            return start + batch
    return None


def test_the_same_kind_of_queries_raises_no_alarm() -> None:
    alarms = [feed(watching(scores(300, seed), seed), scores(2_000, 1_000 + seed)) for seed in range(100)]
    assert sum(at is not None for at in alarms) <= 3  # of 100 with probability .01 each: 4 or more in 2 % of runs


@pytest.mark.parametrize("batch", [1, 7, 300])
@pytest.mark.parametrize("before", [0, 1_500])
def test_another_kind_is_found_soon(batch: int, before: int) -> None:
    drift = watching(scores(1_000, 1))
    assert feed(drift, scores(before, 2), batch) is None
    at = feed(drift, scores(600, 3, mean=0.5), batch)
    assert at is not None
    assert at <= 300
    assert drift.changed
    assert drift.p_value <= ALARM
    assert drift.seen == before + at


def test_the_alarm_is_raised_once_and_stays() -> None:
    drift = watching(scores(1_000, 1))
    assert feed(drift, scores(600, 3, mean=0.4)) is not None
    compared = drift.compared
    assert feed(drift, scores(600, 2)) is None
    assert drift.changed
    assert drift.compared == compared


def test_fewer_hits_than_ten_are_compared_by_the_best() -> None:
    drift = watching(scores(1_000, 1))
    assert feed(drift, scores(900, 2)[:, :3]) is None
    assert feed(drift, scores(500, 3, mean=0.4)[:, :1]) is not None


def test_a_change_of_the_tenth_alone_is_found() -> None:
    live = scores(900, 2)
    live[:, 9] -= 0.1
    assert feed(watching(scores(1_000, 1)), live) is not None


def test_each_plan_is_compared_with_what_it_returned_itself() -> None:
    """A weak plan returns lower scores, in calibration as in life."""
    weak = Plan(16, 16)
    reference, lowered = scores(1_000, 1), np.float32(0.1)
    drift = Drift(lambda plan: reference[:, RANKS] - lowered * (plan == weak))
    assert feed(drift, scores(1_000, 2)) is None
    assert feed(drift, scores(1_000, 3) - lowered, plan=weak) is None
    assert feed(drift, scores(1_000, 4) - lowered) is not None


def test_plans_without_a_record_are_counted_and_not_compared() -> None:
    drift = Drift(lambda plan: None)
    assert feed(drift, scores(600, 3, mean=0.1)) is None
    assert (drift.seen, drift.compared) == (600, 0)


def test_a_query_asked_again_is_not_counted_again() -> None:
    drift = watching(scores(1_000, 1))
    popular = np.repeat(scores(3, 2, mean=0.5), 1_000, axis=0)
    assert feed(drift, popular) is None
    assert drift.seen == 3_000
    assert drift.compared == 3


def test_a_new_window_begins_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was seen before a window is no part of its reference: a second of the same shift is found as the first."""
    monkeypatch.setattr(drift_module, "WINDOW", 400)
    drift = watching(scores(1_000, 1))
    assert feed(drift, scores(400, 2)) is None
    watched = drift._plans[FLAT]
    assert watched is not None
    assert feed(drift, scores(20 * 400, 5)) is None
    assert watched._window >= 18
    assert feed(drift, scores(400, 3, mean=0.5)) is not None


def test_the_window_holds_as_many_as_a_calibration() -> None:
    from funnel.building.asked import MOST_QUERIES

    assert WINDOW == MOST_QUERIES


def test_the_users_arrays_are_not_kept() -> None:
    drift = watching(scores(1_000, 1))
    for start in range(0, 500, 10):
        mine = scores(10, 100 + start)
        drift.see(mine, FLAT)
        mine[:] = 0.0
    assert not drift.changed


def test_threads_lose_no_query() -> None:
    drift = watching(scores(1_000, 1))
    parts = [scores(10 * BLOCK, seed) for seed in range(2, 10)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda part: feed(drift, part, 1), parts)) == [None] * 8
    assert drift.seen == drift.compared == 80 * BLOCK
