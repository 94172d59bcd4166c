"""The frontier of an index as a plot: what each plan finds, and what it costs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from funnel.budget import Budget, check_k
from funnel.errors import InputError
from funnel.index import FunnelIndex
from funnel.plan import FLAT, Plan
from funnel.planning.costs import batch_class
from funnel.reports.explained import RECALLS
from funnel.reports.plots import (
    BATCH_COLOUR,
    FAINT,
    FLAT_COLOUR,
    MARGIN,
    SINGLE_COLOUR,
    TEXT,
    Label,
    heading,
    new_figure,
    save_figure,
    stretch,
    write_labels,
)
from funnel.reports.tables import recall_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Point", "frontier_points", "plot_frontier"]

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
    _frame(axes, points)
    _draw(axes, points)
    calls = "one query a call" if batch == 1 else f"calls of {batch_class(batch):,} queries"
    heading(figure, 0.955, f"Plans of {index.path.name}: recall against cost", 15, TEXT, "bold")
    heading(
        figure, 0.91, f"{len(index):,} × {index.dim} · {calls} · {index.certification}", 10.5, FLAT_COLOUR, "normal"
    )
    figure.text(MARGIN, 0.862, "predicted milliseconds a call", fontsize=11, color=TEXT, va="center")
    figure.legend(
        loc="upper right", bbox_to_anchor=(0.985, 0.9), ncols=3, frameon=False, fontsize=11, labelcolor=TEXT,
        handletextpad=0.3, columnspacing=1.6,
    )  # fmt: skip
    axes.set_xlabel(
        f"mean recall@{k} on the calibration queries, axis stretched towards 1; lines reach to the lower bound",
        fontsize=11, color=TEXT,
    )  # fmt: skip
    write_labels(axes, _labels(points))
    save_figure(figure, path)


def _frame(axes: Axes, points: Sequence[Point]) -> None:
    chosen = [point for point in points if point.budgets and not point.plan.is_flat]
    lowest = min((point.lower_bound for point in chosen), default=min(point.recall for point in points))
    left, right = stretch(max(0.0, lowest - 0.12)), stretch(1.0)  # plans far below every budget are left out
    axes.set_xlim(left, right + 0.05 * (right - left))
    costs = [point.ms for point in points if stretch(point.recall) >= left]
    axes.set_yscale("log")
    axes.set_ylim(min(costs) / 1.8, max(costs) * 1.8)
    ticks = [tick for tick in RECALL_TICKS if stretch(tick) >= left]
    axes.set_xticks([stretch(tick) for tick in ticks], [recall_text(tick) for tick in ticks])
    ms = [tick for tick in TICKS if min(costs) / 1.8 <= tick <= max(costs) * 1.8]
    axes.set_yticks(ms, [f"{tick:g}" for tick in ms])
    axes.minorticks_off()
    axes.grid(axis="both", color=FAINT, linewidth=0.6, zorder=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FLAT_COLOUR)
    axes.tick_params(colors=TEXT, labelsize=11, length=0)


def _draw(axes: Axes, points: Sequence[Point]) -> None:
    def at(some: Sequence[Point]) -> tuple[list[float], list[float]]:
        return [stretch(point.recall) for point in some], [point.ms for point in some]

    chosen = [point for point in points if point.budgets and not point.plan.is_flat]
    others = [point for point in points if not point.budgets and not point.plan.is_flat]
    for some, colour, opacity, width in ((others, BATCH_COLOUR, 0.25, 1.0), (chosen, SINGLE_COLOUR, 0.7, 1.6)):
        x, y = at(some)
        axes.hlines(
            y, [stretch(point.lower_bound) for point in some], x, color=colour, alpha=opacity, linewidth=width, zorder=2
        )
    axes.plot(
        *at(others), "o", color=BATCH_COLOUR, markersize=4.5, alpha=0.6, markeredgewidth=0, label="plan", zorder=3
    )
    axes.plot(
        *at(chosen), "s", color=SINGLE_COLOUR, markersize=8, markeredgecolor="white", label="serves a budget", zorder=4
    )
    axes.plot(
        *at([point for point in points if point.plan.is_flat]), "D", color=FLAT_COLOUR, markersize=8,
        markeredgecolor="white", label="flat search", zorder=4, clip_on=False,
    )  # fmt: skip


def _labels(points: Sequence[Point]) -> list[Label]:
    labels = []
    for point in points:
        if point.budgets or point.plan.is_flat:
            asked = ", ".join(recall_text(recall) for recall in point.budgets)
            text = f"{asked}: {point.ms:.3g} ms" if asked else f"{point.ms:.3g} ms"
            colour = FLAT_COLOUR if point.plan.is_flat else SINGLE_COLOUR
            labels.append(Label(text, stretch(point.recall), point.ms, colour, below=not point.plan.is_flat))
    return labels
