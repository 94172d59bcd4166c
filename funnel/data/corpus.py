"""A corpus from a file, a folder, an iterable or an array, streamed in the order it came."""

import itertools
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from funnel.data.columns import Columns, bare_table, is_table, records_of
from funnel.data.documents import Document
from funnel.data.norms import Norms
from funnel.data.records import READERS, Located, bare_parquet, located, suffix_of
from funnel.errors import InputError
from funnel.rows import NpyRows, check_ids, unit_rows, unmasked

__all__ = ["Corpus", "CorpusSource", "as_array", "as_rows", "local_path", "open_corpus", "unit_rows"]

CORPUS_FILE = "corpus.jsonl"  # of a BEIR folder
SUFFIXES = (*READERS, ".npy")

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
            InputError: these are bare vectors; or a record cannot be used, which is named by file and line.
        """
        raise InputError(f"{self.name} holds bare vectors and no documents; read it with vectors()")

    def vectors(self, batch_rows: int) -> Iterator[NDArray[np.float32]]:
        """The rows in order, scaled to unit length: float32 [at most batch_rows, d].

        Raises:
            InputError: these are documents; or rows are NaN, infinite or zero, which are named by number.
        """
        raise InputError(f"{self.name} holds documents and no bare vectors; read it with documents()")


class VectorCorpus(Corpus):
    """Bare vectors from an array or a .npy file."""

    kind = "vectors"
    rereadable = True
    has_vectors = True

    def __init__(
        self,
        name: str,
        count: int,
        dim: int,
        read: Callable[[int], Iterator[NDArray[Any]]],
        ids: Sequence[str] | Sequence[int] | NDArray[Any] | None,
    ) -> None:
        if count == 0:
            raise InputError(f"{name} is empty; a corpus needs at least one row")
        self.name = name
        self.count = count
        self.dim = dim
        self.ids: list[str] | list[int] | None = None if ids is None else check_ids(ids, count)
        self._read = read

    def vectors(self, batch_rows: int) -> Iterator[NDArray[np.float32]]:
        """The rows in order, scaled to unit length: see `Corpus.vectors`."""
        _check_batch("batch_rows", batch_rows)
        first, norms = 0, Norms() if self.norms is None else None
        for batch in self._read(batch_rows):
            rows = unit_rows(batch, first, self.name)
            if norms is not None:
                norms.add(np.einsum("ij,ij->i", batch, rows))
            yield rows
            first += batch.shape[0]
        self.norms = norms or self.norms


class DocumentCorpus(Corpus):
    """Documents from a file or an iterable."""

    kind = "documents"

    def __init__(
        self,
        name: str,
        read: Callable[[], Iterator[Located]],
        *,
        count: int | None,
        rereadable: bool,
        columns: Columns | None = None,
    ) -> None:
        self.name = name
        self.count = count
        self.rereadable = rereadable
        self._read = read
        self._started = False
        self._unread: Iterator[Located] | None = None
        reader = read()
        first = next(reader, None)
        if first is None:
            raise InputError(f"{name} is empty; a corpus needs at least one document")
        vector = first[1].vector
        self.has_vectors = vector is not None
        if vector is None:
            _say_of_vectors(first[1])
        self.dim = None if vector is None else vector.shape[0]
        if rereadable:
            _look_for({} if columns is None else columns.expected, itertools.chain([first], reader))
        else:
            self._unread = itertools.chain([first], reader)

    def documents(self, batch_size: int) -> Iterator[list[Document]]:
        """The documents in order: see `Corpus.documents`."""
        _check_batch("batch_size", batch_size)
        located = self._read() if self._unread is None else self._unread
        if self._started and not self.rereadable:
            raise InputError(f"{self.name} can be read only once; pass a list or a file to read it again")
        self._started = True
        return self._batches(located, batch_size)

    def _batches(self, located: Iterator[Located], batch_size: int) -> Iterator[list[Document]]:
        checked = (self._checked(where, document) for where, document in located)
        norms = Norms()
        while batch := list(itertools.islice(checked, batch_size)):
            norms.add(np.array([document.norm for document in batch]))
            yield batch
        self.norms = norms if self.has_vectors else None

    def _checked(self, where: str, document: Document) -> Document:
        width = None if document.vector is None else document.vector.shape[0]
        if width == self.dim:
            return document
        if self.dim is None:
            raise InputError(f"{where}: has a vector, the first document has none; give all one or none")
        if width is None:
            raise InputError(f"{where}: has no vector, the first document has one; give all one or none")
        raise InputError(f"{where}: vector of dimension {width}, the first has {self.dim}")


class BareCorpus(Corpus):
    """Bare vectors from a table of vectors, with ids or without, and nothing else."""

    kind = "vectors"
    rereadable = True
    has_vectors = True

    def __init__(
        self, rows: DocumentCorpus, count: int, ids: Sequence[str] | Sequence[int] | NDArray[Any] | None
    ) -> None:
        self.name, self.count, self.dim = rows.name, count, rows.dim
        self.ids: list[str] | list[int] | None = None if ids is None else check_ids(ids, count)
        self._rows = rows

    def vectors(self, batch_rows: int) -> Iterator[NDArray[np.float32]]:
        """The rows in order, scaled to unit length: see `Corpus.vectors`."""
        for batch in self._rows.documents(batch_rows):
            yield np.stack([document.vector for document in batch if document.vector is not None])
        self.norms = self._rows.norms


def open_corpus(
    source: CorpusSource,
    ids: Sequence[str] | Sequence[int] | NDArray[Any] | None = None,
    columns: Columns | None = None,
    numbered: bool = True,
) -> Corpus:
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
    if array is not None:
        if array.ndim == 1 and array.dtype.kind in "UO":
            return _open_iterable(array.tolist(), columns, numbered)
        return _of_rows(_open_array(array, ids), columns)
    if not (isinstance(source, Iterable) or is_table(source)):
        raise InputError(
            f"a corpus cannot be a {type(source).__name__}; pass a path, an array [n, d] or an iterable of dicts"
        )
    bare = bare_table(source, columns or Columns())
    if bare is not None:
        return BareCorpus(_open_iterable(source, columns, True), bare[0], _only(bare[1], ids))
    _only(True, ids)
    return _open_iterable(source, columns, numbered)


def _only(own: Any, given: Any) -> Any:
    """The ids that came with the rows, or those given beside them. InputError for both."""
    if own is not None and given is not None:
        raise InputError("ids are for bare vectors; documents carry their own in _id")
    return given if own is None else own


def as_array(source: object) -> NDArray[Any] | None:
    """The array behind a numpy array, a torch tensor or a column of a table; None for anything else.

    InputError for masked values and for sparse tensors: what stands for what is missing is the user's to say.
    """
    if isinstance(source, np.ndarray):
        array = unmasked(source)
        return _stacked(array) if array.dtype == object else array
    torch = sys.modules.get("torch")  # a tensor cannot have come without it
    if torch is not None and isinstance(source, torch.Tensor):
        if source.layout != torch.strided:
            raise InputError(f"the tensor is {source.layout}; expected a dense one: give tensor.to_dense()")
        tensor = source.detach().cpu()
        if tensor.dtype == torch.bfloat16:  # numpy has no such type
            tensor = tensor.float()
        rows: NDArray[Any] = tensor.numpy()
        return rows
    if hasattr(source, "__array__") and not is_table(source):
        column = np.asarray(source)
        return _stacked(column) if column.dtype == object else column
    return None


def _stacked(column: NDArray[Any]) -> NDArray[Any]:
    """A column whose cells are lists of numbers as rows [n, d]; any other as it is."""
    first = column[0] if column.ndim == 1 and len(column) else None
    if not isinstance(first, list | tuple | np.ndarray):
        return column
    try:
        return np.asarray(column.tolist())
    except ValueError:
        raise InputError("the lists of numbers have different lengths; expected rows [n, d]") from None


def as_rows(source: object) -> NDArray[Any] | None:
    """As `as_array`, and of lists of numbers too."""
    array = as_array(source)
    return _rows_of_numbers(source) if array is None else array


def local_path(source: str | Path) -> Path:
    """The path. InputError for an address with a scheme, such as s3://, by its name."""
    scheme = SCHEME.match(str(source))
    if scheme is not None:
        raise InputError(f"{source}: {scheme[1]}:// is not supported; copy the file to this machine and give its path")
    return Path(source)


