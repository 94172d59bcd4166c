"""Adding and deleting: a new generation that shares every large file with the one before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from funnel.building.intake import take_in
from funnel.building.segment import (
    ADDED_DTYPE,
    EXACT_ROWS,
    Written,
    fold_from,
    segment_entry,
    store_rows,
    write_coarse,
    write_folded,
)
from funnel.data.corpus import Columns, Corpus, CorpusSource, open_corpus
from funnel.data.documents import Document
from funnel.encoding.encoders import Encoder
from funnel.encoding.query_encoder import QueryEncoder
from funnel.engine.generation import Opened
from funnel.errors import EncoderError, InputError
from funnel.identifiers import identifier, identifiers
from funnel.storage import PartEntry, Transaction
from funnel.storage.ids import Ids

__all__ = ["Changes", "add_rows", "delete_ids"]

NAMED_IDS = 5  # that an error names before it only counts
NO_IDS = np.empty(0, dtype=np.int64)
INT64_LARGEST = np.iinfo(np.int64).max
DOCUMENTS_AT_A_TIME = 1_024

IdsSource = Sequence[str] | Sequence[int] | npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Changes:
    """What a call changed.

    added, deleted: rows; an upsert deletes those it replaces. unknown: ids to delete that were not there. generation:
    the one that the call made; that before where there was nothing to do.
    """

    added: int
    deleted: int
    unknown: int
    generation: int

    def __str__(self) -> str:
        counts = {"added": self.added, "deleted": self.deleted, "unknown": self.unknown}
        said = [f"{count:,} {what}" for what, count in counts.items() if count] or ["0 deleted"]
        return f"{', '.join(said)}; generation {self.generation}"


def add_rows(
    transaction: Transaction,
    opened: Opened,
    encoder: QueryEncoder,
    source: CorpusSource,
    ids: IdsSource | None,
    columns: Columns,
    upsert: bool,
    progress: bool,
) -> Changes:
    """Commit the documents as rows of a new segment; with `upsert` in place of those of the same ids.

    opened: the live generation. Raises what `FunnelIndex.add` says; nothing is then changed.
    """
    corpus = _corpus(opened, source, ids, columns)
    if corpus.dim is not None and corpus.dim != opened.manifest.d:
        raise InputError(
            f"{corpus.name} has vectors of {corpus.dim} dims, the index holds {opened.manifest.d}; use the encoder "
            "that it was built with"
        )
    if not upsert and not corpus.has_vectors and corpus.rereadable:  # before hours of encoding rather than after
        _refuse_known(opened, [str(one.id) for batch in corpus.documents(DOCUMENTS_AT_A_TIME) for one in batch])
    folder = transaction.folder("segments")
    documents = transaction.folder("documents") if opened.manifest.settings.documents else None
    intake = take_in(corpus, _encoder(corpus, encoder), folder, documents, seed=0, progress=progress)
    store_rows(intake, opened.searcher.space.stored, np.arange(intake.count), folder, ADDED_DTYPE, False)
    intake.finish()
    given = Ids.open(folder)
    if given.text != opened.segments[0].ids.text:
        raise InputError(f"the ids given are {_kind(given)}, those of the index {_kind(opened.segments[0].ids)}")
    if not upsert:
        _refuse_known(opened, given.all())
    replaced = np.unique(_rows_of(opened, given.all()))
    replaced = replaced[replaced >= 0]
    _commit_added(transaction, opened, (folder, documents), intake.count, replaced, progress)
    return Changes(intake.count, len(replaced), 0, transaction.generation)


def _refuse_known(opened: Opened, ids: Sequence[Any]) -> None:
    """InputError where any of the ids is in the index."""
    known = np.flatnonzero(_rows_of(opened, ids) >= 0)
    if len(known):
        named = ", ".join(str(ids[i]) for i in known[:NAMED_IDS])
        raise InputError(
            f"{len(known):,} of the ids are in the index already: {named}"
            f"{' …' if len(known) > NAMED_IDS else ''}; use upsert to replace them"
        )


def _corpus(opened: Opened, source: CorpusSource, ids: IdsSource | None, columns: Columns) -> Corpus:
    """What is to be added, as the index keeps it: documents, or bare vectors with ids of their own."""
    kept = opened.segments[0].ids
    if opened.manifest.settings.documents:
        corpus = open_corpus(source, ids, columns, numbered=False)  # numbers would be those of documents there
        return open_corpus(_bare_documents(corpus)) if corpus.kind == "vectors" else corpus
    corpus = open_corpus(source, ids, columns)
    if corpus.kind == "documents":
        raise InputError(
            f"{corpus.name} holds documents, and this index bare vectors and no documents: add an array [n, d], with "
            "ids= where they have any"
        )
    if corpus.ids is None and kept.text:
        raise InputError(f"the ids of this index are {_kind(kept)}; give ids=, one for each vector")
    if corpus.ids is None:
        corpus.ids = _next_ids(opened, corpus)
    return corpus


def _next_ids(opened: Opened, corpus: Corpus) -> list[int]:
    """The whole numbers behind the largest id."""
    assert corpus.count is not None
    first = max(segment.ids.largest for segment in opened.segments) + 1
    if first + corpus.count - 1 > INT64_LARGEST:
        raise InputError(
            f"the largest id is {first - 1}, and behind it there are not {corpus.count:,} whole numbers of 64 bits; "
            "give ids=, one for each vector"
        )
    return list(range(first, first + corpus.count))


def _bare_documents(corpus: Corpus) -> list[Document]:
    """Vectors for an index of documents: documents with neither title nor text."""
    if corpus.ids is None:
        raise InputError("this index holds documents, whose ids are text; give ids=, one for each vector")
    vectors = (row for rows in corpus.vectors(1_024) for row in rows)
    return [Document(str(one), vector=row) for one, row in zip(corpus.ids, vectors, strict=True)]


def _kind(ids: Ids) -> str:
    return "text" if ids.text else "whole numbers"


def _encoder(corpus: Corpus, encoder: QueryEncoder) -> Encoder | None:
    if corpus.has_vectors:
        return None
    try:
        return encoder.load()
    except EncoderError as error:
        raise EncoderError(f"{corpus.name} holds texts without vectors, and they cannot be encoded: {error}") from error


def _rows_of(opened: Opened, ids: Sequence[Any]) -> npt.NDArray[np.int64]:
    """The number of the row that has each id and was not deleted, int64 [len(ids)]; -1: none."""
    found = np.full(len(ids), -1, dtype=np.int64)
    for segment in opened.segments:
        rows = segment.find(ids)
        there = (rows >= 0) if opened.live is None else (rows >= 0) & opened.live[rows]
        found[there] = rows[there]
    return found


def delete_ids(transaction: Transaction, opened: Opened, ids: IdsSource | str | int, strict: bool) -> Changes:
    """Commit tombstones for these ids. Raises InputError for an unknown one where strict; nothing is then changed."""
    wanted = checked_ids(opened, ids)
    found = _rows_of(opened, wanted)
    missing, rows = np.flatnonzero(found < 0), np.unique(found[found >= 0])
    unknown = len(missing)
    if unknown and strict:
        few = ", ".join(repr(wanted[i]) for i in missing[:NAMED_IDS])
        raise InputError(
            f"{unknown:,} of {len(wanted):,} ids are not in the index: {few}{' …' if unknown > NAMED_IDS else ''}; "
            "nothing was deleted"
        )
    if not len(rows):
        return Changes(0, 0, unknown, opened.manifest.generation)
    _commit(transaction, opened, opened.manifest.segments, rows, opened.segments[-1].stop)
    return Changes(0, len(rows), unknown, transaction.generation)


def checked_ids(opened: Opened, ids: Iterable[Any] | str | int) -> list[Any]:
    """Ids as the index keeps them, each once. Raises InputError for what cannot be one."""
    alone = isinstance(ids, str | int | np.integer) or (isinstance(ids, np.ndarray) and ids.ndim == 0)
    given = [identifier(ids, "the id")] if alone else identifiers(ids, "ids")
    if opened.segments[0].ids.text:
        return list(dict.fromkeys(map(str, given)))
    texts = [one for one in given if isinstance(one, str)]
    if texts:
        raise InputError(f"the id {texts[0]!r} is text, and the ids of this index are whole numbers")
    return list(dict.fromkeys(given))


def _commit_added(
    transaction: Transaction,
    opened: Opened,
    written: Written,
    count: int,
    replaced: npt.NDArray[np.int64],
    progress: bool,
) -> None:
    """Commit the segment that was written, small ones before it folded into one with it where there are many."""
    segments = opened.segments
    start = fold_from(segments, count)
    below = segments[start].first if start < len(segments) else segments[-1].stop
    if start < len(segments):
        live = np.ones(segments[-1].stop, dtype=np.bool_) if opened.live is None else opened.live.copy()
        live[replaced] = False
        merged = transaction.folder("segments"), None if written[1] is None else transaction.folder("documents")
        count = write_folded(segments[start:], live, written, count, merged)
        for folder in filter(None, written):
            transaction.drop(folder)
        written = merged
    if count > EXACT_ROWS:
        write_coarse(opened, written[0], progress)
    added = segment_entry(transaction, written[0], count, written[1], exact=count <= EXACT_ROWS)
    _commit(transaction, opened, (*opened.manifest.segments[:start], added), replaced, below)


def _commit(
    transaction: Transaction, opened: Opened, segments: Sequence[PartEntry], rows: npt.NDArray[np.int64], below: int
) -> None:
    """Commit these segments, with one set of tombstones for the rows deleted before and these, up to `below`."""
    dead = NO_IDS if opened.live is None else np.flatnonzero(~opened.live)
    dead = np.union1d(dead, rows).astype(np.int64)
    dead, tombstones = dead[dead < below], []
    if len(dead):
        folder = transaction.folder("tombstones")
        np.save(folder / "tombstones.npy", dead)
        tombstones = [PartEntry(transaction.identifier(folder), len(dead))]
    counts = {"rows": sum(part.rows for part in segments) - len(dead), "deleted": len(dead)}
    transaction.reuse(*opened.manifest.shared(segments))
    transaction.commit(opened.manifest.body() | {"segments": segments, "tombstones": tombstones, "counts": counts})
