"""Build, open, search and explain, against numpy on the user's own vectors."""

from __future__ import annotations

import csv
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from funnel import FunnelIndex, Hit
from funnel.encoding.encoders import Encoder
from funnel.errors import EncoderError, InputError
from funnel.storage import IndexFolder
from tests.funnel.clustered import clustered_rows
from tests.funnel.corpora import DIM, brute_force, documents, funnel_plan, hashed_words, recall

# float16 rounds each value by at most 2^-11 of itself, so a cosine of unit rows by no more.
FLOAT16_TOLERANCE = 2**-11
SMALL = 240  # too few to be calibrated on, which takes a second: flat search answers


def build(corpus: Any, path: Path, **options: Any) -> FunnelIndex:
    return FunnelIndex.build(corpus, path, progress=False, **options)


# What can be built from.


def as_npy(dtype: str) -> Callable[[Path], tuple[Path, np.ndarray]]:
    def write(folder: Path) -> tuple[Path, np.ndarray]:
        rows = clustered_rows(SMALL)
        stored = np.round(rows * 127 / np.abs(rows).max()).astype("int8") if dtype == "int8" else rows.astype(dtype) * 3
        np.save(folder / "rows.npy", stored)
        return folder / "rows.npy", stored

    return write


def as_jsonl(folder: Path) -> tuple[Path, np.ndarray]:
    rows = clustered_rows(SMALL)
    lines = [json.dumps({"_id": str(i), "vector": row.tolist()}) for i, row in enumerate(rows)]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return folder / "rows.jsonl", rows


def as_parquet(folder: Path) -> tuple[Path, np.ndarray]:
    import pyarrow
    import pyarrow.parquet

    rows = clustered_rows(SMALL)
    table = pyarrow.table({"_id": [str(i) for i in range(SMALL)], "vector": list(rows)})
    pyarrow.parquet.write_table(table, folder / "rows.parquet")
    return folder / "rows.parquet", rows


def as_iterable(_: Path) -> tuple[Any, np.ndarray]:
    rows = clustered_rows(SMALL)
    return ({"_id": str(i), "vector": row} for i, row in enumerate(rows)), rows


def as_array(_: Path) -> tuple[Any, np.ndarray]:
    rows = clustered_rows(SMALL)
    return rows.astype(np.float64), rows


SOURCES = [as_npy("float32"), as_npy("float16"), as_npy("int8"), as_array, as_jsonl, as_parquet, as_iterable]
NAMES = ["npy-float32", "npy-float16", "npy-int8", "array", "jsonl", "parquet", "generator"]


@pytest.mark.parametrize("make", SOURCES, ids=NAMES)
def test_exact_answers_are_those_of_numpy(make: Callable[[Path], tuple[Any, np.ndarray]], tmp_path: Path) -> None:
    corpus, rows = make(tmp_path)
    unseen = clustered_rows(20, seed=3)
    index = build(corpus, tmp_path / "index")
    ids, scores = index.search_vectors(unseen, 7, recall=1.0)
    truth, cosines = brute_force(rows, unseen, 7)
    assert ids.shape == scores.shape == (20, 7)
    assert scores.dtype == np.float32
    assert_allclose(scores, cosines, atol=FLOAT16_TOLERANCE)
    assert recall(ids.astype(np.int64), truth) > 0.97  # float16 may swap neighbours that are this close
    own_cosines = brute_force(rows, unseen, len(rows))[1]
    assert_allclose(index.search_vectors(unseen, len(rows), recall=1.0)[1], own_cosines, atol=FLOAT16_TOLERANCE)


def test_vectors_of_documents_need_no_encoder(tmp_path: Path) -> None:
    path, rows = as_jsonl(tmp_path)
    index = build(path, tmp_path / "index")
    assert index.manifest.settings.encoder is None
    with pytest.raises(EncoderError, match="built from vectors"):
        index.search("a text")
    assert index.search(rows[3], 1)[0].id == "3"


def test_an_encoder_of_another_width_than_the_vectors(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"the encoder gives 64 dims.* have 32"):
        build(clustered_rows(20, 32), tmp_path / "index", encoder=hashed_words)


def write_jsonl(folder: Path) -> Path:
    path = folder / "docs.jsonl"
    path.write_text("\n".join(json.dumps(document) for document in documents(40)))
    return path


