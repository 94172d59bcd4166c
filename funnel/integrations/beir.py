"""A funnel index as a retriever of BEIR (Thakur et al. 2021, arXiv 2104.08663), for its `EvaluateRetrieval`."""

import inspect
import logging
import math
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from funnel.adaptors import Adaptor, adaptor_kinds
from funnel.budget import Budget
from funnel.checks import checked_whole
from funnel.data.corpus import CorpusSource
from funnel.data.documents import Document
from funnel.data.queries import QueriesSource
from funnel.encoding.encoders import (
    AS_THE_MODEL_SAYS,
    DEFAULT_ENCODER,
    CallableEncoder,
    Encoder,
    EncoderSource,
    load_encoder,
)
from funnel.encoding.prompts import TextOptions
from funnel.errors import InputError, MissingPackageError
from funnel.index import FunnelIndex
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

logger = logging.getLogger(__name__)

Results: TypeAlias = dict[str, dict[str, float]]
Texts: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Document id → {"title": …, "text": …}."""
Float32: TypeAlias = npt.NDArray[np.float32]
Documents: TypeAlias = Callable[[Sequence[Mapping[str, Any]]], Float32]
"""Documents -> float32 [n, d]."""

MODEL_BATCH = 128  # documents in one batch of a model of BEIR: what its exact search gives it
ENCODED_TOGETHER = 4_096  # documents whose vectors are held in memory while an index is built

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
        exact = bool(options.pop("exact_encoding", False))
        self._encoder, self._documents = model_of(encoder_or_model, device, exact, texts)
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
        vectors = self._encoder.encode_query(list(queries.values()))
        self._prepare(text_corpus(corpus, self._documents), vectors)
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
        documents = text_corpus(corpus, self._documents)
        folder, ids = Path(encode_output_path), documents.ids
        path = folder / query_filename
        if overwrite or not path.exists():
            save_vectors(path, list(queries), self._encoder.encode_query(list(queries.values())))
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

    def _prepare(self, corpus: "SearchedCorpus", vectors: Float32) -> None:
        """Have an index of the corpus: the one at hand, the one on disk, or a new one."""
        if self._index is None and self.index_path is not None and IndexFolder(self.index_path).exists():
            self._index = FunnelIndex.open(self.index_path, encoder=self._encoder, device=self._device)
        if self._index is not None:
            difference = self._difference(self._index, corpus, vectors.shape[1])
            if difference is None:
                return
            if self.index_path is not None:
                raise InputError(
                    f"the index at {self.index_path} {difference}; give another index_path, or delete that folder"
                )
        self._index = self._build(corpus, vectors)

    def _build(self, corpus: "SearchedCorpus", vectors: Float32) -> FunnelIndex:
        temporary = self.index_path is None
        folder = Path(tempfile.mkdtemp(prefix="funnel-beir-")) if self.index_path is None else self.index_path
        options = self._options if self._adaptor is None else {"adaptor": self._adaptor, **self._options}
        try:
            index = FunnelIndex.build(
                corpus.source(),
                folder,
                encoder=self._encoder if corpus.of_texts or self._queries is not None else None,
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

    def _difference(self, index: FunnelIndex, corpus: "SearchedCorpus", dim: int) -> str | None:
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


def _holds(index: FunnelIndex, corpus: "SearchedCorpus") -> bool:
    """Whether a few documents, encoded again, are found under their own ids."""
    chosen = corpus.ids[:: -(-len(corpus.ids) // SAMPLED)]
    found = index.search_vectors(corpus.vectors(chosen), min(MOST_ALIKE, len(index)), plan=FLAT)
    alike = [{str(id_) for id_ in ids[scores >= SAME_COSINE]} for ids, scores in zip(*found, strict=True)]
    most = found[0].shape[1]
    return all(own in those or len(those) == most for own, those in zip(chosen, alike, strict=True))


def _is_adaptor(found: Adaptor, asked: str | Path | Adaptor | None) -> bool:
    """Whether an index's adaptor is the one asked for; anything is where funnel was to choose."""
    if asked is None or asked == AUTO or asked in adaptor_kinds():
        return asked in (None, AUTO, found.kind)
    adaptor = asked if isinstance(asked, Adaptor) else Adaptor.load(asked)
    return adaptor.checksum == found.checksum


def _check_options(options: Mapping[str, Any]) -> None:
    known = set(inspect.signature(FunnelIndex.build).parameters) - SET_HERE
    for name in set(options) - known:
        raise InputError(f"{name!r} is no option of FunnelSearch or FunnelIndex.build; choose among {sorted(known)}")


