"""How well prefixes rank a judged data set: nDCG@10, recall@100 and shortlist recall by width."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from funnel.adaptors import PCA, Adaptor, Identity
from funnel.adaptors.heldout import SAME
from funnel.adaptors.neighbours import nearest, scaled
from funnel.building.training import Embedded, EmbeddingCache, embed_corpus, embed_queries
from funnel.data.queries import Queries, open_queries, read_qrels
from funnel.encoding.encoders import EncoderSource
from funnel.errors import EncoderError, InputError
from funnel.reports.metrics import RANKING_MEASURES, ranking_metrics, recall_at_k

__all__ = ["MEASURES", "SHORTLIST_RECALL", "JudgedSet", "SetFigures", "mean_shares", "measure", "ways_of"]

SHORTLIST_RECALL = "shortlist recall"
MEASURES = (*(name for name, _, _ in RANKING_MEASURES), SHORTLIST_RECALL)
# The true neighbours looked for, the shortlist they are looked for in, and the depth of a ranking that is judged.
TOP, SHORTLIST, DEPTH = 10, 50, 100
ROWS_AT_A_TIME = 4_096  # of documents compared with all queries
NAMED = 5  # ids named in a message

Figures = dict[str, dict[str, dict[int, float]]]
"""By measure, by way, by width."""


@dataclass(frozen=True)
class JudgedSet:
    """A corpus and the queries that are judged on it, embedded.

    Attributes:
        documents, queries: ids and unit vectors; the queries are those with a relevant document.
        qrels: query id → document id → grade.
    """

    documents: Embedded
    queries: Embedded
    qrels: Mapping[str, Mapping[str, float]]

    def __post_init__(self) -> None:
        rows, asked = self.documents.vectors.shape[1], self.queries.vectors.shape[1]
        if rows != asked:
            raise EncoderError(
                f"{self.name}: the queries have {asked} dims, the documents {rows}; both need the same encoder"
            )

    @property
    def name(self) -> str:
        """The name of its corpus."""
        return self.documents.name

    @property
    def dim(self) -> int:
        """The full width."""
        return int(self.documents.vectors.shape[1])

    @classmethod
    def read(
        cls,
        folder: Path,
        name: str,
        split: str,
        encoder: EncoderSource | None,
        cache: EmbeddingCache,
        progress: bool = True,
    ) -> JudgedSet:
        """Read a BEIR folder and embed its documents, and those of its queries that the split judges.

        Raises:
            InputError: corpus, queries or judgements cannot be read, or a judged query is not among the queries.
            EncoderError: the encoder cannot be loaded.
        """
        every = read_qrels(folder, split)
        qrels = {query: judged for query, judged in every.items() if max(judged.values()) > 0}
        if not qrels:
            raise InputError(f"none of the {len(every):,} queries judged in {folder} ({split}) has a relevant document")
        asked = _judged_queries(open_queries(str(folder)), qrels)
        documents = embed_corpus(str(folder), encoder, cache, progress)
        queries = embed_queries(asked, encoder, cache, progress)
        return cls(Embedded(name, documents.ids, documents.vectors), queries, qrels)


@dataclass(frozen=True)
class SetFigures:
    """What was measured on one set.

    Attributes:
        name, documents, queries: of the set.
        left_out: how many documents were left out of the ranking of a query that they equal.
        figures: by measure, by way, by width; the last width is the full one.
        adaptor: kind of the adaptor, and what its training said, where it was trained here.
    """

    name: str
    documents: int
    queries: int
    left_out: int
    figures: Figures
    adaptor: dict[str, str] = field(default_factory=dict)

    @property
    def full(self) -> dict[str, float]:
        """Each measure for the full embedding, not adapted."""
        return {name: list(ways["truncation"].values())[-1] for name, ways in self.figures.items()}

    def shares(self) -> dict[str, dict[int, float]]:
        """By way and width, nDCG@10 as a share of that of the full embedding.

        Raises InputError where that is 0.
        """
        full = self.full["ndcg@10"]
        if full <= 0:
            raise InputError(
                f"{self.name}: the full embedding's nDCG@10 is 0, so there is no share of it; check that the "
                "judgements belong to this corpus"
            )
        return {
            way: {width: value / full for width, value in found.items()}
            for way, found in self.figures["ndcg@10"].items()
        }


def ways_of(documents: NDArray[np.float32], adaptor: Adaptor) -> dict[str, Adaptor]:
    """The ways to a prefix that a report compares: truncation, PCA of these documents, and the adaptor."""
    dim = documents.shape[1]
    return {"truncation": Identity(dim), "pca": PCA.fit(documents), "adaptor": adaptor}


def measure(
    judged: JudgedSet,
    ways: Mapping[str, Adaptor],
    widths: Sequence[int],
    adaptor: Mapping[str, str] | None = None,
    measured: Callable[[], object] = lambda: None,
) -> SetFigures:
    """Rank all documents for every judged query by the cosine of each prefix.

    Shortlist recall is the share of the top 10 of the full embedding, not adapted, that is among the best 50 by the
    prefix; of documents that tie any will do. A document that equals the query (cosine ≥ 0.9999, not judged for it) is
    left out of its rankings.

    Args:
        judged: documents, queries, judgements.
        ways: adaptors by name; "truncation", the identity, is to be among them.
        widths: rising, up to the full width, which is measured as well.
        adaptor: facts to keep with the figures.
        measured: called after each way and width.

    Raises:
        InputError: widths beyond the full one.
        EncoderError: an adaptor of another width.
        MissingPackageError: pytrec_eval is not installed.
    """
    for way, found in ways.items():
        if found.dim != judged.dim:
            raise EncoderError(
                f"the {way} takes vectors of {found.dim} dims, and those of {judged.name} have {judged.dim}; "
                "use the encoder that it was trained with"
            )
    queries, rows = _tensors(judged)
    left_out = _equal_rows(judged, queries, rows)
    truth = _rankings(queries, rows, TOP, left_out)
    figures: Figures = {name: {way: {} for way in ways} for name in MEASURES}
    for way, found in ways.items():
        asked, given = (torch.from_numpy(found.transform(part.numpy())) for part in (queries, rows))
        for width in dict.fromkeys((*widths, judged.dim)):
            ranking = _rankings(scaled(asked[:, :width]), scaled(given[:, :width]), DEPTH, left_out)
            for name, value in ranking_metrics(_run(judged, ranking), judged.qrels).items():
                figures[name][way][width] = value
            figures[SHORTLIST_RECALL][way][width] = _shortlist_recall(queries, rows, ranking, truth)
            measured()
    sizes = len(judged.documents.ids), len(judged.queries.ids), sum(map(len, left_out))
    return SetFigures(judged.name, *sizes, figures, dict(adaptor or {}))


def mean_shares(sets: Sequence[SetFigures]) -> dict[str, dict[int, float]]:
    """By way and width, the share of the full embedding's nDCG@10, averaged over sets of equal ways and widths."""
    shares = [found.shares() for found in sets]
    return {
        way: {width: sum(share[way][width] for share in shares) / len(shares) for width in widths}
        for way, widths in shares[0].items()
    }


