"""The parts in which rows lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from funnel.building import segment as folding
from funnel.building.segment import fold_from
from funnel.engine.segments import ExactRows, Segment, live_rows
from funnel.engine.steps import best_of
from funnel.storage.ids import Ids
from indexes import VectorStore
from tests.funnel.clustered import clustered_rows

DIM = 16


def segment(folder: Path, first: int, count: int, seed: int) -> Segment:
    """A segment that is searched exactly."""
    folder.mkdir()
    rows = clustered_rows(count, DIM, seed)
    with VectorStore.create(folder / "vectors.npy", count, DIM) as writer:
        writer.write(np.arange(count), rows)
    np.save(folder / "ids.npy", np.arange(first, first + count))
    return Segment(
        folder.name, first, VectorStore.open(folder / "vectors.npy"), Ids.open(folder), None, None, None, None
    )


def test_exact_rows_grow_without_changing_what_others_hold(tmp_path: Path) -> None:
    """Rows added behind those that are held are seen by the new holder alone, in whatever order they come."""
    parts = [segment(tmp_path / str(i), 100 + 70 * i, 70, i) for i in range(3)]
    one = ExactRows.of(parts[:1])
    two, other = ExactRows.of(parts[:2], one.matrix), ExactRows.of(parts[::2])
    assert (one.count, two.count, other.count) == (70, 140, 140)
    stored = [part.store.block(0, 70).numpy() for part in parts]
    queries = clustered_rows(5, DIM, 9)
    for rows, matrix in ((one, stored[0]), (two, np.concatenate(stored[:2])), (other, np.concatenate(stored[::2]))):
        true = -np.sort(-(queries @ matrix.T), axis=1)[:, :10]
        scores, numbers = rows.search(queries, 10, None)
        np.testing.assert_allclose(scores, true, atol=1e-6)
        at = np.take_along_axis(queries @ matrix.T, numbers - 100, axis=1)
        np.testing.assert_allclose(at, true, atol=1e-6)


@pytest.mark.parametrize("cells", [1, 1_000_000])
def test_deleted_rows_are_not_found(tmp_path: Path, cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("funnel.engine.segments.CELLS_AT_A_TIME", cells)
    rows = ExactRows.of([segment(tmp_path / "a", 50, 12, 1)])
    live = live_rows(62, [np.array([3, 50, 55]), np.array([61])])
    assert live is not None
    assert live.sum() == 58
    scores, numbers = rows.search(clustered_rows(3, DIM, 2), 12, live)
    assert set(numbers[0].tolist()) == {*range(51, 61)} - {55} | {-1}
    assert np.isneginf(scores[:, 9:]).all()
    assert np.isfinite(scores[:, :9]).all()


def test_nothing_deleted_is_no_mask() -> None:
    assert live_rows(5, []) is None
    assert live_rows(5, [np.empty(0, dtype=np.int64)]) is None


def test_best_of_several_answers() -> None:
    one = (np.array([[0.9, 0.5]], np.float32), np.array([[1, 2]]))
    two = (np.array([[0.7, -np.inf]], np.float32), np.array([[30, -1]]))
    scores, rows = best_of([one, two], 3)
    assert rows.tolist() == [[1, 30, 2]]
    assert scores.tolist() == [[np.float32(0.9), np.float32(0.7), 0.5]]
    scores, rows = best_of([two], 3)
    assert rows.tolist() == [[30, -1, -1]]
    assert np.isneginf(scores[0, 1:]).all()


class Sized:
    """What `fold_from` looks at."""

    def __init__(self, first: int, rows: int, coarse: bool = False) -> None:
        self.first, self.rows, self.stop = first, rows, first + rows
        self.cascade = object() if coarse else None


def grown(adds: list[int], main: int = 1_000) -> list[Sized]:
    """The segments after these adds, as the folding has it."""
    segments = [Sized(0, main, True)]
    for count in adds:
        start = fold_from(segments, count)  # type: ignore[arg-type]
        merged = count + sum(part.rows for part in segments[start:])
        first = segments[start].first if start < len(segments) else segments[-1].stop
        segments = [*segments[:start], Sized(first, merged, merged > folding.EXACT_ROWS)]
    return segments


def test_a_thousand_single_adds_leave_a_few_segments() -> None:
    most = max(len(grown([1] * count)) for count in (7, 63, 511, 1_000))
    assert most <= 1 + 7 * 4
    assert sum(part.rows for part in grown([1] * 1_000)) == 2_000


def test_rows_too_many_to_be_searched_exactly_become_one_coarse_segment() -> None:
    segments = grown([1_000] * 45)
    exact = sum(part.rows for part in segments if part.cascade is None)
    assert exact <= folding.EXACT_ROWS
    assert sum(part.rows for part in segments) == 46_000
    coarse = [part.cascade is not None for part in segments]
    assert coarse == sorted(coarse, reverse=True)
    assert sum(coarse) == 3
