"""The first pass over a corpus: unit rows that can be read again, a sample of them, ids and documents."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from funnel.data.corpus import Corpus
from funnel.data.documents import Document, DocumentStore
from funnel.data.encoding import Encoder
from funnel.errors import EncoderError, InputError

__all__ = ["Intake", "take_in"]

Float32: TypeAlias = npt.NDArray[np.float32]

# Elements of a batch read at a time: 25 MB as float32, of which a few copies are alive at once.
CELLS_AT_A_TIME = 6_291_456
# Documents encoded together: enough to sort by length into full batches of equal shape.
DOCUMENTS_AT_A_TIME = 4_096
# Bytes of the sample that adaptor and cluster tree are fitted on: 65,536 rows at 384 dims.
SAMPLE_BYTES = 100_663_296
SPOOL = "spool.f32"


@dataclass
class Intake:
    """What the first pass leaves behind.

    rows: reads all unit rows again, in input order, in batches float32 [c, d]. sample: float32 [s, d], rows drawn
    evenly without replacement. spool: a temporary file to delete once the rows are stored, if there is one.
    """

    count: int
    dim: int
    sample: Float32
    rows: Callable[[], Iterator[Float32]]
    has_documents: bool
    spool: Path | None = field(default=None)

    def finish(self) -> None:
        """Remove the temporary file."""
        if self.spool is not None:
            self.spool.unlink(missing_ok=True)


class _Sample:
    """Rows drawn evenly from a stream of unknown length: those of the smallest random keys."""

    def __init__(self, dim: int, seed: int) -> None:
        self._size = max(1, SAMPLE_BYTES // (4 * dim))
        self._random = np.random.default_rng(seed)
        self._keys: list[npt.NDArray[np.float64]] = []
        self._rows: list[Float32] = []
        self._held = 0
        self._bound = np.inf

    def update(self, rows: Float32) -> None:
        keys = self._random.random(len(rows))
        chosen = keys < self._bound
        self._keys.append(keys[chosen])
        self._rows.append(rows[chosen])
        self._held += int(chosen.sum())
        if self._held > 1.25 * self._size:
            self._prune()

    def finish(self) -> Float32:
        self._prune()
        return self._rows[0]

    def _prune(self) -> None:
        keys, rows = np.concatenate(self._keys), np.concatenate(self._rows)
        if len(keys) > self._size:
            kept = np.argpartition(keys, self._size - 1)[: self._size]
            kept.sort()
            self._bound = float(keys[kept].max())
            keys, rows = keys[kept], rows[kept]
        self._keys, self._rows, self._held = [keys], [rows], len(keys)


def take_in(corpus: Corpus, encoder: Encoder | None, folder: Path, seed: int, progress: bool) -> Intake:
    """Read the corpus once: check it, encode it where it has no vectors, write ids and documents into the folder.

    Raises InputError for rows, lines and ids that cannot be used, EncoderError when an encoder is needed.
    """
    if corpus.kind == "vectors":
        return _take_vectors(corpus, folder, seed, progress)
    return _take_documents(corpus, encoder, folder, seed, progress)


def _take_vectors(corpus: Corpus, folder: Path, seed: int, progress: bool) -> Intake:
    dim = _known(corpus.dim)
    batch_rows = max(1, CELLS_AT_A_TIME // dim)
    sample, count = _Sample(dim, seed), 0
    with tqdm(total=corpus.count, desc="read", unit="rows", unit_scale=True, disable=not progress) as bar:
        for rows in corpus.vectors(batch_rows):
            sample.update(rows)
            count += len(rows)
            bar.update(len(rows))
    if corpus.ids is None:
        np.save(folder / "ids.npy", np.arange(count, dtype=np.int64))
    else:
        _save_ids(folder, corpus.ids)
    return Intake(count, dim, sample.finish(), lambda: corpus.vectors(batch_rows), has_documents=False)


def _take_documents(corpus: Corpus, encoder: Encoder | None, folder: Path, seed: int, progress: bool) -> Intake:
    if not corpus.has_vectors and encoder is None:
        raise EncoderError(f"{corpus.name} holds texts without vectors; give an encoder to build from them")
    dim = _known(corpus.dim) if corpus.has_vectors or encoder is None else encoder.dim
    sample, spool, ids = _Sample(dim, seed), folder / SPOOL, _TextIds()
    label = "read" if corpus.has_vectors else "encode"
    with (
        DocumentStore.create(folder / "documents.sqlite") as store,
        spool.open("wb") as file,
        tqdm(total=corpus.count, desc=label, unit="docs", disable=not progress) as bar,
    ):
        for documents in corpus.documents(DOCUMENTS_AT_A_TIME):
            store.append(documents)
            ids.extend(documents)
            rows = _vectors(documents, None if corpus.has_vectors else encoder)
            if rows.shape[1] != dim:
                raise InputError(f"{corpus.name}: vectors of {rows.shape[1]} dims after vectors of {dim}")
            sample.update(rows)
            rows.tofile(file)
            bar.update(len(documents))
    ids.save(folder)
    return Intake(ids.count, dim, sample.finish(), lambda: _read_spool(spool, dim), True, spool)


def _vectors(documents: list[Document], encoder: Encoder | None) -> Float32:
    if encoder is not None:
        return encoder.encode([document.content for document in documents])
    return np.stack([document.vector for document in documents if document.vector is not None])


def _read_spool(path: Path, dim: int) -> Iterator[Float32]:
    with path.open("rb") as file:
        while True:
            values = np.fromfile(file, np.float32, CELLS_AT_A_TIME // dim * dim or dim)
            if not len(values):
                return
            yield values.reshape(-1, dim)


class _TextIds:
    """Ids as one run of UTF-8 bytes and the offsets into it."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._offsets = array("q", [0])

    @property
    def count(self) -> int:
        return len(self._offsets) - 1

    def extend(self, documents: list[Document]) -> None:
        for document in documents:
            self.append(str(document.id))

    def append(self, text: str) -> None:
        self._bytes += text.encode()
        self._offsets.append(len(self._bytes))

    def save(self, folder: Path) -> None:
        np.save(folder / "ids.npy", np.frombuffer(self._bytes, dtype=np.uint8))
        np.save(folder / "id_offsets.npy", np.frombuffer(self._offsets, dtype=np.int64))


def _save_ids(folder: Path, ids: list[str] | list[int]) -> None:
    if all(isinstance(value, int) for value in ids):
        np.save(folder / "ids.npy", np.array(ids, dtype=np.int64))
        return
    texts = _TextIds()
    for value in ids:
        texts.append(str(value))
    texts.save(folder)


def _known(dim: int | None) -> int:
    if dim is None:
        raise InputError("the width of the vectors is not known; give rows [n, d]")
    return dim
