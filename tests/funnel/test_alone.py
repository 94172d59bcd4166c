"""A graph over whole rows: what may be built where SymphonyQG is installed and the memory that was allowed has room."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from funnel import FunnelIndex
from funnel.adaptors import make_adaptor
from funnel.budget import Budget
from funnel.building.info import read_info
from funnel.engine.cascade import Space
from funnel.errors import InputError
from indexes import CoarseIndexError, choose, symqg_installed
from indexes.selection import FLAT_ROWS

pytestmark = pytest.mark.skipif(not symqg_installed(), reason="rabitqlib is not installed")

Float32 = npt.NDArray[np.float32]
DIM, K = 64, 10


def made_up(count: int, seed: int) -> Float32:
    """Unit rows around shared centres, with a falling spectrum."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((60, DIM))
    rows = centres[generator.integers(0, 60, count)] + 0.7 * generator.standard_normal((count, DIM))
    rows = rows * np.linspace(1, 0.1, DIM)
    result: Float32 = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return result


@pytest.fixture(scope="module")
def rows() -> Float32:
    return made_up(FLAT_ROWS + 800, 1)


@pytest.fixture(scope="module")
def asked() -> Float32:
    return made_up(300, 2)


@pytest.fixture(scope="module")
def folder(rows: Float32, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("alone") / "index"
    FunnelIndex.build(
        rows, path, adaptor="pca", queries=made_up(400, 3), progress=False, dtype="float32", coarse="symqg", dims=[DIM]
    )
    return path


def best_ids(rows: Float32, ids: npt.NDArray[np.int64], queries: Float32) -> npt.NDArray[np.int64]:
    return ids[np.argsort(-(queries @ rows.T), axis=1, kind="stable")[:, :K]]


def overlap(found: npt.NDArray[np.int64], true: npt.NDArray[np.int64]) -> float:
    return float(np.mean([len(set(one) & set(other)) / K for one, other in zip(found, true, strict=True)]))


def test_it_answers_alone_by_exact_scores(folder: Path, rows: Float32, asked: Float32) -> None:
    index = FunnelIndex.open(folder)
    assert index.manifest.settings.coarse == "symqg"
    assert index.manifest.settings.coarse_width == DIM
    assert index.searcher.cascade.alone
    plan = next(plan for plan in index.searcher.calibration.frontier(K).plans if not plan.is_flat)  # type: ignore[union-attr]
    ids, scores = index.search_vectors(asked, K, plan=plan)
    np.testing.assert_allclose(scores, np.take_along_axis(asked @ rows.T, ids, axis=1), atol=1e-5)
    assert overlap(ids, best_ids(rows, np.arange(len(rows)), asked)) >= 0.9
    exact, _ = index.search_vectors(asked, K, recall=1.0)
    assert overlap(exact, best_ids(rows, np.arange(len(rows)), asked)) > 0.999
    one, _ = index.search_vectors(asked[:1], K, plan=plan)
    assert overlap(one, ids[:1]) >= 0.8


def test_asked_for_by_name_it_takes_its_own_settings(rows: Float32, tmp_path: Path) -> None:
    few = rows[:1_500]
    index = FunnelIndex.build(few, tmp_path / "index", coarse="symqg", dims=[DIM], adaptor="pca", progress=False)
    assert index.manifest.settings.coarse_settings == {}
    assert read_info(index.path).held_bytes
    assert index.searcher.cascade.alone
    ids, _ = index.search_vectors(few[:20], 1, plan=index.explain(1, recall=0.9).plan)
    assert (ids[:, 0] == np.arange(20)).mean() >= 0.9


def test_steps_are_measured_in_the_space_of_the_rows(folder: Path) -> None:
    explained = FunnelIndex.open(folder).explain(K, recall=0.9, run=True)
    measured = [line.measured_recall for line in explained.stages]
    assert measured[-1] is not None
    assert measured[-1] > 0.85


def test_queries_that_are_unit_rows_are_not_copied(folder: Path, rows: Float32) -> None:
    searcher = FunnelIndex.open(folder).searcher
    many = rows[:700]
    for count in (0, 1, 5, 300, 700):
        assert searcher.prepare(many[:count]).ctypes.data == many.ctypes.data
    before = many.copy()
    searcher.found(searcher.prepare(many), searcher.planner.choose(Budget(0.9), K, len(many)).plan, K)
    np.testing.assert_array_equal(many, before)
    last = many.copy()
    last[-1] *= 1.0001
    for others in (last, many * 2, many.astype(np.float64), np.asfortranarray(many), np.repeat(many, 2, axis=0)[::2]):
        prepared = searcher.prepare(others)
        assert prepared is not others
        assert prepared.flags.c_contiguous
        np.testing.assert_allclose(prepared, many, atol=1e-6)
    last[-1, 0] = np.nan
    with pytest.raises(InputError, match=r"row 699 \(NaN\)"):
        searcher.prepare(last)


def test_deadlines_audits_and_filters(folder: Path, rows: Float32, asked: Float32) -> None:
    index = FunnelIndex.open(folder)
    index.audit(1.0)
    index.search_vectors(asked, K, recall=0.9)
    (line,) = index.health().audits
    assert line.recall > 0.85
    late, _ = index.search_vectors(asked, K, recall=1.0, deadline_ms=60_000)
    assert overlap(late, best_ids(rows, np.arange(len(rows)), asked)) > 0.999
    allowed = np.arange(0, len(rows), 3)
    ids, _ = index.search_vectors(asked, K, recall=0.95, allowed_ids=allowed)
    assert set(ids.ravel().tolist()) <= set(allowed.tolist())
    assert overlap(ids, best_ids(rows[allowed], allowed, asked)) > 0.9


def test_rows_come_and_go(folder: Path, rows: Float32, asked: Float32, tmp_path: Path) -> None:
    path = Path(shutil.copytree(folder, tmp_path / "index"))
    index = FunnelIndex.open(path)
    new = made_up(200, 5)
    index.add(new, ids=np.arange(100_000, 100_200))
    gone = np.arange(0, len(rows), 2)
    index.delete(gone)
    held, ids = np.concatenate([rows, new]), np.concatenate([np.arange(len(rows)), np.arange(100_000, 100_200)])
    kept = ~np.isin(ids, gone)
    true = best_ids(held[kept], ids[kept], asked)
    for opened in (index, FunnelIndex.open(path)):
        assert overlap(opened.search_vectors(asked, K, recall=1.0).ids, true) > 0.999
        assert overlap(opened.search_vectors(asked, K, recall=0.95).ids, true) > 0.9
    exported = index.export(tmp_path / "out.npy")
    assert exported.rows == kept.sum()
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), held[kept], atol=1e-5)
    np.testing.assert_array_equal(np.load(tmp_path / "out.ids.npy"), ids[kept])
    assert index.compact()
    assert index.manifest.settings.coarse == "symqg"  # as was asked for
    assert overlap(index.search_vectors(asked, K, recall=1.0).ids, true) > 0.999


