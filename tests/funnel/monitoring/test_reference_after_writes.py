"""What a plan is said to return for the calibration queries after writes is what it then returns."""

from __future__ import annotations

import numpy as np
import pytest

from funnel import FLAT, FunnelIndex, Plan
from funnel.monitoring.drift import RANKS, Reference
from tests.funnel.corpora import funnel_plan
from tests.funnel.living import named

K = 10


def agrees(index: FunnelIndex, reference: Reference, plan: Plan) -> None:
    searcher = index.searcher
    assert searcher.calibration is not None
    run = searcher.calibration.runs()[1]
    assert run is not None
    scores = searcher.found(np.ascontiguousarray(run.queries), plan, K).scores
    found = reference(plan, K)
    assert found is not None
    same = np.abs(found - scores[:, RANKS]).max(axis=1) < 1e-5
    assert same.mean() > 0.98  # the rest have a neighbour that was added and lies beyond those that are kept


def live(index: FunnelIndex) -> Reference:
    calibration = index.searcher.calibration
    assert calibration is not None
    return Reference(calibration)


def opened(index: FunnelIndex) -> Reference:
    again = FunnelIndex.open(index.path)._state.opened
    assert again.searcher.calibration is not None
    return Reference(again.searcher.calibration)


@pytest.mark.filterwarnings("ignore:certified recall is void")
def test_scores_are_those_of_a_run_after_adds_and_deletes(
    index: FunnelIndex, more: np.ndarray, unseen: np.ndarray
) -> None:
    plan = funnel_plan(index)
    index.search_vectors(unseen, plan=plan)
    for number in range(20):  # eight segments of one size become one
        index.add(more[20 * number :][:20], ids=named(20 * number, 20))
    for reference in (live(index), opened(index)):
        agrees(index, reference, plan)
        agrees(index, reference, FLAT)
    index.delete([f"row {number}" for number in range(0, 600, 3)] + named(0, 400)[::4])
    index.upsert(more[500:520], ids=named(380, 20))
    for reference in (live(index), opened(index)):
        agrees(index, reference, plan)
        agrees(index, reference, FLAT)
