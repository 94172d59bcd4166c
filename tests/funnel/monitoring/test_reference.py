"""What a plan returned for the calibration queries, and from how deep, is what it returns when it is run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from funnel.engine.cascade import Cascade
from funnel.engine.measuring import record
from funnel.monitoring.drift import returned
from funnel.plan import FLAT, Plan, Stage
from funnel.planning.calibration import Calibration
from tests.funnel.cascades import cascade_over
from tests.funnel.clustered import clustered_rows
from tests.funnel.planning.made_up import make_calibration

QUERIES = 80
PLANS = [
    FLAT,
    Plan(32, 32),
    Plan(32, 20, (Stage(32, 12),)),
    Plan(64, 64, (Stage(32, 30), Stage(48, 15))),
]


@pytest.fixture(scope="module")
def cascade(tmp_path_factory: pytest.TempPathFactory) -> Cascade:
    rows = clustered_rows(1_500, 64, seed=1)
    folder = tmp_path_factory.mktemp("cascade")
    return cascade_over(rows, folder, (16, 32, 48, 64), "hnsw-sq8", degree=4, ef_construction=20)[0]


@pytest.fixture(scope="module")
def calibration(cascade: Cascade) -> Calibration:
    made = make_calibration([1.0] * len(PLANS), QUERIES, plans=PLANS)
    queries = clustered_rows(QUERIES, 64, seed=2)
    made.queries = made.corpus = record(cascade, queries, None, (32, 48, 64), [32, 64])
    return made


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_scores_are_those_of_a_run(cascade: Cascade, calibration: Calibration, plan: Plan) -> None:
    assert calibration.queries is not None
    scores, _, kept = cascade.traced(calibration.queries.queries, plan, 10)
    found = returned(calibration, plan, 10, (0, 9))
    assert found is not None
    # A graph walked for a smaller shortlist is the same walk: the record's prefix is what the plan gets.
    assert found[:, :2] == pytest.approx(scores[:, [0, 9]], abs=1e-5)
    if plan.is_flat:
        assert kept is None
        assert np.isnan(found[:, 2]).all()
    else:
        assert found[:, 2] == pytest.approx(kept, abs=1e-4)
        assert 4.5 <= found[:, 2].min() < found[:, 2].max() < plan.shortlist


def test_depth_is_of_the_k_that_was_asked_for(cascade: Cascade, calibration: Calibration) -> None:
    assert calibration.queries is not None
    for k in (1, 4, 10):
        found = returned(calibration, PLANS[2], k, (0, 9))
        assert found is not None
        kept = cascade.traced(calibration.queries.queries, PLANS[2], k)[2]
        assert found[:, 2] == pytest.approx(kept, abs=1e-4)
        assert np.isnan(found[:, 1]).all() == (k < 10)


def test_what_is_not_reranked_has_no_depth(calibration: Calibration) -> None:
    alone = replace(calibration, costs=replace(calibration.costs, rerank={1: {}, 32: {}, 256: {}}))
    found = returned(alone, PLANS[1], 10, (0, 9))
    assert found is not None
    assert np.isnan(found[:, 2]).all()
    assert np.isfinite(found[:, :2]).all()


def test_the_record_on_disk_serves_as_well(calibration: Calibration, tmp_path: Path) -> None:
    calibration.save(tmp_path)
    loaded = Calibration.load(tmp_path)
    for plan in PLANS:
        once, again = (returned(each, plan, 10, (0, 9)) for each in (calibration, loaded))
        assert once is not None
        assert again is not None
        assert np.array_equal(once, again, equal_nan=True)


def test_a_rank_beyond_what_is_returned_is_not_a_number(calibration: Calibration) -> None:
    found = returned(calibration, Plan(32, 32, (Stage(48, 5),)), 10, (0, 9))
    assert found is not None
    assert np.isfinite(found[:, 0]).all()
    assert np.isnan(found[:, 1:]).all()


@pytest.mark.parametrize("plan", [Plan(999, 32), Plan(32, 400), Plan(32, 32, (Stage(40, 20),))], ids=str)
def test_plans_without_a_record(calibration: Calibration, plan: Plan) -> None:
    assert returned(calibration, plan, 10, (0, 9)) is None
