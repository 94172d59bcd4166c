"""Ids given as `allowed_ids`: checked, and with a short name by which a filter is remembered."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from funnel.identifiers import identifiers

__all__ = ["GivenIds"]


@dataclass(frozen=True, slots=True, eq=False)
class GivenIds:
    """Ids: for an index whose ids are texts and, where all are whole numbers of 64 bits, for one of whole numbers.

    numbers: int64, or None where some are not, and `texts` then holds them all. kind: what they are, for messages.
    digest: of them all.
    """

    texts: frozenset[str]
    numbers: npt.NDArray[np.int64] | None
    kind: str
    digest: str

    @classmethod
    def read(cls, ids: Any) -> GivenIds:
        """What the user gave. Raises InputError, naming the value, for what are no ids."""
        if isinstance(ids, np.ndarray) and ids.ndim == 1 and ids.dtype.kind in "iu" and ids.dtype != np.uint64:
            return cls._of_numbers(ids)
        values = identifiers(ids, "allowed_ids")
        if not values or any(isinstance(one, str) for one in values):
            return cls._of_texts([str(one) for one in values], "texts")
        try:
            return cls._of_numbers(np.array(values, dtype=np.int64))
        except OverflowError:
            return cls._of_texts([str(one) for one in values], "a number beyond 64 bits")

    @classmethod
    def _of_numbers(cls, numbers: npt.NDArray[Any]) -> GivenIds:
        whole = np.ascontiguousarray(numbers, dtype=np.int64)
        digest = "numbers:" + hashlib.sha256(whole.tobytes()).hexdigest()
        return cls(frozenset(), whole, "whole numbers", digest)

    @classmethod
    def _of_texts(cls, values: list[str], kind: str) -> GivenIds:
        lengths = np.fromiter(map(len, values), dtype=np.int64, count=len(values))
        digest = hashlib.sha256(lengths.tobytes())
        digest.update("".join(values).encode("utf-8", "surrogatepass"))
        return cls(frozenset(values), None, kind, "texts:" + digest.hexdigest())

    def as_texts(self) -> frozenset[str]:
        """The ids as an index of documents keeps them: whole numbers are texts there."""
        return self.texts if self.numbers is None else frozenset(map(str, self.numbers.tolist()))

    def __len__(self) -> int:
        return len(self.texts) if self.numbers is None else len(self.numbers)
