"""Codes of prefixes whose products bound full-width inner products from above, rounding and quantisation included.

For a row x and a query q, split at m dims, Cauchy-Schwarz gives

    <q, x>  <=  <q[:m], x[:m]> + ||q[m:]|| ||x[m:]||                                                       (1)

so that one product of width m over all rows tells which rows cannot reach a score tau. Tail norms are coded as further
dims, so that the product is the whole right side and a row survives where it exceeds one number a query, the *limit*.

Rounding. u = 2^-24 is the unit roundoff of float32, and a sum of n products in float32, in any order and with or
without fused multiply-add, is off by at most gamma_n sum |a_i b_i| with gamma_n = n u / (1 - n u) (Higham, Accuracy
and Stability of Numerical Algorithms, 2nd ed., section 3.1), hence by gamma_n ||a|| ||b||. Limits are worked out in
float64, whose own error a margin covers.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from indexes.base import Float32Array

Float64Array = npt.NDArray[np.float64]

UNIT_ROUNDOFF = 2.0**-24  # float32, round to nearest
LARGEST_CODE = 127  # int8, symmetric
# Dims that repeat the tail's code, so that a query can weigh it by up to 4 x 127.
TAIL_DIMS = 4
# Query scales leave room for rounding up a weight of at most TAIL_DIMS * LARGEST_CODE = 508.
LARGEST_TAIL_WEIGHT = 500.0
# Covers float64 rounding of limits (2e-16 relative) and float32 underflow (1e-38 a product) many times over.
MARGIN = 1e-9
SMALLEST = 1e-9  # of a step: rows or queries of zeros


def gamma(n: int) -> float:
    """Higham's gamma_n for float32: the relative error of a sum of n products."""
    return n * UNIT_ROUNDOFF / (1 - n * UNIT_ROUNDOFF)


def tail_norms(prefix: Float32Array, whole: Float32Array, dim: int) -> Float32Array:
    """Upper bounds of ||x[m:]|| from stored norms of x[:m] and of x: float32 [n] each.

    Stored norms are square roots of float32 sums over at most `dim` squares, so that the square of one is off by at
    most gamma_(dim + 8) of itself. What that leaves open is added, and 8 u more for the arithmetic here: a tail of
    zero comes out as up to .007 at 384 dims.
    """
    whole2, prefix2 = whole * whole, prefix * prefix
    open_ = (whole2 + prefix2) * np.float32(gamma(dim + 16))
    tails: Float32Array = np.sqrt(np.maximum(whole2 - prefix2, np.float32(0)) + open_)
    tails *= np.float32(1 + 8 * UNIT_ROUNDOFF)
    return tails


@dataclass(frozen=True)
class QueryCodes:
    """Coded queries.

    codes: [q, columns]. tails: norms of what the prefix leaves out, float32 [q], rounded up. scale: what one unit of a
    product is worth, [q]. error: what the codes of a query leave open, [q]. length: norm of a coded prefix, by which
    the error of a row's code is multiplied, [q].
    """

    codes: torch.Tensor
    tails: torch.Tensor
    scale: Float64Array
    error: Float64Array
    length: Float64Array


@dataclass(frozen=True)
class RowCodes:
    """Coded rows.

    codes: [r, columns]. tails: float32 [r], not below tail norms. residual: the largest error of a row's code.
    """

    codes: torch.Tensor
    tails: torch.Tensor
    residual: float


class Float32Codes:
    """Prefix and tail norm as they are, in float32.

    The product is a sum of width + 1 products of two vectors of norms at most Q, that of the query with its tail, and
    R, which bounds the norms of rows with theirs: it is off by at most gamma_(width + 2) Q R.
    """

    product = torch.float32

    def __init__(self, width: int, largest_norm: float) -> None:
        self.width, self._largest_norm = width, largest_norm

    def rows(self, prefixes: torch.Tensor, tails: torch.Tensor, _start: int) -> RowCodes:
        """See `Int8Codes.rows`."""
        return RowCodes(prefixes, tails, 0.0)

    def queries(self, prefixes: Float32Array, tails: Float64Array) -> QueryCodes:
        """Codes of the prefixes float32 [q, width] of queries whose tails have these norms [q]."""
        codes = np.ascontiguousarray(prefixes)
        tails = tails * (1 + 4 * UNIT_ROUNDOFF)  # rounded to float32, still not below
        length = np.hypot(norms_of(codes), tails)
        error = gamma(self.width + 2) * length * self._largest_norm
        coded = torch.from_numpy(codes)
        return QueryCodes(coded, torch.from_numpy(tails.astype(np.float32)), np.ones(len(codes)), error, length)

    def multiply(self, queries: QueryCodes, part: slice, rows: RowCodes, out: torch.Tensor) -> None:
        """Products of some queries and all rows into out [q, r]."""
        codes, tails = queries.codes[part], queries.tails[part]
        if len(codes) == 1:
            torch.addmv(rows.tails, rows.codes, codes[0], beta=float(tails[0]), out=out[0])
        else:
            torch.mm(codes, rows.codes.T, out=out)
            out.addr_(tails, rows.tails)

    def limits(self, queries: QueryCodes, tau: Float64Array, residual: float) -> npt.NDArray[np.generic]:
        """See `Int8Codes.limits`."""
        limit = (tau - queries.error - queries.length * residual - MARGIN).astype(np.float32)
        return np.nextafter(limit, np.float32(-np.inf))


