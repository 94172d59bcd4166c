"""What every coarse index family must do; runs over all that are registered."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from indexes import CoarseIndex, CoarseIndexError, families, family
from indexes.base import Float32Array, Int64Array
from tests.indexes.gpus import in_host_memory

# 4-bit codes order rows coarsely: what they promise is a shortlist, not an order.
SHORTLIST = 100
TOP = 10
# Sums of the same products in another order differ by this much.
TOLERANCE = 1e-5
# On a GPU products are float16, and which kernel forms them is settled by a measurement.
GPU_TOLERANCE = 2e-3
# Families that look at every row whatever the effort.
SCANNING = {"torch-bins"}
# Families that need FAISS on a GPU. Where there is none they run on FAISS's own index in host memory, in place of its
# copy on the GPU: all but the copying, bfKnn and cuVS is then the same code.
ON_GPU = {"faiss-gpu-flat", "faiss-gpu-ivf", "faiss-cagra"}
# Settings that do not take the next number.
OTHER_SETTINGS = {("symqg", "degree"): 64, ("symqg", "bits"): 8, ("faiss-cagra", "degree"): 34}
# Families whose files are one another's: the copy in host memory is written.
SAME_FILES = {"ivf-sq8", "faiss-gpu-ivf"}


@pytest.fixture(scope="module", params=families())
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    chosen = str(request.param)
    if chosen not in ON_GPU or family(chosen).missing() is None:
        yield chosen
        return
    with pytest.MonkeyPatch.context() as patch:
        in_host_memory(patch)
        yield chosen


@pytest.fixture(scope="module")
def index(name: str, rows: Float32Array) -> CoarseIndex:
    return built(name, rows)


def built(name: str, rows: Float32Array, chunks: int = 1) -> CoarseIndex:
    index = family(name)(rows.shape[1])
    index.train(rows)
    for chunk in np.array_split(rows, chunks):
        index.add(chunk)
    return index


def tolerance(index: CoarseIndex, elsewhere: float = TOLERANCE) -> float:
    return elsewhere if index.device.type == "cpu" else GPU_TOLERANCE


def best(index: CoarseIndex) -> int:
    return index.efforts()[-1]


def truth(rows: Float32Array, queries: Float32Array) -> Int64Array:
    return np.argsort(-(queries @ rows.T), axis=1, kind="stable")[:, :TOP]


def recall(found: Int64Array, true: Int64Array) -> float:
    return float(np.mean([np.isin(t, f).mean() for f, t in zip(found, true, strict=True)]))


def assert_same(
    first: tuple[Float32Array, Int64Array],
    second: tuple[Float32Array, Int64Array],
    tolerance: float = TOLERANCE,
) -> None:
    """Equal scores, and equal rows wherever the scores do not tie with a neighbour."""
    np.testing.assert_allclose(first[0], second[0], rtol=0, atol=tolerance)
    padded = np.pad(first[0], ((0, 0), (1, 1)), constant_values=(np.inf, np.nan))
    with np.errstate(invalid="ignore"):
        apart = np.abs(np.diff(padded, axis=1)) > 2 * tolerance
    tied = ~(apart[:, :-1] & apart[:, 1:])
    np.testing.assert_array_equal(first[1][~tied], second[1][~tied])


def test_results_are_float32_scores_and_int64_rows_best_first(index: CoarseIndex, queries: Float32Array) -> None:
    scores, rows = index.search(queries, SHORTLIST, best(index))
    assert (scores.dtype, rows.dtype) == (np.float32, np.int64)  # type: ignore[comparison-overlap]
    assert scores.shape == rows.shape == (len(queries), SHORTLIST)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert all(len(set(found)) == SHORTLIST for found in rows.tolist())


def test_scores_approximate_the_inner_product(index: CoarseIndex, rows: Float32Array, queries: Float32Array) -> None:
    scores, found = index.search(queries, TOP, best(index))
    true = np.einsum("qd,qkd->qk", queries, rows[found])
    assert np.abs(scores - true).mean() < (0.1 if index.name == "ivf-pq" else 0.01)


def test_longer_queries_find_the_same_rows(index: CoarseIndex, queries: Float32Array) -> None:
    scores, rows = index.search(queries, TOP, best(index))
    longer_scores, longer_rows = index.search(queries * np.float32(4), TOP, best(index))
    assert_same((scores, rows), (longer_scores / np.float32(4), longer_rows), tolerance=1e-3)


def test_largest_effort_finds_the_true_rows(index: CoarseIndex, rows: Float32Array, queries: Float32Array) -> None:
    _, found = index.search(queries, SHORTLIST, best(index))
    assert recall(found, truth(rows, queries)) >= 0.9


def test_recall_rises_with_effort(index: CoarseIndex, rows: Float32Array, queries: Float32Array) -> None:
    efforts, true = index.efforts(), truth(rows, queries)
    assert list(efforts) == sorted(set(efforts))
    recalls = [recall(index.search(queries, TOP, effort)[1], true) for effort in efforts]
    assert (np.diff(recalls) >= -0.02).all()
    assert recalls[-1] >= recalls[0]


def test_every_shortlist_is_the_head_of_the_largest(index: CoarseIndex, queries: Float32Array) -> None:
    for effort in index.efforts():
        largest = index.largest_shortlist(effort)
        scores, rows = index.search(queries, largest, effort)
        for shortlist in {1, largest // 3, largest - 1} - {0}:
            found = index.search(queries, shortlist, effort)
            assert_same(found, (scores[:, :shortlist], rows[:, :shortlist]), tolerance(index))


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_batch_and_single_queries_agree(index: CoarseIndex, queries: Float32Array, batch: int) -> None:
    for effort in index.efforts():
        whole = index.search(queries, TOP, effort)
        parts = [index.search(queries[i : i + batch], TOP, effort) for i in range(0, len(queries), batch)]
        joined = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
        # FastScan rounds its look-up tables to 8 bits.
        assert_same(whole, joined, tolerance(index, 1e-2 if index.name == "ivf-pq" else TOLERANCE))


def test_no_queries_give_no_results(index: CoarseIndex) -> None:
    scores, rows = index.search(np.empty((0, index.dim), np.float32), TOP, best(index))
    assert scores.shape == rows.shape == (0, TOP)


def test_short_results_are_padded(name: str, rows: Float32Array) -> None:
    index = built(name, rows[:20])
    for count in (1, 3):
        scores, found = index.search(rows[:count], 30, best(index))
        assert (np.sort(found[:, :20], axis=1) == np.arange(20)).all()
        assert (found[:, 20:] == -1).all()
        assert np.isneginf(scores[:, 20:]).all()
        assert np.isfinite(scores[:, :20]).all()


def test_an_empty_index_finds_nothing(name: str, rows: Float32Array) -> None:
    index = family(name)(rows.shape[1])
    index.train(rows)
    scores, found = index.search(rows[:2], 3, best(index))
    assert index.ntotal == 0
    assert (found == -1).all()
    assert np.isneginf(scores).all()


def test_rows_added_in_chunks_are_all_held(name: str, rows: Float32Array, queries: Float32Array) -> None:
    index = built(name, rows, chunks=7)
    assert index.ntotal == len(rows)
    _, found = index.search(queries, SHORTLIST, best(index))
    assert recall(found, truth(rows, queries)) >= 0.9


def test_adding_nothing_changes_nothing(name: str, rows: Float32Array) -> None:
    index = built(name, rows[:100])
    index.add(rows[:0])
    assert index.ntotal == 100


def test_save_and_load_give_identical_results(index: CoarseIndex, queries: Float32Array, tmp_path: Path) -> None:
    index.save(tmp_path / "coarse.faiss")
    loaded = family(index.name).load(tmp_path / "coarse.faiss", index.dim, index.settings)
    assert loaded.settings == index.settings
    assert (loaded.ntotal, loaded.nbytes) == (index.ntotal, index.nbytes)
    assert loaded.efforts() == index.efforts()
    for effort in index.efforts():
        mine, theirs = index.search(queries, TOP, effort), loaded.search(queries, TOP, effort)
        if index.device.type != "cpu":
            assert_same(mine, theirs, GPU_TOLERANCE)
            continue
        for one, other in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(one, other)


def test_load_refuses_another_dimension(index: CoarseIndex, tmp_path: Path) -> None:
    index.save(tmp_path / "coarse.faiss")
    with pytest.raises(CoarseIndexError, match=r"has dim 32; the settings say 16"):
        family(index.name).load(tmp_path / "coarse.faiss", 16, index.settings)


def test_load_refuses_another_family(index: CoarseIndex, tmp_path: Path) -> None:
    index.save(tmp_path / "coarse.faiss")
    for other in set(families()) - {index.name}:
        if {other, index.name} == SAME_FILES or (other in ON_GPU and family(other).missing() is not None):
            continue
        settings = {key: index.settings.get(key, 4) for key in family(other).default_settings}
        settings = dict(family(other).default_settings) if other == "symqg" else settings
        with pytest.raises(CoarseIndexError, match=r"holds a|has (quantizer|family)|cannot be read as"):
            family(other).load(tmp_path / "coarse.faiss", index.dim, settings)


def test_load_refuses_other_settings(index: CoarseIndex, tmp_path: Path) -> None:
    index.save(tmp_path / "coarse.faiss")
    for key, value in index.settings.items():
        other = OTHER_SETTINGS.get((index.name, key), value + 1)
        with pytest.raises(CoarseIndexError, match=rf"has {key} {value}; the settings say {other}"):
            family(index.name).load(tmp_path / "coarse.faiss", index.dim, {**index.settings, key: other})


def test_load_refuses_a_file_cut_short(index: CoarseIndex, tmp_path: Path) -> None:
    path = tmp_path / "coarse.faiss"
    index.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CoarseIndexError, match=rf"coarse\.faiss cannot be read as {index.name}"):
        family(index.name).load(path, index.dim, index.settings)


def test_a_full_disk_is_an_os_error(index: CoarseIndex) -> None:
    with pytest.raises(OSError, match="No space left"):
        index.save(Path("/dev/full"))


@pytest.mark.parametrize("kind", ["mask", "numbers"])
def test_only_allowed_rows_are_returned(
    index: CoarseIndex, rows: Float32Array, queries: Float32Array, kind: str
) -> None:
    numbers = np.arange(0, len(rows), 3)
    allowed = np.isin(np.arange(len(rows)), numbers) if kind == "mask" else numbers
    if not index.supports_filter:
        with pytest.raises(CoarseIndexError, match="cannot filter"):
            index.search(queries, TOP, best(index), allowed)
        return
    true = numbers[truth(rows[numbers], queries)]
    for count in (1, len(queries)):
        scores, found = index.search(queries[:count], SHORTLIST, best(index), allowed)
        assert np.isin(found, [-1, *numbers]).all()
        np.testing.assert_array_equal(found < 0, np.isneginf(scores))
        assert (scores[:, 1:] <= scores[:, :-1]).all()
        assert recall(found, true[:count]) >= 0.9


@pytest.fixture
def filtering(index: CoarseIndex) -> CoarseIndex:
    if not index.supports_filter:
        pytest.skip(f"{index.name} cannot filter, and says so (test_only_allowed_rows_are_returned)")
    return index


def test_a_filter_leaves_the_next_search_alone(filtering: CoarseIndex, queries: Float32Array) -> None:
    index = filtering
    before = index.search(queries, TOP, best(index))
    index.search(queries, TOP, best(index), np.arange(5))
    np.testing.assert_array_equal(index.search(queries, TOP, best(index))[1], before[1])


def test_a_filter_that_allows_nothing_finds_nothing(filtering: CoarseIndex, queries: Float32Array) -> None:
    index = filtering
    scores, found = index.search(queries, TOP, best(index), np.zeros(index.ntotal, np.bool_))
    assert (found == -1).all()
    assert np.isneginf(scores).all()


@pytest.mark.parametrize(
    ("allowed", "message"),
    [
        (np.ones(3, np.bool_), r"allowed is bool \[3\]; give bool \[1500\]"),
        (np.ones(3, np.float32), r"allowed is float32 \[3\]"),
        (np.array([0, 1500]), r"allowed holds rows 0 to 1500; rows go from 0 to 1499"),
        (np.array([-1, 5]), r"allowed holds rows -1 to 5"),
    ],
)
def test_a_wrong_filter_is_refused(
    index: CoarseIndex, queries: Float32Array, allowed: Int64Array, message: str
) -> None:
    with pytest.raises(CoarseIndexError, match=message):
        index.search(queries, TOP, best(index), allowed)


def test_a_restricted_index_returns_allowed_rows_only(
    index: CoarseIndex, rows: Float32Array, queries: Float32Array
) -> None:
    """Families that cannot filter are over-fetched: with a third allowed, a third of what they find is left."""
    numbers, before = np.arange(0, len(rows), 3), index.search(queries, TOP, best(index))
    view = index.restricted(numbers)
    assert (view.ntotal, view.efforts(), view.exact_scores) == (index.ntotal, index.efforts(), index.exact_scores)
    true = numbers[truth(rows[numbers], queries)]
    for count in (1, len(queries)):
        scores, found = view.search(queries[:count], SHORTLIST, best(index))
        assert (scores.dtype, found.dtype, found.shape) == (np.float32, np.int64, (count, SHORTLIST))  # type: ignore[comparison-overlap]
        assert np.isin(found, [-1, *numbers]).all()
        np.testing.assert_array_equal(found < 0, np.isneginf(scores))
        assert (scores[:, 1:] <= scores[:, :-1]).all()
        assert recall(found, true[:count]) >= 0.9
        assert_same(view.search(queries[:count], TOP, best(index)), (scores[:, :TOP], found[:, :TOP]))
    np.testing.assert_array_equal(index.search(queries, TOP, best(index))[1], before[1])


def test_an_index_restricted_to_nothing_finds_nothing(index: CoarseIndex, queries: Float32Array) -> None:
    scores, found = index.restricted(np.zeros(index.ntotal, np.bool_)).search(queries, TOP, best(index))
    assert (found == -1).all()
    assert np.isneginf(scores).all()


def test_a_restriction_of_the_wrong_shape_is_refused(index: CoarseIndex) -> None:
    with pytest.raises(CoarseIndexError, match=r"allowed is bool \[3\]; give bool \[1500\]"):
        index.restricted(np.ones(3, np.bool_))


def test_threads_with_different_efforts_do_not_disturb_each_other(index: CoarseIndex, queries: Float32Array) -> None:
    efforts = (index.efforts()[0], best(index))
    alone = [index.search(queries, TOP, effort) for effort in efforts]

    def repeat(which: int) -> list[tuple[Float32Array, Int64Array]]:
        return [index.search(queries, TOP, efforts[which]) for _ in range(8)]

    with ThreadPoolExecutor(2) as pool:
        for which, together in enumerate(pool.map(repeat, (0, 1))):
            for result in together:
                assert_same(alone[which], result, tolerance(index))


def test_wrong_rows_are_refused(name: str, rows: Float32Array) -> None:
    index = family(name)(rows.shape[1])
    with pytest.raises(CoarseIndexError, match=r"rows of shape \[1500, 16\]; this index takes \[n, 32\]"):
        index.train(np.ascontiguousarray(rows[:, :16]))
    with pytest.raises(CoarseIndexError, match="rows of type float64; give float32"):
        index.train(rows.astype(np.float64))
    with pytest.raises(CoarseIndexError, match="0 rows to train on"):
        index.train(rows[:0])
    index.train(rows)
    with pytest.raises(CoarseIndexError, match=r"rows of shape \[32\]"):
        index.add(rows[0])


def test_training_after_adding_is_refused(name: str, rows: Float32Array) -> None:
    index = built(name, rows[:100])
    with pytest.raises(CoarseIndexError, match="holds 100 rows already"):
        index.train(rows)


def test_unknown_and_senseless_settings_are_refused(name: str) -> None:
    with pytest.raises(CoarseIndexError, match=rf"{name} has no setting 'speed'"):
        family(name)(32, speed=1)
    with pytest.raises(CoarseIndexError, match="dim is 0"):
        family(name)(0)
    for key in family(name).default_settings:
        with pytest.raises(CoarseIndexError, match=rf"setting {key} of {name} is -1"):
            family(name)(32, **{key: -1})


def test_bytes_are_those_of_the_file(index: CoarseIndex, tmp_path: Path) -> None:
    if index.name == "faiss-cagra":
        pytest.skip("its file is the copy for host memory, with upper levels that the GPU has not")
    index.save(tmp_path / "coarse.faiss")
    # The file adds a header, and two lengths to each cell.
    assert index.nbytes == pytest.approx((tmp_path / "coarse.faiss").stat().st_size, rel=0.04)


def test_bytes_are_estimated_before_building(index: CoarseIndex) -> None:
    estimate = family(index.name).estimate_nbytes(index.ntotal, index.dim, index.settings)
    assert estimate == pytest.approx(index.nbytes, rel=0.15)


def test_the_largest_shortlist_is_bounded_by_the_rows(name: str, rows: Float32Array) -> None:
    index = built(name, rows[:50])
    assert all(index.largest_shortlist(effort) <= 50 for effort in index.efforts())
    assert index.largest_shortlist(best(index)) == 50


def test_bytes_touched_rise_with_the_effort_up_to_the_whole_index(index: CoarseIndex, queries: Float32Array) -> None:
    efforts = index.efforts()
    touched = [
        index.bytes_touched(queries, 10, effort) for effort in (efforts[0], efforts[len(efforts) // 2], efforts[-1])
    ]
    known = [value for value in touched if value is not None]
    assert known == sorted(known)
    assert all(0 < value <= 1.5 * index.nbytes for value in known)  # links of a row may be read more than once
    if len(efforts) > 1 and known and index.name not in SCANNING:
        assert known[0] < known[-1]
