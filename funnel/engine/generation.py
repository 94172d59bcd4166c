"""Opening an index: verify, map, load; make the coarse index again where its file cannot be used."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from msgspec import structs

from funnel.adaptors import Adaptor
from funnel.data.documents import DocumentStore
from funnel.engine.cascade import Cascade, Float32, Int64, Space
from funnel.engine.coarse import build_coarse, check_coarse
from funnel.engine.measuring import Certifying, Given, calibrate
from funnel.engine.searcher import Searcher
from funnel.engine.segments import Documents, ExactRows, JoinedDocuments, Others, Segment, live_rows
from funnel.engine.steps import pruned_exact
from funnel.errors import DamagedIndexError, InputError, MissingPackageError
from funnel.filtering.columns import FilterColumns
from funnel.planning.calibration import SMALLEST_PLANNED, Calibration
from funnel.planning.updated import Updated
from funnel.storage import IndexFolder, Manifest, PartEntry, ReaderLock, Verification
from funnel.storage.arrays import map_npy
from funnel.storage.files import REMEDY
from funnel.storage.ids import Ids, JoinedIds
from funnel.storage.layout import ADAPTED, COLUMNS, KINDS
from indexes import (
    CoarseIndex,
    CoarseIndexError,
    MissingBackendError,
    VectorStore,
    check_placement,
    exact_search,
    family,
)

__all__ = ["Opened", "make_cascade", "open_generation", "rerank_widths"]


@dataclass(frozen=True)
class Opened:
    """One generation, opened.

    documents: None where the index holds bare vectors. rebuilt: why the coarse index of the first segment had to be
    made again; None where it had not. live: bool [all rows], False for those deleted; None where none were. stored: the
    calibration as it was made, whatever was added or deleted since. lock: keeps the files of the generation.
    """

    manifest: Manifest
    searcher: Searcher
    documents: Documents | None
    rebuilt: str | None
    segments: tuple[Segment, ...] = ()
    live: npt.NDArray[np.bool_] | None = None
    stored: Calibration | None = None
    lock: ReaderLock | None = None


def rerank_widths(ladder: tuple[int, ...], coarse: str, coarse_width: int) -> tuple[int, ...]:
    """The widths that stages may use: those above the coarse one; where its codes are coarse, it alone and full width.

    Each but the last holds norms, 4 bytes a row, and such codes are for where memory is short.
    """
    if coarse == "ivf-pq" and coarse_width < ladder[-1]:
        return coarse_width, ladder[-1]
    return tuple(width for width in ladder if width > coarse_width) or ladder[-1:]


class InverseNorms(dict[int, torch.Tensor]):
    """1 / norm of every row's prefix, by width, float32 [n] each; 0 for a zero prefix. Held from the first use on.

    norms: float32 [n, len(ladder)], may be mapped.
    """

    def __init__(self, norms: Float32, ladder: tuple[int, ...], device: torch.device) -> None:
        self._norms, self._ladder, self._device = norms, ladder, device

    def __missing__(self, width: int) -> torch.Tensor:
        column = np.array(self._norms[:, self._ladder.index(width)])
        inverse = torch.from_numpy(np.divide(1.0, column, out=np.zeros_like(column), where=column > 0))
        self[width] = inverse = inverse.to(self._device)
        return inverse


def make_cascade(
    coarse: CoarseIndex,
    store: VectorStore,
    segment: Path,
    ladder: tuple[int, ...],
    widths: tuple[int, ...],
    space: Space,
    *,
    release: bool,
    keep: bool = False,
) -> Cascade:
    """The parts put together.

    segment: the folder of norms.npy and adapted.npy. widths: of reranks. release: give mapped pages back after passes
    over the matrix (while building). keep: exact search may hold codes of a prefix in memory, width + 4 bytes a row,
    once it was used.
    """
    coarse.place(store.device)

    def flat(queries: Float32, k: int) -> tuple[Float32, Int64]:
        return exact_search(store, queries, k, release=release)

    norms = np.asarray(map_npy(segment / "norms.npy", ("float32",), 2))
    inverse = InverseNorms(norms, ladder, store.device)
    for width in widths[:-1]:  # those of planned stages
        inverse[width]
    cascade = Cascade(
        coarse=coarse,
        width=coarse.dim,
        store=store,
        space=space,
        adapted=open_adapted(segment, space, ladder, store.n, store.device),
        inverse_norms=inverse,
        exact=flat,
        truth=flat,
        ladder=ladder,
    )
    return replace(cascade, exact=pruned_exact(cascade, norms, ladder, release, keep))


def open_adapted(
    segment: Path, space: Space, ladder: tuple[int, ...], rows: int, device: torch.device
) -> VectorStore | None:
    """The adapted prefixes of rows that are stored as the user gave them; None where stored rows have them.

    Raises DamagedIndexError where the file is not as wide as the widest step of the ladder below full width.
    """
    if not space.projects or len(ladder) == 1:
        return None
    return _matrix(segment / ADAPTED, (rows, ladder[-2]), device)


def _matrix(path: Path, shape: tuple[int, int], *place: Any) -> VectorStore:
    """The matrix at a path, of so many rows and dims. Raises DamagedIndexError."""
    try:
        store = VectorStore.open(path, *place)
    except CoarseIndexError as error:
        raise DamagedIndexError(f"{error}; build the index again") from error
    rows, dim = shape
    _expect(
        (store.n, store.dim) == shape,
        f"{path} holds {store.n} rows of {store.dim} dims, the manifest says {rows} of {dim}",
    )
    return store


def _expect(is_so: bool, fault: str) -> None:
    """Raises DamagedIndexError with the fault, unless it is so."""
    if not is_so:
        raise DamagedIndexError(f"{fault}; build the index again")


def open_generation(
    folder: IndexFolder,
    device: torch.device,
    verify: str,
    before: Opened | None = None,
    placement: str = "auto",
) -> Opened:
    """Open the live generation.

    before: one of the same folder, whose parts need not be opened again; given back where it is the live one.
    placement: where the vectors lie, see `VectorStore`.

    Raises NotAnIndexError, FormatVersionError, DamagedIndexError naming the file, or InputError for the placement.
    """
    try:
        check_placement(placement, device)
    except CoarseIndexError as error:
        raise InputError(str(error)) from error
    manifest, lock = folder.read()
    check_coarse(manifest, folder.path)
    if before is not None and same_generation(manifest, before.manifest):
        return before
    known = {} if before is None else before.manifest.files
    unknown = {path: entry for path, entry in manifest.files.items() if known.get(path) != entry}
    verification = folder.verify(structs.replace(manifest, files=unknown), "lazy" if verify == "lazy" else "full")
    spaces = [(one.adaptor, one.settings.own) for one in (manifest, manifest if before is None else before.manifest)]
    same_space = before is not None and spaces[0] == spaces[1]
    space = before.searcher.space if before is not None and same_space else _space(folder, manifest)
    segments = _segments(folder, manifest, verification, space, (device, placement), before)
    live = live_rows(segments[-1].stop, _tombstones(folder, manifest, segments[-1].stop))
    first = segments[0]
    assert first.order is not None, "a first segment has an order"
    searcher = Searcher(
        cascade=first.over(live),
        ids=first.ids if len(segments) == 1 else JoinedIds([segment.ids for segment in segments]),
        order=first.order,
        widths=rerank_widths(manifest.ladder, manifest.settings.coarse, manifest.coarse_width),
        others=_others(segments, live, before),
    )
    stored = _stored(folder, manifest, searcher, first, before)
    searcher.calibration = None if stored is None else updated(stored, searcher, before)
    documents: Documents | None = None
    if manifest.settings.documents:
        simple = len(segments) == 1 and live is None
        documents = first.documents if simple else JoinedDocuments(segments, live)
    return Opened(manifest, searcher, documents, first.rebuilt, segments, live, stored, lock)


def _space(folder: IndexFolder, manifest: Manifest) -> Space:
    """How rows are stored. Raises DamagedIndexError."""
    adaptor, settings = Adaptor.load(folder.path / "adaptor" / str(manifest.adaptor)), manifest.settings
    if adaptor.dim != manifest.d:
        raise DamagedIndexError(f"the adaptor is for {adaptor.dim} dims, the manifest says {json.dumps(manifest.d)}")
    if settings.own and not adaptor.isometric:
        raise DamagedIndexError(f"settings.own is true, and a {adaptor.kind} adaptor changes full width; {REMEDY}")
    # What such graphs of formats up to 3 were built over; settings that nobody gave are not there.
    coded = settings.coarse_settings.get("bits", 0)
    alone = manifest.coarse_width == manifest.d and settings.coarse == "symqg" and not coded
    return Space(adaptor, settings.own, adaptor.isometric and not settings.own and alone)


def same_generation(one: Manifest, other: Manifest) -> bool:
    """Whether both are the same generation of the same index."""
    return (one.generation, one.created, one.files) == (other.generation, other.created, other.files)


def _segments(
    folder: IndexFolder,
    manifest: Manifest,
    verification: Verification,
    space: Space,
    place: tuple[torch.device, str],
    before: Opened | None,
) -> tuple[Segment, ...]:
    known = {} if before is None else {segment.id: segment for segment in before.segments}
    result: list[Segment] = []
    for part in manifest.segments:
        first = result[-1].stop if result else 0
        segment = known.get(part.id)
        if segment is None:
            segment = _open_segment(folder, manifest, part, first, verification, space, place)
        result.append(segment if segment.first == first else replace(segment, first=first))
    coarse = [segment.cascade is not None for segment in result]
    _expect(
        any(coarse[:1]),
        f"generation {manifest.generation} of {folder.path} names no segment with a coarse index as its first",
    )
    _expect(
        coarse == sorted(coarse, reverse=True) and len({segment.ids.text for segment in result}) == 1,
        f"the segments of {folder.path} do not belong together: those with a coarse index come first, and ids are all "
        "texts or all numbers",
    )
    return tuple(result)


def _open_segment(
    folder: IndexFolder,
    manifest: Manifest,
    part: PartEntry,
    first: int,
    verification: Verification,
    space: Space,
    place: tuple[torch.device, str],
) -> Segment:
    path = folder.path / "segments" / part.id
    store = _matrix(path / "vectors.npy", (part.rows, manifest.d), *place)
    _guard(store, verification, f"segments/{part.id}/vectors.npy")
    order = cascade = rebuilt = None
    norms = f"segments/{part.id}/norms.npy"
    if not part.exact:
        projected = (ADAPTED,) if space.projects and len(manifest.ladder) > 1 else ()
        _require(manifest, part, "norms.npy", "order.npy", *projected)
        if norms in verification.verifiers:  # read whole, below
            verification.verifiers[norms].ensure(0, manifest.files[norms].size)
        _check_norms(path / "norms.npy", part.rows, manifest.ladder)
        order = np.asarray(map_npy(path / "order.npy", ("int64",), 1))
        _expect(len(order) == part.rows, f"order.npy holds {len(order)} rows, the manifest says {part.rows}")
        outside = part.rows > 0 and (order.min() < 0 or order.max() >= part.rows)
        once = not outside and np.bincount(order, minlength=part.rows).max(initial=0) <= 1
        _expect(once, f"order.npy of segment {part.id} is no permutation of 0 to {part.rows - 1}")
        coarse, rebuilt = _coarse(folder, manifest, part, verification, store, space)
        widths = rerank_widths(manifest.ladder, manifest.settings.coarse, manifest.coarse_width)
        keep = manifest.settings.memory_mb is None  # who states a memory gets no more than was chosen at build
        cascade = make_cascade(coarse, store, path, manifest.ladder, widths, space, release=False, keep=keep)
        if cascade.adapted is not None:
            _guard(cascade.adapted, verification, f"segments/{part.id}/{ADAPTED}")
    documents = columns = None
    if manifest.settings.documents:
        documents, columns = _documents(folder, manifest, part, verification)
    ids = Ids.open(path, f"segments/{part.id}/id_offsets.npy" in manifest.files)
    segment = Segment(part.id, first, store, ids, order, cascade, documents, columns, rebuilt)
    _check_agreement(segment, part.rows)
    return segment


def _documents(
    folder: IndexFolder, manifest: Manifest, part: PartEntry, verification: Verification
) -> tuple[DocumentStore, FilterColumns]:
    """A segment's documents, and their columns: those in the documents, where there is no file of them to use."""
    path = manifest.documents(part)
    _expect(path is not None, f"segments/{part.id} has no documents.sqlite")
    documents = DocumentStore.open(folder.path / str(path))
    if part.columns is None:
        return documents, FilterColumns(documents, None)
    columns = KINDS["columns"].path(part.columns, COLUMNS)
    why = verification.damaged_caches.get(columns)
    if why is not None:
        warnings.warn(
            f"{folder.path}: filters read all documents until funnel upgrade writes their columns: {why}", stacklevel=6
        )
    return documents, FilterColumns(documents, folder.path / columns if why is None else None)


