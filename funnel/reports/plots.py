"""Plots: speed-up over flat search against recall, the plans of an index, figures of adaptors by width and step.

matplotlib is imported on first use, and only its figure objects are: no display, no global state.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from funnel.budget import Budget, check_k
from funnel.errors import InputError, MissingPackageError
from funnel.index import FunnelIndex
from funnel.plan import FLAT, Plan
from funnel.planning.costs import batch_class
from funnel.reports.tables import BY_HAND, RECALLS, Results, asked_text, microseconds, recall_text, times

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Inches and dots an inch: 1,800 pixels wide, so that it stays sharp when shown at 900.
FIGURE_SIZE, DOTS_PER_INCH = (9.0, 5.6), 200
# Okabe & Ito (2008), told apart in every common colour blindness; shapes differ too.
BATCH_COLOUR, SINGLE_COLOUR, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, ORANGE = "#56B4E9", "#E69F00"
FLAT_COLOUR, FAINT, TEXT = "#444444", "#D9D9D9", "#222222"
# Recall is drawn as −log10(1 + this − recall): 0.99 and 1 stand as far apart as 0.95 and 0.99.
RECALL_OFFSET = 0.002
MARGIN = 0.02  # the width left free at either side, as a share of the figure
# Labels stand this far from their points, every second one further off, in points (1/72 inch).
NEAR, FURTHER = 9, 14
CLOSE = 0.05  # on the stretched axis: of points so near the highest is labelled above, the others below
RECALL_TICKS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0)  # of the plans of an index, where they are in view
BELOW_BUDGETS = 0.12  # plans that are further below every budget are left out
# Name, key of a result, colour, marker, whether its labels stand above (1) or below (-1).
SERIES: tuple[tuple[str, Literal["speedup_batch", "speedup_single"], str, str, int], ...] = (
    ("queries in batch", "speedup_batch", BATCH_COLOUR, "o-", 1),
    ("one query a call", "speedup_single", SINGLE_COLOUR, "s-", -1),
)


class Dot(NamedTuple):
    """A point of a chart: recall, the reach of it that a thin line shows, the height, and what is written there."""

    recall: float
    low: float
    high: float
    y: float
    label: str = ""


Series = tuple[str, str, str, int, Sequence[Dot]]
"""Name, colour, matplotlib's marker and line, 1 or -1 for labels above or below, and the points in rising recall."""


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
    index, machine, flat = results["index"], results["machine"], results["flat"]
    targets = sorted({point["target"] for point in results["funnel"] if point["target"] is not None})
    alone = f"{microseconds(flat['us_batch'])} µs a query in batch, {microseconds(flat['us_single'])} alone"
    series: list[Series] = [("flat search", FLAT_COLOUR, "D", 1, [Dot(1.0, 1.0, 1.0, 1.0, alone)])]
    for name, key, colour, form, side in SERIES:
        dots = budget_dots(results, key)
        by_hand = [dot for dot in dots if dot.label.startswith(BY_HAND)]  # on no line with the others
        budgets = [dot for dot in dots if dot not in by_hand]
        series += [(name, colour, form, side, budgets), (f"_{name}", colour, form[0], side, by_hand)]
    facts = (
        f"{index['rows']:,} × {index['dim']} · {index['coarse']} · {machine['threads']} threads, "
        f"{machine['device']} · {results['n_queries']:,} {results.get('queries', 'queries')} · {index['certificate']}"
    )
    below = f"measured recall@{results['k']}, axis stretched towards 1; dashed: recall asked for"
    figure, axes = _chart((results["title"], facts, "speed-up over flat search", below), series, {*targets, 1.0}, "×")
    for target in targets:
        axes.axvline(stretch(target), color=FAINT, linewidth=1.1, linestyle=(0, (5, 4)), zorder=0)
    save_figure(figure, path)


def budget_dots(results: Results, key: Literal["speedup_batch", "speedup_single"]) -> list[Dot]:
    """A point for each budget, or for those that one plan serves; an error is the line about it."""
    asked: dict[tuple[float, float, float, float], list[str]] = {}
    for point in sorted(results["funnel"], key=lambda point: point["recall"]):
        recall, error = point["recall"], point["recall_error"]
        place = (recall, max(0.0, recall - error), min(1.0, recall + error), point[key])
        asked.setdefault(place, []).append(asked_text(point).removeprefix("recall "))
    return [Dot(*place, f"{', '.join(sorted(names))}: {times(place[-1])}") for place, names in asked.items()]


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


