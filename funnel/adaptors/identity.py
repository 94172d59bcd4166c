"""The adaptor that changes nothing: for embeddings whose prefixes are good as they are."""

from collections.abc import Mapping
from typing import ClassVar, Self

from funnel.adaptors.base import Adaptor, FloatArray, Sample, chunks_of, register
from funnel.errors import InputError


@register
class Identity(Adaptor):
    """Gives back what it is given."""

    kind: ClassVar[str] = "identity"
    isometric: ClassVar[bool] = True

    @classmethod
    def fit(cls, sample: Sample, *, seed: int = 0, progress: bool = False) -> Self:
        """Take the width of the first chunk; nothing else is read."""
        return cls(next(chunks_of(sample)).shape[1])

    def _apply(self, vectors: FloatArray) -> FloatArray:
        return vectors

    def inverse(self, adapted: FloatArray) -> FloatArray:
        """What was given."""
        return adapted

    def tensors(self) -> dict[str, FloatArray]:
        """Nothing is learnt."""
        return {}

    @classmethod
    def from_tensors(cls, dim: int, tensors: Mapping[str, FloatArray]) -> Self:
        """The identity of a width."""
        if tensors:
            raise InputError(f"an identity adaptor holds no tensors, and {sorted(tensors)} were given")
        return cls(dim)
