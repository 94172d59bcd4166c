"""Deadlines, latencies and explained stages on built indexes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from funnel import BudgetError, FunnelIndex
from funnel.cli.main import cli
from funnel.engine.steps import Found, served_each, served_in_all
from funnel.errors import InputError
from funnel.plan import FLAT, Plan, Stage
from funnel.results import Served
from tests.funnel.corpora import hashed_words

SOON, LATE = 1e-6, 1e6  # milliseconds: passed before anything is done, and never
PLAN = Plan(64, 64, (Stage(48, 20),))


@pytest.fixture(scope="module")
def plan(graph: FunnelIndex) -> Plan:
    """A plan with a stage, on record."""
    assert graph.searcher.calibration is not None
    effort = next(effort for effort in graph.searcher.calibration.run().efforts if effort >= 64)
    return Plan(effort, 64, (Stage(48, 20),))


def found_after(done: list[int], seen: float = 1.0) -> Found:
    return Found(np.zeros((len(done), 1), np.float32), np.zeros((len(done), 1), np.int64), np.array(done), seen)


def test_each_query_has_the_estimate_of_what_was_done_for_it() -> None:
    served, found = Served(PLAN, 0.97), found_after([1, 3, 2, 1])
    each = served_each(found, served, (0.5, 0.8, 0.97))
    assert [(one.stages_done, one.stages, one.complete, one.estimated_recall) for one in each] == [
        (1, 3, False, 0.5),
        (3, 3, True, 0.97),
        (2, 3, False, 0.8),
        (1, 3, False, 0.5),
    ]
    assert each[1] is served
    whole = served_in_all(each, found, served)
    assert (whole.stages_done, whole.complete) == (1, False)
    assert whole.estimated_recall == pytest.approx((0.5 + 0.97 + 0.8 + 0.5) / 4)
    assert "stopped after step 1 of 3, estimated recall 0.5000" in str(each[0])


def test_flat_search_is_worth_the_share_of_the_rows_that_it_saw() -> None:
    served, found = Served(FLAT, 1.0), found_after([0, 0], seen=0.25)
    each = served_each(found, served, (1.0,))
    assert each[0].estimated_recall == each[0].rows_seen == 0.25
    assert not each[0].complete
    assert "stopped after 25% of the rows" in str(each[0])


def test_a_deadline_shorter_than_the_coarse_stage_gives_the_coarse_order_marked(
    graph: FunnelIndex, plan: Plan, unseen: np.ndarray
) -> None:
    stopped = graph.search_vectors(unseen, 10, plan=plan, deadline_ms=SOON)
    assert (stopped.served.stages_done, stopped.served.stages) == (1, 3)
    assert not stopped.served.complete
    coarse = graph.searcher.cascade.shortlist(graph.searcher.prepare(unseen), plan.shortlist, plan.effort)[:, :10]
    np.testing.assert_array_equal(stopped.ids, graph.searcher.ids.at(graph.searcher.order[coarse]))
    hits = graph.search(unseen[0], 10, plan=plan, deadline_ms=SOON)
    assert [hit.id for hit in hits] == stopped.ids[0].tolist()
    assert not hits.served.complete


def test_the_estimate_of_a_stopped_search_is_near_its_recall(
    graph: FunnelIndex, plan: Plan, unseen: np.ndarray
) -> None:
    true = graph.search_vectors(unseen, 10, recall=1.0)
    stopped = graph.search_vectors(unseen, 10, plan=plan, deadline_ms=SOON)
    recall = np.mean([np.isin(a, b).mean() for a, b in zip(stopped.ids, true.ids, strict=True)])
    whole = graph.searcher.step_recalls(plan, 10)
    assert 0 < whole[0] < whole[1] < whole[2]
    assert stopped.served.estimated_recall == pytest.approx(whole[0])
    assert recall == pytest.approx(whole[0], abs=0.05)


def test_with_time_enough_nothing_is_different(graph: FunnelIndex, unseen: np.ndarray) -> None:
    for recall in (0.9, 1.0):
        without = graph.search_vectors(unseen, 10, recall=recall)
        within = graph.search_vectors(unseen, 10, recall=recall, deadline_ms=LATE)
        np.testing.assert_array_equal(without.ids, within.ids)
        np.testing.assert_allclose(without.scores, within.scores, atol=1e-6)
        assert within.served == without.served
        assert within.served.complete


def test_encoding_counts_and_loading_does_not(texts: FunnelIndex) -> None:
    hits = texts.search("sort a list", 5, deadline_ms=LATE)
    assert hits.served.complete
    assert len(texts.search("sort a list", 5, deadline_ms=SOON)) == 5


@pytest.mark.parametrize(("deadline", "message"), [(0, "deadline_ms is 0;"), (-5, "deadline_ms is -5;")])
def test_what_is_no_deadline(graph: FunnelIndex, unseen: np.ndarray, deadline: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        graph.search(unseen[0], deadline_ms=deadline)


def test_a_deadline_that_contradicts_the_latency(graph: FunnelIndex, unseen: np.ndarray) -> None:
    with pytest.raises(InputError, match="deadline_ms=2 is shorter than the latency of 5 ms"):
        graph.search_vectors(unseen, latency_ms=5, deadline_ms=2)


def test_stages_are_explained_with_what_they_took_and_found(graph: FunnelIndex) -> None:
    planned = graph.explain(10, recall=0.95)
    assert all(line.measured_ms is None for line in planned.stages)
    run = graph.explain(10, recall=0.95, run=True)
    assert run.plan == planned.plan
    assert len(run.stages) == run.plan.steps
    recalls = [line.recall for line in run.stages]
    assert recalls == sorted(recalls)
    assert recalls[-1] == pytest.approx(run.recall)
    for line in run.stages:
        assert line.measured_ms is not None
        assert line.measured_ms > 0
        assert line.measured_recall == pytest.approx(line.recall, abs=0.03)  # of 512 of the 600 queries
        assert line.bytes_touched is not None
        assert line.bytes_touched > 0
    assert "measured µs" in str(run)
    assert "measured µs" not in str(planned)
    assert json.loads(json.dumps(run.to_json()))["stages"][0]["measured_ms"] > 0


def test_where_rows_stand_for_queries_their_own_row_is_left_out(texts: FunnelIndex) -> None:
    for recall in (0.8, 1.0):
        for line in texts.explain(5, recall=recall, run=True).stages:
            assert line.measured_recall == pytest.approx(line.recall, abs=0.02)


def test_flat_search_is_one_step(graph: FunnelIndex) -> None:
    (line,) = graph.explain(10, recall=1.0, run=True).stages
    assert (line.name, line.recall, line.measured_recall) == ("flat", 1.0, 1.0)


def test_a_latency_is_held_in_windows(graph: FunnelIndex, unseen: np.ndarray) -> None:
    explained = graph.explain(10, latency_ms=2_000)
    assert explained.held is not None
    assert explained.held.ms <= 2_000
    assert "  held: " in str(explained)
    assert graph.search(unseen[0], latency_ms=2_000).served.plan == explained.plan
    with pytest.raises(BudgetError, match="at the 95th percentile"):
        graph.explain(10, latency_ms=1e-3)


def test_a_plan_that_was_not_recorded_has_no_estimate(graph: FunnelIndex, unseen: np.ndarray) -> None:
    assert graph.searcher.calibration is not None
    recorded = graph.searcher.calibration.run().efforts
    unknown = next(effort for effort in range(64, 1000) if effort not in recorded)
    stopped = graph.search_vectors(unseen[:1], 10, plan=Plan(unknown, 64), deadline_ms=SOON)
    assert math.isnan(stopped.served.estimated_recall)
    assert stopped.served.to_json()["estimated_recall"] is None


def test_an_index_too_small_to_plan_still_keeps_its_latency(tmp_path: Path, unseen: np.ndarray) -> None:
    small = FunnelIndex.build(unseen[:100], tmp_path / "small", progress=False)
    assert small.search(unseen[0], latency_ms=1000).served.plan == FLAT
    with pytest.raises(BudgetError, match="small enough for flat search; flat search takes"):
        small.search(unseen[0], latency_ms=1e-4)


def test_the_command_line_marks_what_was_stopped(graph_folder: Path, unseen: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "q.npy", unseen[:1])
    arguments = ["search", str(graph_folder), "--vector", str(tmp_path / "q.npy"), "--deadline-ms", "0.000001"]
    shown = CliRunner().invoke(cli, arguments)
    assert shown.exit_code == 0, shown.output
    assert "stopped after step 1 of" in shown.stderr
    record = json.loads(CliRunner().invoke(cli, [*arguments, "--json"]).stdout)
    assert record["served"]["complete"] is False
    assert record["served"]["stages_done"] == 1


def test_the_command_line_runs_and_plots(graph_folder: Path, tmp_path: Path) -> None:
    picture = tmp_path / "frontier.png"
    arguments = ["explain", str(graph_folder), "--recall", "0.95", "--run", "--plot", str(picture)]
    shown = CliRunner().invoke(cli, arguments)
    assert shown.exit_code == 0, shown.output
    assert "measured µs" in shown.output
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_texts_leave_less_time_for_the_search(texts: FunnelIndex) -> None:
    assert texts.search("sort a list", 5, latency_ms=5_000).served.complete
    with pytest.raises(BudgetError, match=r"encoding one query takes .* by itself"):
        texts.search("sort a list", 5, latency_ms=1e-4)
    with pytest.raises(BudgetError, match=r"reading the documents of one query takes .* by itself"):
        texts.search(hashed_words(["sort a list"])[0], 5, latency_ms=1e-4)
