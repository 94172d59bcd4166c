"""Have the values that come in the same distribution as a reference? A test that may be looked at after every block.

Conformal test martingale: Vovk, Petej, Nouretdinov, Ahlberg, Carlsson & Gammerman, "Retrain or not retrain: conformal
test martingales for change-point detection", 2021 (PMLR 152); Vovk, Gammerman & Shafer, "Algorithmic learning in a
random world", 2nd edition, 2022, part III. Each value is ranked among the reference and all values before it, ties
parted at random: in an exchangeable sequence these ranks are independent and uniform exactly, however small the
reference. A gambler bets on their distribution; while nothing has changed the expected wealth is 1 for ever, so by
Ville's inequality it ever reaches w with probability at most 1 / w: looking often costs nothing.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = ["CELLS", "LARGEST_BLOCK", "Exchangeability", "cells_of"]

Floats = npt.NDArray[np.float64]

# Cosines are ranked in cells of this width: rounding (1e-7) must make no rank, and a hundredth of the usual spread
# of top scores (.02 to .15) is fine enough.
CELLS_PER_UNIT = 4_096
CELLS = 2 * CELLS_PER_UNIT + 1  # from -1 to 1
LARGEST_BLOCK = 256  # values ranked against each other at once: 65,536 comparisons take some 20 us
# Bets are the densities of Beta(a, b) for every a and b of these: ranks shifted up or down, drawn together or apart.
SHAPES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0)
FROM_THE_START = 0.5  # share of the wealth that bets from the first value on; the rest enters as values come
SMALLEST_RANK = 1e-12  # a rank of exactly 0 or 1 would make some bets infinite
EARLIER = np.tri(LARGEST_BLOCK, k=-1, dtype=bool)


def _bets() -> tuple[Floats, Floats, Floats]:
    """a, b and log B(a, b) of every bet."""
    a, b = (np.array(v) for v in zip(*((a, b) for a in SHAPES for b in SHAPES), strict=True))
    log_beta = np.array([math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y) for x, y in zip(a, b, strict=True)])
    return a, b, log_beta


A, B, LOG_BETA = _bets()


class Exchangeability:
    """The wealth of one gambler against "these values go on like the reference".

    reference: float [n], in [-1, 1], in any order. horizon: how many values are to come at most: wealth that enters
    late, for a change that comes late, is spread evenly over them. The bets on a change at each value are those of
    a mixture over its place: Vovk et al. 2021, section 4.
    """

    def __init__(self, reference: npt.NDArray[np.floating], horizon: int, generator: np.random.Generator) -> None:
        self._counts = np.bincount(cells_of(reference), minlength=CELLS)
        self._generator = generator
        self._entering = (1.0 - FROM_THE_START) / horizon
        self._known = len(reference)
        self._kept = 1.0 - FROM_THE_START  # wealth that has not entered yet
        self._logs = np.full(len(A), math.log(FROM_THE_START / len(A)))  # of what each bet has made
        self.count = 0

    @property
    def log_wealth(self) -> float:
        """The logarithm of the wealth now: 0 at the start; log w is reached by chance with probability 1 / w."""
        largest = max(float(self._logs.max()), -700.0)
        return float(np.logaddexp(largest + math.log(np.exp(self._logs - largest).sum()), _log(self._kept)))

    def update(self, values: npt.NDArray[np.floating]) -> None:
        """Bet on the next values, float [n], in the order they came."""
        for start in range(0, len(values), LARGEST_BLOCK):
            self._block(values[start : start + LARGEST_BLOCK])

    def _block(self, values: npt.NDArray[np.floating]) -> None:
        ranks = np.clip(self._ranks(cells_of(values)), SMALLEST_RANK, 1.0 - SMALLEST_RANK)
        growth = (A - 1.0) * np.log(ranks).sum() + (B - 1.0) * np.log1p(-ranks).sum() - len(ranks) * LOG_BETA
        self._logs += growth
        # What enters now was set aside for the values just seen, and bets from the next block on.
        enters = min(self._kept, self._entering * len(ranks))
        self._kept -= enters
        self._logs = np.logaddexp(self._logs, _log(enters / len(A)))
        self.count += len(ranks)

    def _ranks(self, cells: npt.NDArray[np.int16]) -> Floats:
        """The rank in [0, 1] of each value among the reference, all values before it and itself; these then join."""
        counts = self._counts
        earlier, others, known = EARLIER[: len(cells), : len(cells)], cells[:, None], counts[cells]
        lower = np.cumsum(counts)[cells] - known + ((cells < others) & earlier).sum(axis=1, dtype=np.int16)
        equal = known + ((cells == others) & earlier).sum(axis=1, dtype=np.int16) + 1
        size = self._known + np.arange(1, len(cells) + 1)
        np.add.at(counts, cells, 1)
        self._known += len(cells)
        ranks: Floats = (lower + self._generator.random(len(cells)) * equal) / size
        return ranks


def cells_of(values: npt.NDArray[np.floating]) -> npt.NDArray[np.int16]:
    """The number of each value's cell; -inf, where a search found nothing, lies in the first."""
    cells: npt.NDArray[np.int16] = np.rint((np.clip(values, -1.0, 1.0) + 1.0) * CELLS_PER_UNIT).astype(np.int16)
    return cells


def _log(value: float) -> float:
    return math.log(value) if value > 0.0 else -math.inf
