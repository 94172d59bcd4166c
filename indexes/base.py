"""The contract of a coarse index, and the families by name."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch

from indexes.errors import CoarseIndexError, MissingBackendError

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]
Allowed = npt.NDArray[np.bool_] | npt.NDArray[np.int64]

IndexType = TypeVar("IndexType", bound="CoarseIndex")

# Where each family is, imported when it is asked for.
FAMILIES = {
    "flat": "indexes._faiss:FlatIndex",
    "faiss-gpu-flat": "indexes.gpu:FaissGpuFlatIndex",
    "faiss-gpu-ivf": "indexes.gpu:FaissGpuIvfIndex",
    "faiss-cagra": "indexes.gpu:CagraIndex",
    "hnsw-sq8": "indexes.hnsw:HnswSq8Index",
    "hnsw-f16": "indexes.hnsw:HnswFloat16Index",
    "ivf-sq8": "indexes.ivf:IvfSq8Index",
    "ivf-pq": "indexes.ivf:IvfPqIndex",
    "symqg": "indexes.symqg:SymqgIndex",
    "torch-bins": "indexes.torchbins:TorchBinsIndex",
}

# The largest settings: 16 times the largest default degree (a graph of it takes 4 kB a row), 50 times the default
# ef_construction.
LARGEST_DEGREE, LARGEST_EF_CONSTRUCTION = 512, 10_000


class CoarseIndex(ABC):
    """Finds, for each query, the rows whose prefixes have the largest inner product with it.

    Rows are prefixes of `dim` dimensions scaled to unit length, numbered from 0 in the order in which they
    were added. Queries may have any length, which does not change their ranking. A family differs from
    another in its codes and in how it avoids looking at every row.

    Searches may run in several threads at once; `train`, `add` and `save` must run alone.

    Args:
        dim: Width of the prefix.
        settings: What the family lets one choose, by name; see `default_settings` of the family.

    Raises:
        CoarseIndexError: `dim` or a setting is unknown or out of range.
        MissingBackendError: The library behind the family is not installed, or lacks what it needs.
    """

    name: ClassVar[str]
    default_settings: ClassVar[Mapping[str, int]] = {}
    settings_taken: ClassVar[Mapping[str, range]] = {}  # of each setting
    supports_filter: ClassVar[bool] = True
    # Queries searched together on one thread at most: enough to pay for the call, few enough to spread a batch.
    queries_at_a_time: ClassVar[int] = 128

    def __init__(self, dim: int, **settings: int) -> None:
        why = self.missing()
        if why is not None:
            raise MissingBackendError(f"the coarse index {self.name!r} cannot be used: {why}")
        if dim < 1:
            raise CoarseIndexError(f"dim is {dim}; a prefix has at least 1 dimension")
        self.dim = dim
        self._settings = self.complete_settings(settings)

    @classmethod
    @abstractmethod
    def library(cls) -> str:
        """The library and version that build this family here, such as "faiss 1.15.1": files are of one version."""

    @classmethod
    def missing(cls) -> str | None:
        """Why this family cannot be built here, and what to do about it; None where it can."""
        return None

    @classmethod
    def complete_settings(cls, settings: Mapping[str, int]) -> dict[str, int]:
        """Return `settings` with the family's defaults filled in.

        Raises:
            CoarseIndexError: A setting is unknown, not a whole number, or out of its range.
        """
        for key, value in settings.items():
            if key not in cls.default_settings:
                known = ", ".join(cls.default_settings) or "none"
                raise CoarseIndexError(f"{cls.name} has no setting {key!r}; its settings: {known}")
            taken = cls.settings_taken[key]
            if type(value) is not int or value not in taken:
                steps = "" if taken.step == 1 else f" in steps of {taken.step}"
                expected = f"a whole number from {taken[0]} to {taken[-1]:,}{steps}"
                raise CoarseIndexError(f"setting {key} of {cls.name} is {value!r}; give {expected}")
        return {**cls.default_settings, **settings}

    @classmethod
    def bound_settings(cls, settings: Mapping[str, int], rows: int) -> None:
        """Check the settings of an index of so many rows, before anything is made.

        Raises:
            CoarseIndexError: A setting is unknown or out of range, or above both its default and the rows.
        """
        for key, value in cls.complete_settings(settings).items():
            most = max(rows, cls.default_settings[key])
            if value > most:
                raise CoarseIndexError(
                    f"setting {key} of {cls.name} is {value}; expected at most {most:,} for {rows} rows"
                )

    @property
    def settings(self) -> dict[str, int]:
        """The settings in force: json-able, and enough to make the same index again."""
        return dict(self._settings)

    @abstractmethod
    def train(self, prefixes: Float32Array) -> None:
        """Learn codes and cells from a sample: `prefixes` float32 [n, dim], unit length.

        Raises:
            CoarseIndexError: Wrong shape or type, too few rows, or rows were added already.
        """

    @abstractmethod
    def add(self, prefixes: Float32Array) -> None:
        """Append rows: `prefixes` float32 [n, dim], unit length. May be called many times.

        Raises:
            CoarseIndexError: Wrong shape or type, or the index is not trained.
        """

    @abstractmethod
    def search(
        self, queries: Float32Array, shortlist: int, effort: int, allowed: Allowed | None = None
    ) -> tuple[Float32Array, Int64Array]:
        """Find the best `shortlist` rows for each query. The hot path: its input is trusted.

        Args:
            queries: float32 [n_queries, dim], C-contiguous.
            shortlist: Rows wanted for each query; at most `largest_shortlist(effort)`.
            effort: One of `efforts()`; more effort finds more of the true best rows.
            allowed: Rows that may be returned: bool [ntotal], or rising row numbers int64 [n_allowed].

        Returns:
            Scores float32 [n_queries, shortlist] and rows int64 [n_queries, shortlist], best first; where
            fewer rows were found, score -inf and row -1.

        Raises:
            CoarseIndexError: `allowed` has the wrong shape, or the family cannot filter.
        """

    @property
    def device(self) -> torch.device:
        """Where `search_tensors` takes and gives tensors."""
        return torch.device("cpu")

    def place(self, device: torch.device) -> None:  # noqa: B027 - most families have one place
        """Keep what is searched on `device`, in a family that can lie on several."""

    def search_tensors(
        self, queries: torch.Tensor, shortlist: int, effort: int, allowed: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `search`, with tensors on `device`; families that live on one do not wait for it.

        queries: float32 [n_queries, dim], C-contiguous; allowed: bool [ntotal] or None. Returns scores float32
        [n_queries, shortlist] and rows int64 [n_queries, shortlist], -inf and -1 where fewer rows were found.
        """
        mask = None if allowed is None else allowed.numpy()
        scores, rows = self.search(queries.numpy(), shortlist, effort, mask)
        return torch.from_numpy(scores), torch.from_numpy(rows)

    def restricted(self, allowed: Allowed) -> CoarseIndex:
        """This index as one that returns allowed rows only: a view for searching, to which nothing is added.

        allowed: as `search` takes it; here it is prepared once. A family that cannot filter is over-fetched: it finds
        what it finds without a filter at that effort, and rows that are not allowed are dropped.

        Raises:
            CoarseIndexError: `allowed` has the wrong shape.
        """
        return cast(CoarseIndex, RestrictedIndex(self, allowed_mask(allowed, self.ntotal)))

    def near_keys(self) -> Callable[[Float32Array], Int64Array] | None:
        """A function from queries [n] to numbers int64 [n]: those with near numbers look at the same rows.

        None where the order of a batch makes no difference. Safe to call for parts of a batch, in several threads.
        """
        return None

    def bytes_touched(self, queries: Float32Array, shortlist: int, effort: int) -> int | None:
        """Bytes of codes, links and centroids that one query reads, in the mean over these; they are searched for it.

        Counted for the whole process: searches in other threads meanwhile count too. None where a family cannot tell.
        """
        del queries, shortlist, effort  # families that count take them
        return None

    @property
    def exact_scores(self) -> bool:
        """Whether scores are the inner products themselves, and not those of codes."""
        return False

    @abstractmethod
    def efforts(self) -> tuple[int, ...]:
        """The efforts worth calibrating, rising."""

    @abstractmethod
    def largest_shortlist(self, effort: int) -> int:
        """The longest shortlist that `effort` serves; shorter ones are the head of it."""

    @property
    def shortlist_grows(self) -> bool:
        """Whether the longest shortlist grows with the effort, as in graphs; if not, any effort serves any length."""
        efforts = self.efforts()
        return self.largest_shortlist(efforts[0]) < self.largest_shortlist(efforts[-1])

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write the index to `path`.

        Raises:
            OSError: The file cannot be written, or the disk is full.
        """

    @classmethod
    @abstractmethod
    def load(cls: type[IndexType], path: Path, dim: int, settings: Mapping[str, int]) -> IndexType:
        """Read an index that `save` wrote with the same `dim` and `settings`.

        Files are trusted: check their hash first.

        Raises:
            CoarseIndexError: The file cannot be read, or holds another index than the settings say.
        """

    @property
    @abstractmethod
    def ntotal(self) -> int:
        """Rows held."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes resident for codes, graph or cells, and row numbers."""

    @classmethod
    @abstractmethod
    def estimate_nbytes(cls, n: int, dim: int, settings: Mapping[str, int]) -> int:
        """What `nbytes` will be with `n` rows of `dim` dimensions, to within 15 %."""


