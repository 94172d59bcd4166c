"""Queries and judgements: every kind of source, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from funnel.data.queries import open_queries, read_qrels
from funnel.errors import InputError

NAMES = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=5)


def test_texts_keep_their_order(tmp_path: Path) -> None:
    (tmp_path / "queries.txt").write_text("one\r\n two \n\n", newline="")
    for source in (["one", "two"], ("one", "two"), np.array(["one", "two"]), tmp_path / "queries.txt"):
        queries = open_queries(source)
        assert queries.texts == ["one", "two"]
        assert queries.vectors is None
        assert queries.ids is None
        assert len(queries) == 2


def test_vectors_are_scaled_to_unit_length(tmp_path: Path) -> None:
    rows = np.array([[3, 4], [0, 2]], dtype=np.float16)
    np.save(tmp_path / "queries.npy", rows)
    for source in (rows, torch.from_numpy(rows), str(tmp_path / "queries.npy")):
        queries = open_queries(source)
        assert queries.texts is None
        assert queries.vectors is not None
        assert len(queries) == 2
        np.testing.assert_allclose(queries.vectors, [[0.6, 0.8], [0.0, 1.0]], rtol=1e-6)


def test_json_lines_with_vectors_and_ids(tmp_path: Path) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_text('{"_id": 1, "text": "a", "vector": [3, 4]}\n{"_id": "x", "text": "b", "vector": [1, 0]}\n')
    for source in (path, tmp_path):
        queries = open_queries(source)
        assert (queries.texts, queries.ids) == (["a", "b"], ["1", "x"])
        assert queries.vectors is not None
        np.testing.assert_allclose(queries.vectors, [[0.6, 0.8], [1.0, 0.0]], rtol=1e-6)


def test_dicts_and_queries_are_taken() -> None:
    queries = open_queries([{"_id": "a", "text": "b"}])
    assert (queries.texts, queries.ids, queries.vectors) == (["b"], ["a"], None)
    assert open_queries(queries) is queries


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "empty"),
        (np.ones((0, 3)), "empty"),
        (["a", " ", ""], "2 of 3 queries are empty texts: 1, 2"),
        (["a", 1], "query 1 is int, expected text"),
        (5, "queries cannot be a int"),
        (np.array([[1.0, np.nan]]), r"row 0 \(NaN\)"),
        (np.ones(3), "expected float or integer rows"),
        ("how are rows ordered", r"no queries at .*pass a text as a list"),
        ([{"_id": "a", "text": ""}], "1 of 1 queries are empty texts: 0"),
        ([{"_id": "a", "text": "b"}, {"_id": "a", "text": "c"}], "1 duplicate ids: a"),
        ([{"_id": "a", "vector": [1]}, {"_id": "b", "text": "c"}], "query 1: has no vector, the first has one"),
        ([{"_id": "a", "vector": [1]}, {"_id": "b", "vector": [1, 2]}], "query 1: vector of dimension 2"),
    ],
)
def test_what_cannot_be_used_is_named(source: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_queries(source)  # type: ignore[arg-type]


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    for name, content, message in (
        ("empty.txt", "\n", "is empty"),
        ("gap.txt", "a\n\nb\n", r"gap\.txt:2: an empty line"),
        ("empty.jsonl", "", "empty"),
        ("bad.jsonl", "{", r"bad\.jsonl:1: not JSON"),
        ("queries.csv", "id,text\n", r"queries\.csv: empty"),
        ("queries.tsv", "a\n", r"suffix \.tsv; supported are \.jsonl, .*\.npy, \.txt"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=message):
            open_queries(tmp_path / name)


@given(
    st.dictionaries(NAMES, st.dictionaries(NAMES, st.integers(-1, 4), min_size=1, max_size=3), min_size=1, max_size=4),
    st.booleans(),
)
def test_judgements_come_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, judgements: dict[str, dict[str, int]], header: bool
) -> None:
    path = tmp_path_factory.mktemp("qrels") / "test.tsv"
    lines = ["query-id\tcorpus-id\tscore"] if header else []
    lines += [f"{query}\t{document}\t{grade}" for query, of in judgements.items() for document, grade in of.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert read_qrels(path) == judgements


def test_folders_and_splits(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    (tmp_path / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t2\n")
    assert read_qrels(tmp_path) == read_qrels(tmp_path / "qrels") == {"q": {"d": 1}}
    assert read_qrels(tmp_path, split="dev") == {"q": {"d": 2}}
    with pytest.raises(InputError, match=r"no judgements at .*train\.tsv or .*train\.tsv"):
        read_qrels(tmp_path, split="train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no judgements"),
        ("query-id\tcorpus-id\tscore\n", "holds no judgements"),
        (
            "query-id\tcorpus-id\tscore\nq d 1\n",
            r":2: expected query-id, corpus-id, score between tabs, got 'q d 1'",
        ),
        ("q\td\t1\t2\n", ":1: expected query-id"),
        ("\td\t1\n", ":1: expected query-id"),
        ("q\td\tone\n", ":1: the score is 'one', expected a number"),
        ("q\td\tnan\n", ":1: the score is 'nan', expected a number"),
        ("q\td\t1\nq\td\t2\n", ":2: q and d are judged 2, before that 1"),
    ],
)
def test_judgements_that_cannot_be_used_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "test.tsv"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_qrels(path)


def test_scifact_has_its_published_counts(data_dir: Path) -> None:
    assert len(read_qrels(data_dir / "scifact")) == 300
    assert len(open_queries(data_dir / "scifact")) == 1109


def test_grades_with_fractions_and_ids_with_blanks_are_kept(tmp_path: Path) -> None:
    (tmp_path / "q.tsv").write_text("q\t d\t0.5\r\nq\te\t2.0\n")
    assert read_qrels(tmp_path / "q.tsv") == {"q": {" d": 0.5, "e": 2}}
