"""Rows kept as float16 tensors on a device: what the families that scan them share."""

import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from typing_extensions import override

from indexes.base import Allowed, CoarseIndex, Float32Array, Int64Array, allowed_mask, check_prefixes, check_sample
from indexes.errors import CoarseIndexError
from indexes.system import free_in_children, npy_header

# Longest shortlist: FAISS's GPU top-k ends at 2,048, and reranking more than half of that costs more than it finds.
LONGEST_SHORTLIST = 1_024
QUERIES_AT_A_TIME = 1_024  # on a device: their survivors take up to 1 GB
# Rows are shuffled, so that bins of them are exchangeable whatever order they came in (stored rows lie in clusters).
SHUFFLE_SEED = 20_250_604
# Products held at a time on a GPU: 512 MB as float16, 262,144 rows for 1,024 queries. `benchmarks/gpu.py` tries others.
PRODUCTS_AT_A_TIME_CUDA = 268_435_456
PRODUCTS_AT_A_TIME = 4_194_304  # on the CPU: 16 MB as float32
FLOAT16_BYTES, NUMBER_BYTES = 2, 4  # a row's number fits int32
MOST_ROWS = 2**31 - 1

DeviceRowsType = TypeVar("DeviceRowsType", bound="DeviceRows")


class DeviceRows(CoarseIndex):
    """Rows float16 [n, dim] on a device, in a shuffled order; a family says how they are searched.

    Made on CUDA where there is any, else on the CPU; `place` moves it. Filters are masks on the device, and hold.
    """

    def __init__(self, dim: int, **settings: int) -> None:
        super().__init__(dim, **settings)
        self._pending: list[torch.Tensor] = []
        self._rows = torch.empty((0, dim), dtype=torch.float16, device="cuda" if torch.cuda.is_available() else "cpu")
        self._device = self._rows.device  # with its number, as stores have it
        self._order = torch.empty(0, dtype=torch.int32, device=self._device)  # place here -> the number of the row
        self._finishing = free_in_children(Lock())

    @abstractmethod
    def _scan(
        self, queries: torch.Tensor, shortlist: int, effort: int, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores [q, s], falling, and places int64 [q, s] of the best rows, s <= shortlist.

        queries: unit rows [q, dim] of the type that `_working` gives. mask: bool [n], which places may be returned.
        """

    @classmethod
    def library(cls) -> str:
        """The format of its files, which hold plain rows: any version of torch reads them."""
        return "rows 1"

    @property
    def device(self) -> torch.device:
        """Where the rows lie."""
        return self._device

    def place(self, device: torch.device) -> None:
        """Move the rows to another device."""
        self._finish()
        self._rows, self._order = self._rows.to(device), self._order.to(device)
        self._device = self._rows.device

    def train(self, prefixes: Float32Array) -> None:
        """Nothing is learnt: the rows are checked."""
        check_sample(self, prefixes)

    def add(self, prefixes: Float32Array) -> None:
        """Send rows to the device as float16; they are shuffled at the first search."""
        self.add_tensor(torch.from_numpy(check_prefixes(prefixes, self.dim)))

    def add_tensor(self, rows: torch.Tensor) -> None:
        """As `add`, for a tensor [n, dim] on any device."""
        if self.ntotal + len(rows) > MOST_ROWS:
            raise CoarseIndexError(f"{self.name} holds at most {MOST_ROWS} rows; {self.ntotal + len(rows)} were given")
        if len(rows):
            self._pending.append(rows.to(self._device, torch.float16))

    def search(
        self, queries: Float32Array, shortlist: int, effort: int, allowed: Allowed | None = None
    ) -> tuple[Float32Array, Int64Array]:
        """See `CoarseIndex.search`."""
        mask = None if allowed is None else torch.from_numpy(allowed_mask(allowed, self.ntotal)).to(self._device)
        scores, rows = self.search_tensors(torch.from_numpy(queries).to(self._device), shortlist, effort, mask)
        return scores.cpu().numpy(), rows.cpu().numpy()

    def search_tensors(
        self, queries: torch.Tensor, shortlist: int, effort: int, allowed: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `CoarseIndex.search_tensors`: nothing here waits for the device."""
        self._finish()
        with torch.inference_mode():
            scores = torch.full((len(queries), shortlist), -torch.inf, device=self._device)
            rows = torch.full((len(queries), shortlist), -1, dtype=torch.int64, device=self._device)
            if not len(self._rows):
                return scores, rows
            mask = None if allowed is None else allowed[self._order]
            for start in range(0, len(queries), QUERIES_AT_A_TIME):
                part = slice(start, start + QUERIES_AT_A_TIME)
                self._search_part(queries[part], effort, mask, scores[part], rows[part])
            return scores, rows

    def _search_part(
        self, queries: torch.Tensor, effort: int, mask: torch.Tensor | None, scores: torch.Tensor, rows: torch.Tensor
    ) -> None:
        """Fill scores and rows [q, shortlist], which hold -inf and -1."""
        lengths = queries.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        found, places = self._scan(self._working(queries / lengths), scores.shape[1], effort, mask)
        count = found.shape[1]
        scores[:, :count] = found.float() * lengths
        rows[:, :count] = self._order[places].long().masked_fill_(found == -torch.inf, -1)

    def _blocks(self, queries: torch.Tensor, step: int = 1) -> Iterator[tuple[int, torch.Tensor]]:
        """(first place, products [q, c]) of blocks of rows, each but the last a multiple of `step` long."""
        cells = PRODUCTS_AT_A_TIME if self._device.type == "cpu" else PRODUCTS_AT_A_TIME_CUDA
        chunk = max(1, cells // max(1, len(queries)) // step) * step
        for start in range(0, len(self._rows), chunk):
            yield start, queries @ self._working(self._rows[start : start + chunk]).T

    def _working(self, values: torch.Tensor) -> torch.Tensor:
        """Values in the type that products are formed in: float16 on a device, whose units add up in float32."""
        return values.float() if self._device.type == "cpu" else values.half()

    def _finish(self) -> None:
        """Shuffle what was added since, once."""
        if not self._pending:
            return
        with self._finishing:
            if not self._pending:
                return
            new = torch.cat(self._pending)
            shuffled = np.random.default_rng(SHUFFLE_SEED + len(self._rows)).permutation(len(new))
            places = torch.from_numpy(shuffled).to(self._device)
            numbers = (places + len(self._rows)).to(torch.int32)
            self._rows, self._order = torch.cat([self._rows, new[places]]), torch.cat([self._order, numbers])
            self._pending.clear()

    @override
    def largest_shortlist(self, effort: int) -> int:
        """The same at every effort, but for few rows."""
        return min(LONGEST_SHORTLIST, self.ntotal)

    @override
    def bytes_touched(self, queries: Float32Array, shortlist: int, effort: int) -> int:
        """Every row, whatever the effort."""
        return self.nbytes

    def save(self, path: Path) -> None:
        """Three .npy arrays one after the other: settings as JSON, rows float16 [n, dim], their numbers int32 [n]."""
        self._finish()
        facts = json.dumps({"family": self.name, "dim": self.dim, **self._settings}).encode("ascii")
        with open(path, "wb") as file:
            for array in (np.frombuffer(facts, np.uint8), self._rows.cpu().numpy(), self._order.cpu().numpy()):
                np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=False)

    @classmethod
    def load(cls: type[DeviceRowsType], path: Path, dim: int, settings: Mapping[str, int]) -> DeviceRowsType:
        """Read what `save` wrote."""
        index = cls(dim, **settings)
        try:
            with open(path, "rb") as file:
                facts = json.loads(_read(file).tobytes())
                rows, order = _read(file), _read(file)
        except (ValueError, EOFError) as error:
            raise CoarseIndexError(f"{path} cannot be read as {cls.name}: {error}") from error
        for key, value in {"family": cls.name, "dim": dim, **index._settings}.items():
            if facts.get(key) != value:
                raise CoarseIndexError(f"{path} has {key} {facts.get(key)}; the settings say {value}")
        if rows.shape != (len(order), dim) or rows.dtype != np.float16 or order.dtype != np.int32:
            raise CoarseIndexError(f"{path} holds {rows.dtype} rows {list(rows.shape)} and {len(order)} numbers")
        index._rows = torch.from_numpy(rows).to(index._device)
        index._order = torch.from_numpy(order).to(index._device)
        return index

    @property
    def ntotal(self) -> int:
        """Rows held."""
        return len(self._rows) + sum(map(len, self._pending))

    @property
    def nbytes(self) -> int:
        """Bytes of the rows and their numbers, on the device."""
        return self.ntotal * (self.dim * FLOAT16_BYTES + NUMBER_BYTES)

    @classmethod
    def estimate_nbytes(cls, n: int, dim: int, settings: Mapping[str, int]) -> int:
        """Exactly what `nbytes` says."""
        cls.complete_settings(settings)
        return n * (dim * FLOAT16_BYTES + NUMBER_BYTES)


def _read(file: BinaryIO) -> np.ndarray[Any, np.dtype[Any]]:
    """The next array. Raises ValueError where there is none, or where it ends early."""
    shape, _, dtype = npy_header(file)
    values = np.fromfile(file, dtype, int(np.prod(shape)))
    return values.reshape(shape)
