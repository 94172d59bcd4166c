"""Which stored rows of one segment a filter allows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Set
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import numpy.typing as npt

from funnel.data.documents import DocumentStore
from funnel.errors import InputError
from funnel.filtering.columns import FilterColumns, Values
from funnel.filtering.condition import Condition, each_test, fault
from funnel.filtering.sql import KINDS
from funnel.identifiers import identifiers
from funnel.storage.ids import Ids

__all__ = ["GivenIds", "SegmentRows", "check_columns"]


@dataclass(frozen=True, slots=True, eq=False)
class GivenIds:
    """Ids: for an index whose ids are texts and, where all are whole numbers of 64 bits, for one of whole numbers.

    ids: int64 where all are such, else texts. kind: what they are, for messages. digest: of them all.
    """

    ids: frozenset[str] | npt.NDArray[np.int64]
    kind: str
    digest: str

    @classmethod
    def read(cls, ids: Any) -> GivenIds:
        """What the user gave. Raises InputError, naming the value, for what are no ids."""
        whole, kind = ids, "texts"
        if not (isinstance(ids, np.ndarray) and ids.ndim == 1 and ids.dtype.kind in "iu" and ids.dtype != np.uint64):
            ids = identifiers(ids, "allowed_ids")
            try:
                whole = None if not ids or any(isinstance(one, str) for one in ids) else np.array(ids, dtype=np.int64)
            except OverflowError:
                whole, kind = None, "a number beyond 64 bits"
        if whole is not None:
            whole = np.ascontiguousarray(whole, dtype=np.int64)
            return cls(whole, "whole numbers", "numbers:" + hashlib.sha256(whole.tobytes()).hexdigest())
        texts = [str(one) for one in ids]
        digest = hashlib.sha256(repr([len(text) for text in texts]).encode())
        digest.update("".join(texts).encode("utf-8", "surrogatepass"))
        return cls(frozenset(texts), kind, "texts:" + digest.hexdigest())


Mask = npt.NDArray[np.bool_]

LOOKED_UP = 2_000  # ids looked up one by one (20 us each); more are compared with all of them (.3 us each)
IDS_AT_A_TIME = 65_536


class SegmentRows:
    """The rows of one segment by their ids and their documents' metadata.

    order: stored row -> position, int64 [n]. documents, columns: None where there are bare vectors.
    """

    def __init__(
        self, ids: Ids, order: npt.NDArray[np.int64], documents: DocumentStore | None, columns: FilterColumns | None
    ) -> None:
        self._ids = ids
        self._order = np.asarray(order)
        self._documents = documents
        self._columns = columns

    def __len__(self) -> int:
        return len(self._order)

    def catalogue(self) -> dict[str, Values]:
        """The columns a condition may name; none where there are bare vectors."""
        return {} if self._columns is None else self._columns.catalogue

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
        if not len(given.ids):
            return np.zeros(len(self), dtype=np.bool_)
        if self._ids.text:
            return self._stored(
                self._positions_of(given.ids if isinstance(given.ids, frozenset) else {*map(str, given.ids.tolist())})
            )
        every = self._ids.at(np.arange(len(self), dtype=np.int64))
        if isinstance(given.ids, frozenset):
            raise InputError(
                f"allowed_ids holds {given.kind}; the ids of this index are whole numbers, such as {every[0]}"
            )
        return self._stored(np.flatnonzero(np.isin(every, given.ids)))

    def _positions_of(self, texts: Set[str]) -> npt.NDArray[np.int64]:
        if self._documents is not None and len(texts) <= LOOKED_UP:
            return np.array([*self._documents.find_all([*texts]).values()], dtype=np.int64)
        parts = []
        for start in range(0, len(self), IDS_AT_A_TIME):
            ids = self._ids.at(np.arange(start, min(start + IDS_AT_A_TIME, len(self)), dtype=np.int64))
            parts.append(start + np.flatnonzero([one in texts for one in ids]))
        return np.concatenate(parts)

    def _stored(self, positions: npt.NDArray[np.int64]) -> Mask:
        mask = np.zeros(len(self), dtype=np.bool_)
        mask[positions] = True
        return mask[self._order]


NAMED = 20  # columns that an error lists before it only counts


def check_columns(where: str, condition: Condition, columns: Mapping[str, Values]) -> None:
    """InputError, with the place in the text, for an unknown column and for a literal of a kind it never holds."""
    for test in each_test(condition):
        if test.column not in columns:
            raise fault(where, test.start, f"there is no column {test.column!r}; {_known(test.column, columns)}")
        values = columns[test.column]
        if test.kind is not None and values != Values() and not values.comparable(test.kind):
            raise fault(where, test.start, f"column {test.column!r} holds {_misfit(values, test.kind)}")


def _misfit(values: Values, kind: str) -> str:
    """What a column holds where it cannot be compared with a literal of this kind, and what to do."""
    held = [f"{held}s" for held in KINDS if getattr(values, held)]
    if values.other:
        held.append("lists or objects")
    if kind == "number" and values.numerals:
        return (
            f"{' and '.join(held)}, of which some, such as {values.odd}, are not written as numbers are, and is "
            "compared with a number; compare it with a text between ' and ', or upsert those documents with a number "
            "there, or nothing, and compact the index"
        )
    return f"{' and '.join(held)}, such as {values.example}, and is compared with a {kind}, which none of them is"


def _known(name: str, columns: Mapping[str, Values]) -> str:
    near = get_close_matches(name, columns, 1)
    listed = ", ".join(sorted(columns)[:NAMED])
    more = f" and {len(columns) - NAMED} more" if len(columns) > NAMED else ""
    return f"{f'did you mean {near[0]!r}? ' if near else ''}the columns are {listed}{more}"
