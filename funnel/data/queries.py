"""Queries as texts or vectors, and relevance judgements."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from funnel.checks import checked_path
from funnel.data.corpus import (
    READERS,
    Columns,
    Located,
    as_rows,
    decoded_lines,
    local_path,
    located,
    of_one_width,
    records_of,
    suffix_of,
)
from funnel.errors import InputError
from funnel.rows import NpyRows, is_table, unit_rows

__all__ = ["Queries", "QueriesSource", "folded", "open_queries", "query_hashes", "read_qrels"]

QUERIES_FILE = "queries.jsonl"  # of a BEIR folder
QRELS_HEADER = ("query-id", "corpus-id", "score")  # of BEIR's judgement files
SUFFIXES = (*READERS, ".npy", ".txt")
COLUMNS = Columns(queries=True)
ROWS_PER_READ = 8192  # 12 MB at 384 dimensions
SHOWN_CHARACTERS = 80  # of a line that cannot be read
HASH_DIGITS = 20  # 80 bits: a million queries collide with a chance of 1e-12
NAMED = 5  # faulty values an error names before it only counts

QueriesSource = (
    str
    | Path
    | NDArray[Any]
    | Iterable[str]
    | Iterable[Mapping[str, object]]
    | Mapping[str, str]
    | Sequence[Sequence[float]]
)
"""What `open_queries` takes; torch tensors [n, d], tables and columns of other libraries as well."""


@dataclass(frozen=True, slots=True, eq=False)
class Queries:
    """Sample queries, held in memory.

    Attributes:
        texts: One a query, or None for bare vectors.
        vectors: float32 [n, d] of unit length, or None for texts still to be encoded.
        ids: One a query, or None when none came with them.
        name: Where they came from, for messages.
    """

    texts: list[str] | None
    vectors: NDArray[np.float32] | None
    ids: list[str] | None = None
    name: str = "the queries"

    @property
    def count(self) -> int:
        """How many queries there are."""
        if self.texts is not None:
            return len(self.texts)
        return 0 if self.vectors is None else self.vectors.shape[0]

    def __len__(self) -> int:
        return self.count


def folded(text: str) -> str:
    """A text after white space is folded: two queries of the same are one."""
    return " ".join(text.split())


def query_hashes(texts: Sequence[str] | None, vectors: NDArray[np.float32] | None) -> list[set[str]]:
    """What each query is known by again: a hash of its folded text, and one of its unit vector to three decimals.

    texts: of n queries, or None. vectors: float32 [n, d], or None.
    """
    count = len(texts) if texts is not None else 0 if vectors is None else len(vectors)
    found: list[set[str]] = [set() for _ in range(count)]
    for mine, text in zip(found, texts or (), strict=False):
        if not text.strip():
            continue
        mine.add("text " + hashlib.sha256(folded(text).encode("utf-8", "surrogatepass")).hexdigest()[:HASH_DIGITS])
    for mine, vector in zip(found, () if vectors is None else vectors, strict=False):
        rounded = np.round(vector.astype(np.float64), 3).astype("<f4") + np.float32(0)  # no negative zeros
        mine.add("vector " + hashlib.sha256(rounded.tobytes()).hexdigest()[:HASH_DIGITS])
    return found


def open_queries(source: QueriesSource | Queries) -> Queries:
    """Open sample queries.

    Args:
        source: A list of texts; an array [n, d] of numpy or torch, or lists of numbers; a .npy file of rows; a
            .txt file with one query a line; a .jsonl, .jsonl.gz, .csv or .parquet file, a frame of pandas or polars,
            a table of pyarrow or an iterable of mappings, with `text` or `query`, and optionally `_id` and `vector`;
            a column of a table; a dict of id -> text; or a BEIR folder.

    Raises:
        InputError: not found, of an unknown kind, empty, or a query cannot be used, which is named.
    """
    if isinstance(source, Queries):
        return source
    if isinstance(source, str | Path):
        return _open_path(local_path(source))
    array = as_rows(source)
    if array is not None:
        return _from_vectors(array, "the queries")
    if not (isinstance(source, Iterable) or is_table(source)):
        raise InputError(f"queries cannot be a {type(source).__name__}; pass a path, texts or an array [n, d]")
    items: list[object] = list(records_of(source))
    if not items:
        raise InputError("the queries are empty; at least one is needed")
    if isinstance(items[0], str):
        return _from_texts(items, "the queries")
    records = ((f"query {number}", item) for number, item in enumerate(items))
    return _from_records(located(records, COLUMNS), "the queries")


def _open_path(path: Path) -> Queries:
    if path.is_dir():
        path = path / QUERIES_FILE
    if not path.is_file():
        raise InputError(f"no queries at {path}; check the path, or pass a text as a list: [text]")
    suffix = suffix_of(path)
    if suffix == ".npy":
        rows = NpyRows(path)
        batches = list(rows.read(ROWS_PER_READ))
        empty = np.empty((0, rows.dim), dtype=np.float32)
        return _from_vectors(np.concatenate(batches) if batches else empty, str(path))
    if suffix in READERS:
        return _from_records(READERS[suffix](path, COLUMNS), str(path))
    if suffix == ".txt":
        return _read_txt(path)
    raise InputError(f"{path} has the suffix {suffix or '(none)'}; supported are {', '.join(SUFFIXES)}")


def _read_txt(path: Path) -> Queries:
    lines = [line.strip() for _, line in decoded_lines(path)]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise InputError(f"{path} is empty; at least one query is needed")
    if "" in lines:
        raise InputError(f"{path}:{lines.index('') + 1}: an empty line; every line is one query")
    return Queries(texts=lines, vectors=None, name=str(path))


def _from_vectors(array: NDArray[Any], name: str) -> Queries:
    if array.ndim == 1 and array.dtype.kind in "UO":
        return _from_texts(array.tolist(), name)
    if array.ndim == 2 and array.shape[0] == 0:
        raise InputError(f"{name} are empty; at least one row is needed")
    return Queries(texts=None, vectors=unit_rows(array, 0, name), name=name)


def _from_texts(items: list[object], name: str) -> Queries:
    for number, item in enumerate(items):
        if not isinstance(item, str):
            raise InputError(f"query {number} is {type(item).__name__}, expected text like the first")
    texts = [str(item) for item in items]
    empty = [number for number, text in enumerate(texts) if not text.strip()]
    if empty:
        named = ", ".join(map(str, empty[:NAMED]))
        raise InputError(f"{len(empty)} of {len(texts)} queries are empty texts: {named}; leave them out")
    return Queries(texts=texts, vectors=None, name=name)


def _from_records(records: Iterable[Located], name: str) -> Queries:
    found = list(of_one_width(records))
    if not found:
        raise InputError(f"{name} is empty; at least one query is needed")
    ids = [str(document.id) for _, document in found]
    duplicates = [identifier for identifier, times in Counter(ids).items() if times > 1]
    if duplicates:
        named = ", ".join(duplicates[:NAMED])
        raise InputError(f"{name}: {len(duplicates)} duplicate ids: {named}; every query needs its own")
    vectors = [document.vector for _, document in found if document.vector is not None]
    for where, document in found:
        if not vectors and not document.content:
            raise InputError(f"{where}: the query has no text and no vector")
    return Queries([document.content for _, document in found], np.stack(vectors) if vectors else None, ids, name)


def read_qrels(path: str | Path, split: str = "test") -> dict[str, dict[str, float]]:
    """Read relevance judgements in BEIR's form: query id, corpus id and grade, between tabs.

    Args:
        path: The .tsv file, or a folder: then `qrels/<split>.tsv` or `<split>.tsv` in it.
        split: Which judgements of a folder.

    Returns:
        For each query id, the grade of each judged document id.

    Raises:
        InputError: not found, empty, or a line cannot be used; names file and line.
    """
    path = _qrels_file(checked_path("qrels", path), split)
    judgements: dict[str, dict[str, float]] = {}
    for where, query_id, document_id, grade in _judgements(path):
        of_query = judgements.setdefault(query_id, {})
        if of_query.setdefault(document_id, grade) != grade:
            raise InputError(
                f"{where}: {query_id} and {document_id} are judged {grade}, "
                f"before that {of_query[document_id]}; keep one"
            )
    if not judgements:
        raise InputError(f"{path} holds no judgements; expected {', '.join(QRELS_HEADER)} between tabs")
    return judgements


def _qrels_file(path: Path, split: str) -> Path:
    candidates = [path / "qrels" / f"{split}.tsv", path / f"{split}.tsv"] if path.is_dir() else [path]
    there = next((candidate for candidate in candidates if candidate.is_file()), None)
    if there is None:
        raise InputError(f"no judgements at {' or '.join(map(str, candidates))}; check the path and the split")
    return there


def _judgements(path: Path) -> Iterator[tuple[str, str, str, float]]:
    for number, line in decoded_lines(path):
        fields = line.rstrip("\r\n").split("\t")
        if not line.strip() or (number == 1 and tuple(map(str.strip, fields)) == QRELS_HEADER):
            continue
        where = f"{path}:{number}"
        if len(fields) != len(QRELS_HEADER) or not fields[0] or not fields[1]:
            shown = line.strip()[:SHOWN_CHARACTERS]
            raise InputError(f"{where}: expected {', '.join(QRELS_HEADER)} between tabs, got {shown!r}")
        try:
            grade = float(fields[2])
        except ValueError:
            grade = math.nan
        if not math.isfinite(grade):
            raise InputError(f"{where}: the score is {fields[2]!r}, expected a number")
        yield where, fields[0], fields[1], int(grade) if grade.is_integer() else grade
