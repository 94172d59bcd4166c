"""Which plans are worth recording: every combination of effort, shortlist and stages within reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from funnel.plan import Plan, Stage

__all__ = ["SHORTLISTS", "keep_sizes", "plans_of_effort", "shortlists"]

# Sizes half an octave apart: the cost of a plan between two of them differs from one by less than a quarter.
SHORTLISTS = (10, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
SMALLEST_SHARE = 8  # a shortlist below 1/8 of what the coarse search found wastes its effort
MOST_INTERMEDIATE_STAGES = 2  # a third saves under 2 % on the recorded costs at 384 to 1,024 dims
KEEP_STEPS = 6  # a stage keeps at least 1/8 (six half-octave steps below) of what it is given


def shortlists(largest: int, smallest_share: int | None = SMALLEST_SHARE) -> tuple[int, ...]:
    """Shortlist sizes up to `largest`, itself among them, down to a share of it (None: down to the smallest)."""
    floor = 1 if smallest_share is None else largest / smallest_share
    sizes = {size for size in SHORTLISTS if floor <= size <= largest}
    return tuple(sorted(sizes | {largest}))


def keep_sizes(candidates: int) -> tuple[int, ...]:
    """How many of `candidates` an intermediate stage may keep, falling; at most two thirds of them."""
    smaller = [size for size in SHORTLISTS if size <= candidates * 2 / 3]
    return tuple(reversed(smaller[-KEEP_STEPS:]))


def plans_of_effort(effort: int, sizes: Sequence[int], widths: Sequence[int]) -> Iterator[Plan]:
    """Every plan at this effort: sizes are its shortlists, widths the intermediate widths, rising."""
    for size in sizes:
        yield Plan(effort, size)
        for count in range(1, MOST_INTERMEDIATE_STAGES + 1):
            for chosen in combinations(widths, count):
                yield from _staged(effort, size, chosen)


def _staged(effort: int, size: int, widths: tuple[int, ...]) -> Iterator[Plan]:
    def deeper(keep: int, position: int) -> Iterator[tuple[Stage, ...]]:
        if position == len(widths):
            yield ()
            return
        for smaller in keep_sizes(keep):
            for rest in deeper(smaller, position + 1):
                yield (Stage(widths[position], smaller), *rest)

    for stages in deeper(size, 0):
        yield Plan(effort, size, stages)
