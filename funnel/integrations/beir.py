"""A funnel index as a retriever of BEIR (Thakur et al. 2021, arXiv 2104.08663), for its `EvaluateRetrieval`."""

from __future__ import annotations

import inspect
import logging
import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from funnel.adaptors import Adaptor, adaptor_kinds
from funnel.budget import Budget
from funnel.checks import checked_whole
from funnel.data.queries import QueriesSource
from funnel.encoding.encoders import EncoderSource
from funnel.encoding.prompts import TextOptions
from funnel.errors import InputError, MissingPackageError
from funnel.index import FunnelIndex
from funnel.integrations.beir_corpora import (
    Float32,
    Model,
    SearchedCorpus,
    Texts,
    check_texts,
    load_vectors,
    save_vectors,
    text_corpus,
    vector_corpus,
)
from funnel.plan import FLAT
from funnel.results import Explanation
from funnel.storage import IndexFolder
from funnel.storage.files import keep_for

try:
    from beir.retrieval.search import BaseSearch
except ImportError as error:
    raise MissingPackageError(
        f"funnel.integrations.beir needs beir ({error}); install it with: pip install 'funnel-retrieval[beir]'"
    ) from error

__all__ = ["FunnelSearch"]

logger = logging.getLogger(__name__)

Results: TypeAlias = dict[str, dict[str, float]]

SCORE_FUNCTIONS = ("cos_sim", "cosine")  # BEIR's name of the one similarity that funnel knows, and the common one
IGNORED = frozenset({"return_sorted"})  # taken by BEIR's own retrievers; makes no difference here
SET_HERE = frozenset({"corpus", "path", "encoder", "ids"})  # of FunnelIndex.build, and not to be given as an option
FILE_DOCUMENTS = 50_000  # documents in one file of embeddings: as BEIR's exact search writes them
AUTO = "auto"  # the adaptor that a build trains and chooses by itself
SAMPLED = 8  # documents encoded again to see that an index holds this corpus under this model
MOST_ALIKE = 100  # where as many documents are alike, the one looked for may be another of them
SAME_COSINE = 0.99  # half precision keeps 0.998 of a cosine; another model or text falls far below


