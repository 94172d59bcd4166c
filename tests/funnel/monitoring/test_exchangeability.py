"""The martingale: exact ranks, wealth that stays small by chance and grows when something changes."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from funnel.monitoring.drift import CELLS_PER_UNIT, Exchangeability

HORIZON = 1_000
FEW = st.lists(st.integers(-20, 20).map(lambda n: n / 20), max_size=60)  # ties are common


def ranks_one_by_one(reference: list[float], values: list[float], random: npt.NDArray[np.float64]) -> list[float]:
    """By the definition: each value among everything before it and itself, ties parted at random."""
    known, ranks = list(reference), []
    for value, share in zip(values, random, strict=True):
        lower, equal = sum(v < value for v in known), sum(v == value for v in known) + 1
        ranks.append((lower + share * equal) / (len(known) + 1))
        known.append(value)
    return ranks


@given(FEW, FEW, st.integers(1, 60))
def test_ranks_are_those_of_the_definition_however_the_values_are_cut(
    reference: list[float], values: list[float], block: int
) -> None:
    test = Exchangeability(np.array(reference), HORIZON, np.random.default_rng(7))
    cells = np.rint((np.array(values) + 1) * CELLS_PER_UNIT).astype(np.int64)
    found = [rank for start in range(0, len(cells), block) for rank in test._ranks(cells[start : start + block])]
    assert found == pytest.approx(
        ranks_one_by_one(reference, values, np.random.default_rng(7).random(len(values))), abs=1e-12
    )


def largest_wealths(reference: int, shift: float, trials: int = 300, values: int = 600) -> npt.NDArray[np.float64]:
    """The largest log wealth of each trial, looked at after every 50 values; they shift after the first 200."""
    generator = np.random.default_rng(1)
    largest = np.full(trials, -math.inf)
    for trial in range(trials):
        test = Exchangeability(generator.normal(0.5, 0.1, reference), HORIZON, generator)
        live = generator.normal(0.5, 0.1, values)
        live[200:] -= shift
        for start in range(0, values, 50):
            test.update(live[start : start + 50])
            largest[trial] = max(largest[trial], test.log_wealth)
    return largest


@pytest.mark.parametrize("reference", [5, 100, 1_000])
def test_chance_makes_little_wealth(reference: int) -> None:
    """Ville: it ever reaches w in at most a share 1 / w of trials; a binomial error of three deviations is allowed."""
    largest = largest_wealths(reference, 0.0)
    for w in (4, 10, 20):
        assert np.mean(largest >= math.log(w)) <= 1 / w + 3 * math.sqrt(1 / w / len(largest))


def test_a_change_makes_much() -> None:
    assert np.mean(largest_wealths(1_000, 0.1, trials=40) > math.log(1e6)) == 1.0


def test_the_wealth_is_one_at_the_start_and_never_nothing() -> None:
    test = Exchangeability(np.linspace(0, 1, 500), HORIZON, np.random.default_rng(0))
    assert test.log_wealth == pytest.approx(0.0, abs=1e-12)
    test.update(np.linspace(0, 1, 500))  # in order: never like a random sequence
    assert math.isfinite(test.log_wealth)
    test.update(np.full(3 * HORIZON, -math.inf))  # more than were announced, of searches that found nothing
    assert math.isfinite(test.log_wealth)
    assert test.count == 500 + 3 * HORIZON


def test_rounding_is_no_change() -> None:
    """Queries that stand in the index score 1 give or take 1e-7, by the way they were computed."""
    test = Exchangeability(np.full(500, 1.0 + 1e-7), HORIZON, np.random.default_rng(0))
    test.update(np.full(500, 1.0 - 1e-7))
    assert test.log_wealth < math.log(20)
