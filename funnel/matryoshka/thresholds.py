"""The search for confidence thresholds: from rows scored at every width to a path of thresholds, safe to bold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from funnel.errors import InputError

__all__ = ["Scored", "cheapest_thresholds", "confidences", "exits", "threshold_path"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# Powers of the doubt that lead from hardly letting a row out to what loses nothing where it was learnt. Dividing the
# doubt instead kept as much, at .47 instead of .42 of the full width on verses, and .17 instead of .18 on digits.
BACK_OFF = tuple(np.geomspace(8, 1.05, 24).tolist())
# From where no error is worth its saving to where any is; twice as many shorten the mean width by at most 6 %.
PRICES = 24
ROUNDS = 8  # the descent ends by itself after 2 to 4


@dataclass(frozen=True)
class Scored:
    """Rows scored at every width.

    Attributes:
        dims: the K widths, rising.
        confidence: float64 [K, n], the maximum softmax probability.
        right: bool [K, n], whether the class of that probability is the label.
    """

    dims: tuple[int, ...]
    confidence: Floats
    right: NDArray[np.bool_]

    def __len__(self) -> int:
        return int(self.right.shape[1])

    def take(self, rows: NDArray[np.bool_] | Integers) -> Scored:
        """Some of the rows, by number or by mask."""
        return Scored(self.dims, self.confidence[:, rows], self.right[:, rows])

    def right_at(self, chosen: Integers) -> NDArray[np.bool_]:
        """Whether each row is right at the width chosen for it, 0 to K-1: bool [n]."""
        taken: NDArray[np.bool_] = self.right[chosen, np.arange(len(self))]
        return taken


def confidences(logits: Mapping[int, torch.Tensor], dims: tuple[int, ...]) -> tuple[Floats, Integers]:
    """The maximum softmax probability and its class at every width, from logits [n, classes]: [K, n] each.

    In float64, as float32 makes most confidences of a well-trained head the same 1.0.

    Raises InputError where a width is missing, shapes differ, or a value is not finite.
    """
    missing = [width for width in dims if width not in logits]
    if missing:
        raise InputError(f"no logits of width {missing}; expected {list(dims)}, there are {sorted(logits)}")
    shapes = {tuple(logits[width].shape) for width in dims}
    if len(shapes) > 1 or any(len(shape) != 2 or shape[1] < 2 for shape in shapes):
        raise InputError(f"logits of shapes {sorted(shapes)}; expected (n, classes), the same at every width")
    tops = []
    for width in dims:
        if not torch.isfinite(logits[width]).all():
            raise InputError(f"the logits of width {width} hold values that are not finite; repair or drop those rows")
        tops.append(torch.softmax(logits[width].detach().double().cpu(), dim=1).max(dim=1))
    return (
        torch.stack([top.values for top in tops]).numpy(),
        torch.stack([top.indices for top in tops]).numpy(),
    )


def exits(confidence: Floats, thresholds: Floats) -> Integers:
    """The first width whose confidence reaches its threshold, else the last: [K, n] and [K-1] -> [n]."""
    passed = np.vstack([confidence[:-1] >= thresholds[:, None], np.ones((1, confidence.shape[1]), dtype=bool)])
    chosen: Integers = passed.argmax(axis=0)
    return chosen


def cheapest_thresholds(scored: Scored, price: float) -> Floats:
    """Thresholds at which width + price × errors is small on these rows: float64 [K-1], ∞ where no row leaves.

    Coordinate descent: from the second widest to the narrowest and again, each threshold is set to the best there is,
    the others being as they are, until nothing falls. With two widths that is the optimum.
    """
    widths = np.array(scored.dims, dtype=np.float64)
    cost = widths[:, None] + price * ~scored.right
    falling = np.argsort(-scored.confidence[:-1], axis=1, kind="stable")
    thresholds = np.full(len(widths) - 1, np.inf)
    # In the first round a width is judged on all rows: which of them arrive there is not known yet.
    arrived = np.ones((len(widths), len(scored)), dtype=bool)
    before = np.inf
    for _ in range(ROUNDS):
        ahead = cost[-1].copy()
        for k in reversed(range(len(thresholds))):
            order = falling[k][arrived[k][falling[k]]]
            confidence = scored.confidence[k]
            thresholds[k] = _best_threshold(confidence[order], (ahead - cost[k])[order])
            ahead = np.where(confidence >= thresholds[k], cost[k], ahead)
        if ahead.mean() >= before:
            break
        before = ahead.mean()
        left = scored.confidence[:-1] >= thresholds[:, None]
        arrived[1:] = ~np.logical_or.accumulate(left, axis=0)
    return thresholds


def threshold_path(scored: Scored) -> list[Floats]:
    """Thresholds from safe to bold, always the same number of them.

    The first let no row out. Then come those that lose nothing on these rows, their doubt (1 − threshold) raised to a
    falling power: a learnt threshold lies just above the worst row that was seen, and worse rows are still to come.
    The last are the cheapest at a falling price of an error, down to where every row leaves at once.
    """
    widths = scored.dims
    dearest = float(max(len(scored), 1) * widths[-1])
    least = float(min(np.diff(widths)))
    lossless, *bolder = [cheapest_thresholds(scored, price) for price in np.geomspace(dearest, least / 2, PRICES)]
    never = np.full(len(widths) - 1, np.inf)
    doubt = 1 - np.minimum(lossless, 1)
    backed_off = [np.where(np.isinf(lossless), np.inf, 1 - doubt**power) for power in BACK_OFF]
    return [never, *backed_off, lossless, *bolder]


def _best_threshold(confidence: Floats, gain: Floats) -> float:
    """Where to let rows out, given falling confidences and what each row gains by leaving; ∞ for nowhere."""
    if not len(confidence):
        return np.inf
    total = np.cumsum(gain)
    # Rows of one confidence leave together.
    total[:-1][confidence[1:] == confidence[:-1]] = -np.inf
    last = int(total.argmax())
    if total[last] <= 0:
        return np.inf
    following = confidence[min(last + 1, len(confidence) - 1)]
    return float((confidence[last] + following) / 2)
