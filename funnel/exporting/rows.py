"""The rows of an opened index in input order, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from funnel.data.documents import Document, DocumentStore
from funnel.errors import InputError
from funnel.opening import Opened

__all__ = ["Batch", "Rows"]

CELLS_AT_A_TIME = 2_097_152  # 8 MB of vectors as float32


@dataclass(frozen=True)
class Batch:
    """Some rows that follow each other: ids int64 [c] or str in an object array [c], vectors float32 [c, d]."""

    ids: npt.NDArray[Any]
    vectors: npt.NDArray[np.float32]
    documents: list[Document] | None


class Rows:
    """All rows of an index. adapted: vectors as they are stored, in place of the user's own.

    Raises InputError where the user's own are asked for and the adaptor cannot be undone.
    """

    def __init__(self, opened: Opened, adapted: bool) -> None:
        self.opened, self.adapted = opened, adapted
        adaptor = opened.searcher.adaptor
        if not adapted and not adaptor.isometric:
            raise InputError(
                f"the adaptor of this index is of kind {adaptor.kind!r}, which cannot be undone; export the adapted "
                "vectors (adapted=True, --adapted), or the vectors that the index was built from"
            )

    @property
    def count(self) -> int:
        """How many rows there are."""
        return self.opened.searcher.rows

    @property
    def dim(self) -> int:
        """The full width."""
        return self.opened.searcher.dim

    @property
    def documents(self) -> DocumentStore | None:
        """The documents; None where the index holds bare vectors."""
        return self.opened.documents

    @property
    def space(self) -> str:
        """Whose space the vectors are in, in words."""
        kind = self.opened.searcher.adaptor.kind
        return f"as adapted by {kind}" if self.adapted else "in your own space, of unit length"

    def ids(self) -> Iterator[npt.NDArray[Any]]:
        """The ids alone, in batches: int64, or str in object arrays."""
        for positions in self._positions():
            yield self.opened.searcher.ids.at(positions)

    def vectors(self, progress: bool) -> Iterator[npt.NDArray[np.float32]]:
        """The vectors alone, in batches float32 [c, d]."""
        stored = self._stored()
        for positions in self._bar(progress):
            yield self._read(stored[positions])

    def batches(self, progress: bool) -> Iterator[Batch]:
        """Everything."""
        stored, documents = self._stored(), self.documents
        for positions in self._bar(progress):
            found = None if documents is None else documents.get(positions)
            yield Batch(self.opened.searcher.ids.at(positions), self._read(stored[positions]), found)

    def _read(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        searcher = self.opened.searcher
        store = searcher.cascade.store
        wanted = torch.from_numpy(rows).to(store.device)
        read: npt.NDArray[np.float32] = store.gather(wanted, 0, store.dim).float().cpu().numpy()
        given = read if self.adapted else searcher.adaptor.inverse(read)
        return np.ascontiguousarray(given, dtype=np.float32)

    def _stored(self) -> npt.NDArray[np.int64]:
        """Input position -> stored row, int64 [n]: all that is held beside a batch."""
        order = self.opened.searcher.order
        stored = np.empty(len(order), dtype=np.int64)
        stored[order] = np.arange(len(order), dtype=np.int64)
        return stored

    def _positions(self) -> Iterator[npt.NDArray[np.int64]]:
        size = max(1, CELLS_AT_A_TIME // self.dim)
        for start in range(0, self.count, size):
            yield np.arange(start, min(start + size, self.count), dtype=np.int64)

    def _bar(self, progress: bool) -> Iterator[npt.NDArray[np.int64]]:
        with tqdm(total=self.count, desc="export", unit="rows", unit_scale=True, disable=not progress) as bar:
            for positions in self._positions():
                yield positions
                bar.update(len(positions))