def write_csv(folder: Path) -> Path:
    path = folder / "docs.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["_id", "title", "text", "year"])
        writer.writeheader()
        writer.writerows(documents(40))
    return path


def write_parquet(folder: Path) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(documents(40)), folder / "docs.parquet")
    return folder / "docs.parquet"


def write_beir(folder: Path) -> Path:
    (folder / "beir").mkdir()
    write_jsonl(folder).rename(folder / "beir" / "corpus.jsonl")
    return folder / "beir"


@pytest.mark.parametrize("write", [write_jsonl, write_csv, write_parquet, write_beir, lambda _: documents(40)])
def test_texts_with_a_callable_encoder(write: Callable[[Path], Any], tmp_path: Path) -> None:
    index = build(write(tmp_path), tmp_path / "index", encoder=hashed_words)
    wanted = documents(40)
    assert index.ids() == [document["_id"] for document in wanted] == list(index.document_ids())
    hits = index.search("it opens the matrix of part 2", 3)
    best = hits[0]
    assert isinstance(best, Hit)
    assert (best.id, best.title, best.text) == ("d2", wanted[2]["title"], wanted[2]["text"])
    assert str(best.metadata["year"]) == "1902"
    contents = [f"{document['title']} {document['text']}" for document in wanted]
    truth, cosines = brute_force(hashed_words(contents), hashed_words(["it opens the matrix of part 2"]), 3)
    assert [hit.id for hit in hits] == [f"d{number}" for number in truth[0]]
    assert_allclose([hit.score for hit in hits], cosines[0], atol=2e-3)


def test_real_texts_with_the_default_model(minilm: Encoder, tmp_path: Path) -> None:
    texts = {
        "csv": "Read rows from a comma separated file.",
        "thread": "Run a function in another thread and return its result.",
        "sort": "Sort the items of the list in place.",
        "sha": "Compute a secure hash of some bytes.",
        "mail": "Send an electronic mail message over SMTP.",
        "date": "Parse a calendar date from a string.",
    }
    corpus = [{"_id": name, "text": text} for name, text in texts.items()]
    build(corpus, tmp_path / "index", encoder=minilm)
    index = FunnelIndex.open(tmp_path / "index", encoder=minilm)
    assert index.dim == 384
    found = index.search(["load a spreadsheet table", "checksum of a message", "order a sequence"], 1)
    assert [hits[0].id for hits in found] == ["csv", "sha", "sort"]
    assert index.manifest.settings.encoder_reopenable


# Ids.


def test_ids_are_the_users_in_input_order(tmp_path: Path) -> None:
    rows = clustered_rows(SMALL)
    names = [f"ü{i}" if i % 2 else str(i) for i in reversed(range(SMALL))]
    texts = build(rows, tmp_path / "texts", ids=names)
    assert texts.ids() == names
    found, _ = texts.search_vectors(rows, 1, recall=1.0)
    assert found[:, 0].tolist() == names
    numbers = np.random.default_rng(0).permutation(SMALL) * 1_000_003 - 7
    whole = build(rows, tmp_path / "numbers", ids=numbers)
    assert whole.ids() == numbers.tolist()
    found, _ = whole.search_vectors(rows, 1, recall=1.0)
    assert found.dtype == np.int64
    assert_array_equal(found[:, 0], numbers)
    plain = build(rows, tmp_path / "plain")
    assert plain.ids() == list(range(SMALL))
    assert plain.search(rows[5], 2)[0].id == 5


@pytest.mark.parametrize("count", [1, 2, 10, 255, 256])
def test_small_indexes(count: int, tmp_path: Path) -> None:
    rows = clustered_rows(count)
    few = clustered_rows(count + 5)[count:]  # too few to certify anything: flat search is served
    index = build(rows, tmp_path / "index", queries=few, dtype="float32")
    assert len(index) == count
    k = min(10, count)
    ids, scores = index.search_vectors(rows, k)
    truth, cosines = brute_force(rows, rows, k)
    assert_allclose(scores, cosines, atol=2e-6)
    assert recall(ids, truth) > 0.999
    assert index.explain(k, recall=0.9).recall == 1.0
    assert index.explain(k).plan.is_flat
    assert ("exact" in index.certification) == (count < 256)


