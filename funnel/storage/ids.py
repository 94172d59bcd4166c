"""The user's ids, by input position, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from funnel.errors import DamagedIndexError
from funnel.storage.arrays import map_npy

__all__ = ["Ids", "JoinedIds"]

INT64 = np.iinfo(np.int64)  # whole numbers beyond it are nobody's ids


OFFSETS_AT_A_TIME = 1_000_000


class Ids:
    """Whole numbers, or texts kept as one run of UTF-8 bytes; mapped from disk, none of them resident."""

    def __init__(self, values: npt.NDArray[Any], offsets: npt.NDArray[np.int64] | None) -> None:
        self._values = np.asarray(values)  # a view without the subclass, whose indexing is slow
        self._offsets = None if offsets is None else np.asarray(offsets)

    @classmethod
    def open(cls, segment: Path, texts: bool | None = None) -> Ids:
        """The ids of a segment. texts: whether they are; None: where the folder has id_offsets.npy.

        Raises DamagedIndexError naming the file, also where the texts do not lie one behind the other.
        """
        offsets_path = segment / "id_offsets.npy"
        texts = offsets_path.exists() if texts is None else texts
        values = map_npy(segment / "ids.npy", ("uint8",) if texts else ("int64",), 1)
        offsets = map_npy(offsets_path, ("int64",), 1) if texts else None
        if offsets is not None and not _one_behind_the_other(offsets, len(values)):
            raise DamagedIndexError(f"{offsets_path}: its offsets do not rise from 0 to {len(values)}; restore it")
        return cls(values, offsets)

    @property
    def text(self) -> bool:
        """Whether they are texts, not whole numbers."""
        return self._offsets is not None

    @property
    def largest(self) -> int:
        """The largest of whole numbers; -1 where there are none."""
        return int(self._values.max()) if len(self._values) else -1

    def find(self, wanted: Sequence[Any]) -> npt.NDArray[np.int64]:
        """Input positions int64 [len(wanted)] of ids, each text or each a whole number as these are; -1: not there.

        The first call sorts what is looked up: 16 bytes an id are then held.
        """
        keys, places = self._sorted
        numbers = map(hash, wanted) if self.text else (min(INT64.max, max(INT64.min, int(one))) for one in wanted)
        asked = np.fromiter(numbers, dtype=np.int64, count=len(wanted))
        first, last = np.searchsorted(keys, asked, "left"), np.searchsorted(keys, asked, "right")
        found = np.full(len(asked), -1, dtype=np.int64)
        for number in np.flatnonzero(first < last).tolist():
            for place in range(first[number], last[number]):  # more than one where texts have the same hash
                position = place if places is None else int(places[place])
                if self.at(np.array([position]))[0] == wanted[number]:
                    found[number] = position
                    break
        return found

    @cached_property
    def _sorted(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
        """What ids are found by, rising, and the position of each; None where positions rise with it."""
        keys = self._values
        if self.text:
            keys = np.array([hash(one) for one in self.all()], dtype=np.int64)
        elif len(keys) < 2 or bool((keys[1:] > keys[:-1]).all()):
            return keys, None
        places = np.argsort(keys, kind="stable")
        return keys[places], places

    def __len__(self) -> int:
        return len(self._values) if self._offsets is None else len(self._offsets) - 1

    def at(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Ids of input positions, any shape: int64, or object holding str. A position of -1 gives -1 or None."""
        missing = positions < 0
        if self._offsets is None:
            numbers = self._values[positions]
            # Counting takes a fifth of what any() does, where few are asked for.
            return np.where(missing, -1, numbers) if np.count_nonzero(missing) else numbers
        flat = positions.ravel()
        starts, stops = self._offsets[flat].tolist(), self._offsets[flat + 1].tolist()
        view = self._values.data
        texts = np.empty(len(flat), dtype=object)
        try:
            texts[:] = [str(view[start:stop], "utf-8") for start, stop in zip(starts, stops, strict=True)]
        except UnicodeDecodeError as error:
            raise DamagedIndexError(f"ids.npy holds an id that is not UTF-8 ({error.reason}); restore it") from error
        texts[missing.ravel()] = None
        return texts.reshape(positions.shape)

    def all(self) -> list[Any]:
        """Every id, in input order."""
        everything: list[Any] = self.at(np.arange(len(self), dtype=np.int64)).tolist()
        return everything


def _one_behind_the_other(offsets: npt.NDArray[np.int64], size: int) -> bool:
    """Whether texts of `size` bytes in all begin at these offsets."""
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != size:
        return False
    blocks = range(0, len(offsets), OFFSETS_AT_A_TIME)
    return all((np.diff(offsets[start : start + OFFSETS_AT_A_TIME + 1]) >= 0).all() for start in blocks)


class JoinedIds:
    """The ids of several segments, one behind the other."""

    def __init__(self, parts: Sequence[Ids]) -> None:
        self.parts: tuple[Ids, ...] = tuple(parts)
        self.firsts: list[int] = [0, *accumulate(map(len, parts))]

    @property
    def text(self) -> bool:
        """Whether they are texts, not whole numbers."""
        return self.parts[0].text

    def __len__(self) -> int:
        return self.firsts[-1]

    def at(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """As `Ids.at`."""
        flat = positions.ravel()
        result = np.full(len(flat), None if self.text else -1, dtype=object if self.text else np.int64)
        segments = np.searchsorted(self.firsts, flat, "right") - 1  # -1 where the position is
        for number in np.unique(segments[flat >= 0]).tolist():
            mine = segments == number
            result[mine] = self.parts[number].at(flat[mine] - self.firsts[number])
        return result.reshape(positions.shape)

    def all(self) -> list[Any]:
        """Every id, in input order."""
        return [one for part in self.parts for one in part.all()]
