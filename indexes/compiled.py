"""Loops that numba compiles: rows that lie anywhere are gathered, widened and multiplied in one pass, on one thread.

Imported where numba is installed and the processor widens float16, as all do since 2013; ImportError elsewhere. What
was compiled is kept beside this file, or where numba keeps such things for the user; where neither can be written to,
each process compiles for itself.
"""

import platform
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

# Rows whose cache lines are asked for before they are needed: with one row ahead 4 to 7 GB a second were read at 384 to
# 1,536 dims of float16, with four 10 to 11, with more no more.
AHEAD = 4
LINE_BYTES = 64
# Sums in another order, and a multiplication with an addition in one step; not that there is no infinity and no NaN.
LOOSE = {"reassoc", "contract", "nsz", "arcp"}


def compiled(function: Callable[..., None]) -> Any:
    """The function, compiled when it is first called with arrays of some types."""
    try:
        return njit(cache=True, nogil=True, error_model="numpy", fastmath=LOOSE)(function)
    except RuntimeError:  # there is nowhere to keep it
        return njit(nogil=True, error_model="numpy", fastmath=LOOSE)(function)


FEATURES = (config.CPU_FEATURES or binding.get_host_cpu_features().flatten()).split(",")
if platform.machine().lower() not in ("aarch64", "arm64") and "+f16c" not in FEATURES:
    raise ImportError("this processor does not widen float16: LLVM would call a function that is not there")


@intrinsic  # type: ignore[untyped-decorator]
def widened(_: Any, cell: Any) -> Any:
    """A cell as float32: uint16 holds the bits of a float16."""

    def generate(_: Any, builder: Any, __: Any, cells: Any) -> Any:
        if cell == types.uint16:
            return builder.fpext(builder.bitcast(cells[0], ir.HalfType()), ir.FloatType())
        return cells[0] if cell == types.float32 else builder.sitofp(cells[0], ir.FloatType())

    return (types.float32(cell), generate) if cell in (types.uint16, types.float32, types.int8) else None


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(_: Any, matrix: Any, __: Any, ___: Any) -> Any:
    """Ask for the cache line of a cell of a matrix, by row and column; nothing happens where there is none."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kind = signature.args[0]
        array = context.make_array(kind)(context, builder, given[0])
        shape, strides = (cgutils.unpack_tuple(builder, part, 2) for part in (array.shape, array.strides))
        cell = cgutils.get_item_pointer2(context, builder, array.data, shape, strides, kind.layout, given[1:], False)
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        takes = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        ask = cgutils.get_or_insert_function(builder.module, takes, "llvm.prefetch.p0")
        builder.call(ask, [builder.bitcast(cell, byte), number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(matrix, types.int64, types.int64), generate


@compiled
def _ask_for(matrix: Any, row: int, width: int) -> None:
    for column in range(0, width, LINE_BYTES // matrix.itemsize):
        prefetch(matrix, row, column)


@compiled
def _one(matrix: Any, query: Any, rows: Any, found: Any) -> None:
    """Products of one query [w] with the first w columns of rows [s]: float32 [s], -inf for a row of -1."""
    count, width = len(rows), len(query)
    for place in range(min(AHEAD, count)):
        _ask_for(matrix, rows[place], width)
    for place in range(count):
        if place + AHEAD < count:
            _ask_for(matrix, rows[place + AHEAD], width)
        if rows[place] < 0:
            found[place] = -np.inf
            continue
        row, total = matrix[rows[place], :width], np.float32(0.0)
        for column in range(width):
            total += widened(row[column]) * query[column]
        found[place] = total


@compiled
def _largest(scores: Any, best: Any, places: Any) -> None:
    """Fill best and places [k] from scores [s], s >= k >= 1: falling, the first of equals first, and NaN before all."""
    last = len(best) - 1
    for place in range(len(scores)):
        score = scores[place]
        if place > last and score <= best[last]:
            continue
        at = min(place, last)
        while at > 0 and (best[at - 1] < score or score != score):
            best[at], places[at] = best[at - 1], places[at - 1]
            at -= 1
        best[at], places[at] = score, place


@compiled
def dots(matrix: Any, queries: Any, rows: Any, width: int, found: Any) -> None:
    """Fill found, float32 [n, s], with the products over the first `width` dims; -inf where a row is -1.

    matrix: [r, d] of float32, int8, or uint16 that holds the bits of float16; queries: float32 [n, d]; rows: int64
    [n, s].
    """
    for number in range(len(rows)):
        _one(matrix, queries[number, :width], rows[number], found[number])


@compiled
def rerank(
    matrix: Any, queries: Any, rows: Any, width: int, weights: Any, best: Any, best_rows: Any, places: Any
) -> None:
    """Fill best, float32 [n, k], with the k largest of `dots`, best_rows with theirs, places with where these stood.

    weights: float32 [r], by which the product of each row is multiplied first, or [0] for none. k: from 1 to s, or 0
    where s is.
    """
    some = np.empty(rows.shape[1], np.float32)
    for number in range(len(rows)):
        _one(matrix, queries[number, :width], rows[number], some)
        if len(weights):
            for place in range(len(some)):
                if rows[number, place] >= 0:
                    some[place] *= weights[rows[number, place]]
        _largest(some, best[number], places[number])
        for place in range(places.shape[1]):
            best_rows[number, place] = rows[number, places[number, place]]


@compiled
def products(matrix: Any, query: Any, found: Any) -> None:
    """Fill found, float32 [r], with the products of one query [d] with every row of a matrix [r, d], in order.

    Four rows at a time, so that none waits for its own sum: 19 us for 29 at 256 rows of 1,536 dims of float16.
    """
    last = len(matrix) - 1
    for first in range(0, len(matrix), 4):
        second, third, fourth = min(first + 1, last), min(first + 2, last), min(first + 3, last)
        rows = matrix[first], matrix[second], matrix[third], matrix[fourth]
        total = other = more = rest = np.float32(0.0)
        for column in range(len(query)):
            value = query[column]
            total += widened(rows[0][column]) * value
            other += widened(rows[1][column]) * value
            more += widened(rows[2][column]) * value
            rest += widened(rows[3][column]) * value
        found[first], found[second], found[third], found[fourth] = total, other, more, rest
