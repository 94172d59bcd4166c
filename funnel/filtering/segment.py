"""Which stored rows of one segment a filter allows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from funnel.data.documents import DocumentStore
from funnel.errors import InputError
from funnel.filtering.columns import ColumnCache, Values
from funnel.filtering.expression import Condition
from funnel.filtering.given import GivenIds
from funnel.storage.ids import Ids

__all__ = ["SegmentRows"]

Mask = npt.NDArray[np.bool_]

LOOKED_UP = 2_000  # ids looked up one by one (20 us each); more are compared with all of them (.3 us each)
IDS_AT_A_TIME = 65_536


class SegmentRows:
    """The rows of one segment by their ids and their documents' metadata.

    order: stored row -> position, int64 [n]. documents: None where there are bare vectors. key: names the contents of
    the documents, such as their sha256.
    """

    def __init__(self, ids: Ids, order: npt.NDArray[np.int64], documents: DocumentStore | None, key: str) -> None:
        self._ids = ids
        self._order = np.asarray(order)
        self._documents = documents
        self._columns = None if documents is None else ColumnCache(documents, key)

    def __len__(self) -> int:
        return len(self._order)

    def catalogue(self) -> dict[str, Values]:
        """The columns a condition may name; none where there are bare vectors."""
        return {} if self._columns is None else self._columns.catalogue()

    def matching(self, condition: Condition) -> Mask:
        """The stored rows whose documents meet a condition: bool [n]."""
        if self._columns is None:
            return np.zeros(len(self), dtype=np.bool_)
        return self._stored(self._columns.positions(condition))

    def holding(self, given: GivenIds) -> Mask:
        """The stored rows with one of the ids: bool [n]; ids that no row has are passed over.

        Whole numbers are the texts of the same digits where ids are texts, as documents given with them have. Raises
        InputError for texts where ids are whole numbers.
        """
        if not len(given):
            return np.zeros(len(self), dtype=np.bool_)
        if self._ids.text:
            return self._stored(self._positions_of(given.as_texts()))
        every = self._ids.at(np.arange(len(self), dtype=np.int64))
        if given.numbers is None:
            raise InputError(
                f"allowed_ids holds {given.kind}; the ids of this index are whole numbers, such as {every[0]}"
            )
        return self._stored(np.flatnonzero(np.isin(every, given.numbers)))

    def _positions_of(self, texts: frozenset[str]) -> npt.NDArray[np.int64]:
        if self._documents is not None and len(texts) <= LOOKED_UP:
            found = [self._documents.find(text) for text in texts]
            return np.array([position for position in found if position is not None], dtype=np.int64)
        parts = []
        for start in range(0, len(self), IDS_AT_A_TIME):
            ids = self._ids.at(np.arange(start, min(start + IDS_AT_A_TIME, len(self)), dtype=np.int64))
            parts.append(start + np.flatnonzero([one in texts for one in ids]))
        return np.concatenate(parts)

    def _stored(self, positions: npt.NDArray[np.int64]) -> Mask:
        mask = np.zeros(len(self), dtype=np.bool_)
        mask[positions] = True
        return mask[self._order]
