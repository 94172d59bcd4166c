import numpy as np
import pytest
from matplotlib.axes import Axes

from funnel.reports.plots import Curve, by_step, by_width, legend, new_figure


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
    legend(axes)
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["32", "48", "64"]
    assert legend_of(axes) == ["pca"]
    axes.figure.canvas.draw()  # a title with dollar signs is no formula


def test_many_widths_do_not_crowd_the_axis(axes: Axes) -> None:
    by_width(axes, "", [Curve("a", {width: 0.5 for width in range(8, 200, 8)}, "#000")])
    assert 4 <= len(axes.get_xticks()) <= 8


def test_a_running_mean_is_drawn_over_the_figures_and_the_kept_step_marked(axes: Axes) -> None:
    by_step(
        axes, "loss", [Curve("a", {step: float(step % 2) + 1 for step in range(1, 101)}, "#000")], {}, averaged=True
    )
    raw, mean = axes.get_lines()
    assert set(np.asarray(raw.get_ydata())) == {1.0, 2.0}
    assert np.asarray(mean.get_ydata())[-1] == pytest.approx(1.5, abs=0.03)
    assert np.array_equal(mean.get_xdata(), raw.get_xdata())
    axes.clear()
    by_step(axes, "figure", [Curve("a", {0: 0.1, 50: 0.3, 100: 0.2}, "#000")], {}, marked=50)
    assert np.array_equal(axes.get_lines()[-1].get_xydata(), [[50, 0.3]])


@pytest.mark.parametrize(("small", "scale"), [(1.0, "linear"), (0.001, "log"), (0.0, "linear")])
def test_losses_far_apart_take_a_logarithmic_axis(axes: Axes, small: float, scale: str) -> None:
    curves = [Curve(name, {1: value, 2: value}, "#000") for name, value in (("large", 2.0), ("small", small))]
    by_step(axes, "loss", curves, {}, averaged=True)
    assert axes.get_yscale() == scale


def test_the_mean_starts_anew_with_each_phase(axes: Axes) -> None:
    points = {**dict.fromkeys(range(1, 11), 4.0), **dict.fromkeys(range(11, 21), 1.0)}
    by_step(axes, "loss", [Curve("a", points, "#000")], {"first": 1, "second $phase$": 11}, averaged=True)
    legend(axes)
    means = [line.get_ydata() for line in axes.get_lines() if line.get_linewidth() > 1]
    assert [set(np.asarray(values)) for values in means] == [{4.0}, {1.0}]
    assert legend_of(axes) == ["a"]
    assert [text.get_text() for text in axes.texts] == ["second $phase$"]
    axes.figure.canvas.draw()