def test_a_query_whose_neighbours_are_gone_still_gets_k(folder: Path, rows: Float32, tmp_path: Path) -> None:
    index = FunnelIndex.open(shutil.copytree(folder, tmp_path / "index"))
    query = rows[:1]
    near = np.argsort(-(query @ rows.T)[0])[:400]
    index.delete(near)
    ids, scores = index.search_vectors(query, K, recall=0.8)
    assert (ids >= 0).all()
    assert np.isfinite(scores).all()
    assert not set(ids[0].tolist()) & set(near.tolist())


def test_memory_that_is_too_little_takes_another() -> None:
    whole = choose(100_000, 32, 10**9, DIM, [DIM])[0]
    assert (whole.name, whole.dim) == ("symqg", DIM)
    assert choose(100_000, 32, whole.estimated_bytes - 1, DIM, [DIM])[0].name == "hnsw-sq8"


@pytest.mark.parametrize(
    ("dim", "widths", "expected"), [(384, (192, 96), 192), (1536, (256, 128), 256), (256, (192, 96), 96)]
)
def test_without_a_limit_it_is_over_the_best_prefix_that_fits(dim: int, widths: tuple[int, ...], expected: int) -> None:
    """It may hold 1.25 times the rows as float32, which leaves out whole rows."""
    chosen = choose(100_000, widths[-1], full=dim, widths=(dim, *widths))[0]
    assert (chosen.name, chosen.dim) == ("symqg", expected)
    assert chosen.estimated_bytes <= 1.25 * 4 * dim * 100_000
    assert choose(100_000, widths[-1], 10**10, dim, (dim, *widths))[0].dim == dim


def test_few_rows_and_little_memory() -> None:
    assert choose(FLAT_ROWS, 32, full=DIM)[0].name == "flat"
    with pytest.raises(CoarseIndexError, match="fits in 10 bytes"):
        choose(100_000, 32, 10, full=DIM)


def test_the_way_there_and_back(rows: Float32) -> None:
    adaptor = make_adaptor("pca", rows[:1_000], dims=None, seed=0, progress=False)
    adapted, own = Space(adaptor, False), Space(adaptor, True)
    np.testing.assert_allclose(adapted.stored(rows[:50]), adaptor.transform(rows[:50]), atol=1e-6)
    np.testing.assert_allclose(adapted.given(adapted.stored(rows[:50])), rows[:50], atol=1e-6)
    np.testing.assert_allclose(own.prefixes(rows[:50], 16), adapted.prefixes(adapted.stored(rows[:50]), 16), atol=1e-6)
    one = own.prefixes(rows[:1], 16)
    np.testing.assert_allclose(one, adapted.prefixes(adapted.stored(rows[:1]), 16), atol=1e-6)
    assert own.stored(rows) is rows
    np.testing.assert_array_equal(own.prefixes(rows[:50], DIM), rows[:50])