class FunnelSearch(BaseSearch):  # type: ignore[misc]
    """Retrieves under a budget: an index is built or opened in the first search, and searched from then on.

    Args:
        encoder_or_model: what `FunnelIndex.build` takes as its encoder (a sentence-transformers name or model, or
            any callable from texts to vectors [n, d]), or a model of BEIR, with `encode_queries` and
            `encode_corpus`. Default all-MiniLM-L6-v2.
        adaptor: as `FunnelIndex.build` takes it; None: its default, or whichever an index found at index_path has.
        recall, latency_ms, budget: what a search must meet; none of them: recall 0.95. The latency is that of one
            call with batch_size queries, encoding apart. Beyond the 100 results that an index is calibrated for,
            flat search is run, which meets any recall; with a latency they are refused.
        index_path: the index's folder, opened where there is one, else built; None: a temporary folder.
        queries: real queries that certify the recall, as texts or vectors, such as those of another split. None:
            those of the first search; no judgement is read, but the plan is chosen on the queries it then runs.
        batch_size: queries in one call.
        device: "auto", "cpu" or "cuda".
        options: whatever else `FunnelIndex.build` takes: dims, memory_mb, coarse, seed, progress, ...

    Raises:
        InputError: a budget or an option that cannot be used.
        EncoderError: the model is not found or does not load.
    """

    def __init__(
        self,
        encoder_or_model: EncoderSource | Any = None,
        *,
        adaptor: str | Path | Adaptor | None = None,
        recall: float | None = None,
        latency_ms: float | None = None,
        budget: Budget | None = None,
        index_path: str | Path | None = None,
        queries: QueriesSource | None = None,
        batch_size: int = 256,
        device: str = "auto",
        **options: Any,
    ) -> None:
        if budget is not None and (recall is not None or latency_ms is not None):
            raise InputError("give either budget, or recall and latency_ms, not both")
        _check_options(options)
        self.budget = budget or Budget(recall, latency_ms)
        self.batch_size = checked_whole("batch_size", batch_size)
        self.index_path = None if index_path is None else Path(index_path)
        self._adaptor, self._queries, self._device = adaptor, queries, device
        texts = TextOptions(*(options.pop(name, None) for name in ("query_prompt", "document_prompt", "truncate_dim")))
        self._model = Model(encoder_or_model, device, bool(options.pop("exact_encoding", False)), texts)
        self._options = {"progress": False, **options}
        self._index: FunnelIndex | None = None

    @property
    def index(self) -> FunnelIndex:
        """The index that was searched last. Raises InputError before the first search."""
        if self._index is None:
            raise InputError("there is no index before the first search; call search, or EvaluateRetrieval.retrieve")
        return self._index

    def explain(self, k: int = 10, *, batch: int | None = None) -> Explanation:
        """The plan that serves the budget at k, and its certificate; of the index that was searched last.

        batch: queries in one call; default: batch_size.
        """
        k = min(checked_whole("k", k), len(self.index))
        return self.index.explain(k, budget=self._budget_at(k), batch=batch or self.batch_size)

    def search(
        self,
        corpus: Texts,
        queries: Mapping[str, str],
        top_k: int,
        score_function: str | None = "cos_sim",
        **kwargs: Any,
    ) -> Results:
        """The top_k documents of every query, fewer where the corpus is smaller.

        A document with the id of the query is a hit like any other: `EvaluateRetrieval.evaluate` leaves it out
        unless told otherwise. The index is kept; another corpus gets another one.

        Args:
            corpus: document id → {"title": …, "text": …}.
            queries: query id → text.
            top_k: how many are asked for.
            score_function: "cos_sim"; funnel knows no other.
            kwargs: return_sorted, which BEIR's retrievers take, makes no difference.

        Returns:
            query id → document id → cosine, best first.

        Raises:
            InputError: another score function, arguments that cannot be used, an empty corpus, or an index_path
                that holds other documents, or documents by another model or adaptor.
            BudgetError: no plan meets the budget.
            EncoderError: the model gave something unusable.
            StorageError: the index cannot be read or written.
        """
        _check_arguments(score_function, kwargs)
        top_k = checked_whole("top_k", top_k)
        if not queries:
            return {}
        check_texts(queries)
        vectors = self._model.queries(list(queries.values()))
        self._prepare(text_corpus(corpus, self._model), vectors)
        return self._retrieve(list(queries), vectors, top_k)

    def encode(
        self,
        corpus: Texts,
        queries: Mapping[str, str],
        encode_output_path: str = "./embeddings/",
        overwrite: bool = False,
        query_filename: str = "queries.pkl",
        corpus_filename: str = "corpus.*.pkl",
        **kwargs: Any,
    ) -> None:
        """Write embeddings in BEIR's files, 50,000 documents a file; a file that exists is kept.

        What is in them is numpy's .npz, whatever the names say: pickles, which BEIR's own retrievers write there, run
        code when they are read.

        Args:
            corpus: as `search` takes it.
            queries: as `search` takes them.
            encode_output_path: the folder.
            overwrite: write files that exist again.
            query_filename: a name in the folder.
            corpus_filename: names in the folder; the star stands for the file's number.
            **kwargs: as `search` takes them.
        """
        _check_arguments("cos_sim", kwargs)
        check_texts(queries)
        documents = text_corpus(corpus, self._model)
        folder, ids = Path(encode_output_path), documents.ids
        path = folder / query_filename
        if overwrite or not path.exists():
            save_vectors(path, list(queries), self._model.queries(list(queries.values())))
        for number, start in enumerate(range(0, len(ids), FILE_DOCUMENTS)):
            path = folder / corpus_filename.replace("*", str(number))
            if overwrite or not path.exists():
                part = ids[start : start + FILE_DOCUMENTS]
                save_vectors(path, part, documents.vectors(part))

    def search_from_files(
        self,
        query_embeddings_file: str,
        corpus_embeddings_files: Sequence[str],
        top_k: int,
        score_function: str | None = "cos_sim",
        **kwargs: Any,
    ) -> Results:
        """As `search`, from embeddings that `encode` wrote. Raises InputError for other files, pickles among them."""
        _check_arguments(score_function, kwargs)
        top_k = checked_whole("top_k", top_k)
        if not corpus_embeddings_files:
            raise InputError("corpus_embeddings_files is empty; encode a corpus first, or check the path")
        query_ids, vectors = load_vectors(query_embeddings_file)
        parts = [load_vectors(file) for file in corpus_embeddings_files]
        ids = [id_ for part, _ in parts for id_ in part]
        self._prepare(vector_corpus(ids, np.concatenate([rows for _, rows in parts])), vectors)
        return self._retrieve(query_ids, vectors, top_k)

    def _prepare(self, corpus: SearchedCorpus, vectors: Float32) -> None:
        """Have an index of the corpus: the one at hand, the one on disk, or a new one."""
        if self._index is None and self.index_path is not None and IndexFolder(self.index_path).exists():
            self._index = FunnelIndex.open(self.index_path, encoder=self._model.encoder, device=self._device)
        if self._index is not None:
            difference = self._difference(self._index, corpus, vectors.shape[1])
            if difference is None:
                return
            if self.index_path is not None:
                raise InputError(
                    f"the index at {self.index_path} {difference}; give another index_path, or delete that folder"
                )
        self._index = self._build(corpus, vectors)

    def _build(self, corpus: SearchedCorpus, vectors: Float32) -> FunnelIndex:
        temporary = self.index_path is None
        folder = Path(tempfile.mkdtemp(prefix="funnel-beir-")) if self.index_path is None else self.index_path
        options = self._options if self._adaptor is None else {"adaptor": self._adaptor, **self._options}
        try:
            index = FunnelIndex.build(
                corpus.source(),
                folder,
                encoder=self._model.encoder if corpus.of_texts or self._queries is not None else None,
                queries=vectors if self._queries is None else self._queries,
                ids=None if corpus.of_texts else corpus.ids,
                device=self._device,
                **options,
            )
        except BaseException:
            if temporary:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        if temporary:
            keep_for(index, folder)
        return index

    def _difference(self, index: FunnelIndex, corpus: SearchedCorpus, dim: int) -> str | None:
        """Why an index is not one of this corpus; None where it is, as far as ids and a few documents tell."""
        if index.dim != dim:
            return f"holds vectors of {index.dim} dims, the model gives {dim}"
        if {str(id_) for id_ in index.ids()} != set(corpus.ids):
            return f"holds other documents ({len(index):,}, the corpus has {len(corpus.ids):,})"
        if not _is_adaptor(index.searcher.adaptor, self._adaptor):
            return f"has another adaptor ({index.searcher.adaptor.kind})"
        return None if _holds(index, corpus) else "has the same ids, but for other texts or by another model"

    def _budget_at(self, k: int) -> Budget:
        calibration = self.index.searcher.calibration
        if calibration is None or k <= calibration.depth or self.budget.latency_ms is not None:
            return self.budget
        logger.info("k=%d: the index is calibrated for k up to %d; flat search is run", k, calibration.depth)
        return Budget(recall=1.0)

    def _retrieve(self, query_ids: Sequence[str], vectors: Float32, top_k: int) -> Results:
        k = min(top_k, len(self.index))
        budget = self._budget_at(k)
        results: Results = {}
        for start in range(0, len(vectors), self.batch_size):
            part = slice(start, start + self.batch_size)
            ids, scores = self.index.search_vectors(vectors[part], k, budget=budget)
            for query_id, row, values in zip(query_ids[part], ids.tolist(), scores.tolist(), strict=True):
                # Where a coarse search finds fewer than k, the rest is -inf.
                hits = zip(row, values, strict=True)
                results[query_id] = {str(id_): score for id_, score in hits if math.isfinite(score)}
        return results


