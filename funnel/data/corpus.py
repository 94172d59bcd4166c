"""A corpus from a file, a folder, an iterable or an array, streamed in the order it came."""

import csv
import gzip
import itertools
import json
import re
import warnings
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set, Sized
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from numbers import Real
from pathlib import Path
from reprlib import repr as shown
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from funnel.checks import checked_name
from funnel.data.documents import Document
from funnel.errors import InputError, MissingPackageError
from funnel.identifiers import identifier, unicode_text
from funnel.rows import NpyRows, as_array, check_ids, is_table, table_library, unit_rows

__all__ = [
    "READERS",
    "Columns",
    "Corpus",
    "CorpusSource",
    "Located",
    "Norms",
    "as_rows",
    "decoded_lines",
    "document_from_record",
    "json_objects",
    "local_path",
    "located",
    "of_one_width",
    "open_corpus",
    "records_of",
    "suffix_of",
]

EXPORTED = ["id", "title", "text", "metadata", "vector"]  # of FunnelIndex.export, where there are documents
KNOWN_FIELDS = frozenset({"_id", "id", "title", "text", "vector"})
QUERY_FIELD = "query"  # what query files call their text where they do not call it text
TABLE_ROWS = 1_024  # turned into records at a time


@dataclass(frozen=True)
class Columns:
    """The fields that hold a document's parts, where they have other names than id (or _id), title, text and vector.

    metadata: the other fields to keep; None: all of them. queries: whether the records are queries, whose text may be
    called "query" as well.
    """

    text: str | None = None
    title: str | None = None
    id: str | None = None
    vector: str | None = None
    metadata: Sequence[str] | None = None
    queries: bool = False

    def __post_init__(self) -> None:
        for name in self.named.keys() - {"metadata"}:
            checked_name(name, getattr(self, name))
        names, given = self.metadata, isinstance(self.metadata, Sequence | Set)
        if names is not None and (not given or isinstance(names, str) or not all(isinstance(n, str) for n in names)):
            example = f": [{names!r}]" if isinstance(names, str) else ""
            raise InputError(f"metadata is {shown(names)}; expected a list of names{example}")

    @property
    def named(self) -> dict[str, Any]:
        """Those that were named, by what they are."""
        return {name: value for name, value in asdict(self).items() if value is not None and name != "queries"}

    def roles(self, fields: Collection[Any]) -> dict[str, str]:
        """Field -> what it is; of those that were named, for a record of these fields."""
        text = self.text
        if self.queries and text is None and "text" not in fields and QUERY_FIELD in fields:
            text = QUERY_FIELD
        named = {self.id: "_id", self.title: "title", text: "text", self.vector: "vector"}
        return {field: role for field, role in named.items() if field is not None}

    def split(self, record: Mapping[Any, object], where: str) -> tuple[dict[str, object], dict[str, object]]:
        """What a record says of the parts of a document, by the names that these have, and its metadata.

        The metadata of an exported record are one field of JSON. Raises InputError for a field that is named and not
        there.
        """
        roles = self.check_named(record, where)
        fields = _json_object(record["metadata"]) if list(record) == EXPORTED and not roles else None
        taken = set(roles.values()) | ({"id"} if self.id is not None or "_id" in record else set())
        roles |= {name: name for name in KNOWN_FIELDS - taken - roles.keys() if name in record}
        others = {key: one for key, one in record.items() if key not in roles} if fields is None else fields
        kept = {str(key): one for key, one in others.items() if self.metadata is None or key in self.metadata}
        return {role: record[field] for field, role in roles.items()}, kept

    def check_named(self, fields: Collection[Any], where: str) -> dict[str, str]:
        """The roles of a record of these fields. InputError where it lacks one that was named."""
        roles = self.roles(fields)
        missing = [field for field in roles if field not in fields]
        if missing:
            there = ", ".join(map(str, fields)) or "none"
            raise InputError(f"{where}: has no field {missing[0]!r}, which was named; its fields are: {there}")
        return roles

    @property
    def said(self) -> tuple[str, str]:
        """What they are called together, and what one of them is."""
        return ("queries", "query") if self.queries else ("corpus", "document")

    @property
    def advice(self) -> str:
        """What to do about records without text, title or vector."""
        if self.queries:
            return f"call the text of a query text or {QUERY_FIELD}, its numbers vector"
        return "say which is which: text=, title= or vector= (--text, --title, --vector)"

    @property
    def expected(self) -> dict[str, None]:
        """The metadata that were named, in their order: of each, some record is to have it."""
        parts = KNOWN_FIELDS | {self.text, self.title, self.id, self.vector}
        return dict.fromkeys(name for name in self.metadata or () if name not in parts)

    def bare(self, fields: Sequence[str]) -> bool:
        """Whether a table of these fields holds vectors, ids or none, and nothing else."""
        roles = self.roles(fields)
        kept = fields if self.metadata is None else self.metadata
        read = {roles.get(one, one) for one in fields if one in roles or one in KNOWN_FIELDS or one in kept}
        return "vector" in read and read - {"vector"} in ({"_id"}, {"id"}, set())

    def ids_of(self, fields: Sequence[str]) -> str | None:
        """The field that holds the ids; None where there is none."""
        return next((one for one in (self.id, "_id", "id") if one is not None and one in fields), None)