def _rows_of_numbers(source: object) -> NDArray[Any] | None:
    """Lists of numbers as an array; None for what is not that."""
    if not isinstance(source, Sequence) or isinstance(source, str) or not len(source):
        return None
    first = as_array(source[0])
    if first is None and not (isinstance(source[0], list | tuple) and all(isinstance(v, Real) for v in source[0])):
        return None
    try:
        return np.asarray([row if as_array(row) is None else as_array(row) for row in source])
    except ValueError:
        raise InputError("the lists of numbers have different lengths; expected rows [n, d]") from None


def _open_path(
    path: Path, ids: Sequence[str] | Sequence[int] | NDArray[Any] | None, columns: Columns | None, numbered: bool
) -> Corpus:
    if path.is_dir():
        if not (path / CORPUS_FILE).is_file():
            raise InputError(f"the folder {path} has no {CORPUS_FILE}; expected a BEIR folder or a file")
        path = path / CORPUS_FILE
    if not path.exists():
        raise InputError(f"no corpus at {path}; check the path")
    suffix = suffix_of(path)
    if suffix == ".npy":
        rows = NpyRows(path)
        return _of_rows(VectorCorpus(str(path), rows.count, rows.dim, rows.read, ids), columns)
    if suffix not in READERS:
        raise InputError(f"{path} has the suffix {suffix or '(none)'}; supported are {', '.join(SUFFIXES)}")
    reader = READERS[suffix]
    bare = bare_parquet(path, columns or Columns()) if suffix == ".parquet" else None
    if bare is None:
        _only(True, ids)
        read = partial(reader, path, columns, numbered)
        return DocumentCorpus(str(path), read, count=None, rereadable=True, columns=columns)
    read = partial(reader, path, columns, True)
    located_rows = DocumentCorpus(str(path), read, count=bare[0], rereadable=True, columns=columns)
    return BareCorpus(located_rows, bare[0], _only(bare[1], ids))


