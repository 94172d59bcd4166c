"""The trained rotation: orthonormal at full width, its first columns trained to keep neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch

from funnel.adaptors.base import FloatArray, register
from funnel.adaptors.pca import OrthogonalAdaptor, SecondMoment
from funnel.adaptors.training import TrainedAdaptor
from funnel.errors import InputError


@register
class Rotation(TrainedAdaptor, OrthogonalAdaptor):
    """An orthogonal matrix whose prefixes rank as the full width does; inner products at full width are unchanged.

    The first columns are the orthonormal factor (QR) of a free matrix, started at the uncentred PCA and trained by
    distilling each row's softmax over its neighbours at full width into every prefix; the remaining ones are the
    principal directions of what those leave.
    """

    kind: ClassVar[str] = "rotation"

    @classmethod
    def start(cls, rows: torch.Tensor, widths: tuple[int, ...], _seed: int) -> RotationStudent:
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


class RotationStudent(torch.nn.Module):
    """A rotation in training: a free matrix [d, w] whose QR factor are the trained columns."""

    def __init__(self, rows: torch.Tensor, dims: Sequence[int]) -> None:
        """rows: float32 [n, d]. dims: rising widths; the widest decides how many columns are trained."""
        super().__init__()
        self._dims = tuple(dims)
        moment = SecondMoment(rows.shape[1])
        moment.update(rows.numpy())
        self._second = moment.matrix()
        start = torch.from_numpy(moment.rotation()[:, : self._dims[-1]])
        self.free = torch.nn.Parameter(start.clone().contiguous())

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
