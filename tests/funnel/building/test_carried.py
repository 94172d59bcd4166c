"""Truth by the rows as given goes on through tuning, adding, deleting and compacting, as long as it is on record."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from funnel import FunnelIndex
from funnel.engine.measuring import Given, _carried
from tests.funnel.building.test_build import outlying, shared, true_top

ROWS, QUERIES = 2_000, 400


def unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True))


def narrow(folder: Path, queries: np.ndarray) -> FunnelIndex:
    """Rows that float16 keeps apart badly, stored so all the same."""
    rows = outlying(ROWS, 0)
    return FunnelIndex.build(rows, folder, queries=queries, adaptor="pca", dtype="float16", progress=False)


def truth_on_record(index: FunnelIndex) -> np.ndarray:
    calibration = index.searcher.calibration
    assert calibration is not None
    assert calibration.as_given
    queries = calibration.runs()[1]
    assert queries is not None
    return queries.truth[:, :10]


def expected(rows: np.ndarray, index: FunnelIndex) -> np.ndarray:
    """The scores of the true top 10 in float64, of the queries on record."""
    calibration = index.searcher.calibration
    assert calibration is not None
    run = calibration.runs()[1]
    assert run is not None
    queries = index.searcher.space.given(np.ascontiguousarray(run.queries))
    return np.asarray(-np.sort(-unit(queries) @ unit(rows).T, axis=1)[:, :10])


def test_tuning_on_the_queries_on_record_takes_nothing_off(tmp_path: Path) -> None:
    index = narrow(tmp_path / "index", outlying(QUERIES, 1))
    before = index.explain(10, recall=0.5).certificate
    index.tune(progress=False)
    np.testing.assert_allclose(truth_on_record(index), expected(outlying(ROWS, 0), index), atol=3e-6)
    after = index.explain(10, recall=0.5).certificate
    assert (after.certified, after.n_queries) == (before.certified, before.n_queries)
    calibration = index.searcher.calibration  # the plan served, and so its bound, depends on what was timed
    assert calibration is not None
    assert calibration.storage_loss(10, 0.05)[:2] == (0.0, 0.0)
    index.tune(outlying(QUERIES, 5), progress=False)  # of other queries truth is not on record
    calibration = index.searcher.calibration
    assert calibration is not None
    assert not calibration.as_given
    assert calibration.storage is not None
    assert calibration.storage_loss(10, 0.05)[0] > 0.01


def test_compacting_measures_what_rounding_added_rows_costs(tmp_path: Path) -> None:
    queries, came = outlying(QUERIES, 1), outlying(600, 2)
    index = narrow(tmp_path / "index", queries)
    index.add(came[:-1], ids=range(ROWS, ROWS + 599))
    index.add(queries[:7], ids=range(ROWS + 599, ROWS + 606))
    index.delete(range(20))
    index.compact(progress=False)
    rows = np.concatenate([outlying(ROWS, 0)[20:], came[:-1], queries[:7]])
    np.testing.assert_allclose(truth_on_record(index), expected(rows, index), atol=3e-6)
    calibration = index.searcher.calibration
    assert calibration is not None
    assert calibration.storage is not None
    assert calibration.n_queries == QUERIES - 7  # those that equal rows by now do not certify
    assert calibration.left_out["equal to rows of the corpus"] == 7
    kept = shared(
        np.asarray(index.search_vectors(queries[7:], 10, recall=1.0).ids) - 20, true_top(rows, queries[7:], 10)
    )
    assert calibration.flat_recall(10) == pytest.approx(kept, abs=0.02)
    served = index.search(queries[9], 10, recall=1.0).served
    assert served.stored_only
    assert "exact over the rows as stored, not over the rows as given" in str(served)


def test_new_queries_that_equal_added_rows_do_not_certify(tmp_path: Path) -> None:
    index = narrow(tmp_path / "index", outlying(QUERIES, 1))
    came = outlying(20, 2)
    index.add(came, ids=range(ROWS, ROWS + 20))
    asked = np.concatenate([outlying(300, 3), 3.0 * came])  # of another length: cosine is what counts
    index.tune(asked, progress=False)
    calibration = index.searcher.calibration
    assert calibration is not None
    assert calibration.n_queries == 300
    index.tune(asked, corpus_like_queries=True, progress=False)
    calibration = index.searcher.calibration
    assert calibration is not None
    assert calibration.n_queries == 320
    assert calibration.corpus_like


def test_what_is_not_on_record_is_not_made_up() -> None:
    scores = np.linspace(0.9, 0.5, 150, dtype=np.float32)[None]
    near = scores, np.arange(150)[None]
    stay = np.arange(200)
    assert _carried(near, np.where(stay < 60, -1, stay), None) is None  # 90 are left
    came = np.array([[0.95, 0.7, 0.4]], dtype=np.float32), np.array([[300, 301, 302]])
    carried = _carried(near, np.where(stay < 10, -1, stay - 10), came)
    assert carried is not None
    assert carried[1][0, 0] == 300
    assert carried[0].shape == (1, 142)  # 140, and two of those that came
    assert 302 not in carried[1]
    assert 301 in carried[1]
    assert (np.diff(carried[0]) <= 0).all()
    assert Given.again(None, stay) is None
