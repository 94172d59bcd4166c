"""What follows from drift and audits: one warning, void certificates, marked answers, a readable record."""

from __future__ import annotations

import json
import warnings

import numpy as np
import numpy.typing as npt
import pytest

from funnel.budget import Budget
from funnel.errors import DriftWarning, InputError
from funnel.monitoring import Monitor
from funnel.plan import FLAT, Plan
from funnel.planning.calibration import Calibration
from funnel.planning.run import Run, StorageCost
from funnel.results import Served
from tests.funnel.monitoring.growing import see
from tests.funnel.planning.made_up import K, make_calibration, make_planner

QUERIES = 1_000
Float32 = npt.NDArray[np.float32]


def scores(count: int, seed: int, mean: float = 0.6) -> Float32:
    found = np.sort(np.random.default_rng(seed).normal(mean, 0.1, (count, K)), axis=1)[:, ::-1]
    return np.ascontiguousarray(found, dtype=np.float32)


def calibration(real: bool = True) -> Calibration:
    """Whose plan of effort 100 returned the true scores."""
    made = make_calibration([0.99, 0.98, 0.96, 0.9, 0.8], QUERIES, real)
    truth = scores(QUERIES, 1)
    everyone = np.tile(np.arange(K, dtype=np.int32), (QUERIES, 1))
    places = {PLAN.effort: everyone.astype(np.uint16)}
    made.corpus = Run(truth, np.full(QUERIES, -1), truth, (64,), everyone, truth[:, :, None], places)
    made.queries = made.corpus if real else None
    return made


PLAN = Plan(100, K)


def exact(prepared: Float32, k: int) -> tuple[Float32, npt.NDArray[np.int64]]:
    """Flat search, by hand: the first k columns of a query are its true scores."""
    return prepared[:, :k], np.zeros((len(prepared), k), dtype=np.int64)


def see_others(monitor: Monitor) -> None:
    for seed in range(20):
        see(monitor, scores(100, seed, mean=0.4), PLAN)


def test_a_change_warns_once_and_voids() -> None:
    made = calibration()
    monitor = Monitor(made, exact)
    certificate = make_planner(made).choose(Budget(0.9), K, 1).certificate
    assert certificate.certified
    assert monitor.certificate(certificate) == certificate
    see(monitor, scores(300, 2), PLAN)
    health = monitor.health()
    assert (health.state, health.since, health.ok) == ("holds", None, True)
    assert (health.queries, health.compared, health.calibration_queries) == (300, 300, QUERIES)
    with pytest.warns(
        DriftWarning, match="void: live queries are not like the 1,000 real queries.*funnel tune"
    ) as seen:
        see_others(monitor)
    assert len(seen) == 1
    health = monitor.health()
    assert monitor.broken
    assert (health.state, health.ok) == ("void", False)
    assert health.p_value <= 0.01
    assert "certificates: void since 20" in str(health)
    assert json.loads(json.dumps(health.to_json()))["state"] == "void"
    said = monitor.certificate(certificate)
    assert not said.certified
    assert said.estimate == certificate.estimate
    assert str(said).startswith("void since 20")
    assert "funnel tune" in str(said)


def test_exact_search_is_never_void() -> None:
    made = calibration()
    monitor = Monitor(made, exact)
    with pytest.warns(DriftWarning):
        see(monitor, scores(600, 2, mean=0.1), PLAN)
    planner = make_planner(made)
    flat = planner.choose(Budget(1.0), K, 1)
    assert monitor.certificate(flat.certificate) == flat.certificate
    assert monitor.served(Served(FLAT, 1.0)) == Served(FLAT, 1.0)
    assert monitor.served(Served(PLAN, 0.9)) == Served(PLAN, 0.9, void=True)


def test_a_warning_made_an_error_leaves_the_state() -> None:
    monitor = Monitor(calibration(), exact)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DriftWarning):
            see(monitor, scores(600, 2, mean=0.1), PLAN)
    assert monitor.broken


def test_without_certificates_there_is_nothing_to_watch() -> None:
    for made, why in ((None, "every search is exact"), (calibration(real=False), "uncertified")):
        monitor = Monitor(made, exact)
        see(monitor, scores(600, 2, mean=0.1), PLAN)
        health = monitor.health()
        assert health.state == "not watched"
        assert why in health.why
        assert health.ok
        assert "not watched" in str(health)


def test_an_audit_keeps_true_recall() -> None:
    monitor = Monitor(calibration(), exact)
    monitor.audit(0.5, seed=3)
    assert monitor.running.share
    true = scores(400, 5)
    returned = true.copy()
    returned[:, -1] = -np.inf  # one of ten is missed
    for start in range(0, 400, 40):
        part = slice(start, start + 40)
        monitor.check(true[part], returned[part], lambda: ("recall 0.8", 0.8), None)
    (line,) = monitor.health().audits
    assert 150 < line.n_queries < 250
    assert line.recall == pytest.approx(0.9)
    assert line.low < 0.9 < line.high
    assert not monitor.broken
    assert "audit of recall 0.8 at k=10" in str(monitor.health())


def test_an_audit_is_by_the_rows_as_given() -> None:
    made = calibration()
    truth = scores(QUERIES, 1)
    found = truth.copy()
    found[: QUERIES // 2, -1] = -1.0
    made.storage = StorageCost(found, truth)
    monitor = Monitor(made, exact)
    true = scores(100, 5)
    monitor.check(true, true, lambda: ("recall 1", 1.0), True)
    (line,) = monitor.health().audits
    assert (line.recall, line.storage) == (pytest.approx(0.95), pytest.approx(0.05))  # type: ignore[comparison-overlap]
    assert not line.broken


def test_one_call_is_audited_by_itself() -> None:
    monitor = Monitor(calibration(), exact)
    assert not monitor.running.share
    true = scores(30, 5)
    monitor.check(true, true, lambda: ("recall 0.9", 0.9), True)
    monitor.check(true, true, lambda: ("recall 0.9", 0.9), False)
    monitor.check(true, true, lambda: ("recall 0.9", 0.9), None)
    (line,) = monitor.health().audits
    assert (line.n_queries, line.recall) == (30, 1.0)


def test_exact_search_is_audited_too() -> None:
    monitor = Monitor(calibration(), exact)
    true = scores(30, 5)
    monitor.check(true, true, lambda: ("recall 1", 1.0), True)
    assert not monitor.broken
    with pytest.raises(InputError, match="audit is 3"):
        monitor.check(true, true, lambda: ("recall 1", 1.0), 3)
    missed = true.copy()
    missed[0, -1] = -np.inf
    with pytest.warns(DriftWarning, match="audit of recall 1 at k=10"):
        monitor.check(true, missed, lambda: ("recall 1", 1.0), True)


def test_a_broken_promise_voids() -> None:
    monitor = Monitor(calibration(), exact)
    true = scores(400, 5)
    returned = true.copy()
    returned[:, 7:] = -np.inf
    with pytest.warns(DriftWarning, match="audit of recall 0.9 at k=10: recall 0.7000.*below what was promised"):
        monitor.check(true, returned, lambda: ("recall 0.9", 0.9), True)
    assert monitor.health().state == "void"
