"""Ids given as `allowed_ids`: checked, and with a short name by which a filter is remembered."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from funnel.errors import InputError

__all__ = ["GivenIds"]

EXPECTED = "a list, set or array of the index's ids"


@dataclass(frozen=True, slots=True, eq=False)
class GivenIds:
    """Ids, all texts or all whole numbers. numbers: int64, or None where they are texts. digest: of them all."""

    texts: frozenset[str]
    numbers: npt.NDArray[np.int64] | None
    digest: str

    @classmethod
    def read(cls, ids: Any) -> GivenIds:
        """What the user gave. Raises InputError, naming the value, for what are no ids."""
        if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
            raise InputError(f"allowed_ids is {ids!r} ({type(ids).__name__}); expected {EXPECTED}")
        if isinstance(ids, np.ndarray) and ids.dtype.kind in "iu" and ids.ndim == 1:
            return cls._of_numbers(ids)
        values = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
        if all(isinstance(value, str) for value in values):
            return cls._of_texts(values)
        if all(isinstance(value, int | np.integer) and not isinstance(value, bool) for value in values):
            try:
                return cls._of_numbers(np.array(values, dtype=np.int64))
            except OverflowError:
                raise InputError("allowed_ids holds a number beyond 64 bits; no index has such an id") from None
        odd = next(
            v for v in values if isinstance(v, bool) or not isinstance(v, str | int | np.integer) or _mixed(v, values)
        )
        raise InputError(
            f"allowed_ids holds {odd!r} ({type(odd).__name__}) beside {values[0]!r}; expected texts only or "
            "whole numbers only, as the index's ids are"
        )

    @classmethod
    def _of_numbers(cls, numbers: npt.NDArray[Any]) -> GivenIds:
        if numbers.dtype.kind == "u" and len(numbers) and numbers.max() > np.iinfo(np.int64).max:
            raise InputError("allowed_ids holds a number beyond 64 bits; no index has such an id")
        whole = np.ascontiguousarray(numbers, dtype=np.int64)
        return cls(frozenset(), whole, "numbers:" + hashlib.sha256(whole.tobytes()).hexdigest())

    @classmethod
    def _of_texts(cls, values: list[str]) -> GivenIds:
        lengths = np.fromiter(map(len, values), dtype=np.int64, count=len(values))
        digest = hashlib.sha256(lengths.tobytes())
        digest.update("".join(values).encode("utf-8", "surrogatepass"))
        return cls(frozenset(values), None, "texts:" + digest.hexdigest())

    def __len__(self) -> int:
        return len(self.texts) if self.numbers is None else len(self.numbers)


def _mixed(value: object, values: list[Any]) -> bool:
    return isinstance(value, str) != isinstance(values[0], str)
