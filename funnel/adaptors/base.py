"""The contract of an adaptor, the registry of kinds, and how an adaptor is written and read.

A new kind is one class: decorate it with `register`, import it in `funnel/adaptors/__init__.py`.
"""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from funnel.adaptors.files import REMEDY, AdaptorHeader, read_header, read_tensors, write_adaptor
from funnel.errors import DamagedIndexError, InputError

FloatArray = NDArray[np.float32]
Sample = NDArray[Any] | Iterable[NDArray[Any]]
AdaptorType = TypeVar("AdaptorType", bound="type[Adaptor]")

_CLASSES: dict[str, "type[Adaptor]"] = {}


class Adaptor(ABC):
    """A map R^dim → R^dim whose output is meant to be read by prefixes.

    Attributes:
        kind: the name under which the class is registered and written to disk.
        isometric: True where the map keeps every inner product at full width, so that exact search
            over adapted vectors ranks as exact search over the user's own.
        dim: the width of what goes in and of what comes out.
    """

    kind: ClassVar[str]
    isometric: ClassVar[bool]

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise InputError(f"an adaptor of dimension {dim} was asked for; the dimension must be at least 1")
        self.dim = dim

    def __repr__(self) -> str:
        return f"{type(self).__name__}(dim={self.dim})"

    @classmethod
    @abstractmethod
    def fit(cls, sample: Sample, *, seed: int = 0, progress: bool = False) -> Self:
        """Make an adaptor from data.

        Args:
            sample: float [n, dim], or an iterable of such chunks, read once.
            seed: of whatever is random in the fitting.
            progress: show a bar with the rate on stderr.

        Raises:
            InputError: no rows, rows of differing widths, or values that are not finite.
        """

    @abstractmethod
    def _apply(self, vectors: FloatArray) -> FloatArray:
        """Map float32 [n, dim], already checked."""

    @abstractmethod
    def tensors(self) -> dict[str, FloatArray]:
        """What the adaptor has learnt, by name, as it is written to disk."""

    @classmethod
    @abstractmethod
    def from_tensors(cls, dim: int, tensors: Mapping[str, FloatArray]) -> Self:
        """The adaptor again, from what `tensors` gave.

        Raises:
            InputError: a tensor is missing, of the wrong shape, or breaks what the kind promises.
        """

    def transform(self, vectors: NDArray[Any]) -> FloatArray:
        """Map vectors; the full width is kept.

        Args:
            vectors: float [n, dim]; anything but float32 is converted.

        Returns:
            float32 [n, dim]; where nothing changes, it may be the array that was given.

        Raises:
            InputError: the array is not two-dimensional or not of this adaptor's width.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise InputError(
                f"vectors of shape {vectors.shape} were given to an adaptor of dimension {self.dim}; "
                f"give an array of shape (n, {self.dim})"
            )
        return self._apply(np.asarray(vectors, dtype=np.float32))

    def inverse(self, adapted: FloatArray) -> FloatArray:
        """The vectors again, from what `transform` made of them: float32 [n, dim].

        Raises:
            InputError: the kind cannot be inverted.
        """
        raise InputError(f"an adaptor of kind {self.kind!r} cannot be inverted; give the original vectors")

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `adaptor.safetensors` and `adaptor.json` into the folder, which is made if need be."""
        write_adaptor(Path(folder), self.kind, self.dim, self.isometric, self.tensors())

    @staticmethod
    def load(folder: str | os.PathLike[str]) -> "Adaptor":
        """Read an adaptor of any registered kind.

        Raises:
            InputError: the folder is missing, or the kind is not known to this version.
            FormatVersionError: the files are of a newer format.
            DamagedIndexError: a file is missing, cut short, changed, or does not fit its description.
        """
        header = read_header(Path(folder))
        cls = adaptor_class(header.kind)
        tensors = read_tensors(Path(folder), header)
        try:
            return cls._restore(header, tensors)
        except InputError as error:
            raise DamagedIndexError(f"{folder} does not hold together: {error}; {REMEDY}") from error

    @classmethod
    def _restore(cls, header: AdaptorHeader, tensors: Mapping[str, FloatArray]) -> Self:
        if header.isometric != cls.isometric:
            raise InputError(f"isometric is {header.isometric}, expected {cls.isometric} for kind {cls.kind!r}")
        return cls.from_tensors(header.dim, tensors)

    @property
    def checksum(self) -> str:
        """The sha256 of kind, dimension and tensors: equal adaptors have equal checksums."""
        digest = hashlib.sha256(json.dumps([self.kind, self.dim]).encode())
        for name, tensor in sorted(self.tensors().items()):
            digest.update(name.encode() + b"\0")
            digest.update(np.ascontiguousarray(tensor, dtype="<f4").tobytes())
        return digest.hexdigest()


def register(cls: AdaptorType) -> AdaptorType:
    """Enter an adaptor class into the registry under its kind (a class decorator)."""
    if cls.kind in _CLASSES:
        raise ValueError(f"the adaptor kind {cls.kind!r} is registered twice")
    _CLASSES[cls.kind] = cls
    return cls


def adaptor_kinds() -> tuple[str, ...]:
    """The kinds that can be asked for, in alphabetical order."""
    return tuple(sorted(_CLASSES))


def adaptor_class(kind: str) -> type[Adaptor]:
    """The class of a kind.

    Raises:
        InputError: the kind is not registered; the message lists those that are.
    """
    if kind not in _CLASSES:
        raise InputError(f"the adaptor kind {kind!r} is not known; choose one of {', '.join(adaptor_kinds())}")
    return _CLASSES[kind]


def make_adaptor(kind: str, sample: Sample, *, seed: int = 0, progress: bool = False) -> Adaptor:
    """Fit an adaptor of the kind named; the arguments and errors are those of `Adaptor.fit`."""
    return adaptor_class(kind).fit(sample, seed=seed, progress=progress)


def chunks_of(sample: Sample) -> Iterator[NDArray[Any]]:
    """The chunks of a sample, each [rows, dim], all of the first one's width.

    Raises:
        InputError: there are no rows, or a chunk is not two-dimensional or of another width.
    """
    dim: int | None = None
    rows = 0
    for chunk in [sample] if isinstance(sample, np.ndarray) else sample:
        if chunk.ndim != 2:
            raise InputError(f"a sample chunk has shape {chunk.shape}; give arrays of shape (rows, dimension)")
        if dim is not None and chunk.shape[1] != dim:
            raise InputError(f"a sample chunk is {chunk.shape[1]} wide; the chunks before it are {dim} wide")
        dim = chunk.shape[1]
        rows += len(chunk)
        yield chunk
    if rows == 0:
        raise InputError("an adaptor was to be fitted on 0 rows; give at least one vector")