def _holds(index: FunnelIndex, corpus: SearchedCorpus) -> bool:
    """Whether a few documents, encoded again, are found under their own ids."""
    chosen = corpus.ids[:: -(-len(corpus.ids) // SAMPLED)]
    found = index.search_vectors(corpus.vectors(chosen), min(MOST_ALIKE, len(index)), plan=FLAT)
    for own, ids, scores in zip(chosen, *found, strict=True):
        alike = {str(id_) for id_, score in zip(ids, scores, strict=True) if score >= SAME_COSINE}
        if own not in alike and len(alike) < len(ids):
            return False
    return True


def _is_adaptor(found: Adaptor, asked: str | Path | Adaptor | None) -> bool:
    """Whether an index's adaptor is the one asked for; anything is where funnel was to choose."""
    if isinstance(asked, str) and asked in adaptor_kinds():
        return found.kind == asked
    if asked is None or asked == AUTO:
        return True
    adaptor = asked if isinstance(asked, Adaptor) else Adaptor.load(asked)
    return adaptor.checksum == found.checksum


def _check_options(options: Mapping[str, Any]) -> None:
    known = sorted(set(inspect.signature(FunnelIndex.build).parameters) - SET_HERE)
    for name in options:
        if name not in known:
            raise InputError(f"{name!r} is no option of FunnelSearch or FunnelIndex.build; choose among {known}")


def _check_arguments(score_function: str | None, others: Mapping[str, Any]) -> None:
    if score_function not in SCORE_FUNCTIONS:
        raise InputError(
            f"score_function is {score_function!r}; funnel ranks by cosine alone: "
            "give EvaluateRetrieval score_function='cos_sim'"
        )
    unknown = sorted(set(others) - IGNORED)
    if unknown:
        raise InputError(f"{unknown[0]!r} is no argument of this search; a budget is given to FunnelSearch itself")