def test_one_dimension(tmp_path: Path) -> None:
    index = build(np.array([[2.0], [-3.0], [0.5]]), tmp_path / "index")
    ids, scores = index.search_vectors(np.array([[-1.0]]), 3)
    assert ids[0, 0] == 1
    assert_allclose(scores, [[1, -1, -1]])


# What can be asked with.


def test_one_query_gives_hits_and_several_give_lists(texts: FunnelIndex) -> None:
    one = texts.search("it reads the clock", 4)
    many = texts.search(["it reads the clock", "password 9"], 4)
    assert isinstance(one[0], Hit)
    assert [len(hits) for hits in many] == [4, 4]
    assert [hit.id for hit in many[0]] == [hit.id for hit in one]
    assert texts.search(["it reads the clock"], 4) == [one]
    assert texts.search([], 4) == []
    vector = hashed_words(["it reads the clock"])
    for given in (vector[0], vector[0].tolist(), vector[0].astype(np.float64)):
        assert [hit.id for hit in texts.search(given, 4)] == [hit.id for hit in one]
    assert [hit.id for hit in texts.search(vector.tolist(), 4)[0]] == [hit.id for hit in one]


def test_search_vectors_takes_lists_and_tensors(graph: FunnelIndex, unseen: np.ndarray) -> None:
    import torch

    ids, scores = graph.search_vectors(unseen[:3], 4)
    for given in (unseen[:3].tolist(), torch.from_numpy(unseen[:3])):
        again = graph.search_vectors(given, 4)  # type: ignore[arg-type]
        assert_array_equal(again[0], ids)
        assert_allclose(again[1], scores, atol=1e-6)
    empty = graph.search_vectors(np.empty((0, DIM)), 4)
    assert empty[0].shape == empty[1].shape == (0, 4)


def test_the_length_of_a_query_does_not_matter(graph: FunnelIndex, unseen: np.ndarray) -> None:
    ids, scores = graph.search_vectors(unseen[:5], 4, recall=1.0)
    long = graph.search_vectors(unseen[:5] * 1e6, 4, recall=1.0)
    assert_array_equal(long[0], ids)
    assert_allclose(long[1], scores, atol=1e-6)


def test_batches_answer_as_single_queries_do(graph: FunnelIndex, unseen: np.ndarray) -> None:
    plan = funnel_plan(graph)
    ids, scores = graph.search_vectors(unseen, 10, plan=plan)
    for number in range(0, len(unseen), 37):
        one = graph.search_vectors(unseen[number : number + 1], 10, plan=plan)
        assert_array_equal(one[0][0], ids[number])
        assert_allclose(one[1][0], scores[number], atol=1e-6)


def test_an_index_built_with_a_callable_wants_it_again(text_folder: Path) -> None:
    index = FunnelIndex.open(text_folder)
    with pytest.raises(EncoderError, match="open it with encoder="):
        index.search("a clock")
    assert len(index.search(hashed_words(["a clock"])[0], 3)) == 3
    narrow = FunnelIndex.open(text_folder, encoder=lambda texts: hashed_words(texts)[:, :32])
    with pytest.raises(EncoderError, match="32 dims, the index holds 64"):
        narrow.search("a clock")


# How it is built.


def test_memory_decides_the_coarse_index(tmp_path: Path) -> None:
    rows = clustered_rows(255)
    sizes = []
    for number, memory_mb in enumerate((None, 0.02)):
        index = build(rows, tmp_path / str(number), dims=[32], memory_mb=memory_mb)
        assert memory_mb is None or index.held_bytes <= memory_mb * 1e6
        sizes.append(index.held_bytes)
    assert sizes[0] > 1.5 * sizes[1]
    with pytest.raises(InputError, match=r"memory_mb=0\.001 is too little for 255 rows"):
        build(rows, tmp_path / "less", dims=[32], memory_mb=0.001)


def test_dims_are_kept(graph: FunnelIndex) -> None:
    assert graph.manifest.ladder == (32, 48, DIM)
    assert graph.searcher.cascade.width == 32
    assert graph.manifest.settings.coarse == "hnsw-sq8"


