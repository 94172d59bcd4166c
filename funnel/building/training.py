"""Training an adaptor from a corpus: embeddings computed once, judgements joined, the best adaptor saved."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import numpy.typing as npt

from funnel.adaptors import (
    AdaptorChoice,
    Judged,
    Qrels,
    Recipe,
    TrainingQueries,
    choose_adaptor,
    fit_adaptor,
    rows_to_train_on,
)
from funnel.checks import checked_seed
from funnel.data.corpus import CorpusSource, open_corpus
from funnel.data.documents import Document, pieces_of
from funnel.data.queries import Queries, QueriesSource, open_queries, query_hashes, read_qrels
from funnel.encoding.encoders import DEFAULT_ENCODER, Encoder, EncoderSource, load_encoder
from funnel.encoding.models import local_folder
from funnel.errors import EncoderError, InputError
from funnel.progress import Progress

__all__ = [
    "Embedded",
    "EmbeddingCache",
    "JudgedBy",
    "embed_corpus",
    "embed_pieces",
    "embed_queries",
    "train_adaptor",
]

AUTO = "auto"
CACHE_VARIABLE = "FUNNEL_CACHE"
ROWS_AT_A_TIME = 8_192
# As many pieces of documents as a rotation has anchors, and those held out.
MOST_PIECES = 9_192
LARGEST_FOLDER = 8 << 30  # bytes of embeddings kept: 5 million rows of 384 dims


@dataclass(frozen=True)
class Embedded:
    """Ids and float32 unit vectors [n, d] of a collection; of a corpus, its pieces too, where they were asked for.

    hashes: of queries, what they are known by again: see `query_hashes`.
    """

    name: str
    ids: Sequence[str]
    vectors: npt.NDArray[np.float32]
    pieces: npt.NDArray[np.float32] | None = None
    hashes: frozenset[str] = frozenset()


class EmbeddingCache:
    """Embeddings of texts kept on disk, under the hash of the encoder's name, of its files and of the texts.

    folder: default $FUNNEL_CACHE, else ~/.cache/funnel-retrieval.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        given = folder or os.environ.get(CACHE_VARIABLE) or _home()
        self.folder: Path = Path(os.path.abspath(given)) / "embeddings"

    def encode(self, texts: Sequence[str], encoder: Encoder, query: bool, progress: bool) -> npt.NDArray[np.float32]:
        """The embeddings of the texts, float32 [n, d]: read where they were computed before, else computed and kept.

        An encoder without a name of its own (a callable) is run each time.
        """
        if not encoder.reopenable:
            return _encode(texts, encoder, query, progress)
        key = _key(texts, encoder, query)
        for path in self.folder.glob(f"{key}.*.npy"):
            found = _checked(path, (len(texts), encoder.dim))
            if found is not None:
                return found
        vectors = _encode(texts, encoder, query, progress)
        self._keep(key, vectors)
        return vectors

    def _keep(self, key: str, vectors: npt.NDArray[np.float32]) -> None:
        """Write under a name that holds the sha256; then remove what was used longest ago beyond the limit."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f"{key}.{os.getpid()}.tmp"
        with temporary.open("wb") as file:
            np.save(file, vectors)
        digest = hashlib.sha256(temporary.read_bytes()).hexdigest()
        os.replace(temporary, self.folder / f"{key}.{digest}.npy")
        kept = 0
        for path in sorted(self.folder.glob("*.npy"), key=lambda one: one.stat().st_mtime_ns, reverse=True):
            kept += path.stat().st_size
            if kept > LARGEST_FOLDER:
                path.unlink(missing_ok=True)


def _home() -> Path:
    """~/.cache/funnel-retrieval; a temporary folder for a user without a home folder."""
    try:
        return Path.home() / ".cache" / "funnel-retrieval"
    except RuntimeError:
        return Path(tempfile.mkdtemp(prefix="funnel-embeddings-"))


def _checked(path: Path, shape: tuple[int, int]) -> npt.NDArray[np.float32] | None:
    """The array of a file whose bytes are as its name says; None, and no file, where they are not."""
    raw = path.read_bytes()
    if hashlib.sha256(raw).hexdigest() == path.name.split(".")[-2]:
        found: npt.NDArray[np.float32] = np.load(io.BytesIO(raw), allow_pickle=False)
        if found.shape == shape and np.isfinite(found).all():
            os.utime(path)
            return found
    path.unlink(missing_ok=True)
    return None


def embed_corpus(
    corpus: CorpusSource,
    encoder: EncoderSource | None,
    cache: EmbeddingCache,
    progress: bool = True,
    pieces_seed: int | None = None,
) -> Embedded:
    """All vectors of a corpus in memory: its own, or those of its texts.

    With pieces_seed also those of pieces cut from its texts (see `pieces_of`), encoded as queries are; none where the
    corpus brings its own vectors.

    Raises InputError for a corpus that cannot be read, EncoderError where the encoder cannot be loaded.
    """
    opened = open_corpus(corpus)
    if opened.kind == "vectors":
        rows = np.concatenate(list(opened.vectors(ROWS_AT_A_TIME)))
        ids = range(len(rows)) if opened.ids is None else opened.ids
        return Embedded(opened.name, [str(id_) for id_ in ids], rows)
    documents = [document for batch in opened.documents(ROWS_AT_A_TIME) for document in batch]
    ids = [str(document.id) for document in documents]
    if opened.has_vectors:
        return Embedded(opened.name, ids, np.stack([_vector(document) for document in documents]))
    used = load_encoder(DEFAULT_ENCODER if encoder is None else encoder)
    texts = [document.content for document in documents]
    vectors = cache.encode(texts, used, False, progress)
    pieces = None if pieces_seed is None else embed_pieces(documents, used, cache, pieces_seed, progress)
    return Embedded(opened.name, ids, vectors, pieces)


def embed_pieces(
    documents: Sequence[Document], encoder: Encoder, cache: EmbeddingCache, seed: int = 0, progress: bool = True
) -> npt.NDArray[np.float32]:
    """The vectors of pieces cut from documents (see `pieces_of`), encoded as queries are: float32 [p, d]."""
    return cache.encode(pieces_of(documents, MOST_PIECES, seed), encoder, True, progress)


def embed_queries(
    source: QueriesSource | Queries, encoder: EncoderSource | None, cache: EmbeddingCache, progress: bool = True
) -> Embedded:
    """All query vectors in memory. Raises as `embed_corpus` does."""
    opened = open_queries(source)
    ids = [str(i) for i in range(len(opened))] if opened.ids is None else [str(id_) for id_ in opened.ids]
    vectors = opened.vectors
    if vectors is None:
        used = load_encoder(DEFAULT_ENCODER if encoder is None else encoder)
        vectors = cache.encode(opened.texts or [], used, True, progress)
    hashes: frozenset[str] = frozenset().union(*query_hashes(opened.texts, vectors))
    return Embedded(opened.name, ids, vectors, hashes=hashes)


class JudgedBy(TypedDict, total=False):
    """Queries to train by, and what is judged of them; each may be left out, or None.

    Attributes:
        queries: real queries; those without judgements teach a rotation what is asked for, and of 2,000 and more some
            are held out, to stop and to choose by.
        qrels: judgements of those queries (BEIR .tsv, a folder with qrels/train.tsv, or a dict): adds the supervised
            phase.
        dev_qrels: judgements of other queries of that collection, held out to stop and to choose by their nDCG@10;
            default: those in a folder's qrels/dev.tsv, else a share of `qrels`.
    """

    queries: QueriesSource | Queries | None
    qrels: str | Path | Qrels | None
    dev_qrels: str | Path | Qrels | None


def train_adaptor(
    corpus: CorpusSource,
    out: str | os.PathLike[str],
    *,
    kind: str = AUTO,
    dims: Sequence[int] | None = None,
    encoder: EncoderSource | None = None,
    recipe: Recipe | None = None,
    cache: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: bool = True,
    **judged_by: Unpack[JudgedBy],
) -> AdaptorChoice:
    """Train an adaptor and save it, with training.json, into the folder `out`.

    Without judgements, half of what a rotation is trained on are pieces of the texts, encoded as queries are.

    Args:
        corpus: as of `FunnelIndex.build`: texts, which are encoded once and kept in the cache, or vectors.
        out: the folder to write.
        kind: "auto", "rotation", "mlp", "deep-mlp" or "attention".
        dims: widths to train for; default: half octaves up to half of d or 256.
        encoder: of the texts; default all-MiniLM-L6-v2.
        recipe: in place of the kind's own; not with "auto".
        cache: folder for embeddings; default $FUNNEL_CACHE, else ~/.cache/funnel-retrieval.
        seed: of everything random.
        progress: show bars on stderr.
        **judged_by: queries, qrels and dev_qrels: see `JudgedBy`.

    Ctrl-C ends the training, and the best state so far is saved.

    Raises:
        InputError: a corpus, queries, judgements, kind or dims that cannot be used.
        EncoderError: the encoder cannot be loaded, or gives another width.
    """
    checked_seed(seed)
    queries, qrels, dev_qrels = judged_by.get("queries"), judged_by.get("qrels"), judged_by.get("dev_qrels")
    store = EmbeddingCache(cache)
    documents = embed_corpus(corpus, encoder, store, progress, seed if _takes_pieces(kind, recipe, qrels) else None)
    asked = None if queries is None else embed_queries(queries, encoder, store, progress)
    if asked is not None and asked.vectors.shape[1] != documents.vectors.shape[1]:
        raise EncoderError(
            f"the queries have {asked.vectors.shape[1]} dims, the corpus {documents.vectors.shape[1]}; "
            "both need the same encoder"
        )
    held_out = _judgements(_dev_of(qrels) if dev_qrels is None else dev_qrels, "dev") or {}
    trained_on = _judgements(qrels, "train") or {}
    if asked is None and (trained_on or held_out):
        raise InputError("qrels were given without queries; give the queries that they judge")
    numbers = rows_to_train_on(documents.ids, (trained_on, held_out), seed)
    documents = replace(documents, ids=[documents.ids[i] for i in numbers], vectors=documents.vectors[numbers])
    apart = {query: grades for query, grades in trained_on.items() if query not in held_out}
    judged, dev = (_joined(found, asked, documents) for found in (apart, held_out))
    real = None if asked is None or judged is not None or dev is not None else asked.vectors
    given = TrainingQueries(judged, dev, real, documents.pieces)
    if kind == AUTO:
        choice = choose_adaptor(
            documents.vectors, dims=dims, queries=given, seed=seed, progress=progress, keep_on_interrupt=True
        )
    else:
        trained = fit_adaptor(
            kind, documents.vectors, dims=dims, queries=given, recipe=recipe, seed=seed, progress=progress,
            keep_on_interrupt=True,
        )  # fmt: skip
        why = f"{kind}: asked for{given.note}"
        choice = AdaptorChoice(trained.adaptor, why, trained.log.figure, {}, {kind: trained.log})
    if asked is not None:
        choice.adaptor.seen_queries = asked.hashes
    choice.save(out)
    return choice


def _takes_pieces(kind: str, recipe: Recipe | None, qrels: object) -> bool:
    """Whether pieces of documents are trained on: judgements bring queries of their own."""
    wanted = kind in (AUTO, "rotation") if recipe is None else recipe.pieces > 0
    return qrels is None and wanted


def _judgements(qrels: str | Path | Qrels | None, split: str) -> Qrels | None:
    if qrels is None or isinstance(qrels, Mapping):
        return qrels
    return read_qrels(qrels, split)


def _dev_of(qrels: str | Path | Qrels | None) -> Path | None:
    """The folder of the judgements, where it holds qrels/dev.tsv."""
    if qrels is None or isinstance(qrels, Mapping):
        return None
    return Path(qrels) if (Path(qrels) / "qrels" / "dev.tsv").is_file() else None


def _joined(qrels: Qrels, asked: Embedded | None, documents: Embedded) -> Judged | None:
    """Judgements with their vectors; None where there are none."""
    if not qrels or asked is None:
        return None
    return Judged.read(qrels, asked.ids, asked.vectors, documents.ids)


def _encode(texts: Sequence[str], encoder: Encoder, query: bool, progress: bool) -> npt.NDArray[np.float32]:
    if query:
        return encoder.encode_query(texts)
    parts = [np.empty((0, encoder.dim), dtype=np.float32)]
    with Progress(total=len(texts), desc="encode", unit="docs", disable=not progress) as bar:
        for part in _slices(texts):
            parts.append(encoder.encode(part))
            bar.update(len(part))
    return np.concatenate(parts)


def _slices(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(texts), ROWS_AT_A_TIME):
        yield texts[start : start + ROWS_AT_A_TIME]


def _key(texts: Sequence[str], encoder: Encoder, query: bool) -> str:
    options = encoder.options
    prompt = options.query_prompt if query else options.document_prompt
    what = (encoder.name, encoder.dim, getattr(encoder, "exact", False), query, prompt)
    digest = hashlib.sha256(repr(what).encode())
    folder = local_folder(encoder.name)
    if folder is not None:
        for file in sorted(one for one in folder.rglob("*") if one.is_file()):
            raw = file.read_bytes()  # a folder keeps its name when its weights change
            digest.update(f"{file.relative_to(folder)}:{len(raw)}:{hashlib.sha256(raw).hexdigest()}".encode())
    for text in texts:
        raw = text.encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()


def _vector(document: Any) -> npt.NDArray[np.float32]:
    vector: npt.NDArray[np.float32] = document.vector
    return vector
