"""The manifest of a generation: what it holds, written as JSON and read with every value checked."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Annotated, Any, get_type_hints

import msgspec
import numpy as np

from funnel.errors import FormatVersionError, InputError
from funnel.storage.layout import BOUNDS, DOCUMENTS, FORMAT_VERSION, IDENTIFIER, KINDS, split_path
from funnel.storage.settings import Settings, converted

Identifier = Annotated[str, msgspec.Meta(pattern=rf"\A{IDENTIFIER}\Z")]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Rows = Annotated[int, msgspec.Meta(ge=0, le=BOUNDS.rows)]
Width = Annotated[int, msgspec.Meta(ge=1, le=BOUNDS.dimensions)]
_CREATED = r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?(\+00:00|Z)\Z"


class BlockHashes(msgspec.Struct, frozen=True):
    """The sha256 of each block of `block_bytes` bytes of a file; the last block may be shorter."""

    block_bytes: Annotated[int, msgspec.Meta(ge=1, le=BOUNDS.block_bytes)] = msgspec.field(name="bytes")
    sha256: tuple[Sha256, ...]


class FileEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """Hash and size (bytes) of one file, with the hashes of its blocks where the layout asks for them."""

    sha256: Sha256
    size: Annotated[int, msgspec.Meta(ge=0, le=BOUNDS.file_bytes)] = msgspec.field(name="bytes")
    blocks: BlockHashes | None = None

    def document(self) -> Any:
        """The entry as it stands in the manifest."""
        return msgspec.to_builtins(self)


@dataclass(frozen=True)
class PartEntry:
    """A segment or a set of tombstones.

    exact: of a segment without a coarse index, all of whose rows are compared. documents, columns: the parts of its
    documents and of their metadata; None: there are none, or documents lie in the segment, as up to format 2. unknown:
    keys of other versions, left as they are.
    """

    id: Identifier
    rows: Rows
    exact: bool = False
    documents: Identifier | None = None
    columns: Identifier | None = None
    unknown: Mapping[str, object] = field(default_factory=dict)

    def document(self) -> dict[str, object]:
        """The entry as it stands in the manifest."""
        told = {key: one for key in _PART_KEYS if (one := getattr(self, key))}
        return {**self.unknown, **told, "rows": self.rows}

    @property
    def beside(self) -> dict[str, str]:
        """The parts of its own that it names: kind and identifier."""
        named = {"documents": self.documents, "columns": self.columns}
        return {kind: one for kind, one in named.items() if one is not None}


_PART_KEYS = ("id", "rows", "exact", "documents", "columns")


@dataclass(frozen=True)
class Manifest:
    """One generation: everything that makes up one state of an index.

    `d` is the full width, `ladder` the rising prefix widths, `counts` named row counts, `files` every file
    by its path relative to the index folder, `settings` what else is needed to open it again.
    """

    generation: Annotated[int, msgspec.Meta(ge=1, le=10**12 - 1)]
    created: Annotated[str, msgspec.Meta(pattern=_CREATED)]
    versions: Mapping[str, str]
    d: Width
    ladder: Annotated[tuple[Width, ...], msgspec.Meta(min_length=1, max_length=BOUNDS.widths)]
    counts: Mapping[str, Rows]
    segments: tuple[PartEntry, ...]
    tombstones: tuple[PartEntry, ...]
    adaptor: Identifier | None
    calibration: Identifier | None
    settings: Settings
    files: Mapping[str, FileEntry]
    format_version: int = FORMAT_VERSION

    @property
    def coarse_width(self) -> int:
        """The width that the coarse index is over: the first of the ladder, unless it is over all of it."""
        return self.settings.coarse_width or self.ladder[0]

    def documents(self, part: PartEntry) -> str | None:
        """The path of a segment's documents, relative to the index folder; None where it has none."""
        inside = f"segments/{part.id}/{DOCUMENTS}"
        if part.documents is None:
            return inside if inside in self.files else None
        return KINDS["documents"].path(part.documents, DOCUMENTS)

    def parts(self, segments: Iterable[PartEntry]) -> set[tuple[str, str]]:
        """The kinds and identifiers of the adaptor, the calibration, these segments and what lies beside them."""
        found = {(kind, one) for kind, one in (("adaptor", self.adaptor), ("calibrations", self.calibration)) if one}
        return found | {part for one in segments for part in (("segments", one.id), *one.beside.items())}

    def shared(self, segments: Iterable[PartEntry]) -> list[str]:
        """The files of the adaptor, the calibration and these segments, for a generation that keeps them."""
        parts = self.parts(segments)
        return [path for path in self.files if _owner(path) in parts]

    def body(self) -> dict[str, Any]:
        """What `Transaction.commit` takes to commit the same again, to be changed."""
        names = ("d", "ladder", "counts", "segments", "tombstones", "adaptor", "calibration", "settings")
        return {name: getattr(self, name) for name in names}

    def paths(self, kind: str, identifier: str) -> dict[str, str]:
        """The files of one part: `{file name: path relative to the index folder}`."""
        return {split_path(path)[2]: path for path in self.files if _owner(path) == (kind, identifier)}


def _owner(path: str) -> tuple[str, str]:
    """The kind and the identifier of the part that a file is of."""
    folder, identifier, _ = split_path(path)
    return folder.kind, identifier


_TYPES = get_type_hints(Manifest, include_extras=True)


