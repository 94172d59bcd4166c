from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from funnel import FunnelIndex
from funnel.errors import InputError
from funnel.reports.plots import Point, frontier_points, plot_frontier


def test_every_plan_is_there_with_what_is_known_of_it(graph: FunnelIndex) -> None:
    points = frontier_points(graph, 10, 32)
    frontier = graph.searcher.planner.calibration.frontier(10)
    assert frontier is not None
    assert {point.plan for point in points} >= set(frontier.plans)
    assert [point.ms for point in points] == sorted(point.ms for point in points)
    for point in points:
        assert 0 <= point.lower_bound <= point.recall <= 1
    flat = next(point for point in points if point.plan.is_flat)
    assert (flat.recall, flat.lower_bound) == (1.0, 1.0)
    assert 1.0 in flat.budgets


def test_budgets_mark_the_plans_that_serve_them(graph: FunnelIndex) -> None:
    served = {recall: point.plan for point in frontier_points(graph, 10, 1) for recall in point.budgets}
    for recall, plan in served.items():
        assert graph.explain(10, recall=recall).plan == plan
    assert sorted(served) == [0.8, 0.9, 0.95, 0.99, 1.0]


def test_the_picture_is_a_png_of_the_size_promised(graph: FunnelIndex, tmp_path: Path) -> None:
    plot_frontier(graph, tmp_path / "frontier.png", k=1, batch=256)
    data = (tmp_path / "frontier.png").read_bytes()
    assert struct.unpack(">II", data[16:24]) == (1800, 1120)


def test_budgets_of_one_plan_share_a_label(graph: FunnelIndex) -> None:
    plan = frontier_points(graph)[0].plan
    points = [Point(plan, 0.97, 0.96, 0.25, (0.9, 0.95)), Point(plan, 0.99, 0.98, 0.5)]
    labels = ["0.90, 0.95: 0.25 ms", "0.5 ms" if plan.is_flat else ""]
    assert [point.dot.label for point in points] == labels


def test_an_index_without_plans_has_no_frontier(tmp_path: Path, unseen: np.ndarray) -> None:
    small = FunnelIndex.build(unseen[:100], tmp_path / "small", progress=False)
    with pytest.raises(InputError, match="there are no plans to draw"):
        frontier_points(small)
