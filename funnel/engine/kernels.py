"""GPU kernels, compiled by Triton when they are first run. Imported where Triton is installed, and only then."""

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def dots(  # type: ignore[no-untyped-def]  # its arguments are pointers and numbers
    matrix,
    scales,
    queries,
    rows,
    partial,
    result,
    size,
    row_stride,
    query_stride,
    start,
    WIDTH: tl.constexpr,  # noqa: N803
    SCALED: tl.constexpr,  # noqa: N803
    ADDED: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    DIMS: tl.constexpr,  # noqa: N803
):
    """One program for one query and `ROWS` of its candidates; see `funnel.engine.rerank`."""
    query = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = place < size
    row = tl.load(rows + query * size + place, mask=inside, other=0)
    total = tl.zeros([ROWS], dtype=tl.float32)
    for first in range(0, WIDTH, DIMS):
        dims = first + tl.arange(0, DIMS)
        asked = tl.load(queries + query * query_stride + start + dims, mask=dims < WIDTH, other=0.0)
        wanted = inside[:, None] & (dims < WIDTH)[None, :]
        stored = tl.load(matrix + row[:, None] * row_stride + (start + dims)[None, :], mask=wanted, other=0)
        total += tl.sum(stored.to(tl.float32) * asked[None, :], axis=1)
    if SCALED:
        total *= tl.load(scales + row, mask=inside, other=0.0)
    if ADDED:
        total += tl.load(partial + query * size + place, mask=inside, other=0.0)
    tl.store(result + query * size + place, total, mask=inside)