NO_COLUMNS = Columns()


def _json_object(text: object) -> dict[str, object] | None:
    try:
        fields = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def records_of(source: Any) -> Iterator[Any]:
    """The rows of a pandas or polars frame, or of a table of pyarrow, as mappings; the items of anything else.

    Of a mapping, as BEIR's loader gives them, each key is the id of its text or record.
    """
    match table_library(source):
        case "pandas":
            for start in range(0, len(source), TABLE_ROWS):
                yield from source.iloc[start : start + TABLE_ROWS].to_dict("records")
        case "polars":
            yield from source.iter_rows(named=True)
        case "pyarrow":
            for start in range(0, source.num_rows, TABLE_ROWS):
                where = f"rows {start} to {start + TABLE_ROWS} of the table"
                yield from arrow_rows(source.slice(start, TABLE_ROWS), where)
        case _:
            yield from _keyed(source) if isinstance(source, Mapping) else source


def _keyed(source: Mapping[Any, Any]) -> Iterator[dict[Any, Any]]:
    if isinstance(source.get("text"), str):
        raise InputError("a single record was given as a dict; give a list: [record]")
    for key, value in source.items():
        if not isinstance(value, str | Mapping):
            raise InputError(
                f"{str(key)!r} of the dict is a {type(value).__name__}; expected id -> text or id -> record, "
                "or give a list of records"
            )
        yield {**({"text": value} if isinstance(value, str) else value), "_id": key}


def arrow_rows(part: Any, where: str) -> list[dict[str, object]]:
    """The rows of a part of a table of pyarrow. Raises InputError for nanoseconds that only pandas holds."""
    try:
        rows: list[dict[str, object]] = part.to_pylist()
    except (ValueError, OverflowError) as error:
        raise InputError(f"{where} hold what Python's own types cannot ({error}); install pandas, or cast it") from None
    return rows


def bare_table(source: Any, columns: Columns) -> tuple[int, Any] | None:
    """How many rows a table has, and its column of ids or None, where it holds `Columns.bare` fields; else None.

    Tables are those of `is_table`, and datasets of Hugging Face.
    """
    kind = table_library(source)
    names: Any = getattr(source, "columns" if kind in ("pandas", "polars") else "column_names", None)
    if kind is None and not (isinstance(names, list) and isinstance(source, Sized)):
        return None
    fields = list(source.schema.names if kind == "pyarrow" else names)
    if not columns.bare(fields):
        return None
    field = columns.ids_of(fields)
    return len(source), None if field is None else source[field]


OFF = 0.01  # from 1: rows that were scaled and then stored as float16 are off by a tenth of it


