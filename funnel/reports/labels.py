"""Puts labels beside the points of a plot so that none covers another label or a point."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

# Points to the right, points up, horizontal and vertical alignment.
Place = tuple[float, float, Literal["left", "center", "right"], Literal["bottom", "center", "top"]]

# Half the side of the square that a marker keeps free, in points (1/72 inch).
MARKER_REACH = 5.0
# What it costs to lie over another label, over a marker, outside the plot, and over each point of a curve;
# a place further down the list costs 1 a step.
LABEL_COST, MARKER_COST, OUTSIDE_COST, CURVE_COST = 1000.0, 200.0, 500.0, 1.5
# The distances of the rings of places around a point, in points; the first is tried first.
RINGS = (9.0, 22.0, 36.0, 52.0)
# The places of a ring of reach 1.
PLACES: tuple[Place, ...] = (
    (0.0, 1.0, "center", "bottom"),
    (0.7, 0.7, "left", "bottom"),
    (0.0, -1.0, "center", "top"),
    (-0.7, 0.7, "right", "bottom"),
    (0.7, -0.7, "left", "top"),
    (-0.7, -0.7, "right", "top"),
    (1.1, 0.0, "left", "center"),
    (-1.1, 0.0, "right", "center"),
)


@dataclass(frozen=True)
class Label:
    """A text that belongs to the point (x, y) in the plot's coordinates; `below` tries that side first."""

    text: str
    x: float
    y: float
    colour: str
    below: bool = False


def place_labels(
    figure: "Figure", axes: "Axes", labels: Sequence[Label], curve: Sequence[tuple[float, float]] = ()
) -> list["Annotation"]:
    """Write each label at the free place nearest to its point, in the order given.

    Args:
        figure: with its final size and dots an inch.
        axes: with its final limits and scales.
        labels: what to write.
        curve: points of lines that are better left uncovered.

    Returns:
        The annotations drawn, in the order of the labels.
    """
    scale = figure.dpi / 72
    markers = [_square(axes, label, MARKER_REACH * scale) for label in labels]
    pixels = [(float(x), float(y)) for x, y in axes.transData.transform(list(curve))] if curve else []
    taken: list[Bbox] = []
    drawn = []
    for label in labels:
        annotation = _annotate(axes, label)
        places = _places(label.below)
        box = _settle(annotation, axes, places, markers, taken, pixels)
        taken.append(box)
        drawn.append(annotation)
    return drawn


def _annotate(axes: "Axes", label: Label) -> "Annotation":
    from matplotlib.patheffects import withStroke

    return axes.annotate(
        label.text,
        (label.x, label.y),
        xytext=(0, 0),
        textcoords="offset points",
        fontsize=11,
        color=label.colour,
        parse_math=False,
        path_effects=[withStroke(linewidth=3, foreground="white")],
        zorder=4,
    )


def _places(below: bool) -> list[Place]:
    places: list[Place] = []
    for ring in RINGS:
        for right, up, across, down in PLACES:
            if not below:
                places.append((ring * right, ring * up, across, down))
            else:
                mirrored: dict[str, Literal["bottom", "center", "top"]] = {"bottom": "top", "top": "bottom"}
                places.append((ring * right, -ring * up, across, mirrored.get(down, "center")))
    return places


def _settle(
    annotation: "Annotation",
    axes: "Axes",
    places: Sequence[Place],
    markers: Sequence["Bbox"],
    taken: Sequence["Bbox"],
    curve: Sequence[tuple[float, float]],
) -> "Bbox":
    """Move the annotation to its cheapest place and give back the box that it fills there."""
    costs = []
    for rank, place in enumerate(places):
        box = _move(annotation, place)
        cost = rank + LABEL_COST * sum(box.overlaps(other) for other in taken)
        cost += MARKER_COST * sum(box.overlaps(marker) for marker in markers)
        cost += OUTSIDE_COST * (not _inside(box, axes.bbox)) + CURVE_COST * sum(box.contains(*at) for at in curve)
        costs.append(cost)
    return _move(annotation, places[costs.index(min(costs))])


def _move(annotation: "Annotation", place: Place) -> "Bbox":
    right, up, across, down = place
    annotation.set_position((right, up))
    annotation.set_horizontalalignment(across)
    annotation.set_verticalalignment(down)
    return annotation.get_window_extent()


def _inside(box: "Bbox", frame: "Bbox") -> bool:
    return bool(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1)


def _square(axes: "Axes", label: Label, reach: float) -> "Bbox":
    from matplotlib.transforms import Bbox

    x, y = axes.transData.transform((label.x, label.y))
    return Bbox.from_extents(x - reach, y - reach, x + reach, y + reach)
