"""The adaptor that changes nothing: for embeddings whose prefixes are good as they are."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import torch

from funnel.adaptors.base import Adaptor, FloatArray, Sample, chunks_of, register
from funnel.errors import InputError


@register
class Identity(Adaptor):
    """Gives back what it is given."""

    kind: ClassVar[str] = "identity"
    isometric: ClassVar[bool] = True

    @classmethod
    def fit(
        cls, sample: Sample, *, dims: Sequence[int] | None = None, seed: int = 0, progress: bool = False
    ) -> "Identity":
        """Take the width of the first chunk; nothing else is read."""
        dim = next(chunks_of(sample)).shape[1]
        return cls(dim, dims or ())

    def map(self, vectors: torch.Tensor) -> torch.Tensor:
        """What was given."""
        return vectors

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