class Norms:
    """Smallest and largest length of a stream of rows."""

    def __init__(self) -> None:
        self._least, self._largest = np.inf, 0.0

    def add(self, lengths: NDArray[np.floating] | Sequence[float]) -> None:
        """The lengths [n] of the next rows."""
        self._least = min(self._least, float(np.min(lengths, initial=np.inf)))
        self._largest = max(self._largest, float(np.max(lengths, initial=0.0)))

    def __str__(self) -> str:
        """What to say of them; nothing where they are 1, or there are none."""
        if self._least >= 1 - OFF and self._largest <= 1 + OFF:
            return ""
        return (
            f"the vectors have norms from {self._least:.2g} to {self._largest:.2g}: similarity is cosine, which does "
            "not see them"
        )


PARQUET_ROWS = 1024  # rows decoded at a time: some megabytes with texts or vectors
NAMED_FIELDS = 20  # that an error names before it stops
BYTE_ORDER_MARK = "\ufeff"

Located = tuple[str, Document]
"""Where a document was found (file and line, for messages), and the document."""


def located(
    records: Iterable[tuple[str, object]], columns: Columns = NO_COLUMNS, numbered: bool = True
) -> Iterator[Located]:
    """Documents from records with their places; texts are records as well.

    columns: which fields are what. numbered: where the first record has no id, all get their numbers from 0.
    Raises InputError as `document_from_record` does, where some records have an id and some none, and at the end
    where none has a field that `columns` names.
    """
    counted: bool | None = None if numbered else False
    unseen, fields = columns.expected, dict[object, None]()
    for number, (where, given) in enumerate(records):
        record = {"text": given} if isinstance(given, str) else given
        for name, value in columns.named.items() if isinstance(record, Document) else ():
            raise InputError(f"{where}: {name}={value!r} names a field, and this is a Document; leave it out")
        if isinstance(record, Mapping):
            has_id = columns.id is not None or not record.keys().isdisjoint(("_id", "id"))
            counted = not has_id if counted is None else counted
            if counted and has_id:
                raise InputError(f"{where}: has an id, the first document has none; give all one or none")
            record = {**record, "_id": str(number)} if counted else record
        document = document_from_record(record, where, columns)
        if unseen and isinstance(record, Mapping):
            fields.update(dict.fromkeys(record))
            unseen = {name: None for name in unseen if name not in document.metadata}
        yield where, document
    if unseen and fields:
        there = ", ".join(map(str, itertools.islice(fields, NAMED_FIELDS)))
        there += " …" if len(fields) > NAMED_FIELDS else ""
        raise InputError(
            f"metadata names {', '.join(map(repr, unseen))}, which no record has; their fields are: {there}; name some "
            "of these, or leave it out"
        )


def document_from_record(record: object, where: str, columns: Columns = NO_COLUMNS) -> Document:
    """A document from a mapping with `_id` (or `id`), `title`, `text` and, if any, `vector`.

    Other fields become metadata. Ids become text; None as title or text counts as empty. columns: which fields are
    what, where they have other names.

    Raises:
        InputError: names `where` and the field that cannot be used.
    """
    parts: Mapping[str, object]
    metadata: Mapping[str, object]
    if isinstance(record, Document):
        parts = {name: getattr(record, name) for name in ("id", "title", "text", "vector")}
        metadata = record.metadata
    elif isinstance(record, Mapping):
        parts, metadata = columns.split(record, where)
        if parts.keys().isdisjoint(("title", "text", "vector")):
            fields = ", ".join(map(str, record)) or "none"
            raise InputError(f"{where}: has no text, title or vector; its fields are: {fields}; {columns.advice}")
    else:
        raise InputError(f"{where}: expected an object with _id, title and text, got {type(record).__name__}")
    field = "id" if "id" in parts else "_id"
    vector, norm = _vector(parts.get("vector"), where)
    title, text = (_text(parts.get(name), name, where) for name in ("title", "text"))
    return Document(_id(parts.get(field), field, where), title, text, metadata, vector, norm)


def _id(value: object, field: str, where: str) -> str:
    if value is None or (isinstance(value, str) and not value):
        raise InputError(f"{where}: {field} is missing or empty; every document needs an id")
    return str(identifier(value, f"{where}: {field}"))


