"""Documents from files: JSON lines, CSV and parquet, a record at a time, with the place of every fault."""

import csv
import gzip
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from funnel.data.columns import KNOWN_FIELDS, Columns, arrow_rows
from funnel.data.documents import Document
from funnel.errors import InputError, MissingPackageError
from funnel.identifiers import identifier
from funnel.rows import unit_rows, unmasked

__all__ = [
    "READERS",
    "Located",
    "bare_parquet",
    "decoded_lines",
    "document_from_record",
    "json_objects",
    "located",
    "suffix_of",
]

PARQUET_ROWS = 1024  # rows decoded at a time: some megabytes with texts or vectors
NAMED_FIELDS = 20  # that an error names before it stops
BYTE_ORDER_MARK = "\ufeff"

Located = tuple[str, Document]
"""Where a document was found (file and line, for messages), and the document."""


def located(
    records: Iterable[tuple[str, object]], columns: Columns | None = None, numbered: bool = True
) -> Iterator[Located]:
    """Documents from records with their places; texts are records as well.

    columns: which fields are what. numbered: where the first record has no id, all get their numbers from 0.
    Raises InputError as `document_from_record` does, where some records have an id and some none, and at the end
    where none has a field that `columns` names.
    """
    counted: bool | None = None if numbered else False
    columns = Columns() if columns is None else columns
    unseen, fields = columns.expected, dict[object, None]()
    for number, (where, given) in enumerate(records):
        record = {"text": given} if isinstance(given, str) else given
        if isinstance(record, Document) and columns.named:
            name, value = next(iter(columns.named.items()))
            raise InputError(f"{where}: {name}={value!r} names a field, and this is a Document; leave it out")
        own, all_of_it = columns.own_metadata(record) if isinstance(record, Mapping) else ({}, False)
        if isinstance(record, Mapping):
            if unseen:
                fields.update(dict.fromkeys((*record, *own)))
                unseen = {name: None for name in unseen if name not in fields}
            record = columns.read(record, where)
            has_id = not record.keys().isdisjoint(("_id", "id"))
            counted = not has_id if counted is None else counted
            if counted and has_id:
                raise InputError(f"{where}: has an id, the first document has none; give all one or none")
            if counted:
                record = {**record, "_id": str(number)}
        document = document_from_record(record, where, columns.advice)
        if own or all_of_it:
            document = replace(document, metadata=own if all_of_it else {**document.metadata, **own})
        yield where, document
    if unseen and fields:
        there = ", ".join(map(str, itertools.islice(fields, NAMED_FIELDS)))
        there += " …" if len(fields) > NAMED_FIELDS else ""
        raise InputError(
            f"metadata names {', '.join(map(repr, unseen))}, which no record has; their fields are: {there}; name some "
            "of these, or leave it out"
        )


def document_from_record(record: object, where: str, advice: str = "call one of them so") -> Document:
    """A document from a mapping with `_id` (or `id`), `title`, `text` and, if any, `vector`.

    Other fields become metadata. Ids become text; None as title or text counts as empty. advice: what to do about a
    record of other names.

    Raises:
        InputError: names `where` and the field that cannot be used.
    """
    if isinstance(record, Document):
        return _checked_document(record, where)
    if not isinstance(record, Mapping):
        raise InputError(f"{where}: expected an object with _id, title and text, got {type(record).__name__}")
    id_field = "id" if "id" in record and "_id" not in record else "_id"
    if not record.keys() & {"title", "text", "vector"}:
        fields = ", ".join(map(str, record)) or "none"
        raise InputError(f"{where}: has no text, title or vector; its fields are: {fields}; {advice}")
    vector, norm = _vector(record.get("vector"), where)
    return Document(
        id=_id(record.get(id_field), id_field, where),
        title=_text(record.get("title"), "title", where),
        text=_text(record.get("text"), "text", where),
        metadata={
            str(key): value
            for key, value in record.items()
            if key not in KNOWN_FIELDS or (key == "id" and id_field == "_id")
        },
        vector=vector,
        norm=norm,
    )


def _checked_document(document: Document, where: str) -> Document:
    vector, norm = _vector(document.vector, where)
    return Document(
        id=_id(document.id, "id", where),
        title=_text(document.title, "title", where),
        text=_text(document.text, "text", where),
        metadata=document.metadata,
        vector=vector,
        norm=norm,
    )


def _id(value: object, field: str, where: str) -> str:
    if value is None or (isinstance(value, str) and not value):
        raise InputError(f"{where}: {field} is missing or empty; every document needs an id")
    return str(identifier(value, f"{where}: {field}"))