def _require(manifest: Manifest, part: PartEntry, *names: str) -> None:
    for name in names:
        _expect(f"segments/{part.id}/{name}" in manifest.files, f"segments/{part.id} has no {name}")


def _tombstones(folder: IndexFolder, manifest: Manifest, total: int) -> list[npt.NDArray[np.int64]]:
    """The rows that were deleted, set by set."""
    sets = []
    for part in manifest.tombstones:
        rows = np.array(map_npy(folder.path / "tombstones" / f"{part.id}.npy", ("int64",), 1))
        _expect(rows.shape == (part.rows,), f"tombstones/{part.id}.npy holds {len(rows)} rows, not {part.rows}")
        least, most = rows.min(initial=total), rows.max(initial=-1)
        inside = not len(rows) or (least >= 0 and most < total)
        _expect(inside, f"tombstones/{part.id}.npy names rows {least} to {most} of {total}")
        sets.append(rows)
    return sets


def _others(segments: tuple[Segment, ...], live: npt.NDArray[np.bool_] | None, before: Opened | None) -> Others | None:
    """What lies beside the first segment; rows that are in memory already are not read again."""
    if len(segments) == 1:
        return None
    coarse = tuple((segment, segment.over(live)) for segment in segments[1:] if segment.cascade is not None)
    exact = [segment for segment in segments[1:] if segment.cascade is None]
    if not exact:
        return Others(coarse, None, live)
    old = () if before is None else [segment.id for segment in before.segments if segment.cascade is None]
    held = None if before is None or before.searcher.others is None else before.searcher.others.exact
    same = held is not None and held.first == exact[0].first and [one.id for one in exact[: len(old)]] == old
    return Others(coarse, ExactRows.of(exact, held.matrix if held is not None and same else None), live)