def _text(value: object, field: str, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(f"{where}: {field} is {type(value).__name__}, expected text")
    return unicode_text(value, f"{where}: {field}")


def _vector(value: object, where: str) -> tuple[NDArray[np.float32] | None, float]:
    """A vector as a unit row, and the length that it had."""
    if value is None:
        return None, 1.0
    try:
        array = as_array(value)
        array = np.asarray(value) if array is None else array
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
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                line = raw.decode("utf-8")
                yield number, line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
    except UnicodeDecodeError as error:
        where = f"{path}:{number}: byte {error.start} of the line"
        raise InputError(f"{where} is not UTF-8; save the file as UTF-8") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} cannot be unpacked by gzip ({error}); copy it again") from None


def json_objects(path: Path, _columns: Columns = NO_COLUMNS) -> Iterator[tuple[str, dict[str, Any]]]:
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


def _csv_records(path: Path, columns: Columns = NO_COLUMNS) -> Iterator[tuple[str, dict[str, str]]]:
    """Every cell stays a text, so that "007" and "1.50" are kept; filters compare those that are numbers as numbers."""
    lines = (line for _, line in decoded_lines(path))
    first = next(lines, "")
    delimiter = ";" if ";" in first and "," not in first else ","
    reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
    try:
        rows = filter(None, reader)
        names = next(rows, [])
        if names:
            _check_header(names, f"{path}:1", columns)
        for row in rows:
            if len(row) != len(names):
                raise InputError(f"{path}:{reader.line_num}: {len(row)} columns, the header has {len(names)}")
            yield f"{path}:{reader.line_num}", dict(zip(names, row, strict=True))
    except csv.Error as error:
        where = f"{path}:{reader.line_num}"
        raise InputError(f"{where}: {error}; long or unusual fields are safer in .jsonl") from None


def _check_header(names: list[str], where: str, columns: Columns) -> None:
    roles = columns.check_named(names, where)
    if not {"title", "text"} & {roles.get(name, name) for name in names}:
        said = f"the header is {', '.join(names)}; expected title or text among it; {columns.advice}"
        raise InputError(f"{where}: {said}")
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise InputError(f"{where}: the header names {', '.join(duplicates)} more than once")
    if "vector" in names:
        raise InputError(f"{where}: a CSV file cannot carry vectors; use .jsonl or .parquet for them")


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


def _parquet_records(path: Path, columns: Columns = NO_COLUMNS) -> Iterator[tuple[str, object]]:
    number, vector = 0, columns.vector or "vector"
    with _parquet(path) as file:
        for batch in file.iter_batches(batch_size=PARQUET_ROWS):
            names = batch.schema.names
            others = arrow_rows(
                batch.select([name for name in names if name != vector]), f"{path}: rows from {number} on"
            )
            # As arrays: a list column as Python floats takes ten times the memory.
            vectors = batch.column(vector).to_numpy(zero_copy_only=False) if vector in names else others
            for record, row in zip(others, vectors, strict=True):
                yield f"{path}: row {number}", {name: row if name == vector else record[name] for name in names}
                number += 1


def suffix_of(path: Path) -> str:
    """What the name of a file ends in, in lower case: ".csv", ".jsonl.gz", or ""."""
    return "".join(path.suffixes[-2:] if path.suffix.lower() == ".gz" else path.suffixes[-1:]).lower()


READERS: dict[str, Callable[..., Iterator[tuple[str, object]]]] = {
    ".jsonl": json_objects,
    ".jsonl.gz": json_objects,
    ".csv": _csv_records,
    ".parquet": _parquet_records,
}
"""The reader of the records of each suffix that holds documents."""


CORPUS_FILE, QUERIES_FILE = "corpus.jsonl", "queries.jsonl"  # of a BEIR folder

FEWEST_NUMBERS = 16  # in a list of metadata that may be an embedding
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # of one letter it would be a drive