def _text(value: object, field: str, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(f"{where}: {field} is {type(value).__name__}, expected text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: {field} has a lone surrogate at character {error.start}; it is not valid Unicode"
        ) from None
    return value


def _vector(value: object, where: str) -> tuple[NDArray[np.float32] | None, float]:
    """A vector as a unit row, and the length that it had."""
    if value is None:
        return None, 1.0
    try:
        array = unmasked(value) if isinstance(value, np.ndarray) else np.asarray(value)
    except ValueError:
        array = np.empty(0, dtype=object)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "fiu":
        raise InputError(f"{where}: vector is not a list of numbers")
    try:
        rows = unit_rows(array[None, :], 0, "vector")
    except InputError:
        raise InputError(f"{where}: vector has NaN, infinite or only zero values") from None
    vector: NDArray[np.float32] = rows[0]
    return vector, float(array @ vector)


def decoded_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file, packed by gzip where it is called .gz, with their numbers from 1, line ends kept.

    Raises:
        InputError: a line is not UTF-8; names file and line. Or the file is no whole gzip file.
    """
    with path.open("rb") as file:
        for number, raw in enumerate(_unzipped(file, path) if path.suffix == ".gz" else file, start=1):
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}:{number}: byte {error.start} of the line is not UTF-8; save the file as UTF-8"
                ) from None
            yield number, line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line


def _unzipped(file: BinaryIO, path: Path) -> Iterator[bytes]:
    try:
        with gzip.GzipFile(fileobj=file) as packed:
            yield from packed
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} cannot be unpacked by gzip ({error}); copy it again") from None


def json_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON-lines file, each with "file:line"; blank lines are skipped.

    Raises:
        InputError: a line is not a JSON object; names file and line.
    """
    for number, line in decoded_lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise InputError(f"{where}: not JSON ({reason}); expected one object a line") from None
        if not isinstance(value, dict):
            raise InputError(f"{where}: expected a JSON object, got {type(value).__name__}")
        yield where, value


def _read_jsonl(path: Path, columns: Columns | None = None, numbered: bool = True) -> Iterator[Located]:
    return located(json_objects(path), columns, numbered)


def _read_csv(path: Path, columns: Columns | None = None, numbered: bool = True) -> Iterator[Located]:
    return located(_csv_records(path, columns), columns, numbered)


def _csv_records(path: Path, columns: Columns | None) -> Iterator[tuple[str, dict[str, str]]]:
    """Every cell stays a text, so that "007" and "1.50" are kept; filters compare those that are numbers as numbers."""
    lines = (line for _, line in decoded_lines(path))
    first = next(lines, "")
    delimiter = ";" if ";" in first and "," not in first else ","
    reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
    header = next(_csv_rows(reader, path), None)
    if header is None:
        return
    names = _csv_header(header[1], path, columns)
    for where, values in _csv_rows(reader, path):
        if len(values) != len(names):
            raise InputError(f"{where}: {len(values)} columns, the header has {len(names)}")
        yield where, dict(zip(names, values, strict=True))


def _csv_rows(reader: Iterator[list[str]], path: Path) -> Iterator[tuple[str, list[str]]]:
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            where = f"{path}:{_line(reader)}"
            raise InputError(f"{where}: {error}; long or unusual fields are safer in .jsonl") from None
        if row:
            yield f"{path}:{_line(reader)}", row


def _line(reader: Iterator[list[str]]) -> int:
    return int(getattr(reader, "line_num", 0))


def _csv_header(names: list[str], path: Path, columns: Columns | None) -> list[str]:
    columns = Columns() if columns is None else columns
    columns.check_named(names, f"{path}:1")
    roles = columns.roles(names)
    if not {"title", "text"} & {roles.get(name, name) for name in names}:
        raise InputError(
            f"{path}:1: the header is {', '.join(names)}; expected title or text among it; {columns.advice}"
        )
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise InputError(f"{path}:1: the header names {', '.join(duplicates)} more than once")
    if "vector" in names:
        raise InputError(f"{path}:1: a CSV file cannot carry vectors; use .jsonl or .parquet for them")
    return names


def _read_parquet(path: Path, columns: Columns | None = None, numbered: bool = True) -> Iterator[Located]:
    vector = "vector" if columns is None or columns.vector is None else columns.vector
    return located(_parquet_rows(path, vector), columns, numbered)


def bare_parquet(path: Path, columns: Columns) -> tuple[int, list[object] | None] | None:
    """How many rows a file has, and its ids or None, where it holds `Columns.bare` fields; else None."""
    with _parquet(path) as file:
        fields = file.schema_arrow.names
        if not columns.bare(fields):
            return None
        field = columns.ids_of(fields)
        return file.metadata.num_rows, None if field is None else file.read([field]).column(0).to_pylist()


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    """The file, opened. Raises MissingPackageError without pyarrow, InputError where it is none or damaged."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingPackageError(
            f"reading {path} needs pyarrow; install it: pip install 'funnel-retrieval[parquet]'"
        ) from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read as parquet ({error}); write it again") from None


def _parquet_rows(path: Path, vector: str) -> Iterator[tuple[str, object]]:
    number = 0
    with _parquet(path) as file:
        for batch in file.iter_batches(batch_size=PARQUET_ROWS):
            for record in _parquet_records(batch, vector, f"{path}: rows from {number} on"):
                yield f"{path}: row {number}", record
                number += 1


def _parquet_records(batch: Any, vector: str, where: str) -> Iterable[dict[str, object]]:
    names = batch.schema.names
    if vector not in names:
        return arrow_rows(batch, where)
    # As arrays: a list column as Python floats takes ten times the memory.
    vectors = batch.column(vector).to_numpy(zero_copy_only=False)
    others = arrow_rows(batch.select([name for name in names if name != vector]), where)
    found = zip(others, vectors, strict=True)
    return [{name: value if name == vector else record[name] for name in names} for record, value in found]


class _Reader(Protocol):
    def __call__(self, path: Path, columns: Columns | None = None, numbered: bool = True) -> Iterator[Located]: ...


def suffix_of(path: Path) -> str:
    """What the name of a file ends in, in lower case: ".csv", ".jsonl.gz", or ""."""
    return "".join(path.suffixes[-2:] if path.suffix.lower() == ".gz" else path.suffixes[-1:]).lower()


READERS: dict[str, _Reader] = {
    ".jsonl": _read_jsonl,
    ".jsonl.gz": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
"""The reader of each suffix that holds documents."""
