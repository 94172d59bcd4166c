"""Search over the rows that a filter allows: exactly, and by plans on every family."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from funnel.engine import steps as exact_module
from funnel.engine.cascade import Cascade
from funnel.engine.steps import allowed_only, search
from funnel.plan import FLAT, Plan, Stage
from indexes import MissingBackendError, families
from tests.funnel.cascades import cascade_over, stored_rows
from tests.funnel.clocks import Clock
from tests.funnel.clustered import clustered_rows

K, DIM = 10, 64
Mask = npt.NDArray[np.bool_]


@pytest.fixture(scope="module", params=families())
def cascade(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cascade:
    folder = tmp_path_factory.mktemp("cascade")
    rows = clustered_rows(1_200, DIM, seed=4)
    try:
        return cascade_over(rows, folder / request.param, (32, 48, DIM), request.param)[0]
    except MissingBackendError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def asked() -> npt.NDArray[np.float32]:
    return clustered_rows(40, DIM, seed=5)


def masks(count: int) -> list[Mask]:
    random = np.random.default_rng(6).random(count)
    return [random < share for share in (0.5, 0.1)]


def truth(cascade: Cascade, mask: Mask, queries: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.float32]:
    scores = queries @ stored_rows(cascade)[mask].T
    return -np.sort(-scores, axis=1)[:, :k]


def strongest(cascade: Cascade) -> Plan:
    effort = cascade.coarse.efforts()[-1]
    return Plan(effort, min(300, cascade.coarse.largest_shortlist(effort)), (Stage(48, 40),))


@pytest.mark.parametrize("threads", [False, True])
def test_exact_search_finds_the_true_allowed_rows(
    cascade: Cascade, asked: npt.NDArray[np.float32], threads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if threads:
        monkeypatch.setattr(exact_module, "CELLS_OF_ONE_THREAD", 0)
        monkeypatch.setattr(exact_module, "CELLS_AT_A_TIME", 20 * DIM)
    for mask in masks(cascade.store.n):
        allowed = allowed_only(cascade, mask)
        for count in (1, len(asked)):
            found = search(allowed, asked[:count], FLAT, K)
            assert mask[found.rows].all()
            assert found.seen == 1.0
            np.testing.assert_allclose(found.scores, truth(cascade, mask, asked[:count], K), atol=1e-5)
            own = np.einsum("qd,qkd->qk", asked[:count], stored_rows(cascade)[found.rows])
            np.testing.assert_allclose(found.scores, own, atol=1e-5)


def test_a_plan_sees_allowed_rows_alone(cascade: Cascade, asked: npt.NDArray[np.float32]) -> None:
    for mask in masks(cascade.store.n):
        allowed = allowed_only(cascade, mask)
        found = search(allowed, asked, strongest(cascade), K)
        scores = found.scores
        assert mask[found.rows].all()
        true = truth(cascade, mask, asked, K)
        assert (scores >= true[:, -1:] - 1e-5).mean() >= 0.9
        single = search(allowed, asked[:1], strongest(cascade), K)
        np.testing.assert_allclose(single.scores, scores[:1], atol=1e-5)


def test_queries_for_which_a_plan_finds_too_few_are_answered_exactly(
    cascade: Cascade, asked: npt.NDArray[np.float32]
) -> None:
    """The least effort finds far fewer than k of a few rows that lie together."""
    mask = np.zeros(cascade.store.n, dtype=np.bool_)
    mask[:15] = True
    allowed = allowed_only(cascade, mask)
    efforts = cascade.coarse.efforts()
    effort = next((one for one in efforts if cascade.coarse.largest_shortlist(one) >= K), efforts[-1])
    plan = Plan(effort, K)
    lacking = allowed.run(asked, plan, K)[1][:, -1] < 0
    found = search(allowed, asked, plan, K)
    assert mask[found.rows].all()
    np.testing.assert_allclose(found.scores[lacking], truth(cascade, mask, asked, K)[lacking], atol=1e-5)
    if cascade.coarse.name == "symqg":
        assert lacking.any()


def test_flat_is_exact_over_the_allowed_rows(cascade: Cascade, asked: npt.NDArray[np.float32]) -> None:
    mask = masks(cascade.store.n)[1]
    scores, rows = allowed_only(cascade, mask).exact(asked, 1)
    assert mask[rows].all()
    np.testing.assert_allclose(scores, truth(cascade, mask, asked, 1), atol=1e-5)


def test_a_deadline_stops_exact_search_between_pieces(
    cascade: Cascade, asked: npt.NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact_module, "CELLS_AT_A_TIME", 50 * DIM)
    mask = masks(cascade.store.n)[0]
    allowed = allowed_only(cascade, mask)
    found = search(allowed, asked, FLAT, K, Clock(1))
    assert found.seen == pytest.approx(100 / mask.sum())
    assert (np.asarray(found.done) == 0).all()
    np.testing.assert_allclose(
        found.scores, truth(cascade, np.isin(np.arange(len(mask)), np.flatnonzero(mask)[:100]), asked, K), atol=1e-5
    )
    assert search(allowed, asked, FLAT, K, Clock(1_000)).seen == 1.0


def test_a_deadline_stops_a_plan_between_stages(cascade: Cascade, asked: npt.NDArray[np.float32]) -> None:
    mask = masks(cascade.store.n)[0]
    allowed, plan = allowed_only(cascade, mask), strongest(cascade)
    stopped, whole = search(allowed, asked, plan, K, Clock(0)), search(allowed, asked, plan, K, Clock(10_000))
    assert (np.asarray(stopped.done) == 1).all()
    assert (np.asarray(whole.done) == plan.steps).all()
    for found in (stopped, whole):
        assert mask[found.rows[found.rows >= 0]].all()
    np.testing.assert_allclose(whole.scores, search(allowed, asked, plan, K).scores, atol=1e-5)
