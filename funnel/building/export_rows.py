"""The rows of an opened index in input order, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from funnel.data.documents import Document
from funnel.engine.generation import Opened
from funnel.engine.segments import Documents, Segment, live_positions
from funnel.errors import InputError
from funnel.progress import Progress

__all__ = ["Batch", "Rows"]

CELLS_AT_A_TIME = 2_097_152  # 8 MB of vectors as float32


@dataclass(frozen=True)
class Batch:
    """Some rows that follow each other: ids int64 [c] or str in an object array [c], vectors float32 [c, d]."""

    ids: npt.NDArray[Any]
    vectors: npt.NDArray[np.float32]
    documents: list[Document] | None


class Rows:
    """All rows of an index that were not deleted. adapted: vectors as they are stored, in place of the user's own.

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
    def documents(self) -> Documents | None:
        """The documents; None where the index holds bare vectors."""
        return self.opened.documents

    @property
    def space(self) -> str:
        """Whose space the vectors are in, in words."""
        kind = self.opened.searcher.adaptor.kind
        return f"as adapted by {kind}" if self.adapted else "in your own space, of unit length"

    def ids(self) -> Iterator[npt.NDArray[Any]]:
        """The ids alone, in batches: int64, or str in object arrays."""
        for segment, positions in self._parts():
            yield segment.ids.at(positions)

    def vectors(self, progress: bool) -> Iterator[npt.NDArray[np.float32]]:
        """The vectors alone, in batches float32 [c, d]."""
        for segment, positions in self._bar(progress):
            yield self._read(segment, positions)

    def batches(self, progress: bool) -> Iterator[Batch]:
        """Everything."""
        for segment, positions in self._bar(progress):
            documents = segment.documents
            found = None if documents is None else documents.get(positions)
            yield Batch(segment.ids.at(positions), self._read(segment, positions), found)

    def _read(self, segment: Segment, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        store = segment.store
        rows = positions if segment.stored is None else segment.stored[positions].astype(np.int64)
        read: npt.NDArray[np.float32] = (
            store.gather(torch.from_numpy(rows).to(store.device), 0, store.dim).float().cpu().numpy()
        )
        given = read if self.adapted else self.opened.searcher.adaptor.inverse(read)
        return np.ascontiguousarray(given, dtype=np.float32)

    def _parts(self) -> Iterator[tuple[Segment, npt.NDArray[np.int64]]]:
        """Segments, and input positions inside them, rising."""
        size = max(1, CELLS_AT_A_TIME // self.dim)
        for segment in self.opened.segments:
            live = live_positions(segment, self.opened.live)
            for start in range(0, segment.rows, size):
                positions = np.arange(start, min(start + size, segment.rows), dtype=np.int64)
                positions = positions if live is None else positions[live[positions]]
                if len(positions):
                    yield segment, positions

    def _bar(self, progress: bool) -> Iterator[tuple[Segment, npt.NDArray[np.int64]]]:
        with Progress(total=self.count, desc="export", unit="rows", unit_scale=True, disable=not progress) as bar:
            for segment, positions in self._parts():
                yield segment, positions
                bar.update(len(positions))
