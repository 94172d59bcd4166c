"""The house's figure: speed-up over flat search against measured recall.

matplotlib is imported on first use, and only its figure objects are: no display, no global state.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from funnel.errors import InputError, MissingPackageError
from funnel.reports.results import FunnelResult, Results
from funnel.reports.tables import microseconds, recall_text, times

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
# Speed-ups that may carry a tick.
SPEED_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


@dataclass(frozen=True)
class _Series:
    name: str
    key: Literal["speedup_batch", "speedup_single"]
    colour: str
    marker: str
    below: bool


_SERIES = (
    _Series("queries in batch", "speedup_batch", BATCH_COLOUR, "o", below=False),
    _Series("one query a call", "speedup_single", SINGLE_COLOUR, "s", below=True),
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
    for series in _SERIES:
        _curve(axes, results, series)
    _titles(figure, axes, results)
    write_labels(axes, _labels(results))
    save_figure(figure, path)


def new_figure(size: tuple[float, float] = FIGURE_SIZE) -> "Figure":
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


def save_figure(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Write a PNG whose bytes depend on the figure alone."""
    figure.savefig(os.fspath(path), metadata={"Software": "funnel-retrieval"})


def stretch(recall: float) -> float:
    """Where a recall stands on the stretched axis."""
    return -math.log10(1 + RECALL_OFFSET - min(recall, 1.0))


def _reach(point: FunnelResult) -> tuple[float, float]:
    """The recall that was measured, less and plus its standard error."""
    recall, error = point["recall"], point["recall_error"]
    return max(0.0, recall - error), min(1.0, recall + error)


def _frame(axes: "Axes", results: Results) -> None:
    points = results["funnel"]
    targets = sorted({point["target"] for point in points})
    recalls = [*(point["target"] for point in points), *(low for point in points for low in _reach(point))]
    speeds = [1.0] + [point[series.key] for point in points for series in _SERIES]
    left, right = stretch(min(recalls)), stretch(1.0)
    axes.set_xlim(left - 0.08 * (right - left) - 0.05, right + 0.07 * (right - left) + 0.05)
    axes.set_yscale("log")
    low, high = min(speeds) / 1.7, max(2.0, *speeds) * 1.9
    axes.set_ylim(low, high)
    ticks = sorted({*targets, 1.0})
    axes.set_xticks([stretch(tick) for tick in ticks], [recall_text(tick) for tick in ticks])
    speed_ticks = [tick for tick in SPEED_TICKS if low <= tick <= high]
    axes.set_yticks(speed_ticks, [f"{tick:g}×" for tick in speed_ticks])
    axes.minorticks_off()
    for target in targets:
        axes.axvline(stretch(target), color=FAINT, linewidth=1.1, linestyle=(0, (5, 4)), zorder=0)
    axes.grid(axis="y", color=FAINT, linewidth=0.6, zorder=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FLAT_COLOUR)
    axes.tick_params(colors=TEXT, labelsize=11, length=0)


def _curve(axes: "Axes", results: Results, series: _Series) -> None:
    points = sorted(results["funnel"], key=lambda point: point["recall"])
    x = [stretch(point["recall"]) for point in points]
    y = [point[series.key] for point in points]
    lows, highs = ([stretch(end) for end in ends] for ends in zip(*map(_reach, points), strict=True))
    axes.hlines(y, lows, highs, color=series.colour, linewidth=1.4, alpha=0.55, zorder=2)
    axes.plot(x, y, color=series.colour, linewidth=1.6, alpha=0.35, zorder=1)
    axes.plot(
        x,
        y,
        series.marker,
        color=series.colour,
        markersize=8,
        markeredgecolor="white",
        zorder=3,
        label=series.name,
    )


def _titles(figure: "Figure", axes: "Axes", results: Results) -> None:
    index, machine = results["index"], results["machine"]
    axes.plot(
        [stretch(1.0)],
        [1.0],
        "D",
        color=FLAT_COLOUR,
        markersize=8,
        markeredgecolor="white",
        zorder=3,
        label="flat search",
    )
    heading(figure, 0.955, results["title"], 15, TEXT, "bold")
    facts = (
        f"{index['rows']:,} × {index['dim']} · {index['coarse']} · {machine['threads']} threads, "
        f"{machine['device']} · {results['n_queries']:,} {results.get('queries', 'queries')} · {index['certificate']}"
    )
    heading(figure, 0.91, facts, 10.5, FLAT_COLOUR, "normal")
    figure.legend(
        loc="upper right",
        bbox_to_anchor=(0.985, 0.9),
        ncols=3,
        frameon=False,
        fontsize=11,
        labelcolor=TEXT,
        handletextpad=0.3,
        columnspacing=1.6,
    )
    figure.text(MARGIN, 0.862, "speed-up over flat search", fontsize=11, color=TEXT, va="center")
    axes.set_xlabel(
        f"measured recall@{results['k']}, axis stretched towards 1; dashed: recall asked for",
        fontsize=11,
        color=TEXT,
    )


def heading(figure: "Figure", height: float, text: str, size: float, colour: str, weight: str) -> None:
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
    for series in _SERIES:
        shared: dict[tuple[float, float], list[float]] = {}
        for point in results["funnel"]:
            shared.setdefault((stretch(point["recall"]), point[series.key]), []).append(point["target"])
        for (x, y), targets in shared.items():
            asked = ", ".join(recall_text(target) for target in sorted(targets))
            labels.append(Label(f"{asked}: {times(y)}", x, y, series.colour, series.below))
    return labels


def write_labels(axes: "Axes", labels: Sequence[Label]) -> list["Annotation"]:
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
