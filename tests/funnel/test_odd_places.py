"""The promise where rows, queries or numbers of them are odd: recall by numpy against what was said of it.

Whatever is called certified has the recall that was asked for, and whatever is served has the recall that it says, up
to three standard errors of the live and of the calibration queries.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from funnel import FunnelIndex, Plan
from funnel.building import segment as folding
from funnel.building import update
from funnel.engine import timing
from funnel.errors import InputError
from tests.funnel.clustered import clustered_rows
from tests.funnel.corpora import brute_force

Rows = npt.NDArray[Any]

ROWS, DIM, LIVE = 2_000, 48, 1_000
RECALLS = (0.8, 0.95, 0.99, 1.0)
EXACT_ENOUGH = 5e-4  # of recall: exact search over float16 that loses no more is called exact
KS = (1, 10, 100)


@pytest.fixture(scope="module", autouse=True)
def _no_latency_is_promised() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "MOST_TIMINGS", 3)
        yield


def drawn(seed: int, count: int, dim: int = DIM) -> Rows:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def around(centres: Rows, seed: int, count: int, spread: float) -> Rows:
    """Rows at the centres, each drawn at random, and around them where spread is above 0."""
    picked = centres[np.random.default_rng(seed).integers(len(centres), size=count)]
    return picked + np.float32(spread) * drawn(seed + 100, count, centres.shape[1])


def outliers(seed: int, count: int) -> Rows:
    """Norms from 1e-12 to 1e12; a few dimensions that hold nearly all of every row."""
    lengths = 10.0 ** np.random.default_rng(seed).integers(-12, 13, size=(count, 1))
    rows = drawn(seed, count) + np.array([[30.0, -20.0] + [0.0] * (DIM - 2)], dtype=np.float32)
    return np.asarray(rows * lengths, np.float32)


# Kind -> the corpus, and queries of a seed.
KINDS: dict[str, tuple[Callable[[], Rows], Callable[[int, int], Rows]]] = {
    "identical": (lambda: np.repeat(drawn(9, 1), ROWS, axis=0), lambda seed, count: drawn(seed, count)),
    "few distinct": (
        lambda: around(drawn(9, 40), 1, ROWS, 0.0),
        lambda seed, count: around(drawn(9, 40), seed, count, 0.3),
    ),
    "nearly the same": (
        lambda: around(drawn(9, 40), 1, ROWS, 1e-4),
        lambda seed, count: around(drawn(9, 40), seed, count, 0.3),
    ),
    "low rank": (lambda: drawn(1, ROWS, 3) @ drawn(9, 3), lambda seed, count: drawn(seed, count, 3) @ drawn(9, 3)),
    "one-hot": (
        lambda: around(np.eye(DIM, dtype=np.float32), 1, ROWS, 0.0),
        lambda seed, count: around(np.eye(DIM, dtype=np.float32), seed, count, 0.1),
    ),
    "outliers": (lambda: outliers(1, ROWS), outliers),
    "noise": (lambda: drawn(1, ROWS), drawn),
    "signs": (lambda: np.sign(drawn(1, ROWS)).astype(np.int8), drawn),
}
COARSE = ("hnsw-sq8", "ivf-sq8", "flat", "symqg")
# The others are slow for what they add.
QUICK = {("identical", "hnsw-sq8"), ("few distinct", "ivf-sq8"), ("outliers", "ivf-sq8"), ("noise", "flat")}


def unit(rows: Rows) -> Rows:
    exact = rows.astype(np.float64)
    return np.asarray(exact / np.linalg.norm(exact, axis=1, keepdims=True))


def recalls(index: FunnelIndex, cosines: Rows, ids: Rows, queries: Rows, k: int, recall: float) -> tuple[Rows, float]:
    """The recall@k of each query, ties counted, and what the answers say of it.

    cosines: float64 [q, n] with the rows as given, of which ids, rising, int64 [n], are the ids.
    """
    answers = index.search_vectors(queries, k, recall=recall)
    count = min(k, len(ids))
    kth = np.partition(cosines, -count, axis=1)[:, -count][:, None]
    given = answers.ids[:, :count].astype(np.int64)
    found = np.searchsorted(ids, given)
    assert (ids[np.minimum(found, len(ids) - 1)] == given).all()
    assert (np.diff(np.sort(found, axis=1), axis=1) > 0).all()
    assert (answers.ids[:, count:] == -1).all()
    own = np.take_along_axis(cosines, found, axis=1)
    np.testing.assert_allclose(answers.scores[:, :count], own, atol=1e-3)  # stored in float16
    return (own >= kth - 1e-6).mean(axis=1), answers.served.estimated_recall


def check(index: FunnelIndex, rows: dict[int, Rows] | Rows, queries: Rows, ks: tuple[int, ...] = KS) -> None:
    """What the module says, for every k and recall."""
    given = rows if isinstance(rows, dict) else dict(enumerate(rows))
    ids = np.array(sorted(given))
    cosines = unit(queries) @ unit(np.stack([given[int(id_)] for id_ in ids])).T
    for k in ks:
        for recall in RECALLS:
            measured, said = recalls(index, cosines, ids, queries, k, recall)
            promised = index.explain(k, recall=recall, batch=len(queries))
            certificate = promised.certificate
            error = measured.std() * (1 / len(queries) + 1 / max(1, certificate.n_queries)) ** 0.5
            what = f"k={k} recall={recall}: measured {measured.mean():.4f}, {promised.plan}, {certificate}"
            assert said == pytest.approx(certificate.mean_recall), what
            assert measured.mean() >= said - 3 * error - (EXACT_ENOUGH if promised.plan.is_flat else 1e-9), what
            if certificate.certified:
                assert certificate.lower_bound >= recall or promised.plan.is_flat, what
                assert measured.mean() >= recall - 3 * error - (0.0 if recall < 1 else EXACT_ENOUGH), what
            else:
                assert certificate.note, what


def built(path: Path, rows: Rows, queries: Rows | None, **options: Any) -> FunnelIndex:
    options = {"adaptor": "pca"} | options  # trained in no time
    return FunnelIndex.build(rows, path / "index", queries=queries, progress=False, **options)


def mixed(coarse: str, path: Path) -> FunnelIndex:
    """Clustered rows and noise, calibrated on queries like the clustered ones."""
    return built(path, mixed_rows(), clustered_rows(400, DIM, seed=2), coarse=coarse, dims=[16, 32], dtype="float32")


def mixed_rows() -> Rows:
    return np.concatenate([clustered_rows(ROWS - ROWS // 4, DIM), drawn(1, ROWS // 4)])


@pytest.fixture(scope="module")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mixed("hnsw-sq8", tmp_path_factory.mktemp("mixed")).path


@pytest.fixture
def graph(built_once: Path, tmp_path: Path) -> FunnelIndex:
    """An index of its own over the mixed rows."""
    return FunnelIndex.open(shutil.copytree(built_once, tmp_path / "copied"))


@pytest.mark.parametrize(
    ("kind", "coarse"),
    [
        pytest.param(kind, coarse, marks=() if (kind, coarse) in QUICK else pytest.mark.slow)
        for kind in KINDS
        for coarse in COARSE
    ],
)
def test_odd_rows(tmp_path: Path, kind: str, coarse: str) -> None:
    corpus, asked = KINDS[kind]
    rows = corpus()
    index = built(tmp_path, rows, asked(2, 400), coarse=coarse)
    check(index, rows, asked(3, LIVE))
    for recall in RECALLS[:-1]:
        with pytest.raises(InputError, match="k is 150; this index is calibrated for k up to 100"):
            index.search_vectors(asked(3, 2), 150, recall=recall)
    assert " of the true top 150 " not in index.explain(150, recall=1.0).certificate.note  # 100 were measured
    queries = asked(3, LIVE)
    measured, said = recalls(index, unit(queries) @ unit(rows).T, np.arange(ROWS), queries, 150, 1.0)
    assert measured.mean() >= said - 3 * measured.std() * (1 / LIVE + 1 / 400) ** 0.5 - EXACT_ENOUGH


OTHERWISE: list[dict[str, Any]] = [
    {"adaptor": "pca"},
    {"adaptor": "rotation"},
    {"dtype": "float16"},
    {"dtype": "float32"},
    {"memory_mb": 0.4},
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["low rank", "outliers"])
@pytest.mark.parametrize("options", OTHERWISE, ids=str)
def test_odd_rows_adapted_and_stored_otherwise(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    corpus, asked = KINDS[kind]
    rows = corpus()
    check(built(tmp_path, rows, asked(2, 400), dims=[16, 32], **options), rows, asked(3, LIVE), (10,))


def test_few_calibration_queries_certify_little(tmp_path: Path) -> None:
    rows = clustered_rows(ROWS, DIM)
    index = built(tmp_path, rows, clustered_rows(50, DIM, seed=2), coarse="hnsw-sq8")
    check(index, rows, clustered_rows(LIVE, DIM, seed=3))
    for k in KS:
        explained = index.explain(k, recall=0.99)
        assert explained.plan.is_flat
        assert "50 queries are too few to certify recall 0.99" in explained.certificate.note


@pytest.mark.filterwarnings("ignore::funnel.errors.DriftWarning")
@pytest.mark.parametrize("other", ["noise", "signs", "one-hot", "backwards"])
def test_queries_of_another_kind_are_noticed_where_they_get_less(graph: FunnelIndex, other: str) -> None:
    queries = drawn(3, LIVE) if other == "noise" else clustered_rows(LIVE, DIM, seed=3)[:, ::-1]
    if other in KINDS:
        queries = KINDS[other][1](3, LIVE).astype(np.float32)
    cosines = unit(queries) @ unit(mixed_rows()).T
    for recall in RECALLS[:-1]:
        measured, said = recalls(graph, cosines, np.arange(ROWS), queries, 10, recall)
        explained = graph.explain(10, recall=recall, batch=LIVE)
        error = float(measured.std()) * (1 / LIVE + 1 / 400) ** 0.5
        if measured.mean() < min(recall, said) - 3 * error:
            assert graph.health().state == "void"
            assert not explained.certificate.certified
            assert graph.search_vectors(queries, recall=recall).served.void
    health = graph.health()  # so far from what it was calibrated on that this is noticed wherever a plan was served
    assert health.state == "void" or not health.compared


def deleted(index: FunnelIndex, rows: dict[int, Rows]) -> None:
    gone = [number for number in range(ROWS) if number % 10]
    index.delete(gone)
    for number in gone:
        del rows[number]


def tenfold(index: FunnelIndex, rows: dict[int, Rows]) -> None:
    more = clustered_rows(9 * ROWS, DIM, seed=5)
    index.add(more)
    rows.update(enumerate(more, start=ROWS))


def replaced(index: FunnelIndex, rows: dict[int, Rows]) -> None:
    other = drawn(6, ROWS)
    index.upsert(other, ids=list(range(ROWS)))
    rows.update(enumerate(other))


def folded(index: FunnelIndex, rows: dict[int, Rows]) -> None:
    """Another segment with a coarse index of its own, most of whose rows are deleted again."""
    tenth = clustered_rows(ROWS, DIM, seed=5)
    index.add(tenth)
    assert index.segments[1].cascade is not None
    gone = [ROWS + number for number in range(ROWS) if number % 10]
    index.delete(gone)
    rows.update((ROWS + number, row) for number, row in enumerate(tenth) if not number % 10)


@pytest.mark.filterwarnings("ignore::funnel.errors.DriftWarning")
@pytest.mark.parametrize(
    ("coarse", "renewed"),
    [
        ("hnsw-sq8", False),
        pytest.param("hnsw-sq8", True, marks=pytest.mark.slow),
        pytest.param("ivf-sq8", True, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("change", [deleted, tenfold, replaced, folded])
def test_after_many_changes(
    graph: FunnelIndex,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    coarse: str,
    renewed: bool,
    change: Callable[[FunnelIndex, dict[int, Rows]], None],
) -> None:
    index = graph if coarse == "hnsw-sq8" else mixed(coarse, tmp_path)
    rows, live = dict(enumerate(mixed_rows())), clustered_rows(LIVE, DIM, seed=3)
    if change is folded:
        for module in (folding, update):
            monkeypatch.setattr(module, "EXACT_ROWS", ROWS // 2)
    change(index, rows)
    check(index, rows, live, (10,) if change is tenfold else KS)
    ids, scores = index.search_vectors(live[:3], len(rows) + 5, recall=1.0)
    assert (ids[:, len(rows) :] == -1).all()
    assert np.isneginf(scores[:, len(rows) :]).all()
    assert all(set(row[: len(rows)].tolist()) == set(rows) for row in ids)
    assert len(index.search(live[0], 5, deadline_ms=10_000, recall=0.8)) == 5
    if renewed:
        index.compact()
        check(index, rows, live, (10,))
        if index.searcher.calibration is not None:  # so few rows are left that every search is exact
            index.tune(progress=False)
            check(index, rows, live, (10,))


def test_rows_with_a_coarse_index_of_their_own_void_what_is_said(
    graph: FunnelIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (folding, update):
        monkeypatch.setattr(module, "EXACT_ROWS", ROWS // 2)
    plan = Plan(graph.searcher.cascade.coarse.efforts()[-1], 10)
    graph.add(np.concatenate([clustered_rows(1, 16, seed=5).repeat(ROWS, axis=0), drawn(5, ROWS, DIM - 16)], axis=1))
    assert graph.segments[1].cascade is not None
    queries = clustered_rows(9, DIM, seed=3)
    for deadline in (None, 10_000):
        hits = graph.search(queries[0], 10, plan=plan, deadline_ms=deadline)
        assert hits.served.void
    assert not graph.search_vectors(queries, 10, recall=1.0).served.void
    assert "coarse index of their own" in graph.health().why


def test_lists_that_are_empty_or_short_do_not_shorten_answers(tmp_path: Path) -> None:
    rows = np.repeat(drawn(9, 1), ROWS, axis=0)
    index = built(tmp_path, rows, drawn(2, 400), coarse="ivf-sq8", dims=[16, 32])
    for batch in (1, 7, 200):
        for effort in index.searcher.cascade.coarse.efforts():
            plan = Plan(effort, 10)
            answers = index.search_vectors(drawn(3, batch), 10, plan=plan)
            assert (answers.ids >= 0).all()
    for number in range(50):
        assert len(index.search(drawn(number, 1)[0], 10, plan=Plan(1, 10), deadline_ms=10_000)) == 10


def test_filters_that_allow_none_one_or_all(graph: FunnelIndex) -> None:
    query = clustered_rows(1, DIM, seed=3)
    whole = graph.search_vectors(query, 10, recall=1.0)
    for recall in RECALLS:
        assert (graph.search_vectors(query, 10, recall=recall, allowed_ids=[]).ids == -1).all()
        one = graph.search_vectors(query, 10, recall=recall, allowed_ids=[7])
        assert one.ids.tolist() == [[7] + [-1] * 9]
    every = graph.search_vectors(query, 10, recall=1.0, allowed_ids=range(ROWS))
    np.testing.assert_allclose(every.scores, whole.scores, atol=2e-6)


@pytest.mark.parametrize("dim", [1, 2, 3, 5, 33, 100, pytest.param(4_096, marks=pytest.mark.slow)])
def test_odd_widths(tmp_path: Path, dim: int) -> None:
    rows = drawn(1, 600, dim)
    check(built(tmp_path, rows, drawn(2, 200, dim)), rows, drawn(3, 100, dim), (1, 10))


@pytest.mark.parametrize("count", [1, 2, 3, 255, 257])
def test_few_rows(tmp_path: Path, count: int) -> None:
    rows = drawn(1, count)
    check(built(tmp_path, rows, drawn(2, 200)), rows, drawn(3, 50), (1, 10, 100))


def test_arrays_that_lie_or_are_stored_otherwise_hold_the_same(tmp_path: Path) -> None:
    rows, queries = drawn(1, 300), drawn(3, 5)
    file = np.memmap(tmp_path / "rows", np.float32, "w+", shape=rows.shape)
    file[:] = rows
    arrays = {
        "float64": rows.astype(np.float64),
        "long": rows.astype(np.longdouble),
        "Fortran": np.asfortranarray(rows),
        "every other": np.repeat(rows, 2, axis=1)[:, ::2],
        "backwards": np.ascontiguousarray(rows[::-1, ::-1])[::-1, ::-1],
        "big-endian": rows.astype(">f4"),
        "mapped": file,
        "read-only": np.frombuffer(rows.tobytes(), np.float32).reshape(rows.shape),
        "no mask": np.ma.masked_array(rows),
        "large": rows.astype(np.float64) * 1e200,
        "small": rows.astype(np.float64) * 1e-200,
    }
    _, expected = brute_force(rows, queries, 10)
    for name, array in arrays.items():
        index = built(tmp_path / name, array, None, dtype="float32")  # type: ignore[arg-type]
        for asked in (queries, np.asfortranarray(queries), queries.astype(">f8"), queries[:, ::-1][:, ::-1]):
            np.testing.assert_allclose(
                index.search_vectors(asked, 10, recall=1.0).scores, expected, atol=2e-6, err_msg=name
            )


def masked(rows: Rows) -> Rows:
    made = np.ma.masked_array(rows)
    made[3, 5] = np.ma.masked
    return made


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda rows: rows * 0, "10 rows cannot be scaled to unit length: row 0 .all zero.*remove or repair"),
        (lambda rows: np.where(rows == rows[4, 4], np.nan, rows), "1 row cannot be scaled.*row 4 .NaN"),
        (lambda rows: np.where(rows == rows[4, 4], np.inf, rows), "1 row cannot be scaled.*row 4 .infinite"),
        (masked, "1 values of the array are masked; fill them, as by array.filled"),
        (lambda rows: torch.from_numpy(rows).to_sparse(), "the tensor is torch.sparse_coo; expected a dense one"),
        (lambda rows: rows.astype(np.complex64), "expected float or integer rows"),
        (lambda rows: rows[:0], "empty|at least one row"),
    ],
)
def test_rows_that_cannot_be_used_are_refused_in_one_line(
    tmp_path: Path, spoil: Callable[[Rows], Any], said: str
) -> None:
    rows = drawn(1, 10)
    with pytest.raises(InputError, match=said) as refused:
        built(tmp_path, spoil(rows), None)
    assert "\n" not in str(refused.value)
    if len(spoil(rows)):
        index = built(tmp_path, rows, None)
        for call in (index.add, index.search_vectors):
            with pytest.raises(InputError) as refused:
                call(spoil(rows))
            assert "\n" not in str(refused.value)
        with pytest.raises(InputError):
            built(tmp_path / "asked", drawn(2, 300), spoil(rows))
