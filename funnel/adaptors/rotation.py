"""The trained rotation: orthonormal at full width, its first columns trained to keep neighbours."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import override

from funnel.adaptors.base import Adaptor, FloatArray, Sample, chunks_of, register
from funnel.adaptors.training import Student, TrainedAdaptor
from funnel.checks import checked_whole
from funnel.errors import InputError
from funnel.progress import Progress

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
        self.register_buffer("matrix", torch.from_numpy(np.array(matrix, dtype=np.float32, order="C")))
        self._columns: dict[int, torch.Tensor] = {}
        exact = self.matrix.double()
        error = float(torch.linalg.matrix_norm(exact.T @ exact - torch.eye(self.dim)))
        if not error <= ORTHOGONALITY_TOLERANCE:  # nor is NaN
            raise InputError(
                f"the matrix is not orthogonal: ‖RᵀR − I‖ = {error:.2g}, at most {ORTHOGONALITY_TOLERANCE:g} is allowed"
            )

    @property
    def device(self) -> torch.device:
        """Where the matrix is: asked for with every query, and the general way through `state_dict` takes 3 us."""
        return self.matrix.device

    def map(self, vectors: torch.Tensor) -> torch.Tensor:
        """The product vectors @ matrix."""
        # torch keeps to the calling thread's own number of threads; numpy's BLAS would wake one for every core.
        return vectors @ self.matrix

    def unit_transform(self, vectors: NDArray[Any]) -> FloatArray:
        """As `transform`, as lengths are kept; one query goes the short way: checks take as long as the product."""
        matrix = self.matrix
        short = vectors.shape == (1, self.dim) and vectors.dtype == np.float32 and vectors.flags.c_contiguous
        if not short or matrix.device.type != "cpu":
            return self.transform(vectors)
        with torch.inference_mode():
            adapted: FloatArray = torch.mm(torch.from_numpy(vectors), matrix).numpy()
        return adapted

    def prefixes(self, vectors: NDArray[Any], width: int) -> FloatArray:
        """The product with the first `width` columns: width / dim of the work of `transform`."""
        columns = self._columns.get(width)
        if columns is None:
            columns = self._columns[width] = self.matrix[:, :width].contiguous()
        with torch.inference_mode():
            found: FloatArray = torch.mm(torch.from_numpy(vectors).to(columns.device), columns).cpu().numpy()
        return found

    def inverse(self, adapted: FloatArray) -> FloatArray:
        """The vectors again, from what `transform` made of them: float32 [n, dim]."""
        original: FloatArray = adapted @ self.matrix.cpu().numpy().T
        return original

    @classmethod
    def build(
        cls, dim: int, dims: Sequence[int], settings: Mapping[str, int], tensors: Mapping[str, FloatArray]
    ) -> Self:
        """The adaptor of the tensor `matrix`, float32 [dim, dim]."""
        shapes, expected = {name: tensor.shape for name, tensor in tensors.items()}, {"matrix": (dim, dim)}
        if shapes != expected or settings:
            raise InputError(f"the tensors are {shapes} and the settings {dict(settings)}, expected {expected}")
        return cls(tensors["matrix"], dims)


@register
class Identity(Adaptor):
    """Gives back what it is given."""

    kind: ClassVar[str] = "identity"
    isometric: ClassVar[bool] = True

    @override
    @classmethod
    def fit(cls, sample: Sample, *, dims: Sequence[int] | None = None, seed: int = 0, progress: bool = False) -> Self:
        """Take the width of the first chunk; nothing else is read."""
        return cls(next(chunks_of(sample)).shape[1], dims or ())

    def map(self, vectors: torch.Tensor) -> torch.Tensor:
        """What was given."""
        return vectors

    def prefixes(self, vectors: NDArray[Any], width: int) -> FloatArray:
        """The first `width` dims."""
        return np.ascontiguousarray(vectors[:, :width])

    def inverse(self, adapted: FloatArray) -> FloatArray:
        """What was given."""
        return adapted

    @classmethod
    def build(
        cls, dim: int, dims: Sequence[int], settings: Mapping[str, int], tensors: Mapping[str, FloatArray]
    ) -> Self:
        """The identity of a width."""
        if tensors or settings:
            given = [*sorted(tensors), *sorted(settings)]
            raise InputError(f"an identity adaptor holds neither tensors nor settings, and {given} were given")
        return cls(dim, dims)


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

    @override
    @classmethod
    def fit(cls, sample: Sample, *, dims: Sequence[int] | None = None, seed: int = 0, progress: bool = False) -> Self:
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
        self.dim = checked_whole("dim", dim)
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
            block = chunk[start : start + size].astype(np.float64)
            # Beyond float32 the products could overflow; a comparison with NaN is False.
            usable = (np.abs(block) <= np.finfo(np.float32).max).all(axis=1)
            if not usable.all():
                rows = self.rows + np.flatnonzero(~usable)
                named = ", ".join(map(str, rows[:ROWS_NAMED]))
                raise InputError(f"{len(rows)} rows hold values that are not finite (row {named}); repair or drop them")
            self._sum += block.T @ block
            self.rows += len(block)

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


@register
class Rotation(TrainedAdaptor, OrthogonalAdaptor):
    """An orthogonal matrix whose prefixes rank as the full width does; inner products at full width are unchanged.

    The first columns are the orthonormal factor (QR) of a free matrix, started at the uncentred PCA and trained by
    distilling each row's softmax over its neighbours at full width into every prefix; the remaining ones are the
    principal directions of what those leave.
    """

    kind: ClassVar[str] = "rotation"

    @classmethod
    def start(cls, rows: torch.Tensor, widths: tuple[int, ...], _seed: int) -> "RotationStudent":
        """What is trained, at the uncentred PCA of rows float32 [n, d]; nothing of it is random."""
        return RotationStudent(rows, widths)


def blended(first: OrthogonalAdaptor, second: OrthogonalAdaptor, share: float, moment: SecondMoment) -> Rotation:
    """A rotation between two: at each width the subspace nearest to both, the second weighted by the share.

    Width by width, the new columns are the leading eigenvectors of the weighted mean of both projectors within what
    the narrower widths leave: the extrinsic mean of subspaces (Chordal distance; Conway, Hardin & Sloane 1996, Packing
    Lines, Planes, etc., section 2), kept nested. Beyond the last width of the first, the directions of most energy.

    Args:
        first: with the widths it was trained for.
        second: of the same dimension.
        share: of the second, from 0 to 1.
        moment: of the rows, for the columns beyond the widths.
    """
    one, other = (adaptor.matrix.cpu().double() for adaptor in (first, second))
    columns = torch.zeros((first.dim, 0), dtype=torch.float64)
    for width in first.dims:
        mean = (1 - share) * one[:, :width] @ one[:, :width].T + share * other[:, :width] @ other[:, :width].T
        free = torch.eye(first.dim, dtype=torch.float64) - columns @ columns.T
        leading = torch.linalg.eigh(free @ mean @ free)[1].flip(1)[:, : width - columns.shape[1]]
        columns = torch.linalg.qr(torch.cat([columns, leading], dim=1))[0]
    return Rotation(_completed(columns.numpy(), moment.matrix()), first.dims)


def _completed(columns: np.ndarray, second: np.ndarray) -> FloatArray:
    """All d columns: those given, then an orthonormal basis of the rest in order of falling energy."""
    dim, width = columns.shape
    if width == dim:
        return np.ascontiguousarray(columns, dtype=np.float32)
    rest = np.linalg.qr(np.concatenate([columns, np.eye(dim)], axis=1))[0][:, width:dim]
    _, directions = np.linalg.eigh(rest.T @ second @ rest)
    whole = np.concatenate([columns, rest @ directions[:, ::-1]], axis=1)
    return np.ascontiguousarray(whole, dtype=np.float32)


class RotationStudent(Student):
    """A rotation in training: a free matrix [d, w] whose QR factor are the trained columns."""

    def __init__(self, rows: torch.Tensor, dims: Sequence[int]) -> None:
        """rows: float32 [n, d]. dims: rising widths; the widest decides how many columns are trained."""
        super().__init__()
        self._dims = tuple(dims)
        moment = SecondMoment(rows.shape[1])
        moment.update(rows.numpy())
        self._second = moment.matrix()
        self.free = torch.nn.Parameter(torch.from_numpy(moment.rotation()[:, : self._dims[-1]]).contiguous())

    def project(self, *blocks: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Blocks [..., d] times the trained columns: [..., w]."""
        columns = _orthonormal(self.free)
        return tuple(block @ columns for block in blocks)

    def unchanged(self, _: torch.Tensor, /) -> torch.Tensor:
        """Nothing that a rotation could be kept near to. Raises InputError."""
        raise InputError("a rotation loses nothing of a vector; leave the reconstruction loss out of its recipe")

    def snapshot(self) -> Rotation:
        """The whole rotation, completed by the principal directions of the remainder."""
        columns = _orthonormal(self.free.detach().double()).numpy()
        return Rotation(_completed(columns, self._second), self._dims)


def _orthonormal(free: torch.Tensor) -> torch.Tensor:
    """The QR factor with a positive diagonal of R, so that it moves smoothly with the matrix."""
    factor, triangle = torch.linalg.qr(free)
    return torch.mul(factor, torch.sign(torch.diagonal(triangle)))
