"""Where vectors lie: as the user gives them, as rows are stored, and the adapted prefixes of those."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from funnel.adaptors import Adaptor, Identity

__all__ = ["Space", "unit_prefixes"]

Float32 = npt.NDArray[np.float32]


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
    index is over all dims of those that were given: of formats up to 3.
    """

    adaptor: Adaptor
    own: bool
    whole: bool = False

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
            return self.adaptor.prefixes(stored, width)
        if self.whole:
            return np.ascontiguousarray(self.given(stored)[:, :width])
        return np.ascontiguousarray(stored[:, :width])
