from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from funnel.escalation import ease, hard, looked_at, middle, signals
from funnel.plan import Escalation, Plan


def falling(count: int, queries: int = 20, seed: int = 0) -> np.ndarray:
    scores = np.random.default_rng(seed).random((queries, count), dtype=np.float32)
    return -np.sort(-scores, axis=1)


@given(st.integers(1, 100), st.integers(0, 500))
def test_the_middle_lies_among_the_survivors_beyond_k(k: int, more: int) -> None:
    survivors = k + more
    place = middle(survivors, k)
    assert k - 1 <= place < survivors
    assert place - (k - 1) == more // 2
    assert looked_at(survivors, k) == place + 1


@given(st.integers(1, 20), st.integers(0, 40), st.floats(-5, 5, width=32), st.floats(-5, 5, width=32))
def test_ease_is_the_weighted_sum_of_the_signals(k: int, more: int, closeness: float, margin: float) -> None:
    scores = falling(looked_at(k + more, k))
    expected = signals(scores, k).astype(np.float64) @ [closeness, margin]
    np.testing.assert_allclose(ease(scores, k, closeness, margin), expected, atol=2e-5)
    by_hand = closeness * scores[:, :k].mean(axis=1) + margin * (scores[:, k - 1] - scores[:, middle(k + more, k)])
    np.testing.assert_allclose(expected, by_hand, atol=2e-5)


def test_what_is_less_easy_than_the_threshold_goes_on() -> None:
    scores = falling(8)
    judged = ease(scores, 3, 1.0, 0.5)
    threshold = float(np.sort(judged)[4:6].mean())
    gone = hard(Escalation(3, 1.0, 0.5, threshold, Plan(0, 8)), scores)
    assert gone.sum() == 5
    assert judged[gone].max() < judged[~gone].min()


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_a_query_without_enough_candidates_goes_on(weights: tuple[float, float]) -> None:
    scores = falling(8)
    scores[0] = -np.inf
    scores[1, 2:] = -np.inf
    scores[2, 5:] = -np.inf  # k were found, and fewer than the rule looks at
    everyone_else_stays = Escalation(3, *weights, -100.0, Plan(0, 8))
    assert hard(everyone_else_stays, scores).nonzero()[0].tolist() == [0, 1, 2]