def _of_rows(corpus: Corpus, columns: Columns | None) -> Corpus:
    """The corpus, of bare vectors. InputError where fields were named, of which it has none."""
    named = {} if columns is None else columns.named
    if named:
        name, value = next(iter(named.items()))
        raise InputError(f"{name}={value!r} names a field, and {corpus.name} holds bare vectors; leave it out")
    return corpus


def _open_array(array: NDArray[Any], ids: Sequence[str] | Sequence[int] | NDArray[Any] | None) -> Corpus:
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

    return VectorCorpus("the array", array.shape[0], array.shape[1], read, ids)


def _look_for(fields: Mapping[str, None], records: Iterator[Located]) -> None:
    """Read on until each of the fields was seen, so that one that no record has is refused before texts are encoded."""
    missing = set(fields)
    while missing and (found := next(records, None)) is not None:
        missing.difference_update(found[1].metadata)


def _say_of_vectors(document: Document) -> None:
    """Warn of a field that looks like the vector and is kept as metadata."""
    for field, value in document.metadata.items():
        if not isinstance(value, list | tuple | np.ndarray) or len(value) < FEWEST_NUMBERS:
            continue
        if all(isinstance(number, Real) and not isinstance(number, bool) for number in value):
            warnings.warn(
                f"the field {field!r} holds {len(value)} numbers and is kept as metadata; give vector={field!r} "
                f"(--vector {field}) where it is the vector, or metadata= with the fields to keep",
                stacklevel=2,
            )


def _open_iterable(source: Iterable[object], columns: Columns | None, numbered: bool) -> DocumentCorpus:
    rereadable = is_table(source) or iter(source) is not source

    def read() -> Iterator[Located]:
        records = ((f"document {number}", record) for number, record in enumerate(records_of(source)))
        return located(records, columns, numbered)

    count = len(source) if isinstance(source, Sized) else None
    return DocumentCorpus("the corpus", read, count=count, rereadable=rereadable, columns=columns)


def _check_batch(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{name} is {value}, expected at least 1")
