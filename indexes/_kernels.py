"""GPU kernels, compiled by Triton when they are first run. Imported where Triton is installed, and only then."""

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def binned(  # type: ignore[no-untyped-def]  # its arguments are pointers and numbers
    queries,
    rows,
    scores,
    places,
    n_queries,
    n_rows,
    bins,
    tiles,
    DIM: tl.constexpr,  # noqa: N803
    QUERIES: tl.constexpr,  # noqa: N803
    BINS: tl.constexpr,  # noqa: N803
    STEP: tl.constexpr,  # noqa: N803
):
    """One program for `QUERIES` queries and `BINS` bins of `tiles` rows each: products, and the best of every bin.

    Bin j of the program's has rows base + j, base + BINS + j, …: products are compared where they are, in registers.
    """
    query = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    asked = query < n_queries
    group = tl.program_id(1).to(tl.int64)
    bin_here = tl.arange(0, BINS)
    base = group * BINS * tiles
    best = tl.full([QUERIES, BINS], float("-inf"), dtype=tl.float32)
    where = tl.zeros([QUERIES, BINS], dtype=tl.int32)
    for tile in range(0, tiles):
        row = base + tile * BINS + bin_here
        total = tl.zeros([QUERIES, BINS], dtype=tl.float32)
        for first in range(0, DIM, STEP):
            dims = first + tl.arange(0, STEP)
            left = tl.load(
                queries + query[:, None] * DIM + dims[None, :], mask=asked[:, None] & (dims < DIM)[None, :], other=0.0
            )
            right = tl.load(
                rows + row[None, :] * DIM + dims[:, None],
                mask=(row < n_rows)[None, :] & (dims < DIM)[:, None],
                other=0.0,
            )
            total += tl.dot(left, right)
        total = tl.where((row < n_rows)[None, :], total, float("-inf"))
        higher = total > best
        best = tl.where(higher, total, best)
        where = tl.where(higher, tile, where)
    out = query[:, None].to(tl.int64) * bins + group * BINS + bin_here[None, :]
    tl.store(scores + out, best, mask=asked[:, None])
    tl.store(places + out, (base + where * BINS + bin_here[None, :]).to(tl.int32), mask=asked[:, None])
