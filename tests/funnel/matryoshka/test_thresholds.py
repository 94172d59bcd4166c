import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from funnel.errors import InputError
from funnel.matryoshka.adaptive import BACK_OFF, Scored, cheapest_thresholds, confidences, exits, threshold_path

MANY_DIMS = ((4, 8), (2, 8, 9), (1, 2, 4, 8))


@st.composite
def scored_rows(draw: Any, many_dims: Any = MANY_DIMS) -> Scored:
    """Rows with confidences on a coarse grid, so that ties are common."""
    chosen = draw(st.sampled_from(many_dims))
    rows = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    confidence = rng.integers(1, 12, size=(len(chosen), rows)) / 12
    right = rng.random((len(chosen), rows)) < confidence + draw(st.sampled_from([-0.3, 0.0, 0.3]))
    return Scored(chosen, confidence, right)


def cost(scored: Any, thresholds: Any, price: float) -> float:
    chosen = exits(scored.confidence, np.asarray(thresholds, dtype=np.float64))
    result: float = np.array(scored.dims)[chosen].mean() + price * (~scored.right_at(chosen)).mean()
    return result


def test_a_row_leaves_at_the_first_width_that_is_sure() -> None:
    confidence = np.array([[0.9, 0.5, 0.5, 0.9], [0.9, 0.9, 0.1, 0.8], [0.2, 0.2, 0.2, 0.2]])
    assert exits(confidence, np.array([0.9, 0.9])).tolist() == [0, 1, 2, 0]
    assert exits(confidence, np.array([np.inf, 0.8])).tolist() == [1, 1, 2, 1]
    assert exits(confidence, np.array([np.inf, np.inf])).tolist() == [2, 2, 2, 2]


@settings(max_examples=60)
@given(scored=scored_rows(many_dims=((4, 9),)), price=st.floats(0.5, 500))
def test_one_threshold_is_the_best_there_is(scored: Any, price: float) -> None:
    tried = [*np.unique(scored.confidence[0]), np.inf]
    found = cost(scored, cheapest_thresholds(scored, price), price)
    np.testing.assert_allclose(found, min(cost(scored, [threshold], price) for threshold in tried))


@settings(max_examples=60)
@given(scored=scored_rows(), price=st.floats(0.5, 500))
def test_thresholds_cost_no_more_than_any_width_for_all(scored: Any, price: float) -> None:
    found = cost(scored, cheapest_thresholds(scored, price), price)
    alone = np.array(scored.dims) + price * (~scored.right).mean(axis=1)
    assert found <= alone.min() + 1e-9


def test_the_search_comes_near_the_best_of_all_pairs() -> None:
    ratios = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        confidence = rng.integers(1, 12, size=(3, 60)) / 12
        scored = Scored((2, 5, 10), confidence, rng.random((3, 60)) < confidence)
        grid = [*np.unique(confidence), np.inf]
        best = min(cost(scored, (a, b), 20.0) for a in grid for b in grid)
        ratios.append(cost(scored, cheapest_thresholds(scored, 20.0), 20.0) / best)
    assert max(ratios) < 1.05
    assert np.mean(ratios) < 1.015


@settings(max_examples=40)
@given(scored=scored_rows())
def test_the_path_leads_from_nobody_to_everybody(scored: Any) -> None:
    path = threshold_path(scored)
    assert (exits(scored.confidence, path[0]) == len(scored.dims) - 1).all()
    assert (exits(scored.confidence, path[-1]) == 0).all()
    assert all(thresholds.shape == (len(scored.dims) - 1,) for thresholds in path)


@settings(max_examples=40)
@given(scored=scored_rows())
def test_the_safe_part_of_the_path_loses_no_row_and_lets_more_and_more_out(scored: Any) -> None:
    path = threshold_path(scored)
    safe = path[: len(BACK_OFF) + 2]
    lossless = safe[-1]
    assert scored.right_at(exits(scored.confidence, lossless)).sum() >= scored.right[-1].sum()
    for safer, bolder in itertools.pairwise(safe):
        assert (safer >= bolder).all()


def test_thresholds_lie_between_rows() -> None:
    scored = Scored((1, 8), np.array([[0.9, 0.8, 0.5], [0.9] * 3]), np.array([[True, True, False], [True] * 3]))
    np.testing.assert_allclose(cheapest_thresholds(scored, 100.0), [0.65])
    assert cheapest_thresholds(Scored((1, 8), scored.confidence, np.zeros((2, 3), bool)), 100.0).tolist() == [0.5]


def test_confidence_is_the_largest_softmax_probability() -> None:
    logits = {3: torch.tensor([[0.0, np.log(3.0)], [60.0, 0.0]]), 7: torch.tensor([[0.0, 0.0], [-40.0, 0.0]])}
    confidence, classes = confidences(logits, (3, 7))
    np.testing.assert_allclose(confidence, [[0.75, 1.0], [0.5, 1.0]])
    assert classes[0].tolist() == [1, 0]
    assert classes[1, 1] == 1


def test_confidences_near_one_are_told_apart() -> None:
    confidence, _ = confidences({1: torch.tensor([[20.0, 0.0], [25.0, 0.0]])}, (1,))
    assert confidence[0, 0] < confidence[0, 1] < 1


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        ({3: torch.zeros(4, 2)}, r"no logits of width \[7\]"),
        ({3: torch.zeros(4, 2), 7: torch.zeros(5, 2)}, "the same at every width"),
        ({3: torch.zeros(4, 1), 7: torch.zeros(4, 1)}, r"expected \(n, classes\)"),
        ({3: torch.zeros(4), 7: torch.zeros(4)}, r"expected \(n, classes\)"),
        ({3: torch.zeros(4, 2), 7: torch.full((4, 2), torch.nan)}, "logits of width 7 hold values that are not finite"),
    ],
)
def test_bad_logits_are_refused(logits: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        confidences(logits, (3, 7))
