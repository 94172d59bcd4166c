"""Which thresholds of a path to take: by cross-validation, or by a test that bounds the accuracy from below."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from funnel.errors import InputError
from funnel.matryoshka.thresholds import Floats, Integers, Scored, exits, threshold_path

__all__ = ["FOLDS", "Selection", "certified", "cross_validated", "tail_probability"]

FOLDS = 5  # as usual; ten take twice as long
BISECTIONS = 40  # to 1e-12


@dataclass(frozen=True)
class Selection:
    """The thresholds taken, and rows that were judged by thresholds learnt without them.

    Attributes:
        thresholds: float64 [K-1].
        judged: the rows judged.
        exits: the width, 0 to K-1, at which each of them left.
    """

    thresholds: Floats
    judged: Scored
    exits: Integers


def cross_validated(scored: Scored, accuracy: float, margin: float, seed: int) -> Selection:
    """Walk the path from safe to bold while out-of-fold rows keep the accuracy.

    Thresholds are learnt on four fifths of the rows and judged on the other. A step is good if what it loses against
    the widest width, plus `margin` standard errors of that (paired: √(lost + gained) rows), leaves the accuracy asked.
    The walk stops at the first step that is not; of those before it the narrowest is learnt again on all rows.
    """
    fold = np.random.default_rng(seed).permutation(len(scored)) % FOLDS
    chosen: NDArray[np.int64] = np.stack([_out_of_fold(scored, fold, number) for number in range(FOLDS)]).sum(axis=0)
    allowed = int(scored.right[-1].sum()) - accuracy * len(scored)
    good = [_loss(scored, step, margin) <= allowed + 1e-9 for step in chosen]
    best = _narrowest(scored, chosen, _walked(good))
    return Selection(threshold_path(scored)[best], scored, chosen[best])


def certified(scored: Scored, accuracy: float, confidence: float, seed: int) -> Selection:
    """Learn a path on one half of the rows, and walk it on the other while a test shows the accuracy.

    Each step's hypothesis "the accuracy is below the one asked" is tested by the exact binomial tail at level
    1 − confidence, up to the first that is not rejected: fixed-sequence testing (Angelopoulos et al. 2021, Learn then
    Test, arXiv 2110.01052), valid for every step walked, as the order does not depend on the rows that test.

    Raises InputError where not even the widest width passes.
    """
    order = np.random.default_rng(seed).permutation(len(scored))
    path = threshold_path(scored.take(order[::2]))
    judged = scored.take(order[1::2])
    chosen = np.stack([exits(judged.confidence, thresholds) for thresholds in path])
    correct = [int(judged.right_at(step).sum()) for step in chosen]
    good = [tail_probability(count, len(judged), accuracy) <= 1 - confidence for count in correct]
    if not good[0]:
        shown = _highest_shown(correct[0], len(judged), confidence)
        raise InputError(
            f"an accuracy of {accuracy:g} cannot be shown at confidence {confidence:g}: the widest width is right in "
            f"{correct[0]:,} of the {len(judged):,} rows that test, which shows {shown:.4f}; ask for less, or give "
            "more validation rows"
        )
    best = _narrowest(judged, chosen, _walked(good))
    return Selection(path[best], judged, chosen[best])


def tail_probability(correct: int, rows: int, accuracy: float) -> float:
    """The probability of at least so many right rows at that accuracy: the p-value of "it is lower"."""
    if accuracy >= 1 or correct == 0:
        return 1.0
    counts = torch.arange(correct, rows + 1, dtype=torch.float64)
    total = torch.tensor(rows + 1.0, dtype=torch.float64)
    ways = torch.lgamma(total) - torch.lgamma(counts + 1) - torch.lgamma(total - counts)
    terms = ways + counts * math.log(accuracy) + (rows - counts) * math.log1p(-accuracy)
    return min(1.0, float(torch.logsumexp(terms, dim=0).exp()))


def _out_of_fold(scored: Scored, fold: Integers, number: int) -> Integers:
    """At every step of a path learnt without this fold, where its rows leave; 0 for all others: [steps, n]."""
    held = fold == number
    path = threshold_path(scored.take(~held))
    chosen = np.zeros((len(path), len(scored)), dtype=np.int64)
    chosen[:, held] = [exits(scored.confidence[:, held], thresholds) for thresholds in path]
    return chosen


def _loss(scored: Scored, chosen: Integers, margin: float) -> float:
    """Rows lost against the widest width, with the margin."""
    full, taken = scored.right[-1], scored.right_at(chosen)
    lost, gained = int((full & ~taken).sum()), int((taken & ~full).sum())
    return lost - gained + margin * math.sqrt(lost + gained)


def _walked(good: list[bool]) -> int:
    """How many steps come before the first that is not good."""
    return good.index(False) if False in good else len(good)


def _narrowest(scored: Scored, chosen: Integers, walked: int) -> int:
    return int(np.asarray(scored.dims)[chosen[:walked]].mean(axis=1).argmin())


def _highest_shown(correct: int, rows: int, confidence: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if tail_probability(correct, rows, middle) <= 1 - confidence else (low, middle)
    return low
