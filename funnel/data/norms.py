"""The lengths of rows as they were given, which cosines do not see."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["Norms"]

OFF = 0.01  # from 1: rows that were scaled and then stored as float16 are off by a tenth of it
MOST_HELD = 65_536  # of which the median is taken


class Norms:
    """Smallest, largest and median length of a stream of rows."""

    def __init__(self) -> None:
        self._least, self._largest = np.inf, 0.0
        self._seen, self._every = 0, 1
        self._held = np.empty(0)

    def add(self, lengths: NDArray[np.floating]) -> None:
        """The lengths [n] of the next rows."""
        self._least = min(self._least, float(lengths.min(initial=np.inf)))
        self._largest = max(self._largest, float(lengths.max(initial=0.0)))
        self._held = np.concatenate([self._held, lengths[-self._seen % self._every :: self._every]])
        self._seen += len(lengths)
        while len(self._held) > MOST_HELD:  # an even sample: every second, fourth, eighth row
            self._held, self._every = self._held[::2], 2 * self._every

    def __str__(self) -> str:
        """What to say of them; nothing where they are 1."""
        if not self._seen or (self._least >= 1 - OFF and self._largest <= 1 + OFF):
            return ""
        median = float(np.median(self._held))
        return (
            f"the vectors have norms from {self._least:.2g} to {self._largest:.2g}, median {median:.2g}: "
            "similarity is cosine, which does not see them"
        )
