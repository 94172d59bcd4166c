"""Hybrid search: a dense ranking and BM25, fused by reciprocal ranks (Cormack, Clarke & Büttcher, SIGIR 2009)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from funnel.budget import LARGEST_K, check_k
from funnel.checks import checked_number
from funnel.data.documents import DocumentStore
from funnel.data.words import Bm25
from funnel.engine.cascade import Float32, Int64
from funnel.engine.workers import workers
from funnel.errors import InputError
from funnel.plan import Plan
from funnel.request import Deadline, paused, plan_of
from funnel.results import Explanation, Hits, Ranks
from indexes.system import free_in_children

__all__ = ["DEFAULT_WEIGHT", "Hybrid", "Lexical", "fuse", "list_depth"]

Ranking = tuple[Int64, Float32]
"""Positions, best first, and their scores."""

RRF_K = 60  # the paper's own; rankings depend on it little
DEFAULT_WEIGHT = 0.5  # even: no judgements were asked
DEPTH = 100  # the deepest k that is certified from the record


def list_depth(k: int, rows: int, plan: Plan | None = None) -> int:
    """How many of each list are fused for k hits: an explicit plan gives no more than its survivors."""
    depth = max(k, DEPTH)
    if plan is not None and not plan.is_flat:
        depth = max(k, min(depth, plan.survivors))
    return min(depth, max(k, rows))


class Lexical:
    """BM25 over the documents of an index, in one or several stores.

    stores: the position of a store's first document, and the store. allowed: for each store the documents that may be
    found, bool by position inside it; None: all. Scores of several stores are those of one that holds all documents.
    """

    def __init__(
        self, stores: Sequence[tuple[int, DocumentStore]], allowed: Sequence[npt.NDArray[np.bool_] | None] | None = None
    ) -> None:
        self.stores: tuple[tuple[int, DocumentStore], ...] = tuple(stores)
        self._allowed = tuple(allowed) if allowed is not None else (None,) * len(self.stores)
        self._lock = free_in_children(Lock())
        self._bm25: Bm25 | None = None

    def open(self) -> Bm25:
        """The tables of all stores. InputError where a store has none."""
        with self._lock:
            if self._bm25 is None:
                tables = [store.lexical() for _, store in self.stores]
                self._bm25 = Bm25([first for first, _ in self.stores], tables)
            return self._bm25

    def among(self, allowed: npt.NDArray[np.bool_]) -> Lexical:
        """The same, over the documents that are allowed and not deleted: bool by position in the index."""
        narrowed = Lexical(self.stores, [allowed[first : first + store.count()] for first, store in self.stores])
        narrowed._bm25 = self.open()
        return narrowed

    def rank(self, text: str, depth: int, deadline: Deadline | None = None) -> Ranking | None:
        """The best `depth` positions of all stores together; None where the deadline came first."""
        return self.open().rank(text, depth, self._allowed, None if deadline is None else deadline.passed)

    def rank_all(self, texts: Sequence[str], depth: int, deadline: Deadline | None = None) -> list[Ranking | None]:
        """`rank` of every text, several at once."""
        if len(texts) == 1:
            return [self.rank(texts[0], depth, deadline)]
        return workers().run(lambda text: self.rank(text, depth, deadline), texts)


@dataclass(frozen=True)
class Hybrid:
    """One hybrid call: k hits, the weight of the lexical list, how many of each list are fused, and what gives it."""

    k: int
    weight: float
    depth: int
    lexical: Lexical

    @classmethod
    def read(
        cls,
        hybrid: float | bool | None,
        texts: Sequence[str] | None,
        vectors: npt.NDArray[Any] | None,
        lexical: Lexical | None,
        k: int,
        rows: int,
        plan: Plan | Explanation | str | None,
    ) -> Hybrid | None:
        """As the user asked; None where it was not asked for, or there is no query.

        Raises InputError for a weight that is none, and where there are no texts to search for or in.
        """
        if hybrid is None and texts is not None and vectors is not None:
            hybrid = DEFAULT_WEIGHT  # words beside a vector are there to be looked for
        if hybrid is None or hybrid is False or (vectors is not None and not vectors.size):
            return None
        k = check_k(k, rows or LARGEST_K)  # nothing is found where every row was deleted
        chosen, weight = None if plan is None else plan_of(plan), DEFAULT_WEIGHT if hybrid is True else hybrid
        expected = f"the weight of the lexical list from 0 to 1, such as {DEFAULT_WEIGHT:g}"
        if not 0.0 <= checked_number("hybrid", weight, expected) <= 1.0:
            raise InputError(f"hybrid is {weight!r}; expected {expected}")
        if texts is None:
            raise InputError(
                f"hybrid={weight:g} searches for the words of a query, and vectors were given; give their words by "
                "text=, or leave it out"
            )
        if lexical is None:
            raise InputError(
                f"hybrid={weight:g} needs documents to look for words in, and this index holds vectors alone; build it "
                "from documents with texts, or leave hybrid out"
            )
        return cls(k, float(weight), list_depth(k, rows, chosen), lexical)

    @property
    def words_alone(self) -> bool:
        """Whether the dense list has no weight: it is not searched then, and needs no encoder."""
        return self.weight == 1.0

    def rank(self, texts: Sequence[str], deadline: Deadline | None) -> list[Ranking | None]:
        """The lexical list of every text; opening the tables is done once, and does not count for a deadline."""
        if self.weight == 0.0:
            return [(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))] * len(texts)
        with paused(deadline):
            self.lexical.open()
        return self.lexical.rank_all(texts, self.depth, deadline)

    def fuse(
        self, dense: tuple[Float32, Int64], lexical: Sequence[Ranking | None]
    ) -> tuple[Float32, Int64, list[list[Ranks]]]:
        """Scores float32 [n, k], positions int64 [n, k] and ranks of the best; -inf and -1 behind fewer than k."""
        scores = np.full((len(lexical), self.k), -np.inf, dtype=np.float32)
        positions = np.full((len(lexical), self.k), -1, dtype=np.int64)
        ranks = []
        for row, (cosines, near, words) in enumerate(zip(*dense, lexical, strict=True)):
            found = fuse((near, cosines), words, self.weight, self.k)
            scores[row, : len(found)] = [score for _, score, _ in found]
            positions[row, : len(found)] = [position for position, _, _ in found]
            ranks.append([each for _, _, each in found])
        return scores, positions, ranks

    def marked(self, hits: Sequence[Hits], ranks: list[list[Ranks]], lexical: Sequence[Ranking | None]) -> list[Hits]:
        """The hits with the ranks they came from, and in `served` whether the lexical list was there."""
        return [
            Hits(
                (replace(hit, ranks=each) for hit, each in zip(found, its, strict=True)),
                replace(found.served, lexical=words is not None),
            )
            for found, its, words in zip(hits, ranks, lexical, strict=True)
        ]


def fuse(dense: Ranking, lexical: Ranking | None, weight: float, k: int) -> list[tuple[int, float, Ranks]]:
    """The best k of two rankings: position, fused score, ranks.

    score = (1 - weight) / (60 + dense rank) + weight / (60 + lexical rank), ranks from 1; a list that lacks a document
    gives it nothing, and one whose weight is 0 brings none in. Equal scores come in order of dense rank.
    """
    merged: dict[int, dict[str, Any]] = {}
    for name, value, share, ranking in (
        ("dense", "cosine", 1.0 - weight, dense),
        ("lexical", "bm25", weight, lexical),
    ):
        if ranking is None or share == 0.0:
            continue
        for rank, (position, score) in enumerate(zip(ranking[0].tolist(), ranking[1].tolist(), strict=True), 1):
            if position >= 0:
                entry = merged.setdefault(position, {"score": 0.0})
                entry["score"] += share / (RRF_K + rank)
                entry[name], entry[value] = rank, score
    best = sorted(merged.items(), key=lambda item: (-item[1]["score"], item[1].get("dense", math.inf)))[:k]
    return [(position, entry.pop("score"), Ranks(**entry)) for position, entry in best]
