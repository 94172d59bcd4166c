"""`funnel check --deep`: whether the parts of an index agree with each other."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from funnel.engine.cascade import Cascade, unit_prefixes
from funnel.engine.searcher import Searcher
from funnel.engine.segments import Segment
from funnel.errors import DamagedIndexError
from funnel.filtering.columns import FilterColumns
from funnel.index import FunnelIndex
from funnel.planning.calibration import Calibration
from funnel.storage.arrays import map_npy

ROWS_AT_A_TIME = 16_384
NORM_TOLERANCE = 1e-4  # of a float32 sum of squares over some hundred dims, with room
UNIT_TOLERANCE = 2e-3  # float16 rounding moves the length of a unit row by at most 5e-4
SAMPLED_ROWS = 256
# A row searched for with the most effort finds itself, duplicates apart, in all but a few graphs.
SELF_FOUND = 0.95
TRUTH_SAMPLED, TRUTH_TOLERANCE = 16, 1e-5
# Where truth is that of the rows as given: rounding a unit row to float16 moves a score by at most 2^-11, and a little.
STORED_TOLERANCE = 1e-3


def deep_check(path: Path) -> Iterator[str]:
    """Open the index and test that its parts agree; yields what was found true.

    Raises DamagedIndexError naming the first part that disagrees.
    """
    index = FunnelIndex.open(path)
    searcher, manifest = index.searcher, index.manifest
    ids = index.ids()
    _require(len(set(ids)) == len(ids), "ids.npy holds an id twice; build the index again")
    yield f"{len(ids):,} ids, all different"
    for segment in index.segments:
        name = "" if len(index.segments) == 1 else f"segment {segment.id}: "
        _finite(segment, searcher.adaptor.isometric)
        if segment.cascade is None:
            yield f"{name}{segment.rows:,} rows, searched exactly, are finite"
            continue
        assert segment.order is not None
        whole = np.array_equal(np.sort(segment.order), np.arange(segment.rows))
        _require(whole, "order.npy is not a permutation of the rows; build the index again")
        yield f"{name}order.npy is a permutation of the rows"
        yield f"{name}{_norms(segment, segment.cascade, manifest.ladder)}"
        yield f"{name}{_coarse(segment.cascade)}"
    if manifest.settings.documents:
        yield _documents(index)
    if searcher.calibration is not None:
        yield _truth(searcher, searcher.calibration)


def _require(true: object, said: str) -> None:
    if not true:
        raise DamagedIndexError(said)


def _finite(segment: Segment, unit: bool) -> None:
    for start, rows in segment.store.chunks(ROWS_AT_A_TIME):
        _require(np.isfinite(rows).all(), f"vectors.npy holds values that are not finite in rows from {start}")
        off = np.abs(np.linalg.norm(rows, axis=1) - 1.0)
        said = f"vectors.npy holds rows that are not of unit length, such as row {start + off.argmax()}"
        _require(not unit or off.max() <= UNIT_TOLERANCE, said)


def _norms(segment: Segment, cascade: Cascade, ladder: tuple[int, ...]) -> str:
    """What is true of the norms, and of the adapted prefixes where they lie beside rows that are as given."""
    adapted, space = cascade.adapted, cascade.space
    norms = map_npy(segment.folder / "norms.npy", ("float32",), 2)
    shape = (segment.rows, len(ladder))
    _require(norms.shape == shape, f"norms.npy has shape {norms.shape}, expected {shape}")
    for start, rows in segment.store.chunks(ROWS_AT_A_TIME):
        prefixes = rows
        if adapted is not None:
            prefixes = adapted.block(start, start + len(rows)).cpu().numpy()
            off = np.abs(prefixes - space.prefixes(rows, adapted.dim)).max(axis=1)
            said = f"adapted.npy disagrees with vectors.npy in row {start + int(off.argmax())}"
            _require(off.max() <= STORED_TOLERANCE, said)
        for column, width in enumerate(ladder):
            part = prefixes[:, :width] if width < rows.shape[1] else rows
            off = np.abs(np.linalg.norm(part, axis=1) - norms[start : start + len(rows), column])
            said = f"norms.npy disagrees with vectors.npy in row {start + int(off.argmax())} at {width} dims"
            _require(off.max() <= NORM_TOLERANCE, said)  # NaN is no agreement
    return "norms.npy agrees with vectors.npy, whose rows have unit length"


def _coarse(cascade: Cascade) -> str:
    rows = np.unique(np.linspace(0, cascade.store.n - 1, SAMPLED_ROWS).astype(np.int64))
    vectors = cascade.store.matrix[rows].float().cpu().numpy()
    effort = cascade.coarse.efforts()[-1]
    size = min(10, cascade.coarse.largest_shortlist(effort))
    scores, found = cascade.coarse.search(unit_prefixes(cascade.space.prefixes(vectors, cascade.width)), size, effort)
    share = float(((found == rows[:, None]).any(axis=1) | (scores[:, -1] > 1 - UNIT_TOLERANCE)).mean())
    said = f"of {len(rows)} rows searched for by themselves"
    _require(share >= SELF_FOUND, f"coarse.faiss finds {share:.0%} {said}")
    return f"coarse.faiss finds {share:.1%} {said}"


def _documents(index: FunnelIndex) -> str:
    same = [str(id_) for id_ in index.document_ids()] == [str(id_) for id_ in index.ids()]
    _require(same, "documents.sqlite and ids.npy hold different ids; build the index again")
    for segment in index.segments:
        assert segment.documents is not None
        assert segment.columns is not None
        same = segment.columns.catalogue == FilterColumns(segment.documents, None).catalogue
        _require(same, "columns.sqlite and documents.sqlite hold different metadata; build the index again")
    return "documents.sqlite holds the ids of ids.npy, in order"


def _truth(searcher: Searcher, calibration: Calibration) -> str:
    corpus, queries = calibration.runs()
    run = queries or corpus
    sample, depth = np.ascontiguousarray(run.queries[:TRUTH_SAMPLED]), run.truth.shape[1]
    scores, rows = searcher.cascade.truth(sample, min(depth + 1, searcher.cascade.rows))
    own = rows == run.own_rows[:TRUTH_SAMPLED, None]
    kept = -np.sort(-np.where(own, -np.inf, scores), axis=1)[:, :depth]
    allowed = TRUTH_TOLERANCE if run.given is None else STORED_TOLERANCE
    true = run.truth[:TRUTH_SAMPLED]
    agree = (np.abs(kept - true, where=kept != true, out=np.zeros_like(kept)) <= allowed).all()
    _require(agree, "calibration.npz holds other true scores than the vectors give; calibrate again")
    return f"the true scores of {len(sample)} calibration queries are those of the vectors"
