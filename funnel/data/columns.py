"""Which fields of a record are what, and tables of other libraries as records."""

import json
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set, Sized
from dataclasses import dataclass
from reprlib import repr as shown
from typing import Any

from funnel.checks import checked_name
from funnel.errors import InputError

__all__ = ["Columns", "arrow_rows", "bare_table", "is_table", "records_of"]

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
        for name in ("text", "title", "id", "vector"):
            if getattr(self, name) is not None:
                checked_name(name, getattr(self, name))
        if self.metadata is None:
            return
        if not isinstance(self.metadata, Sequence | Set) or not all(isinstance(one, str) for one in self.metadata):
            raise InputError(f"metadata is {shown(self.metadata)}; expected a list of names")
        if isinstance(self.metadata, str):
            raise InputError(f"metadata is {shown(self.metadata)}; give a list of names: [{self.metadata!r}]")

    @property
    def named(self) -> dict[str, Any]:
        """Those that were named, by what they are."""
        given = {name: getattr(self, name) for name in ("text", "title", "id", "vector", "metadata")}
        return {name: value for name, value in given.items() if value is not None}

    def roles(self, fields: Collection[Any]) -> dict[str, str]:
        """Field -> what it is; of those that were named, for a record of these fields."""
        text = self.text
        if self.queries and text is None and "text" not in fields and QUERY_FIELD in fields:
            text = QUERY_FIELD
        named = {self.id: "_id", self.title: "title", text: "text", self.vector: "vector"}
        return {field: role for field, role in named.items() if field is not None}

    def read(self, record: Mapping[Any, object], where: str) -> dict[str, object]:
        """The record under the names that documents have, without what stood under such a name: see `own_metadata`.

        Raises InputError for a field that is named and not there.
        """
        roles = self.check_named(record, where)
        taken = self._taken(roles)
        others = {
            str(field): value
            for field, value in record.items()
            if field not in roles and field not in taken and (field in KNOWN_FIELDS or self._keeps(field))
        }
        return {**others, **{role: record[field] for field, role in roles.items()}}

    def own_metadata(self, record: Mapping[Any, object]) -> tuple[dict[str, object], bool]:
        """Metadata that `read` cannot give, and whether they are all there are.

        Either they stand under the name of a part for which another field was named; or the record is of an export,
        whose metadata are one field of JSON.
        """
        if list(record) == EXPORTED and not self.roles(record):
            fields = _json_object(record["metadata"])
            if fields is not None:
                return {field: value for field, value in fields.items() if self._keeps(field)}, True
        roles = self.roles(record)
        hidden = self._taken(roles) - roles.keys()
        return {field: record[field] for field in hidden if field in record and self._keeps(field)}, False

    def check_named(self, fields: Collection[Any], where: str) -> dict[str, str]:
        """The roles of a record of these fields. InputError where it lacks one that was named."""
        roles = self.roles(fields)
        missing = [field for field in roles if field not in fields]
        if missing:
            there = ", ".join(map(str, fields)) or "none"
            raise InputError(f"{where}: has no field {missing[0]!r}, which was named; its fields are: {there}")
        return roles

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
        read = {roles.get(one, one) for one in fields if one in roles or one in KNOWN_FIELDS or self._keeps(one)}
        return "vector" in read and read - {"vector"} in ({"_id"}, {"id"}, set())

    def ids_of(self, fields: Sequence[str]) -> str | None:
        """The field that holds the ids; None where there is none."""
        return next((one for one in (self.id, "_id", "id") if one is not None and one in fields), None)

    def _keeps(self, field: object) -> bool:
        return self.metadata is None or field in self.metadata

    def _taken(self, roles: Mapping[str, str]) -> set[str]:
        return set(roles.values()) | ({"id"} if self.id is not None else set())


def _json_object(text: object) -> dict[str, object] | None:
    try:
        fields = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def records_of(source: Iterable[Any]) -> Iterator[Any]:
    """The rows of a pandas or polars frame, or of a table of pyarrow, as mappings; the items of anything else.

    Of a mapping, as BEIR's loader gives them, each key is the id of its text or record.
    """
    kind = _library(source)
    if kind == "pandas":
        frame: Any = source
        for start in range(0, len(frame), TABLE_ROWS):
            yield from frame.iloc[start : start + TABLE_ROWS].to_dict("records")
    elif kind == "polars":
        rows: Any = source
        yield from rows.iter_rows(named=True)
    elif kind == "pyarrow":
        table: Any = source
        for start in range(0, table.num_rows, TABLE_ROWS):
            yield from arrow_rows(table.slice(start, TABLE_ROWS), f"rows {start} to {start + TABLE_ROWS} of the table")
    elif isinstance(source, Mapping):
        if isinstance(source.get("text"), str):
            raise InputError("a single record was given as a dict; give a list: [record]")
        for key, value in source.items():
            if not isinstance(value, str | Mapping):
                raise InputError(
                    f"{str(key)!r} of the dict is a {type(value).__name__}; expected id -> text or id -> record, "
                    "or give a list of records"
                )
            yield {**({"text": value} if isinstance(value, str) else value), "_id": key}
    else:
        yield from source


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
    kind = _library(source)
    names: Any = getattr(source, "columns" if kind in ("pandas", "polars") else "column_names", None)
    if kind is None and not (isinstance(names, list) and isinstance(source, Sized)):
        return None
    fields = list(source.schema.names if kind == "pyarrow" else names)
    if not columns.bare(fields):
        return None
    field = columns.ids_of(fields)
    return len(source), None if field is None else source[field]


def is_table(source: object) -> bool:
    """Whether it is a frame or table whose rows `records_of` gives, again and again."""
    return _library(source) is not None


def _library(source: object) -> str | None:
    """The library that a table is from; it is loaded where one came from it."""
    kinds = {"pandas": ("DataFrame",), "polars": ("DataFrame",), "pyarrow": ("Table", "RecordBatch")}
    for name, types in kinds.items():
        module = sys.modules.get(name)
        if module is not None and isinstance(source, tuple(getattr(module, kind) for kind in types)):
            return name
    return None
