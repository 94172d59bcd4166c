"""What bins of rows let through, by the theorem; the families are tested against it."""

from __future__ import annotations

import math

from indexes.torchbins import rows_of_a_bin

__all__ = ["expected_recall"]


def expected_recall(rows: int, bins: int, kept: int, shortlist: int) -> float:
    """The expected share of the true best `shortlist` of `rows` that survives, `kept` of each of `bins` bins.

    Rows lie in bins of one size at random, so that the number of the best that fall into one bin is hypergeometric, and
    those beyond `kept` are lost: 1 - (bins / shortlist) * sum over r > kept of (r - kept) P(r) (arXiv 2506.04165, its
    theorem on expected recall). 1 <= shortlist <= rows.
    """
    size = rows_of_a_bin(rows, bins)
    if size <= kept:
        return 1.0
    number = rows / size
    lost, total = 0.0, _log_choose(rows, size)
    for inside in range(kept + 1, min(shortlist, size) + 1):
        if size - inside > rows - shortlist:  # too few other rows to fill the bin
            continue
        log = _log_choose(shortlist, inside) + _log_choose(rows - shortlist, size - inside) - total
        lost += (inside - kept) * math.exp(log)
    return 1.0 - number * lost / shortlist


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
