"""Collections and models in BEIR's form, as an index is built from them; needs no beir."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from funnel.data.corpus import CorpusSource
from funnel.data.documents import Document
from funnel.encoding.encoders import AS_THE_MODEL_SAYS, DEFAULT_ENCODER, CallableEncoder, Encoder, load_encoder
from funnel.encoding.prompts import TextOptions
from funnel.errors import InputError

__all__ = [
    "Float32",
    "Model",
    "SearchedCorpus",
    "Texts",
    "check_texts",
    "load_vectors",
    "save_vectors",
    "text_corpus",
    "vector_corpus",
]

Texts: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Document id → {"title": …, "text": …}."""
Float32: TypeAlias = npt.NDArray[np.float32]

MODEL_BATCH = 128  # documents in one batch of a model of BEIR: what its exact search gives it
ENCODED_TOGETHER = 4_096  # documents whose vectors are held in memory while an index is built


class Model:
    """Texts to unit vectors, by an encoder of funnel's or by a model of BEIR."""

    encoder: Encoder

    def __init__(self, source: Any, device: str, exact: bool, options: TextOptions = AS_THE_MODEL_SAYS) -> None:
        self._beir = hasattr(source, "encode_queries") and hasattr(source, "encode_corpus")
        if self._beir:
            if options != AS_THE_MODEL_SAYS:
                raise InputError(
                    "a model of BEIR has prompts and a width of its own; leave out query_prompt, document_prompt and "
                    "truncate_dim, or give a sentence-transformers model"
                )
            settings = {"batch_size": MODEL_BATCH, "show_progress_bar": False}
            name = f"beir:{type(source).__module__}.{type(source).__qualname__}"
            self.encoder = CallableEncoder(
                partial(source.encode_corpus, **settings), name, partial(source.encode_queries, **settings)
            )
        else:
            source = DEFAULT_ENCODER if source is None else source
            self.encoder = load_encoder(source, exact=exact, device=device, options=options)

    def queries(self, texts: Sequence[str]) -> Float32:
        """float32 [n, d]."""
        return self.encoder.encode_query(texts)

    def documents(self, documents: Sequence[Mapping[str, Any]]) -> Float32:
        """float32 [n, d]. A model of BEIR puts title and text together as it likes."""
        fields = [(document.get("title") or "", document.get("text") or "") for document in documents]
        given: list[Any] = [
            {"title": title, "text": text} if self._beir else Document("", title, text).content
            for title, text in fields
        ]
        return self.encoder.encode(given)


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


def text_corpus(texts: Texts, model: Model) -> SearchedCorpus:
    """A corpus of BEIR. Raises InputError where a document is no mapping."""
    documents = {str(id_): document for id_, document in texts.items()}
    ids = list(documents)
    for id_, document in documents.items():
        if not isinstance(document, Mapping):
            raise InputError(f"document {id_!r} is a {type(document).__name__}; expected a dict with title and text")

    def records() -> Iterator[dict[str, Any]]:
        for start in range(0, len(ids), ENCODED_TOGETHER):
            part = ids[start : start + ENCODED_TOGETHER]
            vectors = model.documents([documents[id_] for id_ in part])
            for id_, vector in zip(part, vectors, strict=True):
                title, text = documents[id_].get("title"), documents[id_].get("text")
                yield {"_id": id_, "title": title, "text": text, "vector": vector}

    return SearchedCorpus(ids, True, lambda chosen: model.documents([documents[id_] for id_ in chosen]), records)


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
