"""The coarse index of a segment, trained and filled from its stored rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from funnel.engine.cascade import answers_alone, unit_prefixes
from funnel.errors import DamagedIndexError
from funnel.progress import Progress
from funnel.storage import Manifest
from indexes import CoarseIndex, CoarseIndexError, VectorStore, family, release_freed

__all__ = ["BLOCK_BYTES", "CELLS_AT_A_TIME", "build_coarse", "check_coarse"]


# Bytes of prefixes handed to the coarse index at once: the largest array of a build beside the index itself.
BLOCK_BYTES = 134_217_728


CELLS_AT_A_TIME = 2_097_152  # as read from disk: 8 MB as float32


TRAINING_ROWS = 65_536  # of the coarse index's codes and cells


def check_coarse(manifest: Manifest, path: object) -> None:
    """Check the name and the settings of the coarse index, before it is made. path: of the index, for messages.

    Raises DamagedIndexError naming the file, the key, the value and what was expected.
    """
    # A segment that is searched exactly has no coarse index; those that have one are each as large as its settings.
    rows = min((part.rows for part in manifest.segments if not part.exact), default=0)
    try:
        family(manifest.settings.coarse).bound_settings(manifest.settings.coarse_settings, rows)
    except CoarseIndexError as error:
        file = f"generations/{manifest.generation:06d}.json in {path}"
        raise DamagedIndexError(f"{file}: settings.coarse_settings: {error}; restore the file") from error


def build_coarse(
    store: VectorStore,
    dim: int,
    width: int,
    name: str,
    settings: Mapping[str, int],
    seed: int,
    progress: bool,
    turn: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]] | None = None,
) -> CoarseIndex:
    """Train and fill a coarse index over unit prefixes of rows.

    store: holds adapted rows, of `width` dims at least, or those of full width dim where that is the width. One that
    answers alone (exact scores over the full width) takes rows as they are stored, the others of unit length. turn:
    what prefixes go through before they are added.

    Raises DamagedIndexError where stored values are not finite.
    """
    index = family(name)(width, **settings)
    alone = answers_alone(index, dim)
    index.train(_training_sample(store, width, seed))
    release_freed()
    block = np.empty((min(store.n, max(1, BLOCK_BYTES // (4 * width))), width), dtype=np.float32)
    with Progress(total=store.n, desc=f"index {name}", unit="rows", unit_scale=True, disable=not progress) as bar:
        for start in range(0, store.n, len(block)):
            prefixes = _fill(block[: store.n - start], store, start, unit=not alone)
            index.add(prefixes if turn is None else turn(prefixes))
            bar.update(len(prefixes))
    return index


def _read(store: VectorStore, start: int, stop: int) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """The rows from `start` to `stop`, some at a time, with the number of the first."""
    for first, rows in store.chunks(max(1, CELLS_AT_A_TIME // store.dim), start, stop):
        if not np.isfinite(rows).all():
            raise DamagedIndexError(f"{store.path} holds values that are not finite; build the index again")
        yield first, rows


def _fill(block: npt.NDArray[np.float32], store: VectorStore, start: int, unit: bool = True) -> npt.NDArray[np.float32]:
    """The block [n, width], filled with the prefixes of n rows from `start` on, scaled to unit length or as stored."""
    width = block.shape[1]
    for first, rows in _read(store, start, start + len(block)):
        block[first - start : first - start + len(rows)] = unit_prefixes(rows[:, :width]) if unit else rows[:, :width]
    return block


def _training_sample(store: VectorStore, width: int, seed: int) -> npt.NDArray[np.float32]:
    """Unit prefixes of rows drawn evenly; read in runs, as rows that lie together come in one read."""
    if store.n <= TRAINING_ROWS:
        return _fill(np.empty((store.n, width), dtype=np.float32), store, 0)
    chosen = np.sort(np.random.default_rng(seed).choice(store.n, TRAINING_ROWS, replace=False))
    sample = np.empty((TRAINING_ROWS, width), dtype=np.float32)
    for first, rows in _read(store, 0, store.n):
        begin, end = np.searchsorted(chosen, (first, first + len(rows)))
        sample[begin:end] = unit_prefixes(rows[chosen[begin:end] - first, :width])
    return sample
