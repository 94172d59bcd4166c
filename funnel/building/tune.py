"""Calibration again, of an index that stands: one new part, everything else shared with the generation before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from msgspec import structs

from funnel.building.build import calibrate_searcher, written
from funnel.building.queries import EQUAL, SAME_COSINE, encode_asked, open_asked
from funnel.building.segment import live_documents
from funnel.checks import checked_flag, checked_seed
from funnel.data.queries import Queries, QueriesSource, folded
from funnel.encoding.query_encoder import QueryEncoder
from funnel.engine.generation import Opened, open_generation, same_generation
from funnel.engine.measuring import Certifying, Given, Search
from funnel.engine.searcher import Searcher
from funnel.errors import InputError, StorageError
from funnel.planning.calibration import Calibration
from funnel.storage import IndexFolder, Manifest, Transaction

__all__ = ["recorded", "tune_index"]

COARSE = "coarse.faiss"
NEAREST_COMPARED = 3  # the row that a query equals is its best, or nearly: rows as stored have lengths a little off 1


def tune_index(
    path: Path,
    opened: Opened,
    encoder: QueryEncoder,
    queries: QueriesSource | None,
    corpus_like_queries: bool | None,
    seed: int,
    progress: bool,
) -> Opened:
    """Calibrate `opened` again and commit it as the next generation of the folder `path`; gives that one, opened.

    queries: as for a build; None: those on record. corpus_like_queries: None: as on record. Raises what
    `FunnelIndex.tune` says.
    """
    _check(path, opened, seed)
    given = None if queries is None else open_asked(queries, None)[0]
    folder = IndexFolder(path)
    with folder.begin() as transaction:
        _check_live(path, transaction, opened.manifest)
        old = opened.searcher
        searcher = Searcher(old.cascade, old.ids, old.order, old.widths, None, old.others)
        stored = opened.stored
        like = bool(stored and stored.corpus_like)
        if corpus_like_queries is not None:
            like = checked_flag("corpus_like_queries", corpus_like_queries)
        new = None if given is None else _prepared(opened, given, encoder, like, seed, progress)
        real, truth = (new, None) if new is not None else recorded(opened, like, _stay(opened))
        storage = None if stored is None else stored.storage
        calibration = calibrate_searcher(searcher, real, seed, progress, truth, storage)
        _commit(transaction, opened, calibration, progress)
    # The record is on disk now and need not stay in memory. A segment that was written anew lies elsewhere.
    before = None if opened.rebuilt is not None else opened
    store = old.cascade.store
    return open_generation(folder, store.device, "lazy", before, store.placement)


def _check(path: Path, opened: Opened, seed: int) -> None:
    checked_seed(seed)
    if opened.searcher.calibration is None:
        raise InputError(
            f"{path} holds {opened.searcher.rows:,} rows, and there is nothing to calibrate: {opened.searcher.why_flat}"
        )
    if opened.searcher.others is not None and opened.searcher.others.coarse:
        raise InputError(
            f"{path} has {len(opened.searcher.others.coarse)} further segments with a coarse index of their own, which "
            "are not calibrated one by one: merge them with index.compact() or funnel compact, which calibrates as well"
        )


def _check_live(path: Path, transaction: Transaction, manifest: Manifest) -> None:
    """StorageError unless the generation that is open is still the live one."""
    live = transaction.previous
    if live is None or not same_generation(live, manifest):
        found = "removed" if live is None else f"replaced by generation {live.generation}"
        raise StorageError(f"{path}: generation {manifest.generation}, which is open, was {found}; open it again")


def recorded(
    opened: Opened, like: bool, places: npt.NDArray[np.int64], added: Search | None = None
) -> tuple[Certifying, Given | None]:
    """The real queries on record, without those that equal rows which were added since, unless `like`; their truth.

    places, added: see `Given.again`.
    """
    stored = opened.stored
    if stored is None:
        return Certifying(), None
    _, queries = stored.runs()
    real = Certifying(None if queries is None else queries.queries, stored.left_out, like)
    given = Given.again(stored, places, added)
    if real.queries is None or like:
        return real, given
    equal = _equal_added(opened.searcher, np.ascontiguousarray(real.queries))
    return real.without(equal, EQUAL), None if given is None else given.without(equal)


def _stay(opened: Opened) -> npt.NDArray[np.int64]:
    """Where each row of the first segment is stored: where it was, -1 for those deleted."""
    rows, live = np.arange(opened.segments[0].rows), opened.searcher.cascade.live
    return rows if live is None else np.where(live, rows, -1)


def _prepared(
    opened: Opened, given: Queries, encoder: QueryEncoder, like: bool, seed: int, progress: bool
) -> Certifying:
    """New queries, as for a build: each once, none that the adaptor saw, and no documents unless `like`."""
    searcher = opened.searcher
    loaded = encoder.load() if given.vectors is None else None
    asked = encode_asked(given, {}, loaded, searcher.dim, seed, progress)
    asked = asked.without_seen(searcher.adaptor.seen_queries)
    if asked.texts is not None and opened.documents is not None and not like:
        texts = {
            folded(text)
            for part in live_documents(opened.segments, opened.live)
            for one in part
            for text in (one.text, one.content)
        }
        asked = asked.without_texts(frozenset(texts & set(asked.texts)))
    if asked.certifying is not None and not like:
        queries = searcher.prepare(asked.certifying)
        asked = asked.without(_equal_rows(searcher, queries) | _equal_added(searcher, queries), EQUAL)
    real = None if asked.certifying is None else searcher.prepare(asked.certifying)
    return Certifying(real, asked.left_out, like)


def _equal_rows(searcher: Searcher, queries: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Which queries are, up to how they are stored, rows of the first segment: bool [q]."""
    cascade = searcher.cascade
    _, rows = cascade.truth(queries, min(NEAREST_COMPARED, cascade.rows))
    equal = np.zeros(len(queries), dtype=np.bool_)
    for near in rows.T:
        found = cascade.store.gather(torch.from_numpy(near.clip(min=0)).to(cascade.store.device), 0, cascade.store.dim)
        stored = found.float().cpu().numpy()
        cosines = np.einsum("qd,qd->q", stored, queries) / np.linalg.norm(stored, axis=1)
        equal |= (cosines >= SAME_COSINE) & (near >= 0)
    return equal


