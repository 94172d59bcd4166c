"""Opening an index: verify, map, load; make the coarse index again where its file cannot be used."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from funnel.adaptors import Adaptor
from funnel.building.segment import build_coarse
from funnel.cascade import Cascade, Float32, Int64
from funnel.data.documents import DocumentStore
from funnel.errors import DamagedIndexError, InputError
from funnel.exactness import pruned_exact
from funnel.filters.segment import SegmentRows
from funnel.ids import Ids
from funnel.planning.calibrate import calibrate
from funnel.planning.records import Calibration
from funnel.searcher import Searcher
from funnel.storage import IndexFolder, Manifest, Verification
from funnel.turn import answers_alone, turn_of
from indexes import CoarseIndex, CoarseIndexError, VectorStore, check_placement, exact_search, family

__all__ = ["Opened", "coarse_width", "make_cascade", "open_generation", "rerank_widths"]


@dataclass(frozen=True)
class Opened:
    """One generation, opened. documents is None where the index holds bare vectors."""

    manifest: Manifest
    searcher: Searcher
    documents: DocumentStore | None
    rebuilt: str | None

    @property
    def rows_by_id(self) -> SegmentRows:
        """The stored rows by what filters ask for; columns are cached under the hash of the documents' file."""
        path = f"segments/{self.manifest.segments[0].id}/documents.sqlite"
        key = self.manifest.files[path].sha256 if self.documents is not None else ""
        return SegmentRows(self.searcher.ids, self.searcher.order, self.documents, key)


def rerank_widths(ladder: tuple[int, ...], coarse: str, coarse_width: int) -> tuple[int, ...]:
    """The widths that stages may use: those above the coarse one, and it too where its codes are coarse."""
    return tuple(w for w in ladder if w > coarse_width or (w == coarse_width and coarse == "ivf-pq")) or ladder[-1:]


def coarse_width(manifest: Manifest) -> int:
    """The width that the coarse index is over: the first of the ladder, unless it is over all of it."""
    return int(str(manifest.settings.get("coarse_width", manifest.ladder[0])))


def inverse_norms(segment: Path, ladder: tuple[int, ...], widths: tuple[int, ...]) -> dict[int, torch.Tensor]:
    """1 / norm of every row's prefix at the intermediate widths, float32 [n] each; 0 for a zero prefix."""
    norms = np.load(segment / "norms.npy", mmap_mode="r", allow_pickle=False)
    result = {}
    for width in widths[:-1]:
        column = np.array(norms[:, ladder.index(width)], dtype=np.float32)
        result[width] = torch.from_numpy(np.divide(1.0, column, out=np.zeros_like(column), where=column > 0))
    return result


def make_cascade(
    coarse: CoarseIndex,
    store: VectorStore,
    segment: Path,
    ladder: tuple[int, ...],
    widths: tuple[int, ...],
    adaptor: Adaptor | None = None,
    *,
    release: bool,
    keep: bool = False,
) -> Cascade:
    """The parts put together.

    segment: the folder of norms.npy. widths: of reranks. adaptor: that of the stored rows, where a coarse index may be
    over the user's own. release: give mapped pages back after passes over the matrix
    (while building). keep: exact search may hold codes of a prefix in memory, width + 4 bytes a row, once it was used.
    """

    coarse.place(store.device)

    def flat(queries: Float32, k: int) -> tuple[Float32, Int64]:
        return exact_search(store, queries, k, release=release)

    cascade = Cascade(
        coarse=coarse,
        width=coarse.dim,
        store=store,
        inverse_norms={width: v.to(store.device) for width, v in inverse_norms(segment, ladder, widths).items()},
        exact=flat,
        truth=flat,
        turn=turn_of(adaptor) if adaptor is not None and answers_alone(coarse, store.dim) else None,
    )

    def truth(queries: Float32, k: int) -> tuple[Float32, Int64]:
        return flat(cascade.as_stored(queries), k)

    norms = np.asarray(np.load(segment / "norms.npy", mmap_mode="r", allow_pickle=False))
    return replace(cascade, exact=pruned_exact(cascade, norms, ladder, release, keep), truth=truth)


