"""Calibration again, in place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from funnel import FunnelIndex
from funnel.errors import DriftWarning, EncoderError, InputError, StorageError
from funnel.planning.calibration import Calibration
from funnel.storage import IndexFolder, check
from tests.funnel.clustered import clustered_rows
from tests.funnel.corpora import DIM, funnel_plan, segment_file

Copy = Callable[[Path], Path]


def test_tuning_commits_a_generation_that_shares_the_rest(graph_folder: Path, copied: Copy) -> None:
    path = copied(graph_folder)
    index = FunnelIndex.open(path)
    before, unseen = index.manifest, clustered_rows(50, DIM, seed=9)
    found = index.search_vectors(unseen, recall=1.0)
    stale = index.explain(recall=0.9).plan
    index.tune(clustered_rows(400, DIM, seed=7), progress=False)
    after = index.manifest
    assert after.generation == before.generation + 1 == IndexFolder(path).manifest().generation
    assert after.calibration != before.calibration
    shared = {name: entry for name, entry in before.files.items() if not name.startswith("calibrations/")}
    assert {name: after.files[name] for name in shared} == shared
    assert len(after.files) == len(before.files)
    assert [entry.name for entry in (path / "calibrations").iterdir()] == [after.calibration]
    assert (after.segments, after.adaptor, after.settings) == (before.segments, before.adaptor, before.settings)
    assert index.certification == "certified on 400 real queries"
    assert index.health().calibration_queries == 400
    assert_array_equal(index.search_vectors(unseen, recall=1.0).ids, found.ids)
    index.search_vectors(unseen, plan=stale)
    assert index.explain(k=7, recall=0.9).certificate.n_queries == 400  # another k: from the record on disk
    assert check(path).ok
    reopened = FunnelIndex.open(path)
    assert reopened.certification == "certified on 400 real queries"
    assert reopened.explain(recall=0.9).plan == index.explain(recall=0.9).plan


def test_without_queries_those_on_record_are_measured_again(graph_folder: Path, copied: Copy) -> None:
    index = FunnelIndex.open(copied(graph_folder))
    old = index.searcher.calibration
    assert old is not None
    index.tune(progress=False)
    new = index.searcher.calibration
    assert new is not None
    assert_array_equal(recorded_queries(new), old_queries(graph_folder))
    assert new.costs != old.costs


def old_queries(folder: Path) -> np.ndarray:
    calibration = FunnelIndex.open(folder).searcher.calibration
    assert calibration is not None
    return recorded_queries(calibration)


def recorded_queries(calibration: Calibration) -> np.ndarray:
    run = calibration.runs()[1]
    assert run is not None
    return np.asarray(run.queries)


def test_a_change_is_seen_and_tuning_mends_it(graph_folder: Path, rows: np.ndarray, copied: Copy) -> None:
    """Queries close to rows of the index score .97, where those it was calibrated on scored .84."""
    index = FunnelIndex.open(copied(graph_folder))
    plan = funnel_plan(index)
    rows = rows + 0.03 * np.random.default_rng(5).normal(size=rows.shape).astype("f4")
    with pytest.warns(DriftWarning) as seen:
        *_, answers = [index.search_vectors(rows[start : start + 20], plan=plan) for start in range(0, 600, 20)]
    assert len(seen) == 1
    assert seen[0].filename == __file__  # it points to the search
    assert answers.served.void
    assert index.health().state == "void"
    explained = index.explain(recall=0.9)
    if not explained.plan.is_flat:
        assert "void since" in str(explained)
        assert not explained.certificate.certified
    index.tune(rows[:1000:2], progress=False)
    assert index.health().state == "holds"
    assert index.health().queries == 0
    answers = index.search_vectors(rows[1:1000:2], plan=funnel_plan(index))
    assert not answers.served.void
    assert index.health().state == "holds"


def test_an_audit_of_real_searches(graph: FunnelIndex) -> None:
    unseen, plan = clustered_rows(60, DIM, seed=4), funnel_plan(graph)
    graph.audit(0.5)
    graph.search_vectors(unseen, plan=plan)
    graph.search(unseen[0], plan=plan, audit=True)
    truth = graph.search_vectors(unseen, recall=1.0, audit=False).scores[:, -1:]
    recall = np.mean(graph.search_vectors(unseen, plan=plan, audit=False).scores >= truth - 1e-6)
    (line,) = graph.health().audits
    graph.audit(False)
    assert line.budget == f"plan {plan}"
    assert 15 < line.n_queries < 50
    assert line.recall == pytest.approx(recall, abs=0.1)
    assert graph.health().audits == ()
    with pytest.raises(InputError, match="sample is 2"):
        graph.audit(2)


def test_a_failure_leaves_the_generation_before(
    graph_folder: Path, copied: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copied(graph_folder)
    index = FunnelIndex.open(path)

    def fail(*_: object) -> None:
        raise RuntimeError("stopped")

    monkeypatch.setattr(Calibration, "save", fail)
    with pytest.raises(RuntimeError, match="stopped"):
        index.tune(progress=False)
    assert index.manifest.generation == IndexFolder(path).manifest().generation == 1
    assert check(path).ok
    assert index.search_vectors(clustered_rows(3, DIM, seed=9), recall=0.9).ids.shape == (3, 10)


def test_a_generation_that_was_replaced_is_not_tuned(graph_folder: Path, copied: Copy) -> None:
    path = copied(graph_folder)
    first, second = FunnelIndex.open(path), FunnelIndex.open(path)
    first.tune(clustered_rows(100, DIM, seed=7), progress=False)
    with pytest.raises(StorageError, match="was replaced by generation 2; open it again"):
        second.tune(progress=False)


def test_a_coarse_index_made_again_is_kept(graph_folder: Path, copied: Copy) -> None:
    path = copied(graph_folder)
    segment_file(path, "coarse.faiss").write_bytes(b"not an index")
    with pytest.warns(UserWarning, match="making the coarse index again"):
        index = FunnelIndex.open(path)
    before = index.manifest
    index.tune(clustered_rows(100, DIM, seed=7), progress=False)
    assert index.manifest.generation == 2
    assert index.manifest.segments[0].id != before.segments[0].id
    assert check(path).ok
    unseen = clustered_rows(20, DIM, seed=9)
    again = FunnelIndex.open(path)  # no warning: nothing is made again
    plan = funnel_plan(again, recall=0.8)
    assert_array_equal(again.search_vectors(unseen, plan=plan).ids, index.search_vectors(unseen, plan=plan).ids)


def test_uncertified_becomes_certified_by_texts(text_folder: Path, copied: Copy) -> None:
    from tests.funnel.corpora import hashed_words

    path = copied(text_folder)
    with pytest.raises(EncoderError, match="open it with encoder="):
        FunnelIndex.open(path).tune(["opens a file"], progress=False)
    assert IndexFolder(path).manifest().generation == 1
    index = FunnelIndex.open(path, encoder=hashed_words)
    index.tune([f"it sorts the {word} {number}" for word in ("file", "clock") for number in range(40)], progress=False)
    assert index.certification == "certified on 80 real queries"
    assert index.search("opens a file", k=3)[0].title


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"queries": np.ones((5, DIM + 1), dtype="f4")}, f"the queries have {DIM + 1} dims, the corpus {DIM}"),
        ({"queries": "nowhere.jsonl"}, "no queries at nowhere.jsonl"),
        ({"seed": -1}, "seed is -1; expected a whole number from 0"),
        ({"corpus_like_queries": 2}, "corpus_like_queries is 2; expected True or False"),
    ],
)
def test_what_cannot_be_used(options: dict[str, object], said: str, graph_folder: Path, copied: Copy) -> None:
    index = FunnelIndex.open(copied(graph_folder))
    with pytest.raises(InputError, match=said):
        index.tune(progress=False, **options)  # type: ignore[arg-type]
    assert index.manifest.generation == 1


def test_few_rows_need_no_calibration(tmp_path: Path) -> None:
    index = FunnelIndex.build(clustered_rows(100), tmp_path / "index", progress=False)
    with pytest.raises(InputError, match="100 rows, and there is nothing to calibrate: the index is small enough"):
        index.tune(progress=False)
