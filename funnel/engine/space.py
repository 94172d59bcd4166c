"""Where vectors lie: as the user gives them, as rows are stored, and the adapted prefixes of those."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from funnel.adaptors import Adaptor, Identity, OrthogonalAdaptor
from funnel.engine.rerank import Float32, Int64, loops, writable

__all__ = ["Space", "unit_prefixes"]


def unit_prefixes(prefixes: Float32) -> Float32:
    """Rows [n, width], scaled to unit length; those of zeros stay zeros."""
    norms = np.linalg.norm(prefixes, axis=1, keepdims=True)
    scaled: Float32 = np.ascontiguousarray(prefixes / np.maximum(norms, np.finfo(np.float32).tiny))
    return scaled


@dataclass(frozen=True, eq=False)
class Space:
    """What an adaptor makes of an index's vectors.

    own: whether rows are stored as the user gave them. So they are where the adaptor keeps every inner product at full
    width: a query is then only projected to the prefix that is searched, which takes width / d of the time of adapting
    it whole. Else rows are stored adapted, and so are queries. whole: whether rows are stored adapted, and the coarse
    index is over all dims of those that were given: of formats up to 3. columns: of the projections in use, as rows
    that loops read, and their numbers.
    """

    adaptor: Adaptor
    own: bool
    whole: bool = False
    columns: dict[int, tuple[Float32, Int64]] = field(default_factory=dict, repr=False)

    @property
    def projects(self) -> bool:
        """Whether adapted prefixes are others than those of the stored rows."""
        return self.own and not isinstance(self.adaptor, Identity)

    def stored(self, given: Float32) -> Float32:
        """Unit rows float32 [n, d] of the user's as they are stored, and as queries meet them."""
        return given if self.own else np.ascontiguousarray(self.adaptor.unit_transform(given))

    def given(self, stored: Float32) -> Float32:
        """Stored rows in the user's own space. Raises InputError where the adaptor cannot be inverted."""
        return stored if self.own else self.adaptor.inverse(stored)

    def _projected(self, query: Float32, width: int) -> Float32 | None:
        """Of one query [1, d] on this thread, as torch wakes others for it: 200 us for 30. None: without loops."""
        compiled = loops()
        if compiled is None:
            return None
        columns = self.columns.get(width)
        if columns is None:
            matrix = self.adaptor.tensors()["matrix"][:, :width].T
            columns = self.columns[width] = np.ascontiguousarray(matrix), np.arange(width)[None]
        found = np.empty((1, width), dtype=np.float32)
        compiled.dots(columns[0], writable(query), columns[1], query.shape[1], found)
        return found

    @property
    def whole_rows(self) -> Callable[[Float32], Float32] | None:
        """What stored rows go through on their way into the coarse index, where it is over those that were given."""
        return self.given if self.whole else None

    def adapted(self, stored: Float32) -> Float32:
        """Stored rows adapted, at full width."""
        return self.adaptor.unit_transform(stored) if self.own else stored

    def prefixes(self, stored: Float32, width: int) -> Float32:
        """The first `width` adapted dims of stored rows or queries [n, d]: float32 [n, width], C-contiguous.

        At full width they are as stored: what keeps inner products changes nothing there.
        """
        if self.own and width < stored.shape[1]:
            if len(stored) == 1 and isinstance(self.adaptor, OrthogonalAdaptor):
                found = self._projected(stored, width)
                if found is not None:
                    return found
            return self.adaptor.prefixes(stored, width)
        if self.whole:
            return np.ascontiguousarray(self.given(stored)[:, :width])
        return np.ascontiguousarray(stored[:, :width])