def _chart(
    said: tuple[str, str, str, str], series: Sequence[Series], recalls: set[float], unit: str
) -> tuple[Figure, Axes]:
    """Recall, stretched, against what is on a logarithmic axis.

    said: title, facts below it, what the heights are, and what the recall is. recalls: those that have a tick.
    """
    figure = new_figure()
    from matplotlib.ticker import LogLocator

    axes = figure.add_axes((0.085, 0.115, 0.89, 0.70))
    axes.set_yscale("log")
    for name, colour, form, side, dots in series:
        x, y = [stretch(dot.recall) for dot in dots], [dot.y for dot in dots]
        lows, highs = [stretch(dot.low) for dot in dots], [stretch(dot.high) for dot in dots]
        axes.hlines(y, lows, highs, color=colour, linewidth=1.4, alpha=0.55, zorder=2)
        axes.plot(x, y, form, color=colour, label=name, markersize=8, markeredgecolor="white", linewidth=0.6, zorder=3)
        for number, dot in enumerate(dots):
            beside = [one.y for *_, others in series for one in others if abs(stretch(one.recall) - x[number]) < CLOSE]
            above = side > 0 if len(beside) == 1 else dot.y >= max(beside)
            away = NEAR + FURTHER * (number % 2)
            axes.annotate(
                dot.label, (x[number], dot.y), xytext=(0, away if above else -away), fontsize=11,
                textcoords="offset points", color=colour, parse_math=False, va="bottom" if above else "top",
                ha="right" if dot.recall >= 1 else "center", zorder=4,
            )  # fmt: skip
    axes.margins(0.12, 0.15)
    axes.set_xticks([stretch(tick) for tick in sorted(recalls)], [recall_text(tick) for tick in sorted(recalls)])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(f"{{x:g}}{unit}")
    axes.minorticks_off()
    _plain(axes, 11)
    for height, text, size, colour, weight in (
        (0.955, said[0], 15.0, TEXT, "bold"),
        (0.91, said[1], 10.5, FLAT_COLOUR, "normal"),
        (0.862, said[2], 11.0, TEXT, "normal"),
    ):
        heading(figure, height, text, size, colour, weight)
    figure.legend(loc="upper right", bbox_to_anchor=(0.985, 0.9), ncols=3, frameon=False, fontsize=11, labelcolor=TEXT)
    axes.set_xlabel(said[3], fontsize=11, color=TEXT)
    return figure, axes


def _plain(axes: Axes, size: float) -> None:
    """A faint grid, one spine and labels of a size without ticks."""
    axes.grid(axis="y", color=FAINT, linewidth=0.6, zorder=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FLAT_COLOUR)
    axes.tick_params(colors=TEXT, labelsize=size, length=0, which="both")


def heading(figure: Figure, height: float, text: str, size: float, colour: str, weight: str) -> None:
    """A line at the left edge, smaller where it would run over the right one."""
    line = figure.text(MARGIN, height, text, fontsize=size, color=colour, weight=weight, parse_math=False)
    room = (1 - 2 * MARGIN) * figure.bbox.width
    line.set_fontsize(size * min(1.0, room / max(line.get_window_extent().width, 1)))


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
WIDTH_TICKS = 8  # more widths than these would print their numbers over each other


@dataclass(frozen=True)
class Curve:
    """A named line; a faint one is drawn thin and without a name in the legend."""

    name: str
    points: Mapping[int, float]
    colour: str
    faint: bool = False

    def draw(self, axes: Axes, form: str = "-") -> None:
        """Draw it. form: matplotlib's, such as "o-" for marks on it."""
        style: dict[str, Any] = {"label": self.name, "linewidth": 1.8, "zorder": 3}
        if self.faint:
            form, style = "-", {"label": "_", "linewidth": 0.8, "alpha": 0.4, "zorder": 2}
        axes.plot(list(self.points), list(self.points.values()), form, color=self.colour, markersize=5, **style)