def family(name: str) -> type[CoarseIndex]:
    """The family that is called `name`.

    Raises:
        CoarseIndexError: There is none.
    """
    try:
        module, _, defined = FAMILIES[name].partition(":")
    except KeyError:
        raise CoarseIndexError(f"no coarse index is called {name!r}; choose one of: {', '.join(FAMILIES)}") from None
    return cast(type[CoarseIndex], getattr(importlib.import_module(module), defined))


def families() -> tuple[str, ...]:
    """The names of all families."""
    return tuple(FAMILIES)


def rising(largest: int, steps: Sequence[tuple[float, int]]) -> tuple[int, ...]:
    """Whole numbers from 1 to `largest`, or to the end of the last range.

    steps: (share, end) of each range: up to `end` each number is that share above the one before it, or 1 above.
    """
    numbers = [1]
    for share, end in steps:
        last = min(end, largest)
        while numbers[-1] < last:
            following = numbers[-1] + max(1, round(numbers[-1] * share))
            near = following * (1 + share / 2) > last  # the end itself, rather than a last step of nothing
            numbers.append(last if near else following)
    return tuple(numbers)


def check_prefixes(prefixes: Float32Array, dim: int) -> Float32Array:
    """Return float32 [n, dim] rows as a C-contiguous array.

    Raises:
        CoarseIndexError: Wrong shape or type.
    """
    if prefixes.ndim != 2 or prefixes.shape[1] != dim:
        raise CoarseIndexError(f"rows of shape {list(prefixes.shape)}; this index takes [n, {dim}]")
    if prefixes.dtype != np.float32:
        raise CoarseIndexError(f"rows of type {prefixes.dtype}; give float32")
    return np.ascontiguousarray(prefixes)


