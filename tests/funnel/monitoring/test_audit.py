"""The audit: recall as reports count it, and an interval that may be looked at any time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from funnel.errors import InputError
from funnel.monitoring.audit import MOST_LINES, Audit, checked_share, running_interval, true_recalls
from funnel.planning.run import StorageCost
from funnel.reports.bench import recall_at_k

K = 10


@given(st.integers(1, 8), st.integers(1, 12), st.integers(0, 10_000))
def test_recall_is_counted_as_in_reports(k: int, n_queries: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    true = -np.sort(-generator.integers(0, 6, (n_queries, k)) / 8, axis=1).astype(np.float32)
    returned = (true - generator.integers(0, 2, true.shape) * generator.choice([5e-7, 0.2], true.shape)).astype("f4")
    returned[generator.random(true.shape) < 0.1] = -np.inf
    assert true_recalls(returned, true) / k == pytest.approx(recall_at_k(returned, true, k))


def test_the_interval_covers_the_mean_at_all_times() -> None:
    generator, missed, trials = np.random.default_rng(3), 0, 60
    for trial in range(trials):
        chances = (0.98, 0.02) if trial % 2 else (0.7, 0.3)
        mean = chances[0] + chances[1] * 0.4
        found = generator.choice([K, 4], 300, p=chances)
        counts = np.zeros(K + 1, dtype=np.int64)
        for number, value in enumerate(found):
            counts[value] += 1
            low, high = running_interval(counts)
            if not low <= mean <= high:
                missed += 1
                break
            assert number or high - low > 0.5
    assert missed <= 7  # of 60, with probability .05 each: 8 or more in 1 % of runs


@pytest.mark.parametrize(("n", "width"), [(100, 0.2), (1_000, 0.06), (10_000, 0.02)])
def test_the_interval_narrows(n: int, width: float) -> None:
    counts = np.bincount(np.random.default_rng(0).binomial(K, 0.95, n), minlength=K + 1)
    low, high = running_interval(counts)
    assert low < 0.95 < high
    assert high - low < width


def test_nothing_seen_says_nothing() -> None:
    low, high = running_interval(np.zeros(K + 1, dtype=np.int64))
    assert (low, high) == pytest.approx((0.0, 1.0), abs=1e-5)


def test_lines_are_kept_by_budget_and_k() -> None:
    audit = Audit(0.5)
    audit.add("recall 0.9", 10, 0.9, np.array([10, 10, 9]))
    audit.add("recall 0.9", 10, 0.9, np.array([10]))
    audit.add("recall 0.9", 1, 0.9, np.array([1]))
    first, second = audit.lines()
    assert (first.k, first.n_queries, first.recall) == (1, 1, 1.0)
    assert (second.k, second.n_queries, second.recall) == (10, 4, pytest.approx(0.975))  # type: ignore[comparison-overlap]
    assert second.low < 0.975 < second.high
    assert not second.broken


def test_a_promise_that_is_not_kept_shows() -> None:
    line = Audit(1.0).add("recall 0.9", K, 0.9, np.random.default_rng(0).binomial(K, 0.8, 500))
    assert line.broken
    assert line.high < 0.9
    assert "recall 0.9 at k=10" in str(line)
    open_end = Audit(1.0).add("latency 5 ms", K, None, np.zeros(500, dtype=np.int64))
    assert not open_end.broken


def test_what_storage_costs_is_taken_off() -> None:
    """Of the mean its mean, of the interval its bound, on both sides; a promise is broken by more than it only."""
    truth = np.tile(np.linspace(0.9, 0.5, K, dtype=np.float32), (2_000, 1))
    found = truth.copy()
    found[:400, -1] = 0.1  # a fifth of the queries lose one of ten
    lost = StorageCost(found, truth).loss
    counts = np.random.default_rng(0).binomial(K, 0.9, 2_000)
    stored = Audit(1.0).add("recall 0.9", K, 0.9, counts)
    line = Audit(1.0).add("recall 0.9", K, 0.9, counts, lost)
    assert line.storage == pytest.approx(0.02)
    assert line.storage_most is not None
    assert 0.02 < line.storage_most < 0.03
    assert line.recall == pytest.approx(stored.recall - 0.02)
    assert line.low < stored.low - line.storage_most < stored.high + line.storage_most < line.high
    assert "storage taken off: 0.0200, at most 0.02" in str(line)
    assert stored.storage is None
    assert "storage" not in str(stored)
    slightly = np.random.default_rng(0).binomial(K, 0.885, 5_000)
    assert Audit(1.0).add("recall 0.9", K, 0.9, slightly).broken
    assert not Audit(1.0).add("recall 0.9", K, 0.9, slightly, lost).broken
    assert Audit(1.0).add("recall 0.9", K, 0.9, np.random.default_rng(0).binomial(K, 0.8, 5_000), lost).broken


def test_draws_are_of_the_share_and_repeatable() -> None:
    drawn = [len(Audit(0.1, seed=seed).draw(1_000, 0.1)) for seed in range(20)]
    assert 90 < np.mean(drawn) < 110
    assert Audit(0.1, seed=4).draw(100, 0.1).tolist() == Audit(0.1, seed=4).draw(100, 0.1).tolist()
    assert len(Audit(0.0).draw(100, 1.0)) == 100


@pytest.mark.parametrize(("given_", "share"), [(True, 1.0), (False, 0.0), (None, 0.0), (0.25, 0.25), (1, 1.0)])
def test_shares(given_: object, share: float) -> None:
    assert checked_share(given_, "audit") == share


@pytest.mark.parametrize("wrong", [-0.1, 1.5, "all", float("nan")])
def test_no_shares(wrong: object) -> None:
    with pytest.raises(InputError, match=r"audit is .*expected True, False, or a share"):
        checked_share(wrong, "audit")


def test_a_new_budget_in_every_audit_takes_no_more_memory() -> None:
    audit = Audit(1.0)
    for number in range(MOST_LINES + 50):
        audit.add("recall 0.9", 10, 0.9, np.array([10]))
        audit.add(f"recall {number}", 10, None, np.array([10]))
    lines = {line.budget: line for line in audit.lines()}
    assert len(lines) == MOST_LINES
    assert lines["recall 0.9"].n_queries == MOST_LINES + 50
