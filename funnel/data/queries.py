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
from funnel.data.corpus import Columns, as_rows, decoded_lines, local_path, open_corpus, records_of, suffix_of
from funnel.errors import InputError
from funnel.rows import is_table

__all__ = ["Queries", "QueriesSource", "folded", "open_queries", "query_hashes", "read_qrels"]

QRELS_HEADER = ("query-id", "corpus-id", "score")  # of BEIR's judgement files
COLUMNS = Columns(queries=True)
READ_AT_A_TIME = 8192  # rows: 12 MB at 384 dimensions
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

    def __len__(self) -> int:
        return len(self.vectors if self.texts is None and self.vectors is not None else self.texts or ())


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
    items: Any = source
    if isinstance(source, str | Path) and suffix_of(local_path(source)) == ".txt" and Path(source).is_file():
        items = _lines(Path(source))
    elif not isinstance(source, str | Path):
        array = as_rows(source)
        items = source if array is None else array.tolist() if array.ndim == 1 and array.dtype.kind in "UO" else array
        if array is None and not is_table(items) and isinstance(items, Iterable):
            items = list(records_of(items))
    if isinstance(items, list) and items and isinstance(items[0], str):
        return Queries(_texts(items), None)
    corpus = open_corpus(items, None, COLUMNS)
    if corpus.kind == "vectors":
        ids = None if corpus.ids is None else [str(one) for one in corpus.ids]
        return Queries(None, np.concatenate(list(corpus.vectors(READ_AT_A_TIME))), ids, corpus.name)
    found = [one for batch in corpus.documents(READ_AT_A_TIME) for one in batch]
    ids = [str(one.id) for one in found]
    duplicates = [one for one, times in Counter(ids).items() if times > 1]
    if duplicates:
        named = ", ".join(duplicates[:NAMED])
        raise InputError(f"{corpus.name}: {len(duplicates)} duplicate ids: {named}; every query needs its own")
    vectors = [one.vector for one in found if one.vector is not None]
    texts = [one.content for one in found] if vectors else _texts([one.content for one in found])
    return Queries(texts, np.stack(vectors) if vectors else None, ids, corpus.name)


def _lines(path: Path) -> list[str]:
    lines = [line.strip() for _, line in decoded_lines(path)]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise InputError(f"{path} is empty; at least one query is needed")
    if "" in lines:
        raise InputError(f"{path}:{lines.index('') + 1}: an empty line; every line is one query")
    return lines


def _texts(items: list[Any]) -> list[str]:
    """The texts of queries. InputError where some are none, or empty."""
    for number, item in enumerate(items):
        if not isinstance(item, str):
            raise InputError(f"query {number} is {type(item).__name__}, expected text like the first")
    empty = [number for number, text in enumerate(items) if not text.strip()]
    if empty:
        named = ", ".join(map(str, empty[:NAMED]))
        raise InputError(f"{len(empty)} of {len(items)} queries are empty texts: {named}; leave them out")
    return list(map(str, items))


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
