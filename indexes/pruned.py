"""Exact search that looks at full width only at rows which a prefix cannot rule out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from indexes._prefixcodes import Float32Codes, Int8Codes, PrefixCodes, gamma, int8_products_are_exact, tail_norms
from indexes._survivors import BLOCK_ROWS, TILE_QUERIES, KeptCodes, PreparedQueries, Reader, Survivors, survivors
from indexes.base import Float32Array, Int64Array
from indexes.exact import exact_search
from indexes.forks import free_in_children
from indexes.vectors import SMALL_BYTES, VectorStore

__all__ = ["PrunedSearch", "Pruning"]

Spread: TypeAlias = Callable[[Callable[[range], None], Sequence[range]], None]

# Rows spread evenly over the store that a call is judged on before it is run: shares to .001, for 1 % of the work.
SAMPLED = 1_024
# A few queries make small products: larger blocks then save calls, and prefixes alone are read.
FEW_QUERIES, BLOCK_ROWS_FEW = 4, 8_192
# Products at a time where codes are kept: 1 MB, and no more rows than that would be for 4 queries.
KEPT_PRODUCTS, KEPT_ROWS = 262_144, 65_536
TAILS_AT_A_TIME = 65_536
FEWEST_ROWS_A_RESULT = 64  # more results of so few rows: most rows would have to be scored
PIECES = 4  # a piece of rows for a worker is the n-th part of its share: the last one to finish waits less
# Below this many queries float32 is faster: coding rows as int8 costs more than it saves.
FEWEST_INT8 = 16
# Nanoseconds on one core, measured on 200,000 x 384 float16 rows (AMD EPYC, AVX-512 with VNNI): to read one value of a
# row, to code one, to multiply one, to score one surviving row at full width; and flat search, per value of a row.
READ_NS, READ_NARROW_NS = 0.15, 0.4  # whole rows; prefixes alone
CODE_NS = {torch.float32: 0.0, torch.int8: 0.35}
MULTIPLY_NS = {torch.float32: 0.025, torch.int8: 0.006}
SURVIVOR_NS, GATHERED_NS = 60.0, 300.0  # in a row that was read whole; in one that has to be fetched
KEPT_NS = 0.08  # to read one kept code from memory
# Queries of a call from which on the rows are read whole: what survives is then at hand. On 200,000 x 384, us a query,
# from memory and read: 1,127 and 1,673 for 32 queries, 929 and 838 for 64, 684 and 398 for 256.
MOST_FROM_MEMORY = 48
FLAT_READ_NS, FLAT_MULTIPLY_NS = 0.3, 0.022
# Pruning must promise to save a tenth, or flat search is run: the estimate is no better than that.
WORTH = 0.9
JUDGED_QUERIES = 256  # of a call: spread over it
ROWS_ASKED = 256  # stored rows that stand for queries where a width is chosen for good
RESTED_CALLS = 16  # calls after one that was not worth it which are not judged: judging takes up to a tenth of flat


@dataclass(frozen=True, slots=True)
class Pruning:
    """How a call is answered: by a pass over prefixes of `width` dims, coded as `codes`.

    share: of the rows, left to be scored at full width; estimated on a sample of rows. kept: the codes of all rows are
    held in memory.
    """

    width: int
    codes: str
    share: float
    kept: bool = False

    def __str__(self) -> str:
        codes = f"{self.codes} in memory" if self.kept else self.codes
        return f"pruned at {self.width} dims ({codes}), {self.share:.2%} of rows scored at full width"


@dataclass(frozen=True)
class _Sample:
    """Evenly spread rows: prefixes float32 [s, widest], and tail norms [s] for every width."""

    prefixes: Float32Array
    tails: dict[int, Float32Array]


@dataclass
class _Made:
    """What is made on first use, shared by searches over the same rows. width: of the codes to keep; 0: not known."""

    kept: KeptCodes | None = None
    sample: _Sample | None = None
    width: int = 0
    largest_norm: float = 0.0


class PrunedSearch:
    """The k best rows of each query, as flat search finds them.

    A score tau that k rows are known to reach rules out every row whose upper bound (`indexes._prefixcodes`) lies
    below it. The others are scored in full in float32, and the best k of them are the best k of all: a row that is
    left out has, in exact arithmetic, a score below that of k rows that are not.

    Each call is first judged on a sample of rows. Where the bounds rule out too little, flat search answers.

    Args:
        store: The vectors.
        norms: float32 [n, len(ladder)], the norm of each prefix of each row; may be mapped.
        ladder: Its widths, rising; the last is d.
        reached: (queries, k) -> float32 [q], a float32 score that k rows of the store reach at full width, -inf where
            none is known; or None, if it cannot say for such a k. The higher the better.
        spread: (function, pieces) -> None, calls the function for every piece, on one thread or several.
        workers: How many threads `spread` uses.
        release: Give the mapped pages back after each pass.
        keep: Hold int8 codes of one width in memory once a call would gain by them: width + 4 bytes a row.
    """

    def __init__(
        self,
        store: VectorStore,
        norms: Float32Array,
        ladder: Sequence[int],
        reached: Callable[[Float32Array, int], Float32Array | None],
        spread: Spread | None = None,
        workers: int = 1,
        release: bool = False,
        keep: bool = False,
    ) -> None:
        self._store = store
        self._norms = norms
        self._ladder = tuple(ladder)
        self._reached = reached
        self._spread = spread or _one_by_one
        self._workers = workers
        self._release = release
        self._keep = keep and int8_products_are_exact()
        self._made = _Made()
        self._lock = free_in_children(Lock())
        self._codes: dict[tuple[int, torch.dtype], PrefixCodes] = {}
        self._rest: dict[bool, int] = {}
        self._live: npt.NDArray[np.bool_] | None = None

    def among(
        self,
        live: npt.NDArray[np.bool_] | None,
        reached: Callable[[Float32Array, int], Float32Array | None],
    ) -> PrunedSearch:
        """The same search over the live rows alone, bool [n]; it shares what was made. reached: of live rows."""
        other = copy(self)
        other._live, other._reached, other._rest = live, reached, {}
        return other

    @property
    def resident_bytes(self) -> int:
        """Bytes held from the first call on: the sample of rows, and the codes that are kept."""
        sample = 0 if self._made.sample is None else self._made.sample.prefixes.nbytes
        return sample + (0 if self._made.kept is None else self._made.kept.rows.nbytes)

    @staticmethod
    def estimate_bytes(n: int, ladder: Sequence[int]) -> int:
        """What `resident_bytes` will come to for n rows where no codes are kept."""
        small = n * ladder[-1] * 4 <= SMALL_BYTES
        return 0 if small or len(ladder) < 2 else 4 * SAMPLED * ladder[-2]

    def __call__(self, queries: Float32Array, k: int) -> tuple[Float32Array, Int64Array]:
        """Scores float32 [q, k], falling, and rows int64 [q, k]. queries: float32 [q, d], C-contiguous."""
        few = len(queries) <= FEW_QUERIES
        if self._rest.get(few, 0) > 0:
            self._rest[few] -= 1
            return exact_search(self._store, queries, k, self._release, self._live)
        reached = self._reached_by(queries, k)
        choice = None if reached is None else self._choose(queries, k, reached)
        if choice is None:
            self._rest[few] = RESTED_CALLS
            return exact_search(self._store, queries, k, self._release, self._live)
        assert reached is not None
        return self._run(queries, k, reached, choice)

    def choose(self, queries: Float32Array, k: int) -> Pruning | None:
        """How a call with these queries is answered; None: by flat search."""
        reached = self._reached_by(queries, k)
        return None if reached is None else self._choose(queries, k, reached)

    def _reached_by(self, queries: Float32Array, k: int) -> npt.NDArray[np.float64] | None:
        """A lower bound of the k-th true score of each query: what k rows reach, less the rounding of their scores."""
        store = self._store
        if store.device.type != "cpu" or store.small or len(self._ladder) < 2 or k > store.n // FEWEST_ROWS_A_RESULT:
            return None
        found = self._reached(queries, k)
        if found is None:
            return None
        if self._made.sample is None:
            self._prepare()
        norms = np.linalg.norm(queries.astype(np.float64), axis=1)
        lower: npt.NDArray[np.float64] = found - 2 * gamma(store.dim) * norms * self._made.largest_norm
        return lower

    def _prepare(self) -> None:
        with self._lock:
            if self._made.sample is not None:
                return
            store = self._store
            # Tails are rounded up: the norm of a row with such a tail is above the row's own by less than this.
            self._made.largest_norm = float(self._norms[:, -1].max()) * (1 + 4 * gamma(store.dim + 8))
            rows = np.linspace(0, store.n - 1, SAMPLED).astype(np.int64)
            widest = self._ladder[-2]
            prefixes = store.gather(torch.from_numpy(rows), 0, widest).float().numpy()
            tails = {}
            for column, width in enumerate(self._ladder[:-1]):
                tails[width] = tail_norms(self._norms[rows, column], self._norms[rows, -1], store.dim)
            self._made.sample = _Sample(prefixes, tails)

    def _choose(self, queries: Float32Array, k: int, tau: npt.NDArray[np.float64]) -> Pruning | None:
        """The way that costs least by what the sample shows, unless flat search costs about as much."""
        count, dim = len(queries), self._store.dim
        some = np.linspace(0, count - 1, min(count, JUDGED_QUERIES)).astype(np.int64)
        kind = torch.int8 if count >= FEWEST_INT8 and int8_products_are_exact() else torch.float32
        shares: dict[tuple[int, torch.dtype], float] = {}
        few, kept = count <= FEW_QUERIES, self._made.kept if count <= MOST_FROM_MEMORY else None
        widths = self._ladder[:-1]
        if kept is not None and few:  # nothing else would be cheaper, and judging it would take as long as the search
            kind, widths = torch.int8, (kept.codes.width,)

        keep = self._keep and count <= MOST_FROM_MEMORY
        to_keep = self._width_to_keep(k) if keep and kept is None else 0

        def judge(_: range) -> None:
            for each in {kind, torch.int8} if keep else {kind}:
                shares.update(self._shares(queries[some], tau[some], each, widths))

        # On a worker, which is a single thread: numpy's own threads wait for each other where cores are busy.
        self._spread(judge, [range(1)])
        least, best = WORTH * dim * (FLAT_READ_NS / count + FLAT_MULTIPLY_NS), None
        for way in self._ways(shares, kind, few, kept, to_keep):
            multiply = MULTIPLY_NS[getattr(torch, way.codes)] * way.width
            if way.kept:
                cost = KEPT_NS * way.width / count + multiply + way.share * GATHERED_NS
            else:
                read = (READ_NARROW_NS * way.width if few else READ_NS * dim) + CODE_NS[kind] * way.width
                cost = read / count + multiply + way.share * (GATHERED_NS if few else SURVIVOR_NS)
            if cost < least:
                least, best = cost, way
        return best

    def _ways(
        self,
        shares: dict[tuple[int, torch.dtype], float],
        kind: torch.dtype,
        few: bool,
        kept: KeptCodes | None,
        to_keep: int,
    ) -> list[Pruning]:
        """The ways there are: prefixes of any width read anew, and codes of one width from memory."""
        name = str(kind).removeprefix("torch.")
        ways = []
        if kept is None or not few:
            ways = [Pruning(width, name, share) for (width, each), share in shares.items() if each == kind]
        width = kept.codes.width if kept is not None else to_keep
        return [*ways, Pruning(width, "int8", shares[width, torch.int8], True)] if width else ways

    def _width_to_keep(self, k: int) -> int:
        """The width of the codes that are to serve small calls, and larger ones too, which read it once for all.

        Judged on rows of the store, which stand for queries: the first call may be a single one, and what it leaves of
        the sample says little (128 dims instead of 192 by chance, at 8.2 ms instead of 5.5 a query).
        """
        if not self._made.width:
            store = self._store
            numbers = torch.from_numpy(np.linspace(0, store.n - 1, ROWS_ASKED).astype(np.int64))
            rows = store.gather(numbers, 0, store.dim).float().numpy()
            tau = self._reached_by(rows, k + 1)  # each finds itself as well
            if tau is None:
                return 0
            shares = self._shares(rows, tau, torch.int8, self._ladder[:-1])
            # A share of zero only says that none of the sample was left.
            costs = {
                width: MULTIPLY_NS[torch.int8] * width + max(share, 1 / SAMPLED) * GATHERED_NS
                for (width, _), share in shares.items()
            }
            self._made.width = min(costs, key=costs.__getitem__)
        return self._made.width

    def _shares(
        self, queries: Float32Array, tau: npt.NDArray[np.float64], kind: torch.dtype, widths: Sequence[int]
    ) -> dict[tuple[int, torch.dtype], float]:
        """The share of sampled rows that each width leaves, over all queries."""
        sample = self._made.sample
        assert sample is not None
        asked, prefixes = torch.from_numpy(queries), torch.from_numpy(sample.prefixes)
        dots, start, shares = torch.zeros((len(queries), len(prefixes))), 0, {}
        for width in widths:
            dots.addmm_(asked[:, start:width], prefixes[:, start:width].T)
            start, codes = width, self._coded(width, kind)
            coded = codes.queries(queries)
            lowest = torch.from_numpy(tau - coded.error - coded.length * codes.typical).float()
            tails = torch.outer(coded.tails.float(), torch.from_numpy(sample.tails[width]))
            shares[width, kind] = float((dots + tails >= lowest[:, None]).float().mean())
        return shares

    def _coded(self, width: int, kind: torch.dtype) -> PrefixCodes:
        codes = self._codes.get((width, kind))
        if codes is None:
            with self._lock:
                codes = self._codes[width, kind] = self._make(width, kind)
        return codes

    def _make(self, width: int, kind: torch.dtype) -> PrefixCodes:
        store, sample = self._store, self._made.sample
        assert sample is not None
        if kind == torch.float32:
            return Float32Codes(width, self._made.largest_norm)
        prefixes = sample.prefixes[:, :width]
        tail = max(
            float(self._tails_of(width, i, i + TAILS_AT_A_TIME).max()) for i in range(0, store.n, TAILS_AT_A_TIME)
        )
        codes = Int8Codes(
            width, self._made.largest_norm, float(np.abs(prefixes).max()), tail, -(-store.n // BLOCK_ROWS)
        )
        coded = torch.empty((len(prefixes), codes.columns), dtype=codes.dtype)
        rows = codes.rows(torch.from_numpy(prefixes), torch.from_numpy(sample.tails[width]), -1, coded)
        codes.typical = rows.residual
        return codes

    def _tails_of(self, width: int, start: int, stop: int) -> Float32Array:
        """Upper bounds of the tail norms of rows `start` to `stop`."""
        norms = self._norms[start:stop]
        return tail_norms(norms[:, self._ladder.index(width)], norms[:, -1], self._store.dim)

    def _run(
        self, queries: Float32Array, k: int, tau: npt.NDArray[np.float64], choice: Pruning
    ) -> tuple[Float32Array, Int64Array]:
        store, count = self._store, len(queries)
        kept = self._keep_codes(choice.width) if choice.kept else None
        codes = kept.codes if kept is not None else self._coded(choice.width, getattr(torch, choice.codes))
        asked = PreparedQueries(queries, codes.queries(queries), tau)
        # A row whose true score is tau may come out lower by what rounding its score takes.
        rounding = gamma(store.dim) * np.linalg.norm(queries.astype(np.float64), axis=1) * self._made.largest_norm
        found = Survivors(count, k, (tau - rounding).astype(np.float32), self._live)
        few = count <= FEW_QUERIES
        size = BLOCK_ROWS_FEW if few else BLOCK_ROWS
        if kept is not None:
            size = min(KEPT_ROWS, max(BLOCK_ROWS, KEPT_PRODUCTS // min(count, TILE_QUERIES)))
            size = min(size, -(-store.n // (2 * self._workers)))  # something for every worker

        def piece(starts: range) -> None:
            with torch.inference_mode():
                source = kept or Reader(store, codes, partial(self._tails_of, codes.width), size, few)
                survivors(store, source, codes, asked, found, starts)

        self._spread(piece, self._pieces(size))
        if self._release:
            store.release()
        return found.best()

    def _pieces(self, size: int) -> list[range]:
        """Blocks of `size` rows, in as many runs as keep every worker busy to the end."""
        n = self._store.n
        step = size * max(1, -(-n // (size * self._workers * PIECES)))
        return [range(start, min(start + step, n), size) for start in range(0, n, step)]

    def _keep_codes(self, width: int) -> KeptCodes:
        """The codes of all rows at this width, made on first use; from then on no other width is kept."""
        with self._lock:
            if self._made.kept is None:
                store = self._store
                codes = self._make(width, torch.int8)
                assert isinstance(codes, Int8Codes)
                rows = torch.empty((store.n, codes.columns), dtype=torch.int8)
                residuals = []

                def piece(starts: range) -> None:
                    source = Reader(store, codes, partial(self._tails_of, width), BLOCK_ROWS, False)
                    for start in starts:
                        stop = min(start + BLOCK_ROWS, store.n)
                        coded, _ = source(start, stop)
                        rows[start:stop] = coded.codes
                        residuals.append(coded.residual)

                self._spread(piece, self._pieces(BLOCK_ROWS))
                self._codes[width, torch.int8] = codes
                self._made.kept = KeptCodes(codes, rows, max(residuals))
        return self._made.kept


def _one_by_one(function: Callable[[Any], None], pieces: Sequence[Any]) -> None:
    for piece in pieces:
        function(piece)