CorpusSource = (
    str
    | Path
    | NDArray[Any]
    | Iterable[Mapping[str, object]]
    | Iterable[Document]
    | Iterable[str]
    | Sequence[Sequence[float]]
)
"""What `open_corpus` takes; torch tensors [n, d] as well."""


Ids = Sequence[str] | Sequence[int] | NDArray[Any] | None


class Corpus:
    """What is to be indexed: documents, or bare vectors with or without the user's ids.

    Attributes:
        kind: "documents" or "vectors".
        name: Where it came from, for messages.
        count: How many there are; None when that is not known in advance.
        dim: Width d of the vectors; None for documents without vectors.
        rereadable: Whether it can be read more than once.
        has_vectors: Whether vectors come with it, so that no encoder is needed.
        ids: The user's ids of bare vectors; None when none were given.
        norms: Lengths of the vectors as given, once they were read; None before, and of documents without any.
    """

    kind: Literal["vectors", "documents"]
    name: str
    count: int | None
    dim: int | None
    rereadable: bool
    has_vectors: bool
    ids: list[str] | list[int] | None = None
    norms: Norms | None = None

    def documents(self, batch_size: int) -> Iterator[list[Document]]:
        """The documents in order, in lists of at most `batch_size`.

        Raises:
            InputError: a record cannot be used, which is named by file and line; or they were read already.
        """
        raise NotImplementedError

    def vectors(self, batch_rows: int) -> Iterator[NDArray[np.float32]]:
        """The rows in order, scaled to unit length: float32 [at most batch_rows, d].

        Raises:
            InputError: rows are NaN, infinite or zero, which are named by number.
        """
        raise NotImplementedError


class VectorCorpus(Corpus):
    """Bare vectors from an array or a .npy file."""

    kind = "vectors"
    rereadable = True
    has_vectors = True

    def __init__(self, name: str, count: int, dim: int, read: Callable[[int], Iterator[NDArray[Any]]], ids: Ids):
        if count == 0:
            raise InputError(f"{name}: empty; at least one row is needed")
        self.name, self.count, self.dim, self._read = name, count, dim, read
        self.ids: list[str] | list[int] | None = None if ids is None else check_ids(ids, count)

    def vectors(self, batch_rows: int) -> Iterator[NDArray[np.float32]]:
        """The rows in order, scaled to unit length: see `Corpus.vectors`."""
        first, norms = 0, Norms()
        for batch in self._read(batch_rows):
            rows = unit_rows(batch, first, self.name)
            norms.add(np.einsum("ij,ij->i", batch, rows))
            yield rows
            first += batch.shape[0]
        self.norms = norms


class DocumentCorpus(Corpus):
    """Documents from a file or an iterable."""

    kind = "documents"

    def __init__(
        self,
        name: str,
        read: Callable[[], Iterator[Located]],
        columns: Columns,
        count: int | None = None,
        rereadable: bool = True,
    ) -> None:
        self.name, self.count, self.rereadable, self._read = name, count, rereadable, read
        reader = read()
        found = next(reader, None)
        if found is None:
            raise InputError(f"{name}: empty; at least one {columns.said[1]} is needed")
        first = found[1]
        self.has_vectors = first.vector is not None
        self.dim = None if first.vector is None else len(first.vector)
        if first.vector is None and not columns.queries:
            _say_of_vectors(first)
        self._unread: Iterator[Located] | None = None if rereadable else itertools.chain([found], reader)
        # Read on until each field named was seen: one that no record has is refused before texts are encoded.
        missing = set(columns.expected if rereadable else ()) - first.metadata.keys()
        while missing and (found := next(reader, None)) is not None:
            missing.difference_update(found[1].metadata)

    def documents(self, batch_size: int) -> Iterator[list[Document]]:
        """The documents in order: see `Corpus.documents`."""
        located, self._unread = self._read() if self.rereadable else self._unread, None
        if located is None:
            raise InputError(f"{self.name} can be read only once; pass a list or a file to read it again")
        return self._batches(located, batch_size)

    def _batches(self, located: Iterator[Located], batch_size: int) -> Iterator[list[Document]]:
        checked = (document for _, document in of_one_width(located))
        norms = Norms()
        while batch := list(itertools.islice(checked, batch_size)):
            norms.add([document.norm for document in batch])
            yield batch
        self.norms = norms if self.has_vectors else None


