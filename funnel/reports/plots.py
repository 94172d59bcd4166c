"""Plots: speed-up over flat search against recall, the plans of an index, figures of adaptors by width and step.

matplotlib is imported on first use, and only its figure objects are: no display, no global state.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, cast

from funnel.budget import Budget, check_k
from funnel.errors import InputError, MissingPackageError
from funnel.index import FunnelIndex
from funnel.plan import FLAT, Plan
from funnel.planning.costs import batch_class
from funnel.reports.tables import RECALLS, FunnelResult, Results, asked_text, microseconds, recall_text, times

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox


LABEL_DISTANCES = (9.0, 23.0, 37.0, 51.0, 65.0)  # from its point, in points (1/72 inch)
# Inches and dots an inch: 1,800 pixels wide, so that it stays sharp when shown at 900.
FIGURE_SIZE = (9.0, 5.6)
DOTS_PER_INCH = 200
# Blue and vermilion of Okabe & Ito (2008), told apart in every common colour blindness; shapes differ too.
BATCH_COLOUR = "#0072B2"
SINGLE_COLOUR = "#D55E00"
FLAT_COLOUR = "#444444"
FAINT = "#D9D9D9"
TEXT = "#222222"
# Recall is drawn as −log10(1 + this − recall): 0.99 and 1 stand as far apart as 0.95 and 0.99.
RECALL_OFFSET = 0.002
# The width left free at either side, as a share of the figure.
MARGIN = 0.02
# The size at which a long heading is no longer made smaller, in points.
SMALLEST_TEXT = 5.0
MARKED: dict[str, Any] = {"markersize": 8, "markeredgecolor": "white", "zorder": 3}
# Speed-ups that may carry a tick.
SPEED_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


# Name, key of a result, colour, marker, whether its labels stand below.
_SERIES: tuple[tuple[str, Literal["speedup_batch", "speedup_single"], str, str, bool], ...] = (
    ("queries in batch", "speedup_batch", BATCH_COLOUR, "o", False),
    ("one query a call", "speedup_single", SINGLE_COLOUR, "s", True),
)


def frontier_plot(results: Results, path: str | os.PathLike[str]) -> None:
    """Draw speed-up over flat search against measured recall and write it as a PNG.

    Each budget is a point labelled with its promise and its speed-up, in batch and one query a call;
    a thin line spans its standard error. Dashed uprights mark the promises: a kept
    promise is a point at or right of its own.

    Args:
        results: what was measured; at least one budget.
        path: of the PNG, 1,800 pixels wide.

    Raises:
        InputError: there are no budgets to draw.
        MissingPackageError: matplotlib is not installed.
    """
    if not results["funnel"]:
        raise InputError("the results hold no budgets; measure at least one recall target")
    figure = new_figure()
    axes = figure.add_axes((0.08, 0.115, 0.895, 0.70))
    _frame(axes, results)
    points = sorted(results["funnel"], key=lambda point: point["recall"])
    x = [stretch(point["recall"]) for point in points]
    lows, highs = ([stretch(end) for end in ends] for ends in zip(*map(_reach, points), strict=True))
    for name, key, colour, marker, _ in _SERIES:
        y = [point[key] for point in points]
        axes.hlines(y, lows, highs, color=colour, linewidth=1.4, alpha=0.55, zorder=2)
        axes.plot(x, y, color=colour, linewidth=1.6, alpha=0.35, zorder=1)
        axes.plot(x, y, marker, color=colour, label=name, **MARKED)
    axes.plot([stretch(1.0)], [1.0], "D", color=FLAT_COLOUR, label="flat search", **MARKED)
    index, machine = results["index"], results["machine"]
    facts = (
        f"{index['rows']:,} × {index['dim']} · {index['coarse']} · {machine['threads']} threads, "
        f"{machine['device']} · {results['n_queries']:,} {results.get('queries', 'queries')} · {index['certificate']}"
    )
    below = f"measured recall@{results['k']}, axis stretched towards 1; dashed: recall asked for"
    _titles(axes, results["title"], facts, "speed-up over flat search", below)
    write_labels(axes, _labels(results))
    save_figure(figure, path)


def new_figure(size: tuple[float, float] = FIGURE_SIZE) -> Figure:
    """An empty white figure of a size in inches. Raises MissingPackageError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError(
            "plots need matplotlib; install it with: pip install 'funnel-retrieval[demo]'"
        ) from error
    figure = Figure(figsize=size, dpi=DOTS_PER_INCH, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a PNG whose bytes depend on the figure alone."""
    figure.savefig(os.fspath(path), metadata={"Software": "funnel-retrieval"})


def stretch(recall: float) -> float:
    """Where a recall stands on the stretched axis."""
    return -math.log10(1 + RECALL_OFFSET - min(recall, 1.0))


def _reach(point: FunnelResult) -> tuple[float, float]:
    """The recall that was measured, less and plus its standard error."""
    recall, error = point["recall"], point["recall_error"]
    return max(0.0, recall - error), min(1.0, recall + error)


def _frame(axes: Axes, results: Results) -> None:
    points = results["funnel"]
    targets = sorted({point["target"] for point in points if point["target"] is not None})
    recalls = [*targets, *(low for point in points for low in _reach(point))]
    speeds = [1.0, *(point[key] for point in points for _, key, *_ in _SERIES)]
    left, right = stretch(min(recalls)), stretch(1.0)
    reach = left - 0.08 * (right - left) - 0.05, right + 0.07 * (right - left) + 0.05
    _recall_frame(axes, reach, sorted({*targets, 1.0}), (min(speeds) / 1.7, max(2.0, *speeds) * 1.9), SPEED_TICKS, "×")
    for target in targets:
        axes.axvline(stretch(target), color=FAINT, linewidth=1.1, linestyle=(0, (5, 4)), zorder=0)
    _plain(axes, "y", 11)


def _recall_frame(
    axes: Axes,
    x_reach: tuple[float, float],
    recalls: Sequence[float],
    y_reach: tuple[float, float],
    y_ticks: Sequence[float],
    unit: str = "",
) -> None:
    """Recall, stretched, against what is on a logarithmic axis: ticks at these recalls, and where y is in reach."""
    axes.set_xlim(x_reach)
    axes.set_yscale("log")
    axes.set_ylim(y_reach)
    axes.set_xticks([stretch(tick) for tick in recalls], [recall_text(tick) for tick in recalls])
    shown = [tick for tick in y_ticks if y_reach[0] <= tick <= y_reach[1]]
    axes.set_yticks(shown, [f"{tick:g}{unit}" for tick in shown])
    axes.minorticks_off()


def _plain(axes: Axes, grid: Literal["y", "both"], size: float) -> None:
    """A faint grid, one spine and labels of a size without ticks."""
    axes.grid(axis=grid, color=FAINT, linewidth=0.6, zorder=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FLAT_COLOUR)
    axes.tick_params(colors=TEXT, labelsize=size, length=0, which="both")


def _titles(axes: Axes, title: str, facts: str, y_label: str, x_label: str) -> None:
    """Around the one panel of a figure: title, facts, legend and what the axes are."""
    figure = cast("Figure", axes.figure)
    heading(figure, 0.955, title, 15, TEXT, "bold")
    heading(figure, 0.91, facts, 10.5, FLAT_COLOUR, "normal")
    figure.text(MARGIN, 0.862, y_label, fontsize=11, color=TEXT, va="center")
    figure.legend(
        loc="upper right", bbox_to_anchor=(0.985, 0.9), ncols=3, frameon=False, fontsize=11, labelcolor=TEXT,
        handletextpad=0.3, columnspacing=1.6,
    )  # fmt: skip
    axes.set_xlabel(x_label, fontsize=11, color=TEXT)


def heading(figure: Figure, height: float, text: str, size: float, colour: str, weight: str) -> None:
    """A line at the left edge, made smaller where it would run over the right one."""
    line = figure.text(MARGIN, height, text, fontsize=size, color=colour, weight=weight, parse_math=False)
    room = (1 - 2 * MARGIN) * figure.bbox.width
    while line.get_window_extent().width > room and size > SMALLEST_TEXT:
        size -= 0.5
        line.set_fontsize(size)


@dataclass(frozen=True)
class Label:
    """A text that belongs to the point (x, y) in the plot's coordinates, above it or below."""

    text: str
    x: float
    y: float
    colour: str
    below: bool = False


def _labels(results: Results) -> list[Label]:
    flat = results["flat"]
    labels = [
        Label(
            f"{microseconds(flat['us_batch'])} µs a query in batch, {microseconds(flat['us_single'])} alone",
            stretch(1.0),
            1.0,
            FLAT_COLOUR,
        )
    ]
    for _, key, colour, _, below in _SERIES:
        shared: dict[tuple[float, float], list[str]] = {}
        for point in results["funnel"]:
            shared.setdefault((stretch(point["recall"]), point[key]), []).append(asked_text(point))
        for (x, y), asked in shared.items():
            text = ", ".join(sorted(one.removeprefix("recall ") for one in asked))
            labels.append(Label(f"{text}: {times(y)}", x, y, colour, below))
    return labels


def write_labels(axes: Axes, labels: Sequence[Label]) -> list[Annotation]:
    """Write each label over or under its point, further off where it would cover one that is written already."""
    from matplotlib.patheffects import withStroke

    taken: list[Bbox] = []
    drawn = []
    for label in labels:
        annotation = axes.annotate(
            label.text, (label.x, label.y), xytext=(0, 0), textcoords="offset points", fontsize=11,
            color=label.colour, parse_math=False, zorder=4, va="top" if label.below else "bottom", ha="center",
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )  # fmt: skip
        if annotation.get_window_extent().x1 > axes.bbox.x1:
            annotation.set_horizontalalignment("right")
        elif annotation.get_window_extent().x0 < axes.bbox.x0:
            annotation.set_horizontalalignment("left")
        for far in LABEL_DISTANCES:
            annotation.set_position((0, -far if label.below else far))
            box = annotation.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
        drawn.append(annotation)
    return drawn


# Okabe & Ito (2008), told apart in every common colour blindness.
GREEN, PURPLE, SKY, ORANGE = "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
WAY_COLOURS = {
    "identity": FLAT_COLOUR,
    "truncation": FLAT_COLOUR,
    "pca": BATCH_COLOUR,
    "rotation": SINGLE_COLOUR,
    "mlp": GREEN,
    "deep-mlp": PURPLE,
    "attention": SKY,
    "rotation, vectors alone": SKY,
    "auto": PURPLE,
}
LOSS_COLOURS = {
    "distillation": SINGLE_COLOUR,
    "pairwise": BATCH_COLOUR,
    "topk": GREEN,
    "reconstruction": PURPLE,
    "ranking": ORANGE,
    "listwise": SKY,
}
AVERAGED = 25  # steps in the running mean of a loss, which jumps from batch to batch
FAR_APART = 100  # curves whose means differ by more than this factor are drawn on a logarithmic axis
WIDTH_TICKS = 8  # more widths than these would print their numbers over each other


@dataclass(frozen=True)
class Curve:
    """A named line; a faint one is drawn thin and without a name in the legend."""

    name: str
    points: Mapping[int, float]
    colour: str
    faint: bool = False


def by_width(axes: Axes, title: str, curves: Sequence[Curve]) -> None:
    """Figures against prefix width, the widths evenly apart by octave."""
    _curve_frame(axes, title, "width of the prefix")
    for curve in curves:
        style: dict[str, Any] = {"label": curve.name, "linewidth": 1.8, "marker": "o", "markersize": 5, "zorder": 3}
        if curve.faint:
            style = {"label": "_", "linewidth": 0.9, "alpha": 0.4, "zorder": 2}
        axes.plot(list(curve.points), list(curve.points.values()), color=curve.colour, **style)
    widths = sorted({width for curve in curves for width in curve.points})
    shown = widths[:: -(-len(widths) // WIDTH_TICKS)]
    axes.set_xscale("log", base=2)
    axes.set_xticks(shown, [str(width) for width in shown])
    axes.minorticks_off()


def by_step(
    axes: Axes,
    title: str,
    curves: Sequence[Curve],
    phases: Mapping[str, int],
    *,
    averaged: bool = False,
    marked: int | None = None,
) -> None:
    """Figures against training step.

    phases: the first step of each phase, in order; where one takes over stands a dashed line with its name.
    averaged: draw the running mean within each phase, the figures themselves faintly. marked: a step to be marked as
    the one kept.
    """
    _curve_frame(axes, title, "step")
    for curve in curves:
        for number, points in enumerate(_parts(curve.points, list(phases.values())) if averaged else [curve.points]):
            steps, values = list(points), list(points.values())
            if averaged:
                axes.plot(steps, values, color=curve.colour, linewidth=0.7, alpha=0.3)
                values = _running_mean(values)
            axes.plot(steps, values, color=curve.colour, linewidth=1.8, label="_" if number else curve.name)
        if marked is not None and marked in curve.points:
            axes.plot([marked], [curve.points[marked]], "o", color=curve.colour, markersize=7, markeredgecolor="white")
    means = [sum(curve.points.values()) / len(curve.points) for curve in curves]
    if averaged and min(means, default=0) > 0 and max(means) > FAR_APART * min(means):
        axes.set_yscale("log")
    for name, first in list(phases.items())[1:]:
        axes.axvline(first, color=FLAT_COLOUR, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.6)
        axes.annotate(
            name, (first, 0.5), xycoords=axes.get_xaxis_transform(), xytext=(-4, 0), textcoords="offset points",
            fontsize=9, color=FLAT_COLOUR, rotation=90, ha="right", va="center", parse_math=False,
        )  # fmt: skip


def legend(axes: Axes, place: Literal["best", "lower right"] = "best") -> None:
    """The names of the curves of a panel."""
    axes.legend(loc=place, facecolor="white", edgecolor="none", fontsize=9.5, labelcolor=TEXT, handlelength=1.4)


def _curve_frame(axes: Axes, title: str, x_label: str) -> None:
    axes.set_title(title, fontsize=11, color=TEXT, loc="left", parse_math=False)
    axes.set_xlabel(x_label, fontsize=10, color=TEXT)
    _plain(axes, "y", 9.5)


def _running_mean(values: Sequence[float]) -> list[float]:
    """The mean of each value and of those before it, AVERAGED at most."""
    return [sum(part) / len(part) for part in (values[max(0, i + 1 - AVERAGED) : i + 1] for i in range(len(values)))]


def _parts(points: Mapping[int, float], starts: Sequence[int]) -> list[dict[int, float]]:
    """The points of each phase that has any."""
    edges = [-math.inf, *starts[1:], math.inf]
    parts = [{step: points[step] for step in points if low <= step < high} for low, high in pairwise(edges)]
    return [part for part in parts if part]


# Milliseconds that may carry a tick.
TICKS = tuple(round(step * 10.0**power, 4) for power in range(-3, 5) for step in (1, 2, 5))
# Recall that may carry a tick, where it is in view.
RECALL_TICKS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0)


@dataclass(frozen=True, slots=True)
class Point:
    """One plan: its mean recall, its own lower bound at a certificate's confidence, and predicted ms of one call.

    Without real queries nothing is certified, and the bound is the mean itself.
    budgets: recalls asked for that it serves.
    """

    plan: Plan
    recall: float
    lower_bound: float
    ms: float
    budgets: tuple[float, ...] = ()


def frontier_points(index: FunnelIndex, k: int = 10, batch: int = 1, recalls: Sequence[float] = RECALLS) -> list[Point]:
    """Every plan of the frontier, in rising cost, flat search among them.

    Raises InputError where the index has no calibration, or none for this k.
    """
    k, searcher, size = check_k(k, len(index)), index.searcher, batch_class(batch)
    if searcher.calibration is None:
        raise InputError(f"{index.path}: {searcher.why_flat}; it serves every budget, and there are no plans to draw")
    frontier = searcher.calibration.frontier(k)
    if frontier is None:
        raise InputError(f"{index.path}: no plans were calibrated for k={k}, so there is no frontier to show")
    serves: dict[Plan, list[float]] = {}
    for recall in recalls:
        serves.setdefault(searcher.choose(Budget(recall), k, size).plan, []).append(recall)
    planner, latency = searcher.planner, Budget(latency_ms=1.0)  # a budget without a recall: only its confidence counts
    points = []
    for plan in dict.fromkeys([FLAT, *frontier.plans, *serves]):
        known = planner.certificate(plan, latency, k)
        ms = planner.costs.predict(plan, size, searcher.dim)
        bound = known.lower_bound if planner.calibration.certifies else known.estimate
        points.append(Point(plan, known.estimate, bound, ms, tuple(sorted(serves.get(plan, [])))))
    return sorted(points, key=lambda point: point.ms)


def plot_frontier(index: FunnelIndex, path: str | os.PathLike[str], k: int = 10, batch: int = 1) -> None:
    """Draw recall against cost for every plan of the frontier, and which of them serves which recall budget.

    A thin line reaches from each plan to its lower bound. Written as a PNG 1,800 pixels wide.

    Raises InputError as `frontier_points`, MissingPackageError without matplotlib.
    """
    points = frontier_points(index, k, batch)
    figure = new_figure()
    axes = figure.add_axes((0.085, 0.115, 0.89, 0.70))
    _frontier_frame(axes, points)
    _draw(axes, points)
    calls = "one query a call" if batch == 1 else f"calls of {batch_class(batch):,} queries"
    _titles(
        axes,
        f"Plans of {index.path.name}: recall against cost",
        f"{len(index):,} × {index.dim} · {calls} · {index.certification}",
        "predicted milliseconds a call",
        f"mean recall@{k} on the calibration queries, axis stretched towards 1; lines reach to the lower bound",
    )
    write_labels(axes, _point_labels(points))
    save_figure(figure, path)


def _frontier_frame(axes: Axes, points: Sequence[Point]) -> None:
    chosen = [point for point in points if point.budgets and not point.plan.is_flat]
    lowest = min((point.lower_bound for point in chosen), default=min(point.recall for point in points))
    left, right = stretch(max(0.0, lowest - 0.12)), stretch(1.0)  # plans far below every budget are left out
    costs = [point.ms for point in points if stretch(point.recall) >= left]
    ticks = [tick for tick in RECALL_TICKS if stretch(tick) >= left]
    reach = left, right + 0.05 * (right - left)
    _recall_frame(axes, reach, ticks, (min(costs) / 1.8, max(costs) * 1.8), TICKS)
    _plain(axes, "both", 11)


def _draw(axes: Axes, points: Sequence[Point]) -> None:
    flat = [point for point in points if point.plan.is_flat]
    chosen = [point for point in points if point.budgets and point not in flat]
    others = [point for point in points if not point.budgets and point not in flat]
    small = {"markersize": 4.5, "alpha": 0.6, "markeredgewidth": 0, "zorder": 3}
    series: tuple[tuple[list[Point], str, str, str, dict[str, Any], float, float], ...] = (
        (others, "plan", BATCH_COLOUR, "o", small, 0.25, 1.0),
        (chosen, "serves a budget", SINGLE_COLOUR, "s", MARKED, 0.7, 1.6),
        (flat, "flat search", FLAT_COLOUR, "D", {**MARKED, "clip_on": False}, 0.0, 1.0),
    )
    for some, name, colour, marker, style, opacity, width in series:
        x, y = [stretch(point.recall) for point in some], [point.ms for point in some]
        lows = [stretch(point.lower_bound) for point in some]
        axes.hlines(y, lows, x, color=colour, alpha=opacity, linewidth=width, zorder=2)
        axes.plot(x, y, marker, color=colour, label=name, **style)


def _point_labels(points: Sequence[Point]) -> list[Label]:
    return [
        Label(
            ": ".join(filter(None, [", ".join(map(recall_text, point.budgets)), f"{point.ms:.3g} ms"])),
            stretch(point.recall),
            point.ms,
            FLAT_COLOUR if point.plan.is_flat else SINGLE_COLOUR,
            below=not point.plan.is_flat,
        )
        for point in points
        if point.budgets or point.plan.is_flat
    ]
