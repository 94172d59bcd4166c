"""Panels of curves: figures by width or by step, in the house's colours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from funnel.reports.plots import BATCH_COLOUR, FAINT, FLAT_COLOUR, SINGLE_COLOUR, TEXT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["LOSS_COLOURS", "WAY_COLOURS", "Curve", "by_step", "by_width", "legend"]

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
    _frame(axes, title, "width of the prefix")
    for curve in curves:
        style: dict[str, Any] = {"linewidth": 1.8, "marker": "o", "markersize": 5, "zorder": 3}
        if curve.faint:
            style = {"linewidth": 0.9, "alpha": 0.4, "zorder": 2}
        label = "_" if curve.faint else curve.name
        axes.plot(list(curve.points), list(curve.points.values()), color=curve.colour, label=label, **style)
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
    _frame(axes, title, "step")
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


def _frame(axes: Axes, title: str, x_label: str) -> None:
    axes.set_title(title, fontsize=11, color=TEXT, loc="left", parse_math=False)
    axes.set_xlabel(x_label, fontsize=10, color=TEXT)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FLAT_COLOUR)
    axes.tick_params(colors=TEXT, labelsize=9.5, length=0, which="both")


def _running_mean(values: Sequence[float]) -> list[float]:
    """The mean of each value and of those before it, AVERAGED at most."""
    return [sum(part) / len(part) for part in (values[max(0, i + 1 - AVERAGED) : i + 1] for i in range(len(values)))]


def _parts(points: Mapping[int, float], starts: Sequence[int]) -> list[dict[int, float]]:
    """The points of each phase that has any."""
    edges = [-math.inf, *starts[1:], math.inf]
    parts = [{step: points[step] for step in points if low <= step < high} for low, high in pairwise(edges)]
    return [part for part in parts if part]
