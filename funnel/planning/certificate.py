"""The statistics behind the promise: is the mean of values in [0, 1] at least r?

Betting bound: Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting", JRSS-B 2023.
A gambler bets a fixed share lambda of a unit wealth on every value being above r; if the mean is at most r,
the expected wealth never exceeds 1, so by Markov's inequality it reaches 1 / delta with probability at most
delta. Which lambda is best is not known before, so the wealth is spread over a grid of them (their "dKelly").
Fixed-sequence testing: Angelopoulos et al., "Learn then Test", 2021, section 2.2 (Bauer 1991): hypotheses in an
order fixed beforehand are each tested at level delta, stopping at the first that is not rejected.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = [
    "Certificate",
    "betting_evidence",
    "betting_lower_bound",
    "fixed_sequence",
    "queries_needed",
]

BETS = 48  # sizes of bet on the grid; twice as many move the bound by less than 1e-4
SMALLEST_BET = 1e-3  # as a share of the largest admissible bet
BOUND_STEPS = 20  # halvings of [0, 1]: 1e-6, far below the resolution of any recall
FOUR_IN_FIVE = 0.84  # standard deviations that a normal variable stays above with probability .8
MOST_QUERIES = 2**40  # where the search for a sufficient number of queries ends

Observations: TypeAlias = npt.NDArray[np.float64]


def _bets(r: float) -> npt.NDArray[np.float64]:
    """Shares to bet, from small to just below 1 / r, at which wealth could go below zero."""
    shares: npt.NDArray[np.float64] = np.geomspace(SMALLEST_BET, 1.0 - SMALLEST_BET, BETS) / r
    return shares


def _log_mean_exp(growth: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """log(mean(exp(growth))) over the first axis, without overflow."""
    largest = growth.max(axis=0)
    result: npt.NDArray[np.float64] = largest + np.log(np.exp(growth - largest).mean(axis=0))
    return result


def betting_evidence(observations: Observations, r: float) -> float:
    """The greatest wealth that a gambler against "the mean is at most r" ever had, on a log scale.

    observations: float [n] in [0, 1], independent, in the order they were drawn (or any order that does not
    depend on their values). The wealth after t of them is mean over lambda of prod_i<=t (1 + lambda (x_i - r)),
    a supermartingale under the hypothesis; by Ville's inequality its maximum reaches 1 / delta with probability
    at most delta. So evidence of at least log(1 / delta) refutes the hypothesis at level delta.
    Source: Waudby-Smith & Ramdas 2023, sections 4 and 5.
    """
    if r <= 0.0:
        return math.inf
    if not len(observations):
        return 0.0
    growth = np.cumsum(np.log1p(np.outer(_bets(r), observations - r)), axis=1)
    return float(_log_mean_exp(growth).max())


def betting_lower_bound(observations: Observations, delta: float) -> float:
    """A lower confidence bound on the mean: the largest r that the evidence refutes at level delta."""
    low, high, needed = 0.0, 1.0, math.log(1.0 / delta)
    if not len(observations):
        return low
    for _ in range(BOUND_STEPS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if betting_evidence(observations, middle) >= needed else (low, middle)
    return low


def queries_needed(observations: Observations, r: float, delta: float) -> int | None:
    """About how many queries like these it would take to certify r, with four chances in five.

    None where their own mean is not above r, or by so little that no number of queries would tell.
    """
    if not len(observations) or float(np.mean(observations)) <= r:
        return None
    growth = np.log1p(np.outer(_bets(r), observations - r))
    rates, spreads = growth.mean(axis=1), FOUR_IN_FIVE * growth.std(axis=1)
    needed = math.log(1.0 / delta)
    low, high = 1, MOST_QUERIES
    while low < high:  # the wealth, convex in the root of n, grows once above 1: the smallest n at which it is enough
        n = (low + high) // 2
        low, high = (low, n) if float(_log_mean_exp(rates * n - spreads * math.sqrt(n))) >= needed else (n + 1, high)
    return low if low < MOST_QUERIES else None


def fixed_sequence(samples: Iterable[Observations], r: float, delta: float) -> int:
    """How many hypotheses, from the head of the sequence, are certified to have a mean of at least r.

    The order must not depend on the samples. With probability 1 - delta no certified mean is below r,
    whichever of them is then chosen. Source: Angelopoulos et al. 2021, section 2.2.
    """
    needed = math.log(1.0 / delta)
    passed = 0
    for sample in samples:
        if betting_evidence(sample, r) < needed:
            break
        passed += 1
    return passed


@dataclass(frozen=True, slots=True)
class Certificate:
    """What is promised about a plan's recall, and on what evidence.

    certified is True only where real queries passed the test for this recall and k. `estimate` and
    `lower_bound` are of the served plan: mean recall@k on the queries, and the bound at 1 - delta.
    """

    recall: float | None
    k: int
    delta: float
    certified: bool
    estimate: float
    lower_bound: float
    n_queries: int
    query_kind: str
    date: str
    machine: str
    note: str = ""
    queries_needed: int | None = field(default=None)

    def to_json(self) -> dict[str, Any]:
        """The record as plain values."""
        return {name: getattr(self, name) for name in self.__slots__}

    def __str__(self) -> str:
        if self.certified and not self.note:
            return (
                f"certified on {self.n_queries} real queries: recall@{self.k} ≥ {self.recall:g} "
                f"with confidence {1 - self.delta:g}"
            )
        return self.note