def open_generation(folder: IndexFolder, device: torch.device, verify: str, placement: str = "auto") -> Opened:
    """Open the live generation. placement: where the vectors lie, see `VectorStore`.

    Raises NotAnIndexError, FormatVersionError, DamagedIndexError naming the file, or InputError for the placement.
    """
    try:
        check_placement(placement, device)
    except CoarseIndexError as error:
        raise InputError(str(error)) from error
    manifest = folder.manifest()
    verification = folder.verify(manifest, "lazy" if verify == "lazy" else "full")
    part = manifest.segments[0]
    segment = folder.path / "segments" / part.id
    store = VectorStore.open(segment / "vectors.npy", device, placement)
    _guard(store, verification, f"segments/{part.id}/vectors.npy")
    norms = f"segments/{part.id}/norms.npy"
    if norms in verification.verifiers:  # read whole, below
        verification.verifiers[norms].ensure(0, manifest.files[norms].size)
    settings: dict[str, Any] = dict(manifest.settings)
    widths = rerank_widths(manifest.ladder, settings["coarse"], coarse_width(manifest))
    adaptor = Adaptor.load(folder.path / "adaptor" / str(manifest.adaptor))
    coarse, rebuilt = _coarse(folder, manifest, verification, store, segment, adaptor)
    keep = settings.get("memory_mb") is None  # who states a memory gets no more than was chosen at build
    cascade = make_cascade(coarse, store, segment, manifest.ladder, widths, adaptor, release=False, keep=keep)
    searcher = Searcher(
        cascade=cascade,
        adaptor=adaptor,
        ids=Ids.open(segment),
        order=np.load(segment / "order.npy", mmap_mode="r", allow_pickle=False),
        widths=widths,
    )
    _check_agreement(searcher, manifest)
    if manifest.calibration is not None:
        searcher.calibration = Calibration.load(folder.path / "calibrations" / manifest.calibration)
        if rebuilt:
            searcher.calibration = _calibrate_again(searcher, int(settings["seed"]))
    documents = DocumentStore.open(segment / "documents.sqlite") if settings["documents"] else None
    return Opened(manifest, searcher, documents, rebuilt)


def _guard(store: VectorStore, verification: Verification, path: str) -> None:
    verifier = verification.verifiers.get(path)
    if verifier is None:
        return
    row_bytes = store.dim * store.dtype.itemsize
    header = store.path.stat().st_size - store.nbytes
    if store.device.type == "cpu":
        store.guard(lambda rows: verifier.ensure_rows(rows, row_bytes, header))
    else:  # every row was touched when it was copied there
        verifier.ensure(0, header + store.nbytes)


def _coarse(
    folder: IndexFolder,
    manifest: Manifest,
    verification: Verification,
    store: VectorStore,
    segment: Path,
    adaptor: Adaptor,
) -> tuple[CoarseIndex, str | None]:
    """The coarse index, and why it had to be made again, if it had."""
    name, settings = str(manifest.settings["coarse"]), manifest.settings["coarse_settings"]
    assert isinstance(settings, dict)
    relative = f"segments/{manifest.segments[0].id}/coarse.faiss"
    why = verification.damaged_caches.get(relative)
    if relative not in manifest.files:
        why = f"{relative} is missing"
    installed, built_with = family(name).library(), _built_with(manifest.settings)
    if why is None and built_with != installed:
        why = f"{relative} was written by {built_with}, and {installed} is installed"
    if why is None:
        try:
            return family(name).load(segment / "coarse.faiss", coarse_width(manifest), settings), None
        except CoarseIndexError as error:
            why = str(error)
    warnings.warn(f"{folder.path}: making the coarse index again from the vectors: {why}", stacklevel=4)
    vectors = f"segments/{manifest.segments[0].id}/vectors.npy"
    if vectors in verification.verifiers:  # read whole, past the guard of the map
        verification.verifiers[vectors].ensure(0, manifest.files[vectors].size)
    seed = int(str(manifest.settings["seed"]))
    return build_coarse(store, coarse_width(manifest), name, settings, seed, progress=False, adaptor=adaptor), why


def _built_with(settings: Mapping[str, object]) -> str:
    """The library that wrote the coarse index; the first indexes named the version of FAISS alone."""
    return str(settings.get("coarse_library") or f"faiss {settings.get('faiss')}")


def _calibrate_again(searcher: Searcher, seed: int) -> Calibration:
    """A graph built again is another graph: its plans are measured anew on the recorded queries."""
    old = searcher.calibration
    assert old is not None
    _, queries = old.runs()
    return calibrate(
        searcher.cascade,
        searcher.widths,
        None if queries is None else queries.queries,
        searcher.whole_call,
        old.encoder_ms,
        seed,
        progress=False,
        corpus_like_limit=old.corpus_like_limit,
    )


def _check_agreement(searcher: Searcher, manifest: Manifest) -> None:
    rows = manifest.segments[0].rows
    found = {
        "vectors.npy": searcher.rows,
        "coarse.faiss": searcher.cascade.coarse.ntotal,
        "ids.npy": len(searcher.ids),
        "order.npy": len(searcher.order),
    }
    for name, count in found.items():
        if count != rows:
            raise DamagedIndexError(f"{name} holds {count} rows, the manifest says {rows}; build the index again")
    if searcher.adaptor.dim != manifest.d:
        raise DamagedIndexError(
            f"the adaptor is for {searcher.adaptor.dim} dims, the manifest says {json.dumps(manifest.d)}"
        )