def test_the_stored_type(tmp_path: Path) -> None:
    rows, unseen = clustered_rows(SMALL), clustered_rows(20, seed=3)
    _, cosines = brute_force(rows, unseen, 5)
    errors = []
    for dtype in ("float16", "float32"):
        index = build(rows, tmp_path / dtype, dtype=dtype)
        assert index.searcher.cascade.store.dtype == np.dtype(dtype)
        errors.append(np.abs(index.search_vectors(unseen, 5, recall=1.0)[1] - cosines).max())
    assert errors[1] < 1e-6 < errors[0] < FLOAT16_TOLERANCE


def test_the_same_seed_builds_the_same_index(tmp_path: Path) -> None:
    rows = clustered_rows(SMALL)
    one, two = (build(rows, tmp_path / str(i), seed=5) for i in range(2))
    assert one.manifest.ladder == two.manifest.ladder
    for name in ("order.npy", "vectors.npy", "norms.npy"):
        paths = [next(path for path in index.path.rglob(name)) for index in (one, two)]
        assert paths[0].read_bytes() == paths[1].read_bytes()
    assert_array_equal(one.searcher.adaptor.transform(rows), two.searcher.adaptor.transform(rows))


def test_adaptors(tmp_path: Path) -> None:
    rows, unseen = clustered_rows(SMALL), clustered_rows(20, seed=3)
    _, cosines = brute_force(rows, unseen, 5)
    pca = build(rows, tmp_path / "pca")
    saved = tmp_path / "saved"
    saved.mkdir()
    pca.searcher.adaptor.save(saved)
    for number, adaptor in enumerate(("identity", saved, str(saved), pca.searcher.adaptor)):
        index = build(rows, tmp_path / str(number), adaptor=adaptor, dtype="float32")
        assert index.searcher.adaptor.kind == ("pca" if number else "identity")
        assert_allclose(index.search_vectors(unseen, 5, recall=1.0)[1], cosines, atol=2e-6)


def test_building_again_replaces_the_index(tmp_path: Path) -> None:
    rows = clustered_rows(SMALL)
    first = build(rows, tmp_path / "index")
    second = build(rows[:200], tmp_path / "index", overwrite=True)
    assert (first.manifest.generation, second.manifest.generation) == (1, 2)
    assert len(FunnelIndex.open(tmp_path / "index")) == 200
    segments = tmp_path / "index" / "segments"
    assert len(list(segments.iterdir())) == 2
    assert len(first.search(rows[0], 10)) == 10  # what is open stays usable, and its files where they are
    del first
    IndexFolder(tmp_path / "index").tidy()
    assert len(list(segments.iterdir())) == 1


def test_query_texts_and_files(tmp_path: Path) -> None:
    asked = [f"it {verb} the clock" for verb in ("reads", "sorts", "locks", "prints")]
    index = build(documents(300), tmp_path / "texts", encoder=hashed_words, queries=asked)
    assert index.certification == "certified on 4 real queries"
    np.save(tmp_path / "queries.npy", clustered_rows(30, seed=2))
    index = build(clustered_rows(300), tmp_path / "npy", queries=str(tmp_path / "queries.npy"))
    assert index.certification == "certified on 30 real queries"
    # 30 queries certify nothing near .99: flat search is served, and how many would do is said.
    explained = index.explain(10, recall=0.99)
    assert explained.plan.is_flat
    assert explained.recall == 1.0


def test_search_in_threads(graph: FunnelIndex, unseen: np.ndarray) -> None:
    from concurrent.futures import ThreadPoolExecutor

    plan = funnel_plan(graph)
    expected = graph.search_vectors(unseen, 10, plan=plan)[0]
    with ThreadPoolExecutor(4) as pool:
        for found, _ in pool.map(lambda _: graph.search_vectors(unseen, 10, plan=plan), range(12)):
            assert_array_equal(found, expected)


def test_no_cosine_is_above_one(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((250, 2)).astype(np.float32)
    assert FunnelIndex.build(rows, tmp_path / "index", progress=False).search_vectors(rows, k=1).scores.max() <= 1.0


def test_pickled_it_is_opened_again_by_its_path(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32)
    index = FunnelIndex.build(rows, tmp_path / "index", progress=False)
    again = pickle.loads(pickle.dumps(FunnelIndex.open(tmp_path / "index", verify="lazy")))
    assert again._options["verify"] == "lazy"
    np.testing.assert_array_equal(again.search_vectors(rows, 3).ids, index.search_vectors(rows, 3).ids)
