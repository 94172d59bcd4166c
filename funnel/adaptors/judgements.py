"""Relevance judgements as training data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from funnel.errors import InputError

__all__ = ["MOST_ROWS", "Judged", "Qrels", "rows_to_train_on"]

Qrels: TypeAlias = Mapping[str, Mapping[str, float]]
"""Query id -> document id -> grade, above 0 for relevant."""

# Rows held in memory to train on: the held-out figure gains nothing from more (200 MB at 384 dims).
MOST_ROWS = 131_072
MOST_MISSING = 0.05  # share of judgements whose ids may be missing
NAMED = 5  # ids named in a message


@dataclass(frozen=True)
class Judged:
    """Queries with the documents that answer them.

    Attributes:
        queries: float32 [q, d], unit rows.
        documents: for each query, int64 numbers of the documents judged above 0.
        grades: for each query, their grades, float32.
        left_out: how many judgements named an id that is not there.
        missing: the first few of those ids.
    """

    queries: torch.Tensor
    documents: Sequence[torch.Tensor]
    grades: Sequence[torch.Tensor]
    left_out: int = 0
    missing: Sequence[str] = ()

    @classmethod
    def read(
        cls,
        qrels: Qrels,
        query_ids: Sequence[str],
        queries: NDArray[np.float32],
        document_ids: Sequence[str],
    ) -> Judged:
        """Join judgements with vectors.

        qrels: query id -> document id -> grade, above 0 for relevant. queries: float [q, d], in the order of
        query_ids. document_ids: in the order of the training rows.

        Raises InputError where more than 5 % of the judgements name a query or document that is not there, or none is
        left.
        """
        query_at = {name: i for i, name in enumerate(query_ids)}
        document_at = {name: i for i, name in enumerate(document_ids)}
        missing = _missing(qrels, query_at, document_at)
        total = sum(len(judged) for judged in qrels.values())
        if total and len(missing) > MOST_MISSING * total:
            raise InputError(
                f"{len(missing):,} of {total:,} judgements name ids that are not in the corpus or the queries "
                f"({', '.join(missing[:NAMED])}); at most {MOST_MISSING:.0%} may: give the corpus the qrels are for"
            )
        rows, documents, grades = [], [], []
        for query, judged in qrels.items():
            kept = {name: grade for name, grade in judged.items() if grade > 0 and name in document_at}
            if query in query_at and kept:
                rows.append(query_at[query])
                documents.append(torch.tensor([document_at[name] for name in kept]))
                grades.append(torch.tensor(list(kept.values()), dtype=torch.float32))
        if not rows:
            raise InputError("no query has a document judged above 0; give qrels that name this corpus and queries")
        vectors = torch.nn.functional.normalize(torch.from_numpy(queries[rows].astype(np.float32)), dim=1)
        return cls(vectors, documents, grades, len(missing), missing[:NAMED])

    @property
    def note(self) -> str:
        """What was left out, in words that can follow a sentence; empty where nothing was."""
        if not self.left_out:
            return ""
        return (
            f"; judgements left out, as their ids are not in the corpus or the queries: {self.left_out:,} "
            f"({', '.join(self.missing)})"
        )

    def __len__(self) -> int:
        return len(self.queries)

    def part(self, numbers: torch.Tensor) -> Judged:
        """Some of the queries, by number."""
        chosen = numbers.tolist()
        return Judged(self.queries[numbers], [self.documents[i] for i in chosen], [self.grades[i] for i in chosen])

    def sampled(self, most: int, generator: torch.Generator) -> Judged:
        """At most so many of the queries, drawn at random."""
        return self.part(torch.randperm(len(self), generator=generator)[:most])

    def split(self, share: float, generator: torch.Generator) -> tuple[Judged, Judged]:
        """Two parts drawn at random, the second of the share given and of at least one query.

        Raises InputError where there are fewer than two queries.
        """
        if len(self) < 2:
            raise InputError(f"{len(self)} judged query; at least 2 are needed, one to train on and one to hold out")
        order = torch.randperm(len(self), generator=generator)
        held = max(1, round(share * len(self)))
        return self.part(order[held:]), self.part(order[:held])


def rows_to_train_on(ids: Sequence[str], qrels: Sequence[Qrels], seed: int, most: int = MOST_ROWS) -> NDArray[np.int64]:
    """Numbers of the rows that training holds in memory, rising: those judged, and others drawn evenly up to `most`."""
    if len(ids) <= most:
        return np.arange(len(ids))
    named = {document for part in qrels for judged in part.values() for document in judged}
    kept = np.array([name in named for name in ids])
    others = np.random.default_rng(seed).permutation(np.flatnonzero(~kept))
    kept[others[: max(0, most - int(kept.sum()))]] = True
    return np.flatnonzero(kept)


def _missing(qrels: Qrels, query_at: Mapping[str, int], document_at: Mapping[str, int]) -> list[str]:
    """The missing id of every judgement that has one."""
    found = []
    for query, judged in qrels.items():
        for document in judged:
            if query not in query_at:
                found.append(query)
            elif document not in document_at:
                found.append(document)
    return found
