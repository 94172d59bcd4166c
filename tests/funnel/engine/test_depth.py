"""The depth of hits is where they stood in the coarse order, whichever way a plan is run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from funnel.engine import rerank
from funnel.engine.cascade import Cascade, Float32
from funnel.plan import FLAT, Plan, Stage
from tests.funnel.cascades import cascade_over
from tests.funnel.clustered import clustered_rows

DIM, ROWS, K = 48, 1_000, 10
PLANS = (Plan(0, 60), Plan(0, 200, (Stage(16, 50),)), Plan(0, 300, (Stage(16, 100), Stage(24, 40), Stage(32, 20))))


@pytest.fixture(scope="module")
def cascade(tmp_path_factory: pytest.TempPathFactory) -> Cascade:
    return cascade_over(clustered_rows(ROWS, DIM), tmp_path_factory.mktemp("flat"), (8, 16, 24, 32, DIM), "flat")[0]


@pytest.fixture(scope="module")
def queries() -> Float32:
    return clustered_rows(150, DIM, seed=5)


def by_hand(cascade: Cascade, queries: Float32, plan: Plan, k: int = K) -> np.ndarray:
    """Each hit looked up in the shortlist."""
    _, rows = cascade.run(queries, plan, k)
    shortlist = cascade.shortlist(queries, plan.shortlist, plan.effort)
    places = [
        [int(np.flatnonzero(order == row)[0]) for row in hits] for order, hits in zip(shortlist, rows, strict=True)
    ]
    result: np.ndarray = np.mean(places, axis=1)
    return result


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("k", [1, K])
def test_it_is_the_mean_place_in_the_shortlist(
    cascade: Cascade, queries: Float32, plan: Plan, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = by_hand(cascade, queries, plan, k)
    assert cascade.traced(queries, plan, k)[2] == pytest.approx(expected)
    for i in range(0, len(queries), 29):
        assert cascade.traced(queries[i : i + 1], plan, k)[2] == pytest.approx(expected[i : i + 1])
    monkeypatch.setattr(rerank, "CELLS_AT_A_TIME", 3 * plan.shortlist * DIM)  # reranked three at a time
    assert cascade.traced(queries, plan, k)[2] == pytest.approx(expected)


def test_what_is_not_reranked_has_none(tmp_path: Path, queries: Float32, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flat search, and a coarse index whose scores are exact."""
    cascade, _ = cascade_over(clustered_rows(ROWS, DIM), tmp_path, (8, DIM), "flat", "float32")
    assert cascade.traced(queries, FLAT, K)[2] is None
    whole, _ = cascade_over(clustered_rows(ROWS, DIM), tmp_path / "whole", (DIM,), "flat", "float32")
    monkeypatch.setattr(Cascade, "alone", True)
    assert whole.traced(queries, Plan(0, 60), K)[2] is None
    assert whole.traced(queries[:1], Plan(0, 60), K)[2] is None
