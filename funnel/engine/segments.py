"""Segments: the immutable parts in which rows lie. A fresh build is one; what is added later lies in further ones.

Rows are numbered through: those of a segment follow those of the segments before it. A segment with a coarse index is
searched under the plan; the rows of segments without one are held together in memory and searched exactly. Segments
with a coarse index come first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from funnel.data.documents import Document, DocumentStore
from funnel.engine.cascade import Cascade, Float32, Int64
from funnel.engine.steps import Found, allowed_only, best_of, over_live
from funnel.errors import DamagedIndexError
from funnel.filtering.columns import FilterColumns
from funnel.planning.run import LARGEST_K
from funnel.storage.ids import Ids
from indexes import VectorStore

__all__ = ["Documents", "ExactRows", "JoinedDocuments", "Others", "Segment", "left", "live_positions", "live_rows"]

Live = npt.NDArray[np.bool_]
# Products at a time of an exact search: 16 MB as float32.
CELLS_AT_A_TIME = 4_000_000
# From so many rows on ids are looked up in the documents' own table, which is on disk, and not in memory.
LARGE = 65_536


@dataclass(frozen=True, eq=False)
class Segment:
    """One opened segment, with all of its rows, deleted or not.

    first: the number of its first row. order: stored row -> input position, both inside the segment; None where they
    are equal. cascade: None where the rows are searched exactly. documents, columns: None where the index holds bare
    vectors. rebuilt: why its coarse index had to be made again; None where it had not.
    """

    id: str
    first: int
    store: VectorStore
    ids: Ids
    order: Int64 | None
    cascade: Cascade | None
    documents: DocumentStore | None
    columns: FilterColumns | None
    rebuilt: str | None = None

    @property
    def rows(self) -> int:
        """How many there are."""
        return self.store.n

    @property
    def stop(self) -> int:
        """The number after that of its last row."""
        return self.first + self.store.n

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return self.store.path.parent

    @cached_property
    def stored(self) -> npt.NDArray[np.int32] | None:
        """Input position -> stored row, both inside the segment; None where they are equal."""
        if self.order is None:
            return None
        rows = np.empty(self.rows, dtype=np.int32)
        rows[self.order] = np.arange(self.rows, dtype=np.int32)
        return rows

    def find(self, ids: Sequence[str] | Sequence[int]) -> Int64:
        """The row numbers int64 [len(ids)] of ids, -1 where an id is not in this segment."""
        if self.documents is not None and self.rows >= LARGE:
            known = self.documents.find_all(ids)
            positions = np.array([known.get(one, -1) for one in ids], dtype=np.int64)
        else:
            positions = self.ids.find(ids)
        rows = positions if self.stored is None else np.where(positions < 0, -1, self.stored[positions])
        return np.where(positions < 0, -1, rows + self.first)

    def positions(self, rows: Int64) -> Int64:
        """Input positions, counted through the segments, of stored rows inside this one; -1 stays -1."""
        inside = rows if self.order is None else np.asarray(self.order)[rows]
        return np.where(rows < 0, -1, inside + self.first)

    def over(self, live: Live | None) -> Cascade:
        """Its cascade over the live rows alone. live: bool [all rows of the index]; None: every row is."""
        assert self.cascade is not None, "a segment searched exactly has no cascade"
        mine = None if live is None else live[self.first : self.stop]
        return over_live(self.cascade, None if mine is None or mine.all() else mine)


def live_rows(total: int, deleted: Sequence[Int64]) -> Live | None:
    """A mask, bool [total], False for what was deleted; None where nothing was."""
    if not any(len(part) for part in deleted):
        return None
    live = np.ones(total, dtype=np.bool_)
    for part in deleted:
        live[part] = False
    return live


def check_finite(finite: bool, segment: Segment) -> None:
    """Raises DamagedIndexError where rows of a segment are not finite: they would hide others, or be copied."""
    if not finite:
        raise DamagedIndexError(f"{segment.store.path} holds values that are not finite; build the index again")


@dataclass(frozen=True, eq=False)
class ExactRows:
    """The rows of all segments without a coarse index, float32 [m, d] on the index's device.

    first: the number of the first of them, which is its input position as well.
    """

    first: int
    matrix: torch.Tensor

    @property
    def count(self) -> int:
        """How many they are."""
        return len(self.matrix)

    @classmethod
    def of(cls, segments: Sequence[Segment], held: torch.Tensor | None = None) -> ExactRows:
        """The rows of these segments, which follow each other. held: of the first of them, in memory already."""
        parts, known = [] if held is None else [held], 0 if held is None else len(held)
        for segment in segments:
            if segment.first - segments[0].first >= known:
                parts.append(segment.store.block(0, segment.rows))
                check_finite(bool(torch.isfinite(parts[-1]).all()), segment)
        return cls(segments[0].first, torch.cat(parts))

    def search(self, queries: Float32, k: int, live: Live | None) -> tuple[Float32, Int64]:
        """The best k: scores float32 [n, k], falling, and row numbers int64 [n, k]; fewer columns where rows are fewer.

        queries: as rows are stored. live: bool [all rows of the index]; None: every row is.
        """
        matrix, deleted = self.matrix, None
        if live is not None:
            deleted = torch.from_numpy(np.flatnonzero(~live[self.first : self.first + self.count])).to(matrix.device)
        at_a_time = max(1, CELLS_AT_A_TIME // max(1, self.count))
        parts = []
        with torch.inference_mode():
            asked = torch.from_numpy(queries).to(matrix.device)
            for start in range(0, len(queries), at_a_time):
                products = asked[start : start + at_a_time] @ matrix.T
                if deleted is not None and len(deleted):
                    products[:, deleted] = -torch.inf
                parts.append(torch.topk(products, min(k, self.count), dim=1))
            scores = torch.cat([part.values for part in parts]).cpu().numpy()
            rows = torch.cat([part.indices for part in parts]).cpu().numpy() + self.first
        return scores, np.where(np.isneginf(scores), -1, rows)


class JoinedDocuments:
    """The documents of several segments, by positions counted through them; those deleted are left out of `ids`."""

    def __init__(self, segments: Sequence[Segment], live: Live | None) -> None:
        self.segments: tuple[Segment, ...] = tuple(segments)
        self._firsts = [segment.first for segment in segments]
        self._live = live

    def get(self, positions: Sequence[int] | npt.NDArray[np.integer]) -> list[Document]:
        """The documents at these positions, in the order asked: see `DocumentStore.get`."""
        asked = np.asarray(positions, dtype=np.int64)
        numbers = np.searchsorted(self._firsts, asked, "right") - 1
        result: list[Document | None] = [None] * len(asked)
        for number in np.unique(numbers).tolist():
            segment = self.segments[number]
            mine = np.flatnonzero(numbers == number)
            assert segment.documents is not None
            for place, document in zip(mine, segment.documents.get(asked[mine] - segment.first), strict=True):
                result[place] = document
        return [document for document in result if document is not None]

    def count(self) -> int:
        """How many there are, deleted ones among them."""
        return self.segments[-1].stop

    def ids(self) -> Iterator[str | int]:
        """Every id that was not deleted in order of position, streamed."""
        for segment in self.segments:
            assert segment.documents is not None
            live = live_positions(segment, self._live)
            yield from segment.documents.ids() if live is None else compress(segment.documents.ids(), live)


Documents = DocumentStore | JoinedDocuments


def live_positions(segment: Segment, live: Live | None) -> Live | None:
    """A mask, bool [rows of the segment], by input position inside it: what was not deleted; None: all."""
    if live is None:
        return None
    mine = live[segment.first : segment.stop]
    return mine if segment.stored is None else mine[segment.stored]


def left(segment: Segment, live: Live | None) -> Int64:
    """The input positions inside a segment of what was not deleted, rising."""
    mine = live_positions(segment, live)
    return np.arange(segment.rows) if mine is None else np.flatnonzero(mine)


@dataclass(frozen=True, eq=False)
class Others:
    """The further segments of one generation.

    coarse: those with a coarse index, and the cascade of each over its live rows. exact: the rows of those without.
    live: bool [all rows of the index]; None: nothing was deleted. Answers are scores [n, k] and input positions.
    """

    coarse: tuple[tuple[Segment, Cascade], ...]
    exact: ExactRows | None
    live: npt.NDArray[np.bool_] | None

    @property
    def exact_rows(self) -> int:
        """How many rows that were not deleted are searched exactly."""
        exact = self.exact
        if exact is None or self.live is None:
            return 0 if exact is None else exact.count
        return int(np.count_nonzero(self.live[exact.first : exact.first + exact.count]))

    @property
    def rows(self) -> int:
        """How many rows there are that were not deleted."""
        return self.exact_rows + sum(cascade.rows for _, cascade in self.coarse)

    @property
    def nbytes(self) -> int:
        """Bytes held in memory."""
        coarse = sum(
            cascade.coarse.nbytes + sum(values.nbytes for values in list(cascade.inverse_norms.values()))
            for _, cascade in self.coarse
        )
        return coarse + (0 if self.exact is None else self.exact.matrix.nbytes)

    def exact_scores(self, queries: Float32) -> Float32:
        """The best scores of queries among the rows that are searched exactly."""
        assert self.exact is not None
        return self.exact.search(queries, LARGEST_K, self.live)[0]

    def over(self, masks: Mapping[str, Live], all_rows: Live) -> Others:
        """These segments over some of their rows alone. masks: of each segment by its identifier, bool [its rows]."""
        coarse = tuple((segment, allowed_only(cascade, masks[segment.id])) for segment, cascade in self.coarse)
        return Others(coarse, self.exact, all_rows)

    def joined(self, first: int, prepared: Float32, k: int, found: Found, more: Iterable[Found]) -> Found:
        """The best k of what was found in the first segment, by input position, and of what these give.

        first: its rows. more: what was found in each of those with a coarse index. The rows without are searched
        exactly, to the end, as coarse searches are.
        """
        answers, done, compared = [(found.scores, found.rows)], found.done, [(found.seen, first)]
        for (segment, cascade), one in zip(self.coarse, more, strict=True):
            answers.append((one.scores, segment.positions(one.rows)))
            done = done if done is None or one.done is None else np.minimum(done, one.done)
            compared.append((one.seen, cascade.rows))
        if self.exact is not None:
            answers.append(self.exact.search(prepared, k, self.live))
            compared.append((1.0, self.exact_rows))
        scores, rows = best_of(answers, k)
        seen = sum(part * rows for part, rows in compared) / max(1, sum(rows for _, rows in compared))
        return Found(scores, rows, done, seen)

    def nearest(self, prepared: Float32, k: int) -> tuple[Float32, Int64]:
        """The true best k over these segments, without the first; fewer where there are fewer."""
        k = min(k, self.rows)
        found = self.joined(0, prepared, k, Found.none(len(prepared)), self.truths(prepared, k))
        return found.scores, found.rows

    def truths(self, prepared: Float32, k: int) -> Iterator[Found]:
        """The true best k of each segment with a coarse index."""
        return (Found(*cascade.truth(prepared, k)) for _, cascade in self.coarse)
