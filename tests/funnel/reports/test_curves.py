import numpy as np
import pytest
from matplotlib.axes import Axes

from funnel.reports.plots import Curve, by_step, by_width, new_figure


@pytest.fixture
def axes() -> Axes:
    return new_figure((4, 3)).add_subplot()


def legend_of(axes: Axes) -> list[str]:
    legend = axes.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def test_widths_stand_apart_by_octave_and_faint_curves_have_no_name(axes: Axes) -> None:
    points = {32: 0.5, 48: 0.7, 64: 0.8}
    by_width(axes, "kept $by$ width", [Curve("pca", points, "#000"), Curve("pca of one", points, "#000", faint=True)])
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["32", "48", "64"]
    assert legend_of(axes) == ["pca"]
    axes.figure.canvas.draw()  # a title with dollar signs is no formula


def test_many_widths_do_not_crowd_the_axis(axes: Axes) -> None:
    by_width(axes, "", [Curve("a", {width: 0.5 for width in range(8, 200, 8)}, "#000")])
    assert 4 <= len(axes.get_xticks()) <= 8


def test_a_running_mean_is_drawn_over_the_figures_and_the_kept_step_marked(axes: Axes) -> None:
    by_step(axes, "loss", [Curve("a", {step: float(step % 2) + 1 for step in range(1, 101)}, "#000")], {})
    raw, mean = axes.get_lines()
    assert set(np.asarray(raw.get_ydata())) == {1.0, 2.0}
    assert np.asarray(mean.get_ydata())[-1] == pytest.approx(1.5, abs=0.03)
    assert np.array_equal(mean.get_xdata(), raw.get_xdata())
    axes.clear()
    by_step(axes, "figure", [Curve("a", {0: 0.1, 50: 0.3, 100: 0.2}, "#000")], {}, marked=50)
    assert np.array_equal(axes.get_lines()[-1].get_xydata(), [[50, 0.3]])


def test_a_line_stands_where_the_next_phase_begins(axes: Axes) -> None:
    curve = Curve("a", dict.fromkeys(range(1, 21), 4.0), "#000")
    by_step(axes, "loss", [curve], {"second $phase$": 11, "first": 1})
    assert legend_of(axes) == ["a"]
    assert [text.get_text() for text in axes.texts] == ["second $phase$"]
    assert np.asarray(axes.get_lines()[-1].get_xdata()).tolist() == [11, 11]
    axes.figure.canvas.draw()