Ranking = list[list[tuple[int, float]]]
"""For each query the rows and their scores, best first."""


def _judged_queries(queries: Queries, qrels: Mapping[str, object]) -> Queries:
    """The queries that are judged, in the order of the judgements."""
    if queries.ids is None:
        raise InputError(f"{queries.name}: the queries have no ids, so no judgement can name them; give a BEIR folder")
    at = {str(name): number for number, name in enumerate(queries.ids)}
    missing = [name for name in qrels if name not in at]
    if missing:
        raise InputError(
            f"{len(missing):,} of {len(qrels):,} judged queries are not in {queries.name} "
            f"({', '.join(missing[:NAMED])}); give the judgements that belong to these queries"
        )
    chosen = [at[name] for name in qrels]
    return Queries(
        texts=None if queries.texts is None else [queries.texts[i] for i in chosen],
        vectors=None if queries.vectors is None else queries.vectors[chosen],
        ids=list(qrels),
        name=queries.name,
    )


def _tensors(judged: JudgedSet) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(scaled(torch.from_numpy(part.vectors)) for part in (judged.queries, judged.documents))  # type: ignore[return-value]


def _equal_rows(judged: JudgedSet, queries: torch.Tensor, rows: torch.Tensor) -> list[set[int]]:
    """For each query the rows that equal it and are not judged for it."""
    equal: list[set[int]] = [set() for _ in range(len(queries))]
    for start in range(0, len(rows), ROWS_AT_A_TIME):
        found = torch.nonzero(queries @ rows[start : start + ROWS_AT_A_TIME].T >= SAME).tolist()
        for query, row in found:
            if judged.documents.ids[start + row] not in judged.qrels[judged.queries.ids[query]]:
                equal[query].add(start + row)
    return equal


def _rankings(queries: torch.Tensor, rows: torch.Tensor, depth: int, left_out: Sequence[set[int]]) -> Ranking:
    """The best rows for each query, `depth` of them where there are so many, without those left out."""
    reach = min(len(rows), depth + max(map(len, left_out), default=0))
    scores, found = nearest(queries, rows, reach)
    return [
        [(row, score) for row, score in zip(numbers, values, strict=True) if row not in skipped][:depth]
        for numbers, values, skipped in zip(found.tolist(), scores.tolist(), left_out, strict=True)
    ]


def _run(judged: JudgedSet, ranking: Ranking) -> dict[str, dict[str, float]]:
    """A ranking by ids, as trec_eval reads it."""
    ids = judged.documents.ids
    return {
        query: {ids[row]: score for row, score in best} for query, best in zip(judged.queries.ids, ranking, strict=True)
    }


def _shortlist_recall(queries: torch.Tensor, rows: torch.Tensor, ranking: Ranking, truth: Ranking) -> float:
    """The share of the true best rows in the shortlist; a row that ties with the last of them counts as well."""
    depth = min(map(len, truth))
    if not depth:
        return 0.0
    reached = np.full((len(queries), SHORTLIST), -np.inf)
    for number, best in enumerate(ranking):
        chosen = [row for row, _ in best[:SHORTLIST]]
        reached[number, : len(chosen)] = (rows[chosen] @ queries[number]).numpy()
    true = np.array([[score for _, score in best[:depth]] for best in truth])
    return float(recall_at_k(reached, true, depth).mean())
