from itertools import combinations
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from funnel.reports.plots import Label, write_labels


def placed(labels: list[Label]) -> tuple[Any, list[Any]]:
    figure = Figure(figsize=(6, 4), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    return axes, [drawn.get_window_extent() for drawn in write_labels(axes, labels)]


def test_a_lone_label_stands_just_above_or_below() -> None:
    for below in (False, True):
        axes, (box,) = placed([Label("0.95: 15×", 0.5, 0.5, "black", below)])
        x, y = axes.transData.transform((0.5, 0.5))
        assert box.x0 < x < box.x1
        assert (box.y1 < y) if below else (box.y0 > y)


@settings(max_examples=15)
@given(places=st.lists(st.tuples(st.floats(0.02, 0.98), st.floats(0.02, 0.98)), min_size=2, max_size=5))
def test_labels_never_overlap_and_stay_inside(places: Any) -> None:
    axes, boxes = placed([Label("0.95: 15×", x, y, "black") for x, y in places])
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 for box in boxes)


def test_labels_of_one_point_do_not_overlap() -> None:
    _, boxes = placed([Label(f"label {number}", 0.9, 0.9, "black") for number in range(4)])
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