def check_sample(index: CoarseIndex, prefixes: Float32Array) -> Float32Array:
    """Return what an index is to be trained on as a C-contiguous array.

    Raises:
        CoarseIndexError: Wrong shape or type, no rows, or the index holds rows already.
    """
    rows = check_prefixes(prefixes, index.dim)
    if index.ntotal:
        raise CoarseIndexError(f"{index.name} holds {index.ntotal} rows already; train before adding any")
    if not len(rows):
        raise CoarseIndexError(f"{index.name} was given 0 rows to train on; give at least 1")
    return rows


def allowed_mask(allowed: Allowed, count: int) -> npt.NDArray[np.bool_]:
    """Return the rows that may be returned as bool [count].

    Raises:
        CoarseIndexError: `allowed` is neither such a mask nor row numbers below `count`.
    """
    if allowed.dtype == np.bool_ and allowed.shape == (count,):
        return allowed.astype(np.bool_, copy=False)
    if allowed.dtype != np.int64 or allowed.ndim != 1:
        raise CoarseIndexError(
            f"allowed is {allowed.dtype} {list(allowed.shape)}; give bool [{count}] or int64 row numbers"
        )
    if len(allowed) and (allowed.min() < 0 or allowed.max() >= count):
        raise CoarseIndexError(f"allowed holds rows {allowed.min()} to {allowed.max()}; rows go from 0 to {count - 1}")
    mask = np.zeros(count, np.bool_)
    mask[allowed] = True
    return mask


class RestrictedIndex:
    """Everything as the index has it, but for `search` and `search_tensors`.

    A family that filters does so itself. One that cannot is asked for as many rows as the effort finds, and those that
    are not allowed are dropped: a filter that leaves few rows then leaves few results.
    """

    def __init__(self, index: CoarseIndex, mask: Mask) -> None:
        self._of = index
        self._mask = mask

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)

    def search_tensors(self, queries: torch.Tensor, shortlist: int, effort: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `CoarseIndex.search_tensors`."""
        if self._of.supports_filter:
            mask = torch.from_numpy(self._mask).to(queries.device)
            return self._of.search_tensors(queries, shortlist, effort, mask)
        scores, rows = self.search(queries.cpu().numpy(), shortlist, effort)
        return torch.from_numpy(scores).to(queries.device), torch.from_numpy(rows).to(queries.device)

    def search(self, queries: Float32Array, shortlist: int, effort: int) -> tuple[Float32Array, Int64Array]:
        """See `CoarseIndex.search`."""
        if self._of.supports_filter:
            return self._of.search(queries, shortlist, effort, self._mask)
        scores, rows = self._of.search(queries, max(shortlist, self._of.largest_shortlist(effort)), effort)
        scores, rows = only_allowed(scores, rows, self._mask)
        return scores[:, :shortlist], rows[:, :shortlist]


def only_allowed(scores: Float32Array, rows: Int64Array, mask: Mask) -> tuple[Float32Array, Int64Array]:
    """Scores and rows [n, s] without those that mask, bool [all rows], leaves out: the others move up, in their order.

    -inf and -1 stand at the end.
    """
    dropped = ~mask[rows] | (rows < 0)
    if not dropped.any():
        return scores, rows
    order = np.argsort(dropped, axis=1, kind="stable")
    dropped = np.take_along_axis(dropped, order, axis=1)
    scores, rows = np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
    scores[dropped], rows[dropped] = -np.inf, -1
    return scores, rows
