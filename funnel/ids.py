"""The user's ids, by input position."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from funnel.errors import DamagedIndexError

__all__ = ["Ids"]


class Ids:
    """Whole numbers, or texts kept as one run of UTF-8 bytes; mapped from disk, none of them resident."""

    def __init__(self, values: npt.NDArray[Any], offsets: npt.NDArray[np.int64] | None) -> None:
        self._values = np.asarray(values)  # a view without the subclass, whose indexing is slow
        self._offsets = None if offsets is None else np.asarray(offsets)
        self._bytes = values.data if offsets is not None else None

    @classmethod
    def open(cls, segment: Path) -> Ids:
        """The ids of a segment. Raises DamagedIndexError naming the file."""
        offsets_path = segment / "id_offsets.npy"
        values = _map(segment / "ids.npy")
        return cls(values, _map(offsets_path) if offsets_path.exists() else None)

    def __len__(self) -> int:
        return len(self._values) if self._offsets is None else len(self._offsets) - 1

    def at(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Ids of input positions, any shape: int64, or object holding str. A position of -1 gives -1 or None."""
        missing = positions < 0
        if self._offsets is None:
            numbers = self._values[positions]
            return np.where(missing, -1, numbers) if missing.any() else numbers
        flat = positions.ravel()
        starts, stops = self._offsets[flat].tolist(), self._offsets[flat + 1].tolist()
        assert self._bytes is not None
        view = self._bytes
        texts = np.empty(len(flat), dtype=object)
        texts[:] = [str(view[start:stop], "utf-8") for start, stop in zip(starts, stops, strict=True)]
        texts[missing.ravel()] = None
        return texts.reshape(positions.shape)

    def all(self) -> list[Any]:
        """Every id, in input order."""
        everything: list[Any] = self.at(np.arange(len(self), dtype=np.int64)).tolist()
        return everything


def _map(path: Path) -> npt.NDArray[Any]:
    try:
        try:
            mapped: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError:  # an empty array cannot be mapped
            mapped = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DamagedIndexError(f"{path}: not a readable array ({error})") from error
    return mapped
