"""Which prefix widths an adaptor is trained for unless the user says."""

from __future__ import annotations

from funnel.checks import checked_whole

__all__ = ["LARGEST_WIDTH", "default_widths"]

# Steps of half an octave from the narrowest prefix worth a coarse index; wider than half of the full width, or than
# 256, nothing is left to win by training (PCA holds .99 of the neighbours there), and a step costs by the widest.
NARROWEST, WIDEST = 32, 256
STEPS = (1.0, 1.5)
LARGEST_WIDTH = 2**20  # of a whole embedding: a matrix of a wider one takes terabytes


def default_widths(dim: int) -> tuple[int, ...]:
    """Widths to train for: half octaves from 32 up to half of dim or 256; at least one, below dim if there is room."""
    dim = checked_whole("dim", dim, 1, LARGEST_WIDTH)
    widths = [int(NARROWEST * 2**octave * step) for octave in range(32) for step in STEPS]
    return tuple(width for width in widths if width <= min(dim / 2, WIDEST)) or (max(1, dim // 2),)
