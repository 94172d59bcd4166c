"""Adaptors that are one orthogonal matrix."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from funnel.adaptors.base import Adaptor, FloatArray
from funnel.errors import InputError

# ‖RᵀR − I‖ (Frobenius) bounds the change of any inner product of unit vectors; 1e-5 is what the engine
# promises of an isometric adaptor, and rounding to float32 alone reaches 1e-6 at 384 dimensions.
ORTHOGONALITY_TOLERANCE = 1e-5


class OrthogonalAdaptor(Adaptor):
    """Multiplies by an orthogonal matrix, so that all inner products at full width are kept.

    Subclasses say how the matrix is found.
    """

    isometric: ClassVar[bool] = True

    matrix: torch.Tensor

    def __init__(self, matrix: FloatArray, dims: Sequence[int] = ()) -> None:
        """Take the matrix.

        Args:
            matrix: float32 [dim, dim]; a vector x becomes x @ matrix.
            dims: the widths it was trained for, if any.

        Raises:
            InputError: it is not square, not finite, or not orthogonal.
        """
        if not isinstance(matrix, np.ndarray) or matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise InputError(
                f"a rotation of shape {getattr(matrix, 'shape', None)} was given; it must be a square array"
            )
        super().__init__(len(matrix), dims)
        _check_orthogonal(matrix)
        self.register_buffer("matrix", torch.from_numpy(np.array(matrix, dtype=np.float32, order="C")))

    @property
    def device(self) -> torch.device:
        """Where the matrix is: asked for with every query, and the general way through `state_dict` takes 3 us."""
        return self.matrix.device

    def map(self, vectors: torch.Tensor) -> torch.Tensor:
        """vectors @ matrix."""
        # torch keeps to the calling thread's own number of threads; numpy's BLAS would wake one for every core.
        return vectors @ self.matrix

    def unit_transform(self, vectors: NDArray[Any]) -> FloatArray:
        """As `transform`, as lengths are kept; one query goes the short way: checks take as long as the product."""
        if vectors.shape != (1, self.dim) or vectors.dtype != np.float32:
            return self.transform(vectors)
        matrix = self.matrix
        if matrix.device.type != "cpu" or not vectors.flags.c_contiguous:
            return self.transform(vectors)
        with torch.inference_mode():
            adapted: FloatArray = torch.mm(torch.from_numpy(vectors), matrix).numpy()
        return adapted

    def inverse(self, adapted: FloatArray) -> FloatArray:
        """The vectors again, from what `transform` made of them: float32 [n, dim]."""
        original: FloatArray = adapted @ self.matrix.cpu().numpy().T
        return original

    @classmethod
    def build(
        cls, dim: int, dims: Sequence[int], settings: Mapping[str, int], tensors: Mapping[str, FloatArray]
    ) -> Self:
        """The adaptor of the tensor `matrix`, float32 [dim, dim]."""
        if sorted(tensors) != ["matrix"] or settings:
            raise InputError(
                f"the tensors are {sorted(tensors)} and the settings {dict(settings)}, expected ['matrix']"
            )
        matrix = tensors["matrix"]
        if matrix.shape != (dim, dim):
            raise InputError(f"the tensor matrix has shape {matrix.shape}, expected {(dim, dim)}")
        return cls(matrix, dims)


def _check_orthogonal(matrix: FloatArray) -> None:
    if not np.isfinite(matrix).all():
        raise InputError("the rotation holds values that are not finite")
    exact = matrix.astype(np.float64)
    error = float(np.linalg.norm(exact.T @ exact - np.eye(len(exact))))
    if error > ORTHOGONALITY_TOLERANCE:
        raise InputError(
            f"the matrix is not orthogonal: ‖RᵀR − I‖ = {error:.2g}, at most {ORTHOGONALITY_TOLERANCE:g} is allowed"
        )