def _stored(
    folder: IndexFolder, manifest: Manifest, searcher: Searcher, first: Segment, before: Opened | None
) -> Calibration | None:
    """The calibration as it was made; anew, where the coarse index was made again since."""
    if manifest.calibration is None:
        return None
    if before is not None and before.manifest.calibration == manifest.calibration and first in before.segments:
        return before.stored
    stored = Calibration.load(folder.path / "calibrations" / manifest.calibration)
    if searcher.space.whole:
        stored = _turned(stored, searcher.space)
    _check_calibration(stored, manifest, searcher, first)
    if first.rebuilt is None:
        return stored
    searcher.calibration = stored
    return _calibrate_again(searcher, manifest.settings.seed)


def _turned(stored: Calibration, space: Space) -> Calibration:
    """The calibration with its queries as rows are stored, where they are on record as they were given."""
    corpus, queries = (
        run if run is None else replace(run, queries=space.stored(np.ascontiguousarray(run.queries)))
        for run in stored.runs()
    )
    return replace(stored, corpus=corpus, queries=queries)


def _check_calibration(stored: Calibration, manifest: Manifest, searcher: Searcher, first: Segment) -> None:
    """Check that it is of this index, and that every plan of it can be run there. Raises DamagedIndexError."""
    file = f"calibrations/{manifest.calibration}"
    _expect(stored.dim == manifest.d, f"{file} is of {stored.dim} dims, the manifest says {manifest.d}")
    stored.rows = first.rows
    largest = max(searcher.cascade.coarse.efforts(), default=0)
    for frontier in stored.frontiers.values():
        for plan in frontier.plans:
            try:
                searcher.check(plan, frontier.k)
            except InputError as error:
                raise DamagedIndexError(f"{file}: {error}; build the index again") from error
            _expect(plan.effort <= largest, f"{file}: plan {plan}: the largest effort is {largest}")


