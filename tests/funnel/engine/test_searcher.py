from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from funnel.budget import Budget
from funnel.engine.measuring import Certifying, calibrate
from funnel.engine.searcher import Searcher, device_of
from funnel.engine.timing import fingerprint
from funnel.errors import InputError
from funnel.plan import FLAT
from funnel.storage.ids import Ids
from tests.funnel.cascades import cascade_over
from tests.funnel.clustered import clustered_rows

DIM, ROWS = 32, 300


@pytest.fixture(scope="module")
def searcher(tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    rows = clustered_rows(ROWS, DIM)
    cascade, widths = cascade_over(rows, tmp_path_factory.mktemp("searcher"), (16, DIM))
    order = np.random.default_rng(0).permutation(ROWS)  # rows are not stored in the order of the input
    ids = Ids(np.arange(ROWS, dtype=np.int64) * 10, None)
    made = Searcher(cascade, ids, order, widths)
    made.calibration = calibrate(cascade, widths, Certifying(), made.whole_call, seed=0, progress=False)
    return made


def again(searcher: Searcher) -> Searcher:
    return Searcher(searcher.cascade, searcher.ids, searcher.order, searcher.widths, searcher.calibration)


def test_ids_are_of_the_input_order(searcher: Searcher) -> None:
    queries = clustered_rows(ROWS, DIM)[:20]
    found = searcher.found(searcher.prepare(queries * 3), FLAT, 1)
    np.testing.assert_array_equal(searcher.ids.at(found.rows)[:, 0], searcher.order[:20] * 10)
    np.testing.assert_allclose(found.scores[:, 0], 1.0, atol=1e-5)


def test_costs_of_this_machine_are_kept(searcher: Searcher) -> None:
    assert searcher.calibration is not None
    assert again(searcher).planner.costs is searcher.calibration.costs


def test_a_searcher_goes_without_the_garbage_collector(searcher: Searcher) -> None:
    used = again(searcher)
    used.choose(Budget(0.9), 10, 1)
    gone = weakref.ref(used)
    gc.disable()
    try:
        del used
        assert gone() is None  # and the coarse index, the largest thing in memory, with it
    finally:
        gc.enable()


def test_costs_of_another_machine_are_measured_again(searcher: Searcher) -> None:
    calibration = searcher.calibration
    assert calibration is not None
    plan = calibration.frontiers[10].plans[0]
    before, machine = calibration.latencies, dict(calibration.costs.machine)
    try:
        calibration.costs.machine["processor"] = "another"
        calibration.latencies = [[plan.to_json(), 10, 1, 1e6, 1e6]]
        opened = again(searcher)
        costs = opened.planner.costs
        assert costs is not calibration.costs
        assert costs.machine == fingerprint(searcher.cascade.store.device) == machine
        assert set(costs.coarse[1]) == set(calibration.costs.coarse[1])
        assert opened.latencies.of(plan, 10, 1).p95 < 1e6  # nor are its latencies believed
    finally:
        calibration.costs.machine["processor"] = machine["processor"]
        calibration.latencies = before


def test_latency_is_positive_and_ordered(searcher: Searcher) -> None:
    latency = searcher.latency(FLAT, 10, 32)
    assert 0 < latency.p50 <= latency.p95


def test_without_a_calibration_flat_search_is_served(searcher: Searcher) -> None:
    bare = Searcher(searcher.cascade, searcher.ids, searcher.order, searcher.widths)
    choice = bare.choose(Budget(0.99), 10, 1)
    assert choice.plan == FLAT
    assert choice.certificate.certified


@pytest.mark.parametrize("shape", [(DIM,), (2, DIM + 1), (1, 2, DIM)])
def test_queries_of_another_shape(searcher: Searcher, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"expected \[n_queries, 32\]"):
        searcher.prepare(np.ones(shape, dtype=np.float32))


def test_a_device_that_is_not_there() -> None:
    assert device_of("cpu").type == "cpu"
    with pytest.raises(InputError, match="expected auto, cpu or cuda"):
        device_of("toaster")
