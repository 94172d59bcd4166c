"""SymphonyQG: a graph whose links carry RaBitQ codes of the neighbours, through rabitqlib.

Gou et al. 2025, "SymphonyQG: Towards Symphonious Integration of Quantization and Graph for Approximate Nearest Neighbor
Search", SIGMOD, arXiv 2411.12229; rabitqlib.SymqgIndex. An optional backend: pip install 'funnel-retrieval[symqg]'.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from threading import Lock
from typing import IO, Any, ClassVar, TypeVar

import numpy as np

from indexes.base import (
    LARGEST_DEGREE,
    LARGEST_EF_CONSTRUCTION,
    Allowed,
    CoarseIndex,
    Float32Array,
    Int64Array,
    allowed_mask,
    check_prefixes,
    check_sample,
    rising,
)
from indexes.errors import CoarseIndexError, MissingBackendError
from indexes.exact import RunningTop
from indexes.hnsw import LONGEST_SHORTLIST
from indexes.hnsw import STEPS as SHORT_STEPS
from indexes.system import free_in_children, temporary_file, usable_cores

__all__ = ["SymqgIndex", "symqg_installed"]

DEGREE_STEP = 32  # rabitqlib: links are scanned in blocks of 32
SMALLEST_WIDTH = 64  # rabitqlib's rotation takes no fewer dims; narrower prefixes are padded with zeros
CODE_STEP = 32  # codes are padded to a multiple of so many bits
STORED_BITS = range(0, 9, 4)  # of the row itself; 0: float32
FACTOR_BYTES = 8  # two float32 beside each neighbour's code
LINK_BYTES = 4
FLOAT32_BYTES = 4
FOOTER_MAGIC = b"symqg\x01"  # the end of a file: footer as JSON, its length (4 bytes), this
FOOTER_LIMIT = 4_096
FOOTER_KEYS = {"dim", "degree", "ef_construction", "bits", "rows", "graph"}
GRAPH_HEAD = struct.Struct("<4QI")  # of rabitqlib's own file: rows, degree, width, padded width, where searches start
CODED_MAGIC = b"QTIBARGQ\x01\0\0\0"  # stands before it where the rows themselves are coded
# What rabitqlib writes besides the rows: its head, and a rotation and a range of each dimension, below 5 bytes a dim.
GRAPH_OVERHEAD, GRAPH_OVERHEAD_PER_DIM = 256, 16
ROTATIONS = 4  # signs of a coded dimension, a bit each, at the end of its file
# Asked for half as many rows as its ef, rabitqlib keeps a shorter list of what it found: .90 of the time on 30,000 x
# 384 at ef 32 to 128, and the same recall@10 to within .0005. A tenth of ef would save no more.
SHORTLIST_SHARE = 2
SHORTEST = 10
# It gives exact scores where it is over whole rows, so that its recall goes on rising with effort (.99 on 720,000 x 256
# takes about 1,024), where that of a graph over codes of a prefix ends with what a shortlist holds. On to 4,096 takes
# 17 s more to calibrate with 5,000 queries, for plans that flat search is as quick as.
STEPS = (*SHORT_STEPS[:-1], (0.15, 1024), (0.25, 2048))
# A search of rabitqlib's walks over every row whose estimate ties with the worst it holds: 2,000 copies of one row
# take some 5 ms a query where 2,000 others take 10 us, and more copies in proportion. Copies are moved by so much, a
# standard deviation of each dimension and so of scores too, which float32 hardly tells apart and estimates do.
COPIES_APART = 1e-7
ROWS_AT_A_TIME = 2_048
PENDING_BYTES = 268_435_456  # of rows that wait in memory for the graph; more wait in a file

SymqgIndexType = TypeVar("SymqgIndexType", bound="SymqgIndex")


@lru_cache(maxsize=1)
def load_rabitqlib() -> Any:
    """Import rabitqlib. Raises MissingBackendError where it is not installed."""
    try:
        return importlib.import_module("rabitqlib")
    except ImportError as error:
        raise MissingBackendError(
            "the coarse index 'symqg' needs rabitqlib, which is not installed: pip install 'funnel-retrieval[symqg]'"
        ) from error


def symqg_installed() -> bool:
    """Whether this family can be built here."""
    try:
        load_rabitqlib()
    except MissingBackendError:
        return False
    return True


class SymqgIndex(CoarseIndex):
    """A SymphonyQG graph; effort is ef_search, and a shortlist is at most half as long.

    Settings: `degree` (links a row, a multiple of 32), `ef_construction`, and `bits`, how the row itself is kept: 0
    (float32, so that scores are exact on the prefix), 8 or 4. Fewer rows than a graph takes are scanned. Cannot filter.
    Rows are held until the first search or save, and the graph is built then: rabitqlib takes them all at once.
    """

    name: ClassVar[str] = "symqg"
    default_settings: ClassVar[Mapping[str, int]] = {"degree": 32, "ef_construction": 200, "bits": 0}
    settings_taken: ClassVar[Mapping[str, range]] = {
        "degree": range(DEGREE_STEP, LARGEST_DEGREE + 1, DEGREE_STEP),
        "ef_construction": range(1, LARGEST_EF_CONSTRUCTION + 1),
        "bits": STORED_BITS,
    }
    supports_filter: ClassVar[bool] = False

    def __init__(self, dim: int, **settings: int) -> None:
        super().__init__(dim, **settings)
        self._library = load_rabitqlib()
        self._width = max(dim, SMALLEST_WIDTH)
        self._pending = _Pending(self._width)
        self._rows = np.empty((0, self._width), dtype=np.float32)
        self._graph: Any = None
        self._finishing = free_in_children(Lock())
        self._found: dict[int, int] = {}  # by effort, of the rows that the graph holds

    @classmethod
    def library(cls) -> str:
        """The name rabitqlib and its version."""
        load_rabitqlib()
        return f"rabitqlib {metadata.version('rabitqlib')}"

    def train(self, prefixes: Float32Array) -> None:
        """Nothing is learnt: the rows are checked."""
        check_sample(self, prefixes)

    def add(self, prefixes: Float32Array) -> None:
        """Hold the rows for the graph; CoarseIndexError once it is built."""
        rows = check_prefixes(prefixes, self.dim)
        if self._graph is not None:
            raise CoarseIndexError(f"{self.name} is built, and takes no more rows; build it again with all of them")
        self._pending.add(self._padded(rows))

    def search(
        self, queries: Float32Array, shortlist: int, effort: int, allowed: Allowed | None = None
    ) -> tuple[Float32Array, Int64Array]:
        """See `CoarseIndex.search`. Scores are exact on the prefix with `bits` 0."""
        if allowed is not None:
            allowed_mask(allowed, self.ntotal)
            raise CoarseIndexError(f"{self.name} cannot filter; search without allowed, or choose a family that can")
        if self._graph is None:
            self._finish()
        if self.dim != self._width:
            queries = self._padded(queries)
        if self._graph is None or not len(queries):
            top = RunningTop(queries, shortlist)  # of a few rows
            top.update(self._rows, 0)
            return top.filled()
        # As many as the effort finds, and the head of them: a shorter search ends with other rows.
        found = max(shortlist, self._found_at(effort))
        try:
            rows, distances = self._graph.search(queries, found, max(effort, found))
        except RuntimeError:  # from where some query enters the graph, fewer rows are reached
            rows, distances = self._reached(queries, found, effort)
        return 1.0 - distances[:, :shortlist], rows[:, :shortlist].astype(np.int64)

    def _reached(self, queries: Float32Array, found: int, effort: int) -> tuple[Int64Array, Float32Array]:
        """Rows and distances [n, found] of each query as far as the graph reaches from it; then -1 and infinity."""
        rows = np.full((len(queries), found), -1, dtype=np.int64)
        distances = np.full((len(queries), found), np.inf, dtype=np.float32)
        for number in range(len(queries)):
            low, high = 0, found + 1  # so many are reached, and so many are not
            while high - low > 1:
                tried = found if high > found else (low + high) // 2
                try:
                    one = self._graph.search(queries[number : number + 1], tried, max(effort, found))
                except RuntimeError:
                    high = tried
                else:
                    rows[number, :tried], distances[number, :tried] = one[0][0], one[1][0]
                    low = tried
        return rows, distances

    def _found_at(self, effort: int) -> int:
        """`largest_shortlist`, remembered: asked of every single query, it takes a microsecond."""
        found = self._found.get(effort)
        if found is None:
            found = self._found[effort] = self.largest_shortlist(effort)
        return found

    def efforts(self) -> tuple[int, ...]:
        """Values of ef_search up to the number of rows."""
        return rising(max(1, self.ntotal), STEPS)

    @property
    def exact_scores(self) -> bool:
        """With float32 rows."""
        return self._settings["bits"] == 0

    def largest_shortlist(self, effort: int) -> int:
        """Half of ef_search; all of a small one, or of one that covers every row."""
        found = effort if effort >= self.ntotal else min(effort, max(SHORTEST, effort // SHORTLIST_SHARE))
        return min(found, self.ntotal, LONGEST_SHORTLIST)

    def save(self, path: Path) -> None:
        """Write the graph as rabitqlib does, and a footer with the settings."""
        self._finish()
        if self._graph is None:
            path.write_bytes(self._rows.tobytes())
        else:
            try:
                self._graph.save(str(path))
            except RuntimeError as error:  # rabitqlib's stream failed: what follows says why
                if os.path.isfile(path):
                    raise OSError(f"{path} could not be written: {error}") from error
        record = {"dim": self.dim, **self._settings, "rows": self.ntotal, "graph": self._graph is not None}
        footer = json.dumps(record).encode("ascii")
        with open(path, "ab") as file:
            file.write(footer + len(footer).to_bytes(4, "little") + FOOTER_MAGIC)

    @classmethod
    def load(cls: type[SymqgIndexType], path: Path, dim: int, settings: Mapping[str, int]) -> SymqgIndexType:
        """Read what `save` wrote."""
        index = cls(dim, **settings)
        record, size = _read_footer(path)
        for key, value in {"dim": index.dim, **index._settings}.items():
            if record[key] != value:
                raise CoarseIndexError(f"{path} has {key} {record[key]}; the settings say {value}")
        index._check_size(path, size, record)
        if record["graph"]:
            index._check_graph(path, size, record["rows"])
            index._graph = _read_graph(index._library, path, size)
            found = (index._graph.num_points, index._graph.dim)
        else:
            index._rows = np.fromfile(path, np.float32, size // FLOAT32_BYTES).reshape(-1, index._width)
            found = index._rows.shape
        if found != (record["rows"], index._width):
            raise CoarseIndexError(
                f"{path} holds {found[0]} rows of {found[1]} dims; it says {record['rows']} of {index._width}"
            )
        return index

    def _check_size(self, path: Path, size: int, record: Mapping[str, int]) -> None:
        """Are there as many bytes before the footer as so many rows take?"""
        least = most = record["rows"] * self._width * FLOAT32_BYTES
        if record["graph"]:
            least = record["rows"] * self._row_bytes(self.dim, self._settings)
            most = least + GRAPH_OVERHEAD + GRAPH_OVERHEAD_PER_DIM * (self._width + CODE_STEP)
        if not least <= size <= most:
            raise CoarseIndexError(
                f"{path} has {size:,} bytes before its footer; {record['rows']:,} rows take {least:,}"
            )

    def _check_graph(self, path: Path, size: int, rows: int) -> None:
        """Before rabitqlib parses anything: are the sizes at the head of its file those of the footer, and all links?

        The library follows links wherever they lead. They end each row, and a rotation ends the file.
        """
        degree, magic = self._settings["degree"], CODED_MAGIC if self._settings["bits"] else b""
        with open(path, "rb") as file:
            head = file.read(len(magic) + GRAPH_HEAD.size)
        expected = (rows, degree, self._width, _coded(self._width))
        found = GRAPH_HEAD.unpack(head[len(magic) :]) if len(head) == len(magic) + GRAPH_HEAD.size else ()
        if not head.startswith(magic) or found[:4] != expected or found[4] >= rows:
            raise CoarseIndexError(f"{path} begins with sizes {list(found)}; its footer says {list(expected)}")
        taken = self._row_bytes(self.dim, self._settings)
        start = size - ROTATIONS * _coded(self._width) // 8 - rows * taken
        if start < GRAPH_HEAD.size:
            raise CoarseIndexError(f"{path} has {size:,} bytes before its footer, too few for {rows:,} rows")
        held = np.memmap(path, np.uint8, "r", start, (rows, taken))
        for first in range(0, rows, ROWS_AT_A_TIME):
            links = held[first : first + ROWS_AT_A_TIME, -degree * LINK_BYTES :]
            furthest = int(np.ascontiguousarray(links).view("<u4").max())
            if furthest >= rows:
                raise CoarseIndexError(f"{path} links to row {furthest:,}, and holds {rows:,}")

    @property
    def ntotal(self) -> int:
        """Rows held."""
        if self._graph is not None:
            return int(self._graph.num_points)
        return len(self._rows) + self._pending.count

    @property
    def nbytes(self) -> int:
        """Bytes of rows, links, codes and factors."""
        if self._graph is None:
            return self.ntotal * self._width * FLOAT32_BYTES
        return self.ntotal * self._row_bytes(self.dim, self._settings)

    @classmethod
    def estimate_nbytes(cls, n: int, dim: int, settings: Mapping[str, int]) -> int:
        """Exactly what `nbytes` says."""
        complete = cls.complete_settings(settings)
        if n <= complete["degree"]:
            return n * max(dim, SMALLEST_WIDTH) * FLOAT32_BYTES
        return n * cls._row_bytes(dim, complete)

    @staticmethod
    def _row_bytes(dim: int, settings: Mapping[str, int]) -> int:
        width, bits, degree = max(dim, SMALLEST_WIDTH), settings["bits"], settings["degree"]
        coded = _coded(width)
        own = width * FLOAT32_BYTES if not bits else coded * bits // 8 + FACTOR_BYTES
        return own + degree * (LINK_BYTES + coded // 8 + FACTOR_BYTES)

    def _padded(self, rows: Float32Array) -> Float32Array:
        return rows if self.dim == self._width else np.pad(rows, ((0, 0), (0, self._width - self.dim)))

    def _finish(self) -> None:
        """Build the graph over the rows that were added, once."""
        if not self._pending.count:
            return
        with self._finishing:
            if self._pending.count:
                self._build()

    def _build(self) -> None:
        self._rows = self._pending.all(self._rows)
        self._pending = _Pending(self._width)
        settings = self._settings
        if len(self._rows) <= settings["degree"]:
            return
        graph = self._library.SymqgIndex(
            self._width, settings["degree"], metric="ip", quantization_bits=settings["bits"]
        )
        graph.build(_parted(self._rows), settings["ef_construction"], num_threads=usable_cores())
        self._graph, self._rows = graph, np.empty((0, self._width), dtype=np.float32)


class _Pending:
    """Rows [n, width] that wait for the graph.

    Once they are many they lie in a file without a name, and not in memory beside the graph, which copies them.
    """

    def __init__(self, width: int) -> None:
        self._width, self._blocks = width, [np.empty((0, width), dtype=np.float32)]
        self._file: IO[bytes] | None = None
        self._written = 0

    @property
    def count(self) -> int:
        """How many rows wait."""
        return self._written + sum(map(len, self._blocks))

    def add(self, rows: Float32Array) -> None:
        """Take rows; they are copied, as a caller may use its array again."""
        self._blocks.append(rows.copy())
        if self._file is not None or self.count * self._width * FLOAT32_BYTES > PENDING_BYTES:
            with suppress(OSError):  # no room there: they stay in memory
                self._write()

    def all(self, before: Float32Array) -> Float32Array:
        """The rows `before` and all that wait, C-contiguous; may be a map of the file, which is not written to."""
        if self._file is None or len(before) or any(map(len, self._blocks)):
            return np.concatenate([before, *([] if self._file is None else [self._map()]), *self._blocks])
        return self._map()

    def _map(self) -> Float32Array:
        assert self._file is not None
        with self._file as file:  # the map has a descriptor of its own
            return np.memmap(file, np.float32, "c", shape=(self._written, self._width))

    def _write(self) -> None:
        file: IO[bytes] = self._file or tempfile.TemporaryFile()  # noqa: SIM115 (until it is mapped)
        for block in self._blocks:
            file.seek(self._written * self._width * FLOAT32_BYTES)
            file.write(block.data)
            file.flush()
            self._file, self._written = file, self._written + len(block)
            self._blocks = self._blocks[1:] if self._blocks[0] is block else self._blocks


def _coded(width: int) -> int:
    """Bits of a code."""
    return -(-width // CODE_STEP) * CODE_STEP


def _parted(rows: Float32Array) -> Float32Array:
    """The rows, all copies of an earlier one moved a little in place: see COPIES_APART."""
    generator = np.random.default_rng(0)
    odd = generator.integers(1 << 63, size=rows.shape[1], dtype=np.uint64) | np.uint64(1)
    starts = range(0, len(rows), ROWS_AT_A_TIME)
    keys = [(rows[i : i + ROWS_AT_A_TIME].view(np.uint32) * odd).sum(axis=1, dtype=np.uint64) for i in starts]
    copies = np.ones(len(rows), dtype=np.bool_)
    copies[np.unique(np.concatenate(keys), return_index=True)[1]] = False
    if not copies.any():
        return rows
    for i in starts:
        moved = i + np.flatnonzero(copies[i : i + ROWS_AT_A_TIME])
        rows[moved] += np.float32(COPIES_APART) * generator.standard_normal((len(moved), rows.shape[1]), np.float32)
    return rows


def _read_footer(path: Path) -> tuple[dict[str, int], int]:
    """The record at the end of the file, and how many bytes stand before it."""
    tail_bytes = len(FOOTER_MAGIC) + 4
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - tail_bytes))
        tail = file.read()
        length = int.from_bytes(tail[:4], "little")
        if not tail.endswith(FOOTER_MAGIC) or length > min(FOOTER_LIMIT, end - tail_bytes):
            raise CoarseIndexError(f"{path} cannot be read as {SymqgIndex.name}: it does not end as such a file does")
        file.seek(end - tail_bytes - length)
        text = file.read(length)
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CoarseIndexError(f"{path} has a footer that is not JSON: {error}") from error
    if (
        not isinstance(record, dict)
        or record.keys() != FOOTER_KEYS
        or any(type(v) not in (int, bool) for v in record.values())
    ):
        raise CoarseIndexError(f"{path} has the footer {text[:200]!r}; expected {', '.join(sorted(FOOTER_KEYS))}")
    if type(record["graph"]) is not bool or record["rows"] < 0:
        raise CoarseIndexError(f"{path} has {record['rows']} rows and graph {record['graph']!r} in its footer")
    return record, end - tail_bytes - length


def _read_graph(library: Any, path: Path, size: int) -> Any:
    """The library takes a file that ends with the graph: without the footer it is a copy, which the system may drop."""
    with temporary_file() as (copy, name), open(path, "rb") as file:
        shutil.copyfileobj(file, copy, 1 << 20)
        copy.truncate(size)
        copy.flush()
        try:
            return library.SymqgIndex.load(name)
        except (RuntimeError, ValueError) as error:
            raise CoarseIndexError(f"{path} cannot be read as {SymqgIndex.name}: {error}") from error