def updated(
    stored: Calibration,
    searcher: Searcher,
    before: Opened | None,
) -> Calibration | None:
    """The calibration of the first segment as it holds now; None where so few rows are left that flat search is all."""
    others, cascade = searcher.others, searcher.cascade
    if cascade.rows < SMALLEST_PLANNED:
        return None
    made = stored
    if cascade.live is not None:
        earlier = None if before is None else before.searcher.calibration
        made = Updated.of(stored, cascade.live, cascade.truth, earlier)
        made.updates = f"counted again for {cascade.store.n - cascade.rows:,} of its rows that were deleted"
    if others is None:
        return made
    if cascade.live is None:
        made = replace(stored)
    said = [made.updates] if made.updates else []
    if others.exact_rows:
        made.added = others.exact_scores
        said.append(f"{others.exact_rows:,} rows added since are searched exactly, which can only raise recall")
    made.updates = "; ".join(said)
    made.latencies = []  # of calls that searched the first segment alone
    if others.coarse:
        count = sum(cascade.rows for _, cascade in others.coarse)
        made.void = (
            f"{count:,} rows added since have a coarse index of their own, whose recall was not measured; run "
            "index.compact() or funnel compact"
        )
    return made


def _guard(store: VectorStore, verification: Verification, path: str) -> None:
    verifier = verification.verifiers.get(path)
    if verifier is None:
        return
    row_bytes = store.dim * store.dtype.itemsize
    header = store.path.stat().st_size - store.nbytes
    if store.placement == "mapped":
        store.guard(lambda rows: verifier.ensure_rows(rows, row_bytes, header))
    else:  # every row was read when it was copied
        verifier.ensure(0, header + store.nbytes)


