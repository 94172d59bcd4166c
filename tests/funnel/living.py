"""What an index that changes should hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from funnel import FLAT, FunnelIndex
from tests.funnel.corpora import brute_force

__all__ = ["Model", "named"]

Float32 = npt.NDArray[np.float32]


def named(first: int, count: int) -> list[str]:
    return [f"new {number}" for number in range(first, first + count)]


class Model:
    """What an index should hold: id -> vector, in input order."""

    def __init__(self, rows: Float32, ids: list[Any]) -> None:
        self.rows = dict(zip(ids, rows, strict=True))

    def upsert(self, rows: Float32, ids: list[Any]) -> None:
        for one in ids:
            self.rows.pop(one, None)
        self.rows |= dict(zip(ids, rows, strict=True))

    def delete(self, ids: list[Any]) -> None:
        for one in ids:
            del self.rows[one]

    def agrees(self, index: FunnelIndex, queries: Float32, k: int = 10) -> None:
        """Ids, and the answers of flat search, are those of numpy over what is left."""
        ids = list(self.rows)
        assert len(index) == len(ids)
        assert index.ids() == ids
        truth, scores = brute_force(np.stack(list(self.rows.values())), queries, k)
        found = index.search_vectors(queries, k, plan=FLAT)
        np.testing.assert_allclose(found.scores, scores, atol=1e-5)
        assert [list(row) for row in found.ids] == [[ids[at] for at in row] for row in truth]