def _check_arguments(score_function: str | None, others: Mapping[str, Any]) -> None:
    if score_function not in SCORE_FUNCTIONS:
        raise InputError(
            f"score_function is {score_function!r}; funnel ranks by cosine alone: "
            "give EvaluateRetrieval score_function='cos_sim'"
        )
    for name in set(others) - IGNORED:
        raise InputError(f"{name!r} is no argument of this search; a budget is given to FunnelSearch itself")


def model_of(source: Any, device: str, exact: bool, options: TextOptions) -> tuple[Encoder, Documents]:
    """An encoder of queries, and what makes vectors of documents: a model of BEIR joins title and text as it likes."""

    def fields(documents: Sequence[Mapping[str, Any]]) -> list[Any]:
        return [{name: document.get(name) or "" for name in ("title", "text")} for document in documents]

    if not (hasattr(source, "encode_queries") and hasattr(source, "encode_corpus")):
        source = DEFAULT_ENCODER if source is None else source
        encoder = load_encoder(source, exact=exact, device=device, options=options)
        return encoder, lambda given: encoder.encode([Document("", **part).content for part in fields(given)])
    if options != AS_THE_MODEL_SAYS:
        raise InputError(
            "a model of BEIR has prompts and a width of its own; leave out query_prompt, document_prompt and "
            "truncate_dim, or give a sentence-transformers model"
        )
    settings = {"batch_size": MODEL_BATCH, "show_progress_bar": False}
    name = f"beir:{type(source).__module__}.{type(source).__qualname__}"
    own = CallableEncoder(partial(source.encode_corpus, **settings), name, partial(source.encode_queries, **settings))
    return own, lambda given: own.encode(fields(given))


@dataclass(frozen=True)
class SearchedCorpus:
    """What is to be searched.

    of_texts: whether source gives documents, and not bare vectors. vectors: those of some ids, [n, d]. source: what
    an index is built from.
    """

    ids: list[str]
    of_texts: bool
    vectors: Callable[[Sequence[str]], Float32]
    source: Callable[[], CorpusSource]


def text_corpus(texts: Texts, encode: Documents) -> SearchedCorpus:
    """A corpus of BEIR. Raises InputError where a document is no mapping."""
    documents = {str(id_): document for id_, document in texts.items()}
    ids = list(documents)
    for id_, document in documents.items():
        if not isinstance(document, Mapping):
            raise InputError(f"document {id_!r} is a {type(document).__name__}; expected a dict with title and text")

    def records() -> Iterator[dict[str, Any]]:
        for start in range(0, len(ids), ENCODED_TOGETHER):
            part = ids[start : start + ENCODED_TOGETHER]
            vectors = encode([documents[id_] for id_ in part])
            for id_, vector in zip(part, vectors, strict=True):
                yield {"_id": id_, **{name: documents[id_].get(name) for name in ("title", "text")}, "vector": vector}

    return SearchedCorpus(ids, True, lambda chosen: encode([documents[id_] for id_ in chosen]), records)


def vector_corpus(ids: list[str], vectors: Float32) -> SearchedCorpus:
    """Ids, and a row of vectors [n, d] for each."""
    rows = {id_: row for row, id_ in enumerate(ids)}
    return SearchedCorpus(ids, False, lambda chosen: vectors[[rows[id_] for id_ in chosen]], lambda: vectors)


def check_texts(queries: Mapping[str, str]) -> None:
    """InputError unless every query is a text."""
    for id_, query in queries.items():
        if not isinstance(query, str):
            raise InputError(f"query {id_!r} is a {type(query).__name__}; expected a text")


def save_vectors(path: Path, ids: Sequence[str], vectors: Float32) -> None:
    """Ids and their vectors [n, d] in one .npz file, under whatever name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez(file, ids=np.array([str(id_) for id_ in ids], dtype=str), vectors=vectors)


def load_vectors(path: str | Path) -> tuple[list[str], Float32]:
    """What `save_vectors` wrote; nothing is unpickled. Raises InputError for any other file, naming it."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            ids, vectors = [str(id_) for id_ in arrays["ids"]], arrays["vectors"]
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} holds no embeddings of FunnelSearch.encode ({error}); encode again") from error
    if vectors.ndim != 2 or len(vectors) != len(ids):
        raise InputError(f"{path} holds {len(ids)} ids and vectors of shape {vectors.shape}; encode again")
    return ids, np.ascontiguousarray(vectors, dtype=np.float32)