def of_one_width(documents: Iterable[Located]) -> Iterator[Located]:
    """The same; InputError for one whose vector is of another width than the first's, or has none."""
    first: int | None = None
    for number, (where, document) in enumerate(documents):
        width = None if document.vector is None else len(document.vector)
        first = first if number else width
        if width != first:
            if width is not None and first is not None:
                raise InputError(f"{where}: vector of dimension {width}, the first has {first}")
            has, other = ("no", "one") if width is None else ("a", "none")
            raise InputError(f"{where}: has {has} vector, the first has {other}; give all one or none")
        yield where, document


def _of_records(
    name: str,
    read: Callable[[], Iterator[Located]],
    columns: Columns,
    bare: tuple[int, Any] | None,
    ids: Ids,
    count: int | None = None,
    rereadable: bool = True,
) -> Corpus:
    """Documents, or bare vectors from a table of vectors and nothing else but ids.

    bare: how many rows such a table has, and its own ids or None; None where it is no such table. ids: those given
    beside the records. InputError where both are there.
    """
    if ids is not None and (bare is None or bare[1] is not None):
        raise InputError("ids are for bare vectors; documents carry their own in _id")
    documents = DocumentCorpus(name, read, columns, count, rereadable)
    if bare is None:
        return documents
    rows, own = bare

    def read_rows(batch_rows: int) -> Iterator[NDArray[Any]]:
        for batch in documents.documents(batch_rows):
            vectors = np.stack([document.vector for document in batch if document.vector is not None])
            yield np.array([document.norm for document in batch])[:, None] * vectors

    return VectorCorpus(name, rows, documents.dim or 0, read_rows, ids if own is None else own)


def open_corpus(source: CorpusSource, ids: Ids = None, columns: Columns = NO_COLUMNS, numbered: bool = True) -> Corpus:
    """Open a corpus.

    Args:
        source: A BEIR folder; a .jsonl or .jsonl.gz (`_id`, `title`, `text`, optionally `vector`, any other field
            is metadata), .csv (commas or semicolons), .parquet or .npy file; an iterable of such mappings, of texts
            or of `Document`s; a dict of id -> text or mapping; a frame of pandas or polars, a table of pyarrow, or one
            column of either; an array [n, d] of numpy or torch, or lists of numbers. A .parquet file, frame, table or
            dataset of vectors and ids alone is bare vectors, whose ids keep their kind.
        ids: The user's ids for bare vectors (.npy or array), text or whole numbers, one a row.
        columns: The fields that are text, title, id, vector and metadata, where they have names of their own.
        numbered: Whether documents without ids get their numbers; else they are refused.

    Raises:
        InputError: not found, of an unknown kind, empty, or its first record cannot be used.
        MissingPackageError: parquet without pyarrow.
    """
    if isinstance(source, str | Path):
        return _open_path(local_path(source), ids, columns, numbered)
    array = as_rows(source)
    if array is not None and (array.ndim != 1 or array.dtype.kind not in "UO"):
        return _of_rows(_open_array(array, ids, columns), columns)
    texts: Any = source if array is None else array.tolist()
    if not (isinstance(texts, Iterable) or is_table(texts)):
        raise InputError(
            f"the {columns.said[0]} cannot be a {type(source).__name__}; pass a path, an array [n, d] or an iterable "
            "of dicts or texts"
        )
    bare = bare_table(texts, columns)

    def read() -> Iterator[Located]:
        records = ((f"{columns.said[1]} {number}", record) for number, record in enumerate(records_of(texts)))
        return located(records, columns, numbered or bare is not None)

    count = len(texts) if isinstance(texts, Sized) else None
    rereadable = is_table(texts) or iter(texts) is not texts
    return _of_records(f"the {columns.said[0]}", read, columns, bare, ids, count, rereadable)


