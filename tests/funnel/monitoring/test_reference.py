"""What a plan returned for the calibration queries is what it returns when it is run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from funnel.engine.cascade import Cascade
from funnel.engine.measuring import record
from funnel.monitoring.drift import RANKS, Reference
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
    scores, _ = cascade.run(calibration.queries.queries, plan, 10)
    # A graph walked for a smaller shortlist is the same walk: the record's prefix is what the plan gets.
    assert Reference(calibration)(plan, 10) == pytest.approx(scores[:, RANKS], abs=1e-5)
    best = Reference(calibration)(plan, 4)
    assert best is not None
    assert best.shape == (QUERIES, 1)


def test_the_record_on_disk_serves_as_well(calibration: Calibration, tmp_path: Path) -> None:
    calibration.save(tmp_path)
    loaded = Calibration.load(tmp_path)
    for plan in PLANS:
        once, again = (Reference(each)(plan, 10) for each in (calibration, loaded))
        assert once is not None
        assert again is not None
        assert np.array_equal(once, again)


def test_a_rank_beyond_what_is_returned_is_lowest(calibration: Calibration) -> None:
    found = Reference(calibration)(Plan(32, 32, (Stage(48, 5),)), 10)
    assert found is not None
    assert np.isfinite(found[:, 0]).all()
    assert np.isneginf(found[:, 1]).all()


@pytest.mark.parametrize("plan", [Plan(999, 32), Plan(32, 400), Plan(32, 32, (Stage(40, 20),))], ids=str)
def test_plans_without_a_record(calibration: Calibration, plan: Plan) -> None:
    assert Reference(calibration)(plan, 10) is None
