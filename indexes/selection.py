"""Which coarse index suits a set of rows: by their number, and by the memory there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from indexes.base import family
from indexes.errors import CoarseIndexError
from indexes.ivf import PQ_DIMS, cells
from indexes.symqg import SymqgIndex, symqg_installed
from indexes.system import machine_bytes
from indexes.vectors import free_bytes

__all__ = ["FamilyChoice", "choose", "graphs", "hnsw_settings"]

# Up to here a flat scan of a prefix costs little, is exact, and needs no build.
FLAT_ROWS = 8_192

# (rows up to, degree, ef_construction) of a graph. Small ones are easy. On 200,000 x 128 with 2 threads, degree 24 with
# 300 and degree 16 with 400 take the same time to build and to reach recall .957 (56 us a query); the first does so at
# a shorter shortlist, and reaches .993 in 243 us where the second stays at .992. Larger sets are harder (degree 16 on
# 720,000 x 128: .946 in 155 us), and their construction takes minutes: the same links, built with less care.
HNSW_SETTINGS = ((50_000, 16, 200), (500_000, 24, 300))
LARGE_HNSW_SETTINGS = (24, 200)

# On 200,000 x 384, seconds to build with 2 threads and us a query at recall .95 and .99: 35, 22.1 and 80 with an
# ef_construction of 200; 45, 21.1 and 76 with 300; 54, 20.1 and 73 with 400; 69, 20.9 and 66 with 200 where the graph
# begins with random links instead of rabitqlib's own seed; 119, 20.0 and 56 with 400 from random links.
SYMQG_SETTINGS = {"degree": 32, "ef_construction": 300}
# What a coarse index may hold where no limit was stated, in bytes of the rows as float32: SymphonyQG takes over twice
# as much over whole rows, and fits over prefixes of up to (5 d - 384) / 8 dims. On 100,000 x 1,536, us a query in batch
# at recall .95 and .987: 115 and 190 over whole rows; 53 and 129 over a prefix of 256, in a fifth of the memory.
HELD_SHARE = 1.25
# Of the machine's memory, what a coarse index may take where no limit was stated: building it takes as much again.
MACHINE_SHARE = 0.4

# Families that search on a GPU, in the order in which they are offered there. Not measured on one yet: bins first, as
# they hold under filters, need no training and no library besides torch, and cost what reading the prefixes does.
ON_GPU: tuple[str, ...] = ("torch-bins", "faiss-cagra", "faiss-gpu-ivf", "faiss-gpu-flat")
GPU_SHARE = 0.5  # of the memory that is free on the GPU: products, survivors and a build's second copy need the rest


@dataclass(frozen=True)
class FamilyChoice:
    """One way to index the rows: a family's `name`, its `settings`, the width it is over, and its bytes once built."""

    name: str
    settings: Mapping[str, int]
    dim: int
    estimated_bytes: int


def hnsw_settings(n: int) -> dict[str, int]:
    """Degree and build effort of a graph over `n` rows."""
    fitting = (settings for rows, *settings in HNSW_SETTINGS if n <= rows)
    degree, ef_construction = next(fitting, LARGE_HNSW_SETTINGS)
    return {"degree": degree, "ef_construction": ef_construction}


def choose(
    n: int,
    dim: int,
    memory_bytes: int | None = None,
    full: int | None = None,
    widths: Sequence[int] = (),
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> list[FamilyChoice]:
    """The coarse indexes that suit `n` rows and fit, the likeliest to be quick first.

    Args:
        n: Number of rows.
        dim: Width of the prefix.
        memory_bytes: Bytes that the coarse index may hold; None: HELD_SHARE of the rows as float32.
        full: The full width of those rows.
        widths: Of prefixes, or whole rows, over which SymphonyQG is considered too, the best first.
        device: Where the vectors lie; on a GPU the families that search there come first.

    Raises:
        CoarseIndexError: `n` or `dim` is below 1, or nothing fits; says the least that is needed.
    """
    if n < 1 or dim < 1:
        raise CoarseIndexError(f"{n} rows of {dim} dimensions; a coarse index needs at least 1 of each")
    on_gpu = gpu_candidates(n, dim, free_bytes(device)) if device.type == "cuda" else []
    candidates = [*on_gpu, *_candidates(n, dim)]
    fitting = [c for c in candidates if memory_bytes is None or c.estimated_bytes <= memory_bytes]
    if not fitting:
        least = min(candidates, key=lambda choice: choice.estimated_bytes)
        raise CoarseIndexError(
            f"no coarse index over {n} rows of {dim} dimensions fits in {memory_bytes} bytes; the smallest, "
            f"{least.name}, needs {least.estimated_bytes}: allow more memory, or index a shorter prefix"
        )
    held = min(HELD_SHARE * 4 * n * (full or dim), MACHINE_SHARE * machine_bytes())
    room = held if memory_bytes is None else memory_bytes
    return [*(graph for graph in graphs(n, widths) if graph.estimated_bytes <= room), *fitting]


def graphs(n: int, widths: Sequence[int]) -> list[FamilyChoice]:
    """SymphonyQG over each of some widths, where it is installed and so many rows are worth a graph."""
    if n <= FLAT_ROWS or not symqg_installed():
        return []
    settings = SymqgIndex.complete_settings(SYMQG_SETTINGS)
    return [
        FamilyChoice(SymqgIndex.name, settings, width, SymqgIndex.estimate_nbytes(n, width, settings))
        for width in widths
    ]


def _candidates(n: int, dim: int) -> list[FamilyChoice]:
    graph, inverted = hnsw_settings(n), {"nlist": cells(n)}
    settings: dict[str, dict[str, int]] = {"hnsw-sq8": graph, "ivf-sq8": inverted}
    if n <= FLAT_ROWS:
        settings = {"flat": {}, **settings}
    if dim % PQ_DIMS == 0:
        settings["ivf-pq"] = inverted
    return _choices(settings, n, dim)


def gpu_candidates(n: int, dim: int, free: int) -> list[FamilyChoice]:
    """The families that search on a GPU of which `free` bytes are free: those that can be used here and fit."""
    usable = {name: {"nlist": cells(n)} if name == "faiss-gpu-ivf" else {} for name in ON_GPU}
    usable = {name: settings for name, settings in usable.items() if family(name).missing() is None}
    return [choice for choice in _choices(usable, n, dim) if choice.estimated_bytes <= GPU_SHARE * free]


def _choices(settings: Mapping[str, Mapping[str, int]], n: int, dim: int) -> list[FamilyChoice]:
    return [
        FamilyChoice(name, chosen, dim, family(name).estimate_nbytes(n, dim, chosen))
        for name, chosen in settings.items()
    ]
