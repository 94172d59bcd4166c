"""search, search_vectors and explain with where and allowed_ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner

from funnel import FLAT, FunnelIndex, Hits
from funnel.cli.main import cli
from funnel.engine import allowed as searching
from funnel.errors import InputError
from tests.funnel.corpora import brute_force, documents, funnel_plan, hashed_words

Float32 = npt.NDArray[np.float32]


@pytest.fixture
def fresh(text_folder: Path) -> FunnelIndex:
    """Nothing remembered."""
    return FunnelIndex.open(text_folder, encoder=hashed_words)


WHERE = "year >= 1950 AND year < 2100 AND title LIKE 'Socket%'"


def test_hits_meet_the_condition(fresh: FunnelIndex) -> None:
    hits = fresh.search("it opens the socket", k=20, where=WHERE)
    expected = {d["_id"] for d in documents(300) if 1950 <= d["year"] < 2100 and d["title"].startswith("socket")}
    assert {hit.id for hit in hits} == expected
    assert len(expected) == 15
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert hits.served.allowed_rows == 15
    assert "flat: exact among 15 allowed rows" in str(hits.served)
    assert hits.served.to_json()["allowed_rows"] == 15


def test_allowed_ids_and_a_condition_hold_together(fresh: FunnelIndex) -> None:
    hits = fresh.search("socket", k=20, where=WHERE, allowed_ids=["d51", "d61", "d0", "never heard of"])
    assert sorted(hit.id for hit in hits) == ["d51", "d61"]
    assert fresh.search("socket", allowed_ids=[]) == []


def test_the_true_rows_are_found_among_many_ids(graph: FunnelIndex, rows: Float32, unseen: Float32) -> None:
    numbers = np.flatnonzero(np.random.default_rng(1).random(len(rows)) < 0.4)
    ids, scores = graph.search_vectors(unseen, 10, recall=1.0, allowed_ids=[f"row {number}" for number in numbers])
    best, cosines = brute_force(rows[numbers], unseen, 10)
    np.testing.assert_allclose(scores, cosines, atol=1e-5)
    agree = [f"row {numbers[best[q, r]]}" == ids[q, r] for q in range(len(unseen)) for r in range(10)]
    assert np.mean(agree) > 0.999  # but for ties


def test_fewer_rows_than_k_are_padded(graph: FunnelIndex, unseen: Float32) -> None:
    ids, scores = graph.search_vectors(unseen[:3], 5, allowed_ids={"row 1", "row 2"})
    assert set(ids[0, :2]) == {"row 1", "row 2"}
    assert all(one is None for one in ids[:, 2:].flat)
    assert np.isfinite(scores[:, :2]).all()
    assert np.isneginf(scores[:, 2:]).all()
    found = cast("list[Hits]", graph.search(unseen[:3], 5, allowed_ids={"row 1", "row 2"}))
    assert [len(hits) for hits in found] == [2, 2, 2]
    none = graph.search_vectors(unseen[:2], 5, allowed_ids=["unheard"])
    assert all(one is None for one in none.ids.flat)
    assert np.isneginf(none.scores).all()
    assert none.served.allowed_rows == 0
    empty = graph.search_vectors(unseen[:0], 5, allowed_ids=["row 1"])
    assert empty.ids.shape == empty.scores.shape == (0, 5)


def test_ids_may_be_whole_numbers(tmp_path: Path, rows: Float32) -> None:
    index = FunnelIndex.build(rows[:200], tmp_path / "index", ids=np.arange(200) * 10, progress=False)
    for given in ([50, 70], np.array([70, 50]), range(50, 80, 20), (n for n in (50, 70))):
        answer = index.search_vectors(rows[:2], 3, allowed_ids=given)
        assert (np.sort(answer.ids, axis=1) == [-1, 50, 70]).all()
    with pytest.raises(
        InputError, match=r"allowed_ids holds texts; the ids of this index are whole numbers, such as 0"
    ):
        index.search_vectors(rows[:1], 3, allowed_ids=["50"])
    with pytest.raises(InputError, match=r"this index holds bare vectors; give allowed_ids"):
        index.search_vectors(rows[:1], 3, where="id = 50")


def test_a_plan_of_ones_own_sees_allowed_rows_alone(graph: FunnelIndex, unseen: Float32) -> None:
    allowed = {f"row {number}" for number in range(0, 3_000, 3)}
    plan = funnel_plan(graph)
    answer = graph.search_vectors(unseen, 10, plan=plan, allowed_ids=allowed)
    assert set(answer.ids.ravel()) <= allowed
    assert answer.served.plan == plan
    assert np.isnan(answer.served.estimated_recall)
    exact = graph.search_vectors(unseen, 10, plan=FLAT, allowed_ids=allowed)
    assert (answer.scores >= exact.scores[:, -1:] - 1e-6).mean() > 0.8


def test_a_filter_is_worked_out_once(graph_folder: Path, unseen: Float32, monkeypatch: pytest.MonkeyPatch) -> None:
    index, masks = FunnelIndex.open(graph_folder), []
    real = searching.segment_masks
    monkeypatch.setattr(searching, "segment_masks", lambda *given: masks.append(1) or real(*given))  # type: ignore[func-returns-value]
    monkeypatch.setattr(searching, "FILTERS_KEPT", 2)
    for ids in (["row 1"], ["row 1"], ["row 2"], ["row 1"], ["row 3"], ["row 1"], ["row 2"]):
        index.search_vectors(unseen[:1], 1, allowed_ids=ids)
    assert len(masks) == 4  # row 2 was forgotten when row 3 came


def test_a_repeated_filter_is_planned_for_and_keeps_its_recall(graph_folder: Path, unseen: Float32) -> None:
    index = FunnelIndex.open(graph_folder)
    allowed = np.array([f"row {number}" for number in range(0, 3_000, 2)])
    explained = index.explain(10, recall=0.9, allowed_ids=allowed, batch=256)
    assert "not certified" in str(explained) or explained.plan.is_flat
    answer = index.search_vectors(unseen[:256], 10, recall=0.9, allowed_ids=allowed)
    assert answer.served.plan == explained.plan
    assert answer.served.allowed_rows == 1_500
    exact = index.search_vectors(unseen[:256], 10, recall=1.0, allowed_ids=allowed)
    assert (answer.scores >= exact.scores[:, -1:] - 1e-6).mean() >= 0.88


def test_deadlines_stop_filtered_searches(graph: FunnelIndex, unseen: Float32) -> None:
    allowed = [f"row {number}" for number in range(0, 3_000, 2)]
    plan = funnel_plan(graph)
    stopped = cast("list[Hits]", graph.search(unseen[:50], 10, plan=plan, allowed_ids=allowed, deadline_ms=1e-6))
    assert {hit.id for hits in stopped for hit in hits} <= set(allowed)
    assert all(not hits.served.complete and hits.served.stages_done == 1 for hits in stopped)
    whole = graph.search(unseen[0], 10, recall=0.9, allowed_ids=allowed, deadline_ms=60_000)
    assert whole.served.complete
    assert len(whole) == 10


def test_audits_compare_with_the_allowed_rows(graph_folder: Path, unseen: Float32) -> None:
    index = FunnelIndex.open(graph_folder)
    allowed = [f"row {number}" for number in range(0, 3_000, 3)]
    index.search_vectors(unseen, 10, recall=1.0, allowed_ids=allowed, audit=True)
    index.search_vectors(unseen, 10, recall=1.0, allowed_ids=["row 1"], audit=True)
    (few, many) = sorted(index.health().audits, key=lambda line: line.recall * line.n_queries)
    assert {line.budget for line in (few, many)} == {"recall 1 under filters"} or few is many
    assert all(line.recall == 1.0 and line.promised is None for line in index.health().audits)


def test_filtered_searches_are_no_drift(graph_folder: Path, unseen: Float32) -> None:
    index = FunnelIndex.open(graph_folder)
    index.search_vectors(unseen, 10, plan=funnel_plan(index), allowed_ids=[f"row {n}" for n in range(20)])
    assert index.health().queries == 0


def test_tuning_forgets_plans_and_keeps_filtering(tmp_path: Path) -> None:
    index = FunnelIndex.build(documents(300), tmp_path / "index", encoder=hashed_words, progress=False)
    index.search("socket", where=WHERE)
    index.tune(["open a socket", "close a file"], progress=False)
    assert len(index.search("socket", k=20, where=WHERE)) == 15


@pytest.mark.parametrize(
    ("filtered", "message"),
    [
        ({"where": "yeer = 1"}, r"where: there is no column 'yeer'; did you mean 'year'\?"),
        ({"where": "year >="}, "expected a text, a number, TRUE or FALSE"),
        ({"where": "year = '1950'"}, "'year' holds numbers, such as 1900, and is compared with a text"),
        ({"where": 5}, "where is a int"),
        ({"allowed_ids": "d1"}, r"allowed_ids is 'd1' \(str\); expected a list, set or array"),
        ({"allowed_ids": 5}, r"allowed_ids is 5 \(int\)"),
        ({"allowed_ids": [True]}, r"allowed_ids is True \(bool\), expected text or a whole number"),
    ],
)
def test_bad_filters_are_refused(texts: FunnelIndex, filtered: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        texts.search("socket", **filtered)


def test_explaining_a_filter_that_allows_nothing_is_refused(texts: FunnelIndex) -> None:
    with pytest.raises(InputError, match="the filter allows no row"):
        texts.explain(where="year = 1")
    with pytest.raises(InputError, match="run=True with a filter"):
        texts.explain(where="year = 1950", run=True)


def test_the_command_line_filters(tmp_path: Path, text_folder: Path) -> None:
    np.save(tmp_path / "query.npy", hashed_words(["open the socket"]))
    command = ["search", str(text_folder), "--vector", str(tmp_path / "query.npy"), "-k", "3", "--where"]
    result = CliRunner().invoke(cli, [*command, WHERE])
    assert result.exit_code == 0, result.output
    assert result.output.count("socket ") >= 3
    assert "among 15 allowed rows" in result.output
    wrong = CliRunner().invoke(cli, [*command, "year >="])
    assert wrong.exit_code == 2
    assert "at the arrow: year >=→" in wrong.output