def encode(document: Mapping[str, object]) -> bytes:
    """Write a manifest's document as JSON: sorted keys, two spaces, ASCII, a newline at the end.

    Raises InputError where a value has no place in JSON (NaN and infinity included).
    """
    try:
        text = json.dumps(document, sort_keys=True, indent=2, allow_nan=False, default=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"the manifest cannot be written as JSON: {error}") from error
    return text.encode("ascii") + b"\n"


def parse(data: bytes) -> Manifest:
    """Read a manifest; every type, bound, path and cross reference is checked.

    Raises FormatVersionError for a newer format, InputError saying what is wrong otherwise.
    """
    document = _load(data)
    version: int = converted(document.get("format_version"), Annotated[int, msgspec.Meta(ge=1)], "format_version")
    if version > FORMAT_VERSION:
        raise FormatVersionError(
            f"the index has format version {version}, this funnel reads up to {FORMAT_VERSION}: upgrade with "
            "'pip install --upgrade funnel-retrieval'"
        )
    if document.keys() != _TYPES.keys():
        odd = ", ".join(sorted(document.keys() ^ _TYPES.keys()))
        raise InputError(f"the manifest has missing or unknown keys ({odd}); free values go in 'settings'")
    own: dict[str, Any] = {
        "versions": _each(document["versions"], str, "versions"),
        "counts": _each(document["counts"], Rows, "counts"),
        "segments": _parts(document["segments"], "segments"),
        "tombstones": _parts(document["tombstones"], "tombstones"),
        "settings": Settings.read(_mapping(document["settings"], "settings")),
        "files": _files(document["files"]),
    }
    plain: dict[str, Any] = {key: converted(document[key], kind, key) for key, kind in _TYPES.items() if key not in own}
    manifest = Manifest(**plain, **own)
    _check_references(manifest)
    return manifest


def _plain(value: object) -> object:
    if isinstance(value, PartEntry | Settings | FileEntry):
        return value.document()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} {value!r} is not plain; give numbers, text, lists or dicts")


def _load(data: bytes) -> dict[str, object]:
    try:
        document = json.loads(data, object_pairs_hook=_unique, parse_constant=_refuse_constant)
        json.dumps(document, ensure_ascii=False).encode()  # no half of a surrogate pair, which nothing else takes
    except (ValueError, RecursionError) as error:
        raise InputError(f"the manifest is not valid JSON: {error}") from error
    return _mapping(document, "the manifest")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def _mapping(value: object, name: str) -> dict[str, Any]:
    found: dict[str, Any] = converted(value, dict[str, Any], name)
    return found


def _each(value: object, kind: Any, name: str) -> dict[str, Any]:
    return {key: converted(one, kind, f"{name}.{key}") for key, one in _mapping(value, name).items()}


def _parts(value: object, name: str) -> tuple[PartEntry, ...]:
    listed = Annotated[list[dict[str, Any]], msgspec.Meta(max_length=BOUNDS.parts)]
    parts: list[PartEntry] = []
    for place, entry in enumerate(converted(value, listed, name)):
        known = {key: entry.pop(key) for key in _PART_KEYS if key in entry}
        part: PartEntry = converted(known, PartEntry, f"{name}[{place}]")
        parts.append(replace(part, unknown=entry))
    if len({part.id for part in parts}) != len(parts):
        raise InputError(f"{name} names one id twice")
    return tuple(parts)


def _files(value: object) -> dict[str, FileEntry]:
    files = _mapping(value, "files")
    if len(files) > BOUNDS.files:
        raise InputError(f"files has {len(files):,} entries, expected at most {BOUNDS.files:,}")
    found: dict[str, FileEntry] = {}
    for path, given in files.items():
        try:
            split_path(path)
        except ValueError as error:
            raise InputError(f"a file has an unsafe or unknown path: {error}") from error
        entry: FileEntry = converted(given, FileEntry, f"{path}: ")
        expected = -(-entry.size // entry.blocks.block_bytes) if entry.blocks else 0
        if entry.blocks and len(entry.blocks.sha256) != expected:
            said = f"{len(entry.blocks.sha256)} block hashes, expected {expected} for {entry.size:,} bytes"
            raise InputError(f"{path}: {said}")
        found[path] = entry
    return found


def _check_references(manifest: Manifest) -> None:
    """Every part that is named has its files, every file belongs to a part that is named, and widths are known."""
    ladder, known = manifest.ladder, {*manifest.ladder, manifest.d}
    if ladder[-1] > manifest.d or any(low >= high for low, high in pairwise(ladder)):
        raise InputError(f"ladder is {list(ladder)}, expected one or more rising widths up to {manifest.d}")
    if manifest.settings.coarse_width not in (None, *known):
        raise InputError(
            f"settings.coarse_width is {manifest.settings.coarse_width}, expected one of {sorted(known)}; "
            "restore the file"
        )
    named = manifest.parts(manifest.segments) | {("tombstones", part.id) for part in manifest.tombstones}
    present = set(map(_owner, manifest.files))
    for kind, identifier in sorted(present - named):
        raise InputError(f"files of {kind} {identifier} are listed, but the manifest does not name that part")
    for kind, identifier in sorted(named):
        required = [file.name for file in KINDS[kind].files if file.required]
        missing = [name for name in required if KINDS[kind].path(identifier, name) not in manifest.files]
        if missing:
            raise InputError(f"{kind} {identifier} has no {', '.join(missing)} among the files")