def _coarse(
    folder: IndexFolder,
    manifest: Manifest,
    part: PartEntry,
    verification: Verification,
    store: VectorStore,
    space: Space,
) -> tuple[CoarseIndex, str | None]:
    """The coarse index, and why it had to be made again, if it had."""
    settings, width = manifest.settings, manifest.coarse_width
    relative = f"segments/{part.id}/coarse.faiss"
    why = verification.damaged_caches.get(relative)
    if relative not in manifest.files:
        why = f"{relative} is missing"
    try:
        installed, built_with = family(settings.coarse).library(), settings.coarse_library
    except MissingBackendError as error:
        raise MissingPackageError(f"{folder.path} cannot be opened here: {error}") from error
    if why is None and built_with != installed:
        why = f"{relative} was written by {built_with or 'an unnamed library'}, and {installed} is installed"
    if why is None:
        try:
            path = store.path.parent / "coarse.faiss"
            return family(settings.coarse).load(path, width, settings.coarse_settings), None
        except CoarseIndexError as error:
            why = str(error)
    warnings.warn(f"{folder.path}: making the coarse index again from the vectors: {why}", stacklevel=6)
    made = (settings.coarse, settings.coarse_settings, settings.seed)
    adapted = open_adapted(store.path.parent, space, manifest.ladder, store.n, store.device)
    source = store if adapted is None or width == store.dim else adapted
    try:
        made_again = build_coarse(source, store.dim, width, *made, progress=False, turn=space.whole_rows)
        return made_again, why
    except CoarseIndexError as error:
        raise DamagedIndexError(f"{relative} cannot be made again by the settings: {error}; {REMEDY}") from error


def _calibrate_again(searcher: Searcher, seed: int) -> Calibration:
    """A graph built again is another graph: its plans are measured anew on the recorded queries."""
    old = searcher.calibration
    assert old is not None
    _, queries = old.runs()
    rows, live = np.arange(searcher.cascade.store.n), searcher.cascade.live
    return calibrate(
        searcher.cascade,
        searcher.widths,
        Certifying(None if queries is None else queries.queries, old.left_out, old.corpus_like),
        searcher.whole_call,
        seed,
        progress=False,
        given=Given.again(old, rows if live is None else np.where(live, rows, -1)),
        storage=old.storage,
    )


def _check_agreement(segment: Segment, rows: int) -> None:
    found = {"ids.npy": len(segment.ids)}
    if segment.documents is not None:
        found["documents.sqlite"] = segment.documents.count()
    if segment.cascade is not None:
        found["coarse.faiss"] = segment.cascade.coarse.ntotal
    for name, count in found.items():
        _expect(count == rows, f"{name} holds {count} rows, the manifest says {rows}")


def _check_norms(path: Path, rows: int, ladder: tuple[int, ...]) -> None:
    norms = map_npy(path, ("float32",), 2)
    shape = (rows, len(ladder))
    _expect(norms.shape == shape, f"{path} holds {list(norms.shape)} norms, expected {list(shape)}")
    sound = not norms.size or (norms.min() >= 0.0 and norms.max() < np.inf)
    _expect(sound, f"{path} holds norms that are negative or not finite")