class Int8Codes:
    """Prefixes as int8 with one step for all rows and one for each query; products are exact in int32.

    With x[:m] = s c + e and q[:m] = t k + f, where c and k are whole numbers in [-127, 127],

        <q[:m], x[:m]> = s t <k, c> + <t k, e> + <f, x[:m]>  <=  s t <k, c> + t ||k|| ||e|| + ||f|| ||x[:m]||      (2)

    ||e|| is measured once for each block of rows (its largest), ||f|| for each query, and ||x[:m]|| <= `largest_norm`.
    The tail of a row is coded as T = ceil(||x[m:]|| / sigma) and that of a query as whole numbers K_j with
    s t sum K_j >= sigma ||q[m:]||, so that s t sum_j T K_j is not below the tail term of (1).

    ||e|| in float32: y = fl(x / s) and z = fl(y - c) give ||x / s - c|| <= ||z|| (1 + 2u) + 2u ||y||, and the
    computed norm of z is off by a factor of at most 1 + gamma_(m + 2).
    """

    product = torch.int32

    def __init__(self, width: int, largest_norm: float, largest_value: float, largest_tail: float) -> None:
        self.width, self._largest_norm = width, largest_norm
        # The inverses are float32, as rows are multiplied by them, and the steps are defined as what they invert.
        self._per_step = float(np.float32(LARGEST_CODE / max(largest_value, SMALLEST)))
        self._step = 1.0 / self._per_step
        self._per_tail = float(np.float32((LARGEST_CODE - 0.5) / max(largest_tail, SMALLEST)))
        self._tail_step = 1.0 / self._per_tail
        self._residuals: dict[tuple[int, int], float] = {}  # by first row and number of rows, once measured

    def rows(self, prefixes: torch.Tensor, tails: torch.Tensor, start: int) -> RowCodes:
        """Codes of the rows from `start` on: float32 [r, width] and tails float32 [r], upper bounds of tail norms."""
        scaled = prefixes * self._per_step
        codes = torch.round(scaled).clamp_(-LARGEST_CODE, LARGEST_CODE)
        out = torch.empty((len(codes), self.width + TAIL_DIMS), dtype=torch.int8)
        out[:, : self.width] = codes
        # The factor covers the rounding of the product: 2^-20 is 16 times u.
        out[:, self.width :] = torch.ceil(tails * (self._per_tail * (1 + 2.0**-20)))[:, None]
        residual = self._residuals.get((start, len(out)))
        if residual is None:
            left = torch.linalg.vector_norm(scaled.sub_(codes), dim=1).max().item()
            residual = self._step * left * (1 + gamma(self.width + 8)) + 4 * UNIT_ROUNDOFF * self._largest_norm
            self._residuals[start, len(out)] = residual
        return RowCodes(out, tails, residual)

    def queries(self, prefixes: Float32Array, tails: Float64Array) -> QueryCodes:
        """Codes of the prefixes float32 [q, width] of queries whose tails have these norms [q]."""
        head, tails = prefixes.astype(np.float64), tails * (1 + MARGIN)
        weight = tails * self._tail_step / self._step
        scale = np.maximum(np.abs(head).max(axis=1) / LARGEST_CODE, weight / LARGEST_TAIL_WEIGHT)
        scale = np.maximum(scale, SMALLEST)  # a query of zeros
        codes = np.round(head / scale[:, None])
        error = norms_of(head - scale[:, None] * codes) * self._largest_norm
        coded = np.empty((len(head), self.width + TAIL_DIMS), dtype=np.int8)
        coded[:, : self.width] = codes
        weights = np.ceil(weight / scale * (1 + MARGIN)).astype(np.int64)
        coded[:, self.width :] = (weights[:, None] + np.arange(TAIL_DIMS)) // TAIL_DIMS
        length = scale * norms_of(codes)
        return QueryCodes(torch.from_numpy(coded), torch.from_numpy(tails), scale * self._step, error, length)

    def multiply(self, queries: QueryCodes, part: slice, rows: RowCodes, out: torch.Tensor) -> None:
        """Products of some queries and all rows into out [q, r]."""
        torch._int_mm(queries.codes[part], rows.codes.T, out=out)

    def limits(self, queries: QueryCodes, tau: Float64Array, residual: float) -> npt.NDArray[np.generic]:
        """[q]: every row whose true score is at least tau, float64 [q], has a product *above* the limit."""
        open_ = queries.error + queries.length * residual + MARGIN
        lowest, highest = np.iinfo(np.int32).min, np.iinfo(np.int32).max
        limit: npt.NDArray[np.generic] = np.clip(np.floor((tau - open_) / queries.scale) - 1, lowest, highest)
        return limit.astype(np.int32)


PrefixCodes: TypeAlias = Float32Codes | Int8Codes
"""A way to code prefixes of `width` dims with their tail norms. product: the type of products of codes."""


def norms_of(rows: npt.NDArray[Any]) -> Float64Array:
    """The length of each row, float64 [n]."""
    norms: Float64Array = np.linalg.norm(rows.astype(np.float64), axis=1)
    return norms


@lru_cache(maxsize=1)
def int8_products_are_exact() -> bool:
    """Whether this torch multiplies int8 matrices on this processor, with the same result as whole numbers.

    Instructions before VNNI add pairs of products in 16 bits, which saturate: the largest codes of either sign would
    show it.
    """
    generator = np.random.default_rng(0)
    for queries, rows, columns in ((1, 64, 132), (7, 129, 68), (64, 256, 196)):
        a = generator.choice(np.array([-127, 127, 126, -1], dtype=np.int8), (queries, columns))
        b = generator.choice(np.array([-127, 127, 125, 3], dtype=np.int8), (rows, columns))
        a[0], b[0], b[1] = 127, 127, -127
        try:
            found = torch._int_mm(torch.from_numpy(a), torch.from_numpy(b).T).numpy()
        except RuntimeError:
            return False
        if not np.array_equal(found, a.astype(np.int64) @ b.astype(np.int64).T):
            return False
    return True
