"""Prefix widths as a user gives them: which are allowed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from reprlib import repr as shown

import numpy as np

from funnel.errors import InputError

__all__ = ["checked_widths"]


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
