"""Drift: no alarm for queries of the same kind, an alarm soon for others; plans, windows, repeats and threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from funnel.monitoring import drift as drift_module
from funnel.monitoring.drift import ALARM, BLOCK, MOST_WATCHED, RANKS, WINDOW, Drift, Returned
from funnel.plan import FLAT, Plan

Float32 = npt.NDArray[np.float32]


def scores(count: int, seed: int, mean: float = 0.6) -> Float32:
    """Ten falling scores a query."""
    found = np.sort(np.random.default_rng(seed).normal(mean, 0.1, (count, 10)), axis=1)[:, ::-1]
    return np.ascontiguousarray(found, dtype=np.float32)


def watching(reference: Float32, seed: int = 0) -> Drift:
    return Drift(lambda _plan, _k: reference[:, RANKS], seed)


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


def test_a_part_of_a_large_call_is_compared() -> None:
    drift = watching(scores(1_000, 1))
    assert not drift.see(scores(4_000, 2), FLAT)
    assert drift.seen == 4_000
    assert drift.compared == 500 <= drift_module.MOST_COMPARED
    late = scores(4_000, 3)
    late[2_000:] -= 0.2  # the second half of a call that changed on its way
    assert drift.see(late, FLAT)


def test_the_alarm_is_raised_once_and_stays() -> None:
    drift = watching(scores(1_000, 1))
    assert feed(drift, scores(600, 3, mean=0.4)) is not None
    compared = drift.compared
    assert feed(drift, scores(600, 2)) is None
    assert drift.changed
    assert drift.compared == compared


def test_fewer_hits_than_ten_are_compared_by_the_best() -> None:
    drift = Drift(lambda _plan, k: scores(1_000, 1)[:, :k][:, RANKS])
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
    drift = Drift(lambda plan, _k: (reference - lowered * (plan == weak))[:, RANKS])
    assert feed(drift, scores(1_000, 2)) is None
    assert feed(drift, scores(1_000, 3) - lowered, plan=weak) is None
    assert feed(drift, scores(1_000, 4) - lowered) is not None


def test_plans_without_a_record_are_counted_and_not_compared() -> None:
    drift = Drift(lambda _plan, _k: None)
    assert feed(drift, scores(600, 3, mean=0.1)) is None
    assert (drift.seen, drift.compared) == (600, 0)


def test_a_query_asked_again_is_not_counted_again() -> None:
    drift = watching(scores(1_000, 1))
    popular = np.repeat(scores(3, 2, mean=0.5), 1_000, axis=0)
    assert feed(drift, popular) is None
    assert drift.seen == 3_000
    assert drift.compared == 3


@pytest.fixture(scope="module")
def real_scores(data_dir: Path) -> Float32:
    """The ten best cosines of 6,000 held-out documents among 20,000 others: real embeddings."""
    corpus, asked = (
        np.load(data_dir / "vectors-384" / f"{name}.int8.npy", mmap_mode="r")[:count].astype(np.float32)
        for name, count in (("corpus", 20_000), ("queries", 6_000))
    )
    corpus, asked = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (corpus, asked))
    best = torch.topk(torch.from_numpy(asked) @ torch.from_numpy(corpus).T, 10, dim=1).values
    return np.ascontiguousarray(best.numpy())


@pytest.mark.parametrize("exponent", [0.8, 1.0, 1.2])
def test_traffic_with_many_repeats_raises_no_alarm(exponent: float, real_scores: Float32) -> None:
    """Calibrated on distinct queries of a log; live calls of the same Zipf distribution, most of them repeats."""
    alarms, shares = 0, np.arange(1.0, 3_001.0) ** -exponent
    shares /= shares.sum()
    for seed in range(20):
        generator = np.random.default_rng(seed)
        pool = real_scores[generator.permutation(len(real_scores))[:3_000]]
        log = np.unique(generator.choice(len(pool), 5_000, p=shares))
        drift = watching(pool[generator.permutation(log)[:800]], seed)
        alarms += feed(drift, pool[generator.choice(len(pool), 4_000, p=shares)]) is not None
        assert drift.compared < 0.6 * drift.seen
    assert alarms <= 1  # of 20 with probability .01 each: 2 or more in 1.7 % of runs


def test_popular_queries_of_another_kind_are_a_change(real_scores: Float32) -> None:
    """Distinct queries certify; where the few that make most calls are unlike the others, that is said."""
    generator = np.random.default_rng(0)
    pool = real_scores[np.argsort(-real_scores[:, 0] + generator.normal(0, 0.1, len(real_scores)))]
    shares = np.arange(1.0, len(pool) + 1.0) ** -1.0
    live = pool[generator.choice(len(pool), 2_000, p=shares / shares.sum())]
    assert feed(watching(real_scores[generator.permutation(len(real_scores))[:1_000]]), live) is not None


def test_a_new_window_begins_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was seen before a window is no part of its reference: a second of the same shift is found as the first."""
    monkeypatch.setattr(drift_module, "WINDOW", 400)
    drift = watching(scores(1_000, 1))
    assert feed(drift, scores(400, 2)) is None
    watched = drift._watched[FLAT, 10]
    assert watched is not None
    assert feed(drift, scores(20 * 400, 5)) is None
    assert watched._window >= 18
    assert feed(drift, scores(400, 3, mean=0.5)) is not None


def test_the_window_holds_as_many_as_a_calibration() -> None:
    from funnel.building.queries import MOST_QUERIES

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


def test_evidence_is_carried_from_one_reference_to_the_next() -> None:
    """Scores rise with those of the calibration queries, every 20 queries: it is no change, and hides none."""
    drift = watching(scores(1_000, 1))
    known, other = scores(1_000, 2), scores(400, 3, mean=0.55)
    for number, start in enumerate(range(0, 1_000, 20)):
        drift.follow(rising(number), (number, 0))
        assert not drift.see(known[start : start + 20] + raised(number), FLAT)
    assert drift.compared == 980  # each twenty when the next come
    found = []
    for number in range(20):
        drift.follow(rising(50 + number), (50 + number, 0))
        found.append(drift.see(other[20 * number :][:20] + raised(50 + number), FLAT))
    assert any(found)


def raised(number: int) -> np.float32:
    return np.float32(0.002 * number)


def rising(number: int) -> Returned:
    """After so many writes."""
    return lambda _plan, _k: scores(1_000, 1)[:, RANKS] + raised(number)


def test_a_few_queries_between_two_writes_are_let_go() -> None:
    asked: list[int] = []

    def reference(number: int) -> Returned:
        def returned(_plan: Plan, _k: int) -> Float32:
            asked.append(number)
            return scores(1_000, 1)[:, RANKS]

        return returned

    drift, known = Drift(reference(0)), scores(BLOCK, 2)
    for number, part in enumerate(np.split(known, [60, 65, 100])):  # 60, 5, 35, 28 queries
        drift.follow(reference(number), (number, 0))
        drift.see(part, FLAT)
    assert asked == [0, 2]
    assert drift.seen == BLOCK
    assert drift.compared == 60 + 35  # the last 28 wait


def test_a_new_plan_in_every_call_takes_no_more_memory() -> None:
    drift = watching(scores(500, 1))
    for effort in range(1, 4 * MOST_WATCHED):
        drift.see(scores(1, effort), Plan(effort, 100))
    assert len(drift._waiting) <= MOST_WATCHED
    for effort in range(1, 4 * MOST_WATCHED):
        drift.see(scores(BLOCK, effort), Plan(effort, 100))
    assert len(drift._watched) == MOST_WATCHED
    assert len(drift._waiting) <= MOST_WATCHED
