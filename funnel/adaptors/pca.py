"""The rotation to the eigenvectors of the uncentred second moment.

Uncentred, because cosine is measured from the origin: a shift would change the neighbours.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from funnel.adaptors.base import Sample, chunks_of, register
from funnel.adaptors.orthogonal import OrthogonalAdaptor
from funnel.errors import InputError
from funnel.progress import Progress

# Cells converted to float64 at a time, 16 MB: with 1,365 rows at 1,536 dimensions the product still runs at full speed.
BLOCK_CELLS = 2_097_152
# So many offending rows are named in an error.
ROWS_NAMED = 5


@register
class PCA(OrthogonalAdaptor):
    """The orthogonal matrix whose first m columns hold the most energy that m columns can.

    The eigenvectors of XᵀX in order of falling eigenvalue (Eckart & Young 1936), each with its
    largest component positive so that the same rows give the same matrix.
    """

    kind: ClassVar[str] = "pca"

    @classmethod
    def fit(cls, sample: Sample, *, dims: Sequence[int] | None = None, seed: int = 0, progress: bool = False) -> "PCA":
        """Fit on a sample, chunk by chunk; nothing is random, so the seed is not used."""
        moment: SecondMoment | None = None
        with Progress(disable=not progress, unit="rows", unit_scale=True, desc="fitting pca") as bar:
            for chunk in chunks_of(sample):
                moment = moment or SecondMoment(chunk.shape[1])
                moment.update(chunk)
                bar.update(len(chunk))
        assert moment is not None, "chunks_of yields a chunk or raises"
        return cls(moment.rotation(), dims or ())


class SecondMoment:
    """Sums XᵀX over chunks in float64; memory is [dim, dim] and one block of rows, however many rows come.

    Attributes:
        dim: the width of the rows.
        rows: how many were summed so far.
    """

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise InputError(f"a second moment of dimension {dim} was asked for; it must be at least 1")
        self.dim = dim
        self.rows = 0
        self._sum = np.zeros((dim, dim), dtype=np.float64)

    def update(self, chunk: NDArray[Any]) -> None:
        """Add rows.

        Args:
            chunk: float [rows, dim], of any float type.

        Raises:
            InputError: another width, or rows with values that are not finite (named by their number
                over all chunks, from 0).
        """
        if chunk.ndim != 2 or chunk.shape[1] != self.dim:
            raise InputError(f"a chunk of shape {chunk.shape} was given; expected (rows, {self.dim})")
        size = max(1, BLOCK_CELLS // self.dim)
        for start in range(0, len(chunk), size):
            self._add(chunk[start : start + size].astype(np.float64))

    def matrix(self) -> NDArray[np.float64]:
        """XᵀX / n, float64 [dim, dim].

        Raises:
            InputError: no rows were given.
        """
        if self.rows == 0:
            raise InputError("a second moment of 0 rows has no eigenvectors; give at least one vector")
        return self._sum / self.rows

    def rotation(self) -> NDArray[np.float32]:
        """The eigenvectors as columns, in order of falling eigenvalue: float32 [dim, dim].

        Raises:
            InputError: no rows were given.
        """
        _, vectors = np.linalg.eigh(self.matrix())
        falling = vectors[:, ::-1]
        largest = np.abs(falling).argmax(axis=0)
        signs = np.sign(falling[largest, np.arange(self.dim)])
        return np.ascontiguousarray(falling * signs, dtype=np.float32)

    def finish(self) -> PCA:
        """The rotation of what was summed, as an adaptor; more rows may still be added afterwards."""
        return PCA(self.rotation())

    def _add(self, block: NDArray[np.float64]) -> None:
        # Beyond float32 the products could overflow; a comparison with NaN is False.
        usable = (np.abs(block) <= np.finfo(np.float32).max).all(axis=1)
        if not usable.all():
            rows = self.rows + np.flatnonzero(~usable)
            named = ", ".join(str(row) for row in rows[:ROWS_NAMED])
            raise InputError(f"{len(rows)} rows hold values that are not finite (row {named}); repair or drop them")
        self._sum += block.T @ block
        self.rows += len(block)
