"""Checks of what a user gives, each with one line that says the name, the value and what was expected."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from numbers import Real
from pathlib import Path
from reprlib import Repr
from typing import Any

import numpy as np

from funnel.errors import InputError

__all__ = [
    "LONGEST_PROMPT",
    "checked_flag",
    "checked_flags",
    "checked_name",
    "checked_number",
    "checked_path",
    "checked_seed",
    "checked_whole",
    "checked_widths",
]

LONGEST_PROMPT = 4096  # characters; instructions have some hundred
LARGEST_SEED = 2**32 - 1  # what the generators of numpy, torch and FAISS all take, with what is added for each draw


class _Shown(Repr):
    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if x.bit_length() <= 64 else "a number of more than 64 bits"


shown = _Shown().repr


def checked_flag(name: str, value: object) -> bool:
    """True or False; 1 and 0 do too. InputError for anything else, such as "no", which is true in Python."""
    if not isinstance(value, bool | np.bool_ | int) or value not in (True, False):
        raise InputError(f"{name} is {shown(value)}; expected True or False")
    return bool(value)


def checked_flags(**flags: object) -> None:
    """`checked_flag` for each, by its name."""
    for name, value in flags.items():
        checked_flag(name, value)


def checked_whole(name: str, value: Any, low: int = 1, high: int | None = None, such_as: int | None = None) -> int:
    """The whole number as an int. InputError unless it is one, of Python's or numpy's, from low to high."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        reach = "" if high is None else f" to {high}"
        example = "" if such_as is None else f", such as {such_as}"
        raise InputError(f"{name} is {shown(value)}; expected a whole number from {low}{reach}{example}")
    return int(value)


def checked_seed(seed: Any) -> int:
    """The seed as an int. InputError for what is none."""
    return checked_whole("seed", seed, 0, LARGEST_SEED)


def checked_number(name: str, value: object, expected: str) -> float:
    """The number as a float, perhaps infinite. InputError for what is none, and NaN."""
    if isinstance(value, bool) or not isinstance(value, Real) or value != value:
        raise InputError(f"{name} is {shown(value)}; expected {expected}")
    try:
        return float(value)
    except OverflowError:  # a whole number of more than 308 digits
        raise InputError(f"{name} is too large a number; expected {expected}") from None


def checked_name(name: str, value: object, known: Iterable[str] = ()) -> str:
    """The text. InputError for anything else, an empty one, and one that is not among those known, if any are given."""
    known = tuple(known)
    if not isinstance(value, str) or not value or (known and value not in known):
        raise InputError(f"{name} is {shown(value)}; expected {' or '.join(map(repr, known)) or 'a name'}")
    return value


def checked_path(name: str, value: Any) -> Path:
    """The path of a file or folder. InputError for what is none: of another type, empty, or with a null character."""
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise InputError(f"{name} is {shown(value)}; expected the path of a file or folder")
    return Path(text)


def checked_widths(dims: Sequence[int], dim: int | None = None) -> tuple[int, ...]:
    """The user's widths.

    Raises InputError unless they are whole numbers that rise from 1, and end at or below dim where that is given.
    """
    ordered = isinstance(dims, Sequence) or (isinstance(dims, np.ndarray) and dims.ndim == 1)
    widths = tuple(dims) if ordered and not isinstance(dims, str | bytes) else ()
    if not widths or not all(isinstance(width, int | np.integer) and not isinstance(width, bool) for width in widths):
        raise InputError(f"dims is {shown(dims)}; expected rising whole numbers such as 64,128,256")
    rise = widths[0] >= 1 and all(a < b for a, b in itertools.pairwise(widths))
    if not rise or (dim is not None and widths[-1] > dim):
        reach = "" if dim is None else f" to {dim}, the width of the vectors"
        raise InputError(f"dims is {shown(list(widths))}; expected rising widths from 1{reach}")
    return tuple(int(width) for width in widths)