def by_width(axes: Axes, title: str, curves: Sequence[Curve]) -> None:
    """Figures against prefix width, the widths evenly apart by octave."""
    for curve in curves:
        curve.draw(axes, "o-")
    widths = sorted({width for curve in curves for width in curve.points})
    shown = widths[:: -(-len(widths) // WIDTH_TICKS)]
    axes.set_xscale("log", base=2)
    axes.set_xticks(shown, [str(width) for width in shown])
    axes.minorticks_off()
    _curve_frame(axes, title, "width of the prefix", "lower right")


def by_step(
    axes: Axes, title: str, curves: Sequence[Curve], phases: Mapping[str, int], marked: int | None = None
) -> None:
    """Figures against training step.

    phases: the first step of each phase; where one takes over stands a dashed line with its name. marked: a step to be
    marked as the one kept; without it the running mean of each curve is drawn, the figures faintly.
    """
    for curve in curves:
        steps, values = list(curve.points), list(curve.points.values())
        if marked is not None:
            curve.draw(axes)
            axes.plot([marked], [curve.points[marked]], "o", color=curve.colour, markersize=7, markeredgecolor="white")
            continue
        parts = (values[max(0, i + 1 - AVERAGED) : i + 1] for i in range(len(values)))
        means = dict(zip(steps, (sum(part) / len(part) for part in parts), strict=True))
        Curve(curve.name, curve.points, curve.colour, faint=True).draw(axes)
        Curve(curve.name, means, curve.colour).draw(axes)
    for name, first in ((name, first) for name, first in phases.items() if first > 1):
        axes.axvline(first, color=FLAT_COLOUR, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.6)
        axes.annotate(
            name, (first, 0.5), xycoords=axes.get_xaxis_transform(), xytext=(-4, 0), textcoords="offset points",
            fontsize=9, color=FLAT_COLOUR, rotation=90, ha="right", va="center", parse_math=False,
        )  # fmt: skip
    _curve_frame(axes, title, "step", "best" if marked is None else "lower right")


def _curve_frame(axes: Axes, title: str, x_label: str, names: Literal["best", "lower right"]) -> None:
    """Title, axes, and where the names of the curves stand."""
    axes.set_title(title, fontsize=11, color=TEXT, loc="left", parse_math=False)
    axes.set_xlabel(x_label, fontsize=10, color=TEXT)
    if axes.get_lines():
        axes.legend(loc=names, facecolor="white", edgecolor="none", fontsize=9.5, labelcolor=TEXT, handlelength=1.4)
    _plain(axes, 9.5)


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

    @property
    def dot(self) -> Dot:
        """How it is drawn."""
        said = ": ".join(filter(None, [", ".join(map(recall_text, self.budgets)), f"{self.ms:.3g} ms"]))
        shown = said if self.budgets or self.plan.is_flat else ""
        return Dot(self.recall, self.lower_bound, self.recall, self.ms, shown)


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
    flat = [point for point in points if point.plan.is_flat]
    chosen = [point for point in points if point.budgets and point not in flat]
    lowest = min(point.lower_bound for point in chosen or points) - BELOW_BUDGETS
    others = [point for point in points if point not in flat + chosen and point.recall >= lowest]
    series: list[Series] = [
        (name, colour, form, side, [point.dot for point in sorted(some, key=lambda point: point.recall)])
        for name, colour, form, side, some in (
            ("plan", BATCH_COLOUR, ".", 1, others),
            ("serves a budget", SINGLE_COLOUR, "s", -1, chosen),
            ("flat search", FLAT_COLOUR, "D", 1, flat),
        )
    ]
    calls = "one query a call" if batch == 1 else f"calls of {batch_class(batch):,} queries"
    said = (
        f"Plans of {index.path.name}: recall against cost",
        f"{len(index):,} × {index.dim} · {calls} · {index.certification}",
        "predicted milliseconds a call",
        f"mean recall@{k} on the calibration queries, axis stretched towards 1; lines reach to the lower bound",
    )
    save_figure(_chart(said, series, {tick for tick in RECALL_TICKS if tick >= lowest}, "")[0], path)
