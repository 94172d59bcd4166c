"""What the user asks for: recall, in the mean or of most queries, latency, or both."""

from __future__ import annotations

import math
import operator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from funnel.checks import checked_number, checked_whole
from funnel.errors import InputError

__all__ = ["DEFAULT_CONFIDENCE", "DEFAULT_RECALL", "LARGEST_K", "Budget", "check_k", "check_ms"]

DEFAULT_RECALL = 0.95  # what a search without a budget promises
DEFAULT_CONFIDENCE = 0.95  # 1 - delta of a certificate
LARGEST_K = 1_000_000  # of fewer rows: 12 MB of ids and scores for each query, most of it padding
EXPECTED = {
    "share": "a share of queries in (0, 1], such as 0.95",
    "recall": "a share in (0, 1], such as 0.95",
    "confidence": "a probability in (0, 1), such as 0.95",
}


@dataclass(frozen=True, slots=True)
class Budget:
    """What a search must meet.

    recall: mean recall@k against flat search over the distribution of queries, in (0, 1].
    latency_ms: the 95th percentile of one search call, in milliseconds, at the batch size of the call.
    confidence: the probability 1 - delta with which a certified recall holds, in (0, 1): that of one certificate, not
    of all that one asks for together.
    share: None: recall is that of the mean over queries; else at least this share of queries, in (0, 1], gets a
    recall@k of at least `recall`.

    With neither, recall is 0.95. With only a latency, the plan of the highest recall within it is served.
    Raises InputError when a value is outside its range, and for a share without a recall.
    """

    recall: float | None = None
    latency_ms: float | None = None
    confidence: float = DEFAULT_CONFIDENCE
    share: float | None = None

    def __post_init__(self) -> None:
        for name, expected in EXPECTED.items():
            value = getattr(self, name)
            if (value is not None or name == "confidence") and not 0.0 < checked_number(name, value, expected) <= 1.0:
                raise InputError(f"{name} is {value!r}; expected {expected}")
        if self.confidence == 1.0:
            raise InputError(f"confidence is {self.confidence!r}; expected {EXPECTED['confidence']}")
        if self.share is not None and self.recall is None:
            raise InputError(
                f"share is {self.share!r} and no recall is given; say which recall that share of queries gets"
            )
        if self.latency_ms is not None:
            check_ms("latency_ms", self.latency_ms, 5)
        elif self.recall is None:
            object.__setattr__(self, "recall", DEFAULT_RECALL)
        for name in self.__slots__:  # numpy's numbers compare and hash alike, but are not written to JSON
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else float(value))

    @property
    def target(self) -> float | None:
        """What the mean of what is tested must reach: the share of queries where one is asked for, else the recall."""
        return self.recall if self.share is None else self.share

    @property
    def exact(self) -> bool:
        """Whether every neighbour of every query is asked for, or a recall of every single query: flat search."""
        return self.target == 1.0

    @property
    def promise(self) -> str:
        """What is asked of recall, in words."""
        said = f"recall {self.recall or 1.0:g}"
        return said if self.share is None else f"{said} for {self.share * 100:g} % of queries"

    @property
    def delta(self) -> float:
        """The probability of error that the certificate allows."""
        return 1.0 - self.confidence

    def __str__(self) -> str:
        parts = [] if self.recall is None else [self.promise]
        if self.latency_ms is not None:
            parts.append(f"latency {self.latency_ms:g} ms")
        return " and ".join(parts)


def check_ms(name: str, value: object, such_as: float) -> float:
    """The milliseconds as a float. Raises InputError for what is no finite number above 0."""
    expected = f"milliseconds above 0, such as {such_as:g}"
    ms = checked_number(name, value, expected)
    if not 0.0 < ms < math.inf:
        raise InputError(f"{name} is {value!r}; expected {expected}")
    return ms


def check_k(k: object, rows: int) -> int:
    """How many rows a search for `k` can find: k as an int, or `rows` where there are no more.

    Raises InputError for what is no whole number from 1 to LARGEST_K, or to `rows` where there are more of them.
    """
    if not rows:
        raise InputError(
            "every row of this index was deleted: there is nothing to plan for; add some, or build it again"
        )
    with suppress(TypeError):  # as for an array of one number, which has the method and refuses the call
        k = k if isinstance(k, bool | np.bool_) else operator.index(k)  # type: ignore[arg-type]
    return min(checked_whole("k", k, 1, max(rows, LARGEST_K), 10), rows)