def as_rows(source: object) -> NDArray[Any] | None:
    """As `as_array`, and of lists of numbers too."""
    array = as_array(source)
    if array is not None or not isinstance(source, Sequence) or isinstance(source, str) or not len(source):
        return array
    first = as_array(source[0])
    if first is None and not (isinstance(source[0], list | tuple) and all(isinstance(v, Real) for v in source[0])):
        return None
    try:
        return np.asarray([row if as_array(row) is None else as_array(row) for row in source])
    except ValueError:
        raise InputError("the lists of numbers have different lengths; expected rows [n, d]") from None


def local_path(source: str | Path) -> Path:
    """The path. InputError for an address with a scheme, such as s3://, by its name."""
    scheme = SCHEME.match(str(source))
    if scheme is not None:
        raise InputError(f"{source}: {scheme[1]}:// is not supported; copy the file to this machine and give its path")
    return Path(source)


def _open_path(path: Path, ids: Ids, columns: Columns, numbered: bool) -> Corpus:
    if path.is_dir():
        file = QUERIES_FILE if columns.queries else CORPUS_FILE
        if not (path / file).is_file():
            raise InputError(f"the folder {path} has no {file}; expected a BEIR folder or a file")
        path = path / file
    if not path.exists():
        advice = "check the path, or pass a text as a list: [text]" if columns.queries else "check the path"
        raise InputError(f"no {columns.said[0]} at {path}; {advice}")
    suffix = suffix_of(path)
    if suffix == ".npy":
        rows = NpyRows(path)
        return _of_rows(VectorCorpus(str(path), rows.count, rows.dim, rows.read, ids), columns)
    if suffix not in READERS:
        supported = ", ".join((*READERS, ".npy", *([".txt"] if columns.queries else [])))
        raise InputError(f"{path} has the suffix {suffix or '(none)'}; supported are {supported}")
    bare = bare_parquet(path, columns) if suffix == ".parquet" else None
    numbered = numbered or bare is not None
    return _of_records(
        str(path), lambda: located(READERS[suffix](path, columns), columns, numbered), columns, bare, ids
    )


def _of_rows(corpus: Corpus, columns: Columns) -> Corpus:
    """The corpus, of bare vectors. InputError where fields were named, of which it has none."""
    for name, value in columns.named.items():
        raise InputError(f"{name}={value!r} names a field, and {corpus.name} holds bare vectors; leave it out")
    return corpus


def _open_array(array: NDArray[Any], ids: Ids, columns: Columns) -> Corpus:
    if array.dtype == np.uint8:
        raise InputError(
            f"the array is uint8 of shape {list(array.shape)}: unpack packed bits by numpy.unpackbits(rows, axis=1) "
            "and convert numbers from 0 to 255 by rows.astype('float32'); give one or the other"
        )
    if array.ndim != 2 or array.shape[1] == 0 or array.dtype.kind not in "fiu":
        raise InputError(
            f"the array is {array.dtype} of shape {list(array.shape)}; expected float or integer rows [n, d]"
        )

    def read(batch_rows: int) -> Iterator[NDArray[Any]]:
        for start in range(0, array.shape[0], batch_rows):
            yield array[start : start + batch_rows]

    name = "the queries" if columns.queries else "the array"
    return VectorCorpus(name, array.shape[0], array.shape[1], read, ids)


def _say_of_vectors(document: Document) -> None:
    """Warn of a field that looks like the vector and is kept as metadata."""
    for field, value in document.metadata.items():
        listed = isinstance(value, list | tuple | np.ndarray) and getattr(value, "ndim", 1) > 0
        numbers: Any = value if listed else ()
        if len(numbers) >= FEWEST_NUMBERS and all(isinstance(n, Real) and not isinstance(n, bool) for n in numbers):
            warnings.warn(
                f"the field {field!r} holds {len(numbers)} numbers and is kept as metadata; give vector={field!r} "
                f"(--vector {field}) where it is the vector, or metadata= with the fields to keep",
                stacklevel=2,
            )
