"""Prefix widths: which are allowed, and which an adaptor is trained for unless the user says."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from funnel.errors import InputError

__all__ = ["checked_widths", "default_widths"]

# Steps of half an octave from the narrowest prefix worth a coarse index; wider than half of the full width, or than
# 256, nothing is left to win by training (PCA holds .99 of the neighbours there), and a step costs by the widest.
NARROWEST, WIDEST = 32, 256
STEPS = (1.0, 1.5)


def checked_widths(dims: Sequence[int], dim: int) -> tuple[int, ...]:
    """The user's widths.

    Raises InputError unless they are whole numbers from 1 to dim that rise.
    """
    widths = tuple(dims) if isinstance(dims, Iterable) else ()
    if not widths or not all(isinstance(width, int | np.integer) and not isinstance(width, bool) for width in widths):
        raise InputError(f"dims is {dims!r}; expected rising whole numbers such as 64,128,256")
    if any(a >= b for a, b in itertools.pairwise(widths)) or not 1 <= widths[0] <= widths[-1] <= dim:
        raise InputError(f"dims is {list(widths)}; expected rising widths from 1 to {dim}, the width of the vectors")
    return tuple(int(width) for width in widths)


def default_widths(dim: int) -> tuple[int, ...]:
    """Widths to train for: half octaves from 32 up to half of dim or 256; at least one, below dim if there is room."""
    widths = [int(NARROWEST * 2**octave * step) for octave in range(32) for step in STEPS]
    return tuple(width for width in widths if width <= min(dim / 2, WIDEST)) or (max(1, dim // 2),)
