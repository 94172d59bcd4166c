"""Curves of recall against time: the best of a peer's points, and its time at a recall between two of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

__all__ = ["around", "best_points", "time_at"]


def best_points(points: Sequence[dict[str, Any]], time: str) -> list[tuple[float, float]]:
    """(recall, time) of the points that no faster one equals or beats, rising in both. time: the key of the time."""
    kept: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: (p[time], -p["recall"])):
        if not kept or point["recall"] > kept[-1][0]:
            kept.append((point["recall"], point[time]))
    return kept


def time_at(points: Sequence[dict[str, Any]], recall: float, time: str) -> float:
    """The time at which a peer reaches a recall, its logarithm linear between two points; infinity where it does not.

    Below its lowest point a peer is taken at that point: it is at least as good there.
    """
    curve = best_points(points, time)
    if not curve or curve[-1][0] < recall:
        return math.inf
    if recall <= curve[0][0]:
        return curve[0][1]
    for (low, fast), (high, slow) in pairwise(curve):
        if recall <= high:
            share = (recall - low) / (high - low)
            return math.exp(math.log(fast) + share * (math.log(slow) - math.log(fast)))
    raise AssertionError("the last point was checked")


def around(points: Sequence[dict[str, Any]], recall: float, time: str) -> list[dict[str, Any]]:
    """The points of the curve that `time_at` reads a recall off: the last below it and the first that reaches it."""
    curve = best_points(points, time)
    above = next((i for i, (reached, _) in enumerate(curve) if reached >= recall), None)
    if above is None:
        return []
    wanted = curve[max(0, above - 1) : above + 1]
    return [point for point in points if (point["recall"], point[time]) in wanted]
