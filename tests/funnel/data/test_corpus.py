"""Corpora: every kind of source, streaming, and what is refused."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from funnel.data.corpus import Corpus, open_corpus
from funnel.data.documents import Document
from funnel.errors import InputError

RECORDS = [{"_id": str(number), "text": f"text {number}", "year": number} for number in range(5)]
DOCUMENTS = [Document(str(number), text=f"text {number}", metadata={"year": number}) for number in range(5)]


def _write_jsonl(path: Path, records: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def _all(corpus: Corpus, batch_size: int = 2) -> list[Document]:
    return [document for batch in corpus.documents(batch_size) for document in batch]


@pytest.mark.parametrize("make", ["folder", "file", "list", "documents", "generator"])
def test_documents_come_in_order_whatever_the_source(tmp_path: Path, make: str) -> None:
    path = _write_jsonl(tmp_path / "corpus.jsonl", RECORDS)
    sources = {
        "folder": str(tmp_path), "file": path, "list": RECORDS, "documents": DOCUMENTS,
        "generator": (record for record in RECORDS),
    }  # fmt: skip
    corpus = open_corpus(sources[make])  # type: ignore[arg-type]
    assert (corpus.kind, corpus.has_vectors, corpus.dim, corpus.ids) == ("documents", False, None, None)
    assert corpus.count == (5 if make in ("list", "documents") else None)
    assert corpus.rereadable == (make != "generator")
    assert [len(batch) for batch in corpus.documents(2)] == [2, 2, 1]
    if corpus.rereadable:
        assert _all(corpus) == DOCUMENTS


def test_a_generator_gives_its_first_document_too_and_only_once() -> None:
    corpus = open_corpus(record for record in RECORDS)
    assert _all(corpus) == DOCUMENTS
    with pytest.raises(InputError, match="can be read only once"):
        corpus.documents(2)


def test_documents_are_streamed() -> None:
    read = 0

    def records() -> Iterator[dict[str, object]]:
        nonlocal read
        for record in RECORDS:
            read += 1
            yield record

    batches = open_corpus(records()).documents(2)
    next(batches)
    assert read == 2


def test_documents_with_vectors(tmp_path: Path) -> None:
    records: list[dict[str, object]] = [{"_id": "a", "vector": [3, 4]}, {"_id": "b", "vector": [1, 0]}]
    corpus = open_corpus(_write_jsonl(tmp_path / "corpus.jsonl", records))
    assert (corpus.has_vectors, corpus.dim) == (True, 2)
    vectors = [document.vector for document in _all(corpus)]
    np.testing.assert_allclose(np.array(vectors), [[0.6, 0.8], [1.0, 0.0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([1, 2], [1, 2, 3], ":2: vector of dimension 3, the first has 2"),
        ([1, 2], None, ":2: has no vector, the first has one"),
        (None, [1, 2], ":2: has a vector, the first has none"),
    ],
)
def test_vectors_must_agree(tmp_path: Path, first: object, second: object, message: str) -> None:
    records = [{"_id": "a", "text": "a", "vector": first}, {"_id": "b", "text": "b", "vector": second}]
    corpus = open_corpus(_write_jsonl(tmp_path / "corpus.jsonl", records))
    with pytest.raises(InputError, match=r"corpus\.jsonl" + message):
        _all(corpus)


@pytest.mark.parametrize("make", ["numpy", "torch", "bfloat16", "npy"])
def test_vectors_come_in_order_with_unit_length(tmp_path: Path, make: str) -> None:
    rows = np.random.default_rng(0).integers(-100, 100, size=(7, 3)).astype(np.int8)
    np.save(tmp_path / "rows.npy", rows)
    sources: dict[str, Any] = {
        "numpy": rows, "torch": torch.from_numpy(rows), "npy": tmp_path / "rows.npy",
        "bfloat16": torch.from_numpy(rows).to(torch.bfloat16).requires_grad_(),
    }  # fmt: skip
    corpus = open_corpus(sources[make])
    assert (corpus.kind, corpus.count, corpus.dim) == ("vectors", 7, 3)
    assert corpus.rereadable
    assert corpus.has_vectors
    assert corpus.ids is None
    expected = rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    for _ in range(2):
        batches = list(corpus.vectors(3))
        assert [len(batch) for batch in batches] == [3, 3, 1]
        np.testing.assert_allclose(np.concatenate(batches), expected, atol=1e-6)


def test_bad_rows_are_named_by_their_number_in_the_whole() -> None:
    rows = np.ones((10, 2), dtype=np.float32)
    rows[7, 1] = np.nan
    with pytest.raises(InputError, match=r"row 7 \(NaN\)"):
        list(open_corpus(rows).vectors(3))


def test_ids_of_bare_vectors() -> None:
    assert open_corpus(np.ones((2, 2)), ids=np.array([9, 4])).ids == [9, 4]
    with pytest.raises(InputError, match="1 ids for 2 vectors"):
        open_corpus(np.ones((2, 2)), ids=["a"])


def test_ids_are_refused_for_documents(tmp_path: Path) -> None:
    for source in (RECORDS, _write_jsonl(tmp_path / "corpus.jsonl", RECORDS)):
        with pytest.raises(InputError, match="documents carry their own"):
            open_corpus(source, ids=["a"])


def test_empty_corpora_are_refused(tmp_path: Path) -> None:
    (tmp_path / "corpus.csv").write_text("id,text\n")
    (tmp_path / "corpus.jsonl").write_text("\n")
    np.save(tmp_path / "rows.npy", np.ones((0, 3), dtype=np.float32))
    sources = [tmp_path / "corpus.csv", tmp_path, tmp_path / "rows.npy", [], np.ones((0, 3))]
    for source in sources:
        with pytest.raises(InputError, match=": empty; at least one"):
            open_corpus(source)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.ones(3), r"float64 of shape \[3\]; expected float or integer rows"),
        (np.array([["a"]]), "expected float or integer rows"),
        ([None], "document 0: expected an object with _id, title and text, got NoneType"),
        ({"_id": "a", "text": "b"}, r"a single record was given as a dict; give a list: \[record\]"),
        (5, "the corpus cannot be a int"),
    ],
)
def test_other_values_are_refused(source: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_corpus(source)  # type: ignore[arg-type]


def test_paths_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no corpus at .*missing\.jsonl"):
        open_corpus(tmp_path / "missing.jsonl")
    with pytest.raises(InputError, match=r"has no corpus\.jsonl"):
        open_corpus(tmp_path)
    (tmp_path / "corpus.xml").write_text("")
    with pytest.raises(InputError, match=r"suffix \.xml; supported are \.jsonl, \.jsonl\.gz, \.csv, \.parquet, \.npy"):
        open_corpus(tmp_path / "corpus.xml")


def test_scifact_reads_whole(data_dir: Path) -> None:
    documents = _all(open_corpus(data_dir / "scifact"), 1000)
    assert len(documents) == 5183
    assert documents[0].id == "4983"