def _equal_added(searcher: Searcher, queries: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Which queries are, up to rounding, rows that were added to the first segment: bool [q]."""
    others = searcher.others
    if others is None or not others.rows:
        return np.zeros(len(queries), dtype=np.bool_)
    return others.nearest(queries, 1)[0][:, 0] >= SAME_COSINE


def _commit(transaction: Transaction, opened: Opened, calibration: Calibration, progress: bool) -> Manifest:
    manifest = opened.manifest
    kept = [path for path in manifest.files if path.split("/")[0] != "calibrations"]
    body = manifest.body() | {"calibration": written(transaction, calibration)}
    if opened.rebuilt is not None:  # the graph that was measured is the one to keep
        prefix = f"segments/{manifest.segments[0].id}/"
        first = structs.replace(manifest.segments[0], id=_with_coarse(transaction, opened, prefix))
        body["segments"] = (first, *manifest.segments[1:])
        kept = [path for path in kept if not path.startswith(prefix)]
        library = opened.searcher.cascade.coarse.library()
        body["settings"] = structs.replace(manifest.settings, coarse_library=library)
    for path in kept:
        transaction.reuse(path)
    return transaction.commit(body, progress=progress)


def _with_coarse(transaction: Transaction, opened: Opened, prefix: str) -> str:
    """The segment again, with the coarse index that was made at opening; every other file is a link. Its identifier."""
    segment = transaction.folder("segments")
    for path in opened.manifest.files:
        if path.startswith(prefix) and not path.endswith(f"/{COARSE}"):
            transaction.link(path, segment)
    opened.searcher.cascade.coarse.save(segment / COARSE)
    return transaction.identifier(segment)
