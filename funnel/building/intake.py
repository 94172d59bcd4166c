"""The first pass over a corpus: unit rows that can be read again, a sample of them, ids and documents."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from funnel.data.corpus import Corpus
from funnel.data.documents import DocumentStore
from funnel.data.queries import folded
from funnel.encoding.encoders import (
    DEFAULT_ENCODER,
    Encoder,
    EncoderSource,
    load_encoder,
)
from funnel.encoding.prompts import TextOptions
from funnel.errors import EncoderError, InputError
from funnel.progress import Progress
from funnel.storage.layout import DOCUMENTS

__all__ = ["Intake", "Sample", "TextIds", "build_encoder", "take_in"]

Float32: TypeAlias = npt.NDArray[np.float32]

# Elements of a batch read at a time: 8 MB as float32, of which a dozen copies are alive or not yet given back at once.
# Batches of 25 MB take 100 MB more and the same time.
CELLS_AT_A_TIME = 2_097_152
# Documents encoded together: enough to sort by length into full batches of equal shape.
DOCUMENTS_AT_A_TIME = 4_096
# Bytes of the sample that adaptor and cluster tree are fitted on: 65,536 rows at 384 dims.
SAMPLE_BYTES = 100_663_296
SPOOL = "spool.f32"


@dataclass
class Intake:
    """What the first pass leaves behind.

    rows: reads all unit rows again, in input order, in batches float32 [c, d]. sample: float32 [s, d], rows drawn
    evenly without replacement, for the adaptor and the cluster tree; empty once these are fitted. documents: the folder
    they were written into; None: bare vectors. sampled: int64 [s], their input positions. spool: a temporary file to
    delete once the rows are stored, if there is one. asked_for: of the texts that were to be looked for, those that are
    the text of a document, or its title and text.
    """

    count: int
    dim: int
    sample: Float32
    rows: Callable[[], Iterator[Float32]]
    documents: Path | None
    spool: Path | None = field(default=None)
    sampled: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    asked_for: frozenset[str] = frozenset()

    def drop_sample(self) -> None:
        """Let go of the sample: it is the largest array of a build."""
        self.sample = np.empty((0, self.dim), dtype=np.float32)

    def finish(self) -> None:
        """Remove the temporary file."""
        if self.spool is not None:
            self.spool.unlink(missing_ok=True)


class Sample:
    """Rows drawn evenly from a stream of unknown length: those of the smallest random keys, replaced in place."""

    def __init__(self, dim: int, seed: int) -> None:
        self._size = max(1, SAMPLE_BYTES // (4 * dim))
        self._random = np.random.default_rng(seed)
        self._keys = np.empty(self._size)
        self._rows = np.empty((self._size, dim), dtype=np.float32)  # takes memory as it fills
        self.numbers = np.empty(self._size, dtype=np.int64)  # of the rows held, counted through the stream
        self._held = self._seen = 0

    def update(self, rows: Float32) -> None:
        """Draw from the next rows, float32 [c, d]."""
        keys = self._random.random(len(rows))
        numbers = np.arange(self._seen, self._seen + len(rows))
        self._seen += len(rows)
        start, taken = self._held, min(len(rows), self._size - self._held)
        self._held += taken
        self._keys[start : self._held], self._rows[start : self._held] = keys[:taken], rows[:taken]
        self.numbers[start : self._held] = numbers[:taken]
        if taken < len(rows):
            self._replace(keys[taken:], rows[taken:], numbers[taken:])

    def finish(self) -> tuple[Float32, npt.NDArray[np.int64]]:
        """The rows drawn, float32 [s, d], and their numbers in the stream, int64 [s]."""
        return self._rows[: self._held], self.numbers[: self._held]

    def _replace(self, keys: npt.NDArray[np.float64], rows: Float32, numbers: npt.NDArray[np.int64]) -> None:
        """Put rows of smaller keys in the place of those of the largest."""
        every = np.concatenate([self._keys, keys])
        stays = np.zeros(len(every), dtype=np.bool_)
        stays[np.argpartition(every, self._size - 1)[: self._size]] = True
        free, new = np.flatnonzero(~stays[: self._size]), np.flatnonzero(stays[self._size :])
        self._keys[free], self._rows[free], self.numbers[free] = keys[new], rows[new], numbers[new]


def take_in(
    corpus: Corpus,
    encoder: Encoder | None,
    folder: Path,
    documents: Path | None,
    seed: int,
    progress: bool,
    looked_for: frozenset[str] = frozenset(),
) -> Intake:
    """Read the corpus once: check it, encode it where it has no vectors, write ids into the folder.

    documents: the folder to write documents into, where it holds such. looked_for: texts, folded, to be found among
    those of the documents: see `Intake.asked_for`.

    Raises InputError for rows, lines and ids that cannot be used, EncoderError when an encoder is needed.
    """
    if documents is None:
        return _take_vectors(corpus, folder, seed, progress)
    return _take_documents(corpus, encoder, folder, documents, seed, progress, looked_for)


def _take_vectors(corpus: Corpus, folder: Path, seed: int, progress: bool) -> Intake:
    assert corpus.dim is not None, "of vectors"
    dim = corpus.dim
    batch_rows = max(1, CELLS_AT_A_TIME // dim)
    sample, count = Sample(dim, seed), 0
    with Progress(total=corpus.count, desc="read", unit="rows", unit_scale=True, disable=not progress) as bar:
        for rows in corpus.vectors(batch_rows):
            sample.update(rows)
            count += len(rows)
            bar.update(len(rows))
    if corpus.ids is None:
        np.save(folder / "ids.npy", np.arange(count, dtype=np.int64))
    else:
        _save_ids(folder, corpus.ids)
    rows_drawn, numbers = sample.finish()
    return Intake(count, dim, rows_drawn, lambda: corpus.vectors(batch_rows), None, sampled=numbers)


def _take_documents(
    corpus: Corpus,
    encoder: Encoder | None,
    folder: Path,
    target: Path,
    seed: int,
    progress: bool,
    looked_for: frozenset[str],
) -> Intake:
    if not corpus.has_vectors and encoder is None:
        raise EncoderError(f"{corpus.name} holds texts without vectors; give an encoder to build from them")
    dim = corpus.dim or (0 if encoder is None else encoder.dim)
    sample, spool, ids, count = Sample(dim, seed), folder / SPOOL, TextIds(), 0
    found: set[str] = set()
    label = "read" if corpus.has_vectors else "encode"
    with (
        DocumentStore.create(target / DOCUMENTS) as store,
        spool.open("wb") as file,
        Progress(total=corpus.count, desc=label, unit="docs", disable=not progress) as bar,
    ):
        for documents in corpus.documents(DOCUMENTS_AT_A_TIME):
            store.append(documents)
            ids.extend(str(one.id) for one in documents)
            if looked_for:
                texts = {folded(text) for one in documents for text in (one.text, one.content)}
                found |= looked_for & texts
            if corpus.has_vectors or encoder is None:
                rows = np.stack([one.vector for one in documents if one.vector is not None])
            else:
                rows = encoder.encode([one.content for one in documents], numbers=count)
            count += len(documents)
            if rows.shape[1] != dim:
                raise InputError(f"{corpus.name}: vectors of {rows.shape[1]} dims after vectors of {dim}")
            sample.update(rows)
            rows.tofile(file)
            bar.update(len(documents))
    ids.save(folder)
    rows_drawn, numbers = sample.finish()
    return Intake(*(count, dim, rows_drawn, lambda: _read_spool(spool, dim), target, spool), numbers, frozenset(found))


def _read_spool(path: Path, dim: int) -> Iterator[Float32]:
    with path.open("rb") as file:
        while True:
            values = np.fromfile(file, np.float32, CELLS_AT_A_TIME // dim * dim or dim)
            if not len(values):
                return
            yield values.reshape(-1, dim)


class TextIds:
    """Ids as one run of UTF-8 bytes and the offsets into it."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._offsets = array("q", [0])

    def extend(self, texts: Iterable[str]) -> None:
        """Add some."""
        for text in texts:
            self._bytes += text.encode()
            self._offsets.append(len(self._bytes))

    def save(self, folder: Path) -> None:
        """Write ids.npy and id_offsets.npy."""
        np.save(folder / "ids.npy", np.frombuffer(self._bytes, dtype=np.uint8))
        np.save(folder / "id_offsets.npy", np.frombuffer(self._offsets, dtype=np.int64))


def _save_ids(folder: Path, ids: Sequence[str] | Sequence[int]) -> None:
    if all(isinstance(value, int) for value in ids):
        np.save(folder / "ids.npy", np.array(ids, dtype=np.int64))
        return
    texts = TextIds()
    texts.extend(map(str, ids))
    texts.save(folder)


def build_encoder(
    corpus: Corpus, encoder: EncoderSource | None, exact: bool, device: str, options: TextOptions
) -> Encoder | None:
    """The encoder to build with: the user's, or the default one where the corpus has no vectors.

    Raises InputError where there is none that the options could be for.
    """
    if encoder is None and corpus.has_vectors:
        if options != TextOptions():
            raise InputError(
                f"{corpus.name} has vectors, and query_prompt, document_prompt and truncate_dim are for an encoder; "
                "give the encoder that made the vectors, or leave these out"
            )
        return None
    return load_encoder(DEFAULT_ENCODER if encoder is None else encoder, exact=exact, device=device, options=options)
