"""Flat search over the prefix in float32: exact, and the quickest choice for small sets."""

from collections.abc import Mapping
from typing import Any, ClassVar

from typing_extensions import override

from indexes._faiss import FaissIndex
from indexes.base import Float32Array

FLOAT32_BYTES = 4


class FlatIndex(FaissIndex):
    """Every row is compared with the query (faiss.IndexFlatIP). Its one effort is 0."""

    name: ClassVar[str] = "flat"

    def _make(self) -> Any:
        return self._faiss.IndexFlatIP(self.dim)

    @override
    def _search_parameters(self, effort: int, selector: Any) -> Any:
        return None if selector is None else self._faiss.SearchParameters(sel=selector)

    @override
    def bytes_touched(self, queries: Float32Array, shortlist: int, effort: int) -> int:
        """Every row."""
        return self.nbytes

    def efforts(self) -> tuple[int, ...]:
        """Flat search has no effort to choose: (0,)."""
        return (0,)

    @property
    def nbytes(self) -> int:
        """Bytes of the float32 rows."""
        return int(self._index.codes.size())

    @override
    @classmethod
    def estimate_nbytes(cls, n: int, dim: int, settings: Mapping[str, int]) -> int:
        """Exactly n * dim * 4."""
        return n * dim * FLOAT32_BYTES
