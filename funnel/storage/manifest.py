"""The manifest of a generation: what it holds, written as JSON and read with every value checked."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import numpy as np

from funnel.errors import FormatVersionError, InputError
from funnel.storage.layout import BOUNDS, DOCUMENTS, FORMAT_VERSION, KINDS, FileFormat, is_identifier, split_path
from funnel.storage.settings import Settings

_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_CREATED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(\+00:00|Z)", re.ASCII)
_KEYS = frozenset(
    (
        *("format_version", "generation", "created", "versions", "d", "ladder", "counts"),
        *("segments", "tombstones", "adaptor", "calibration", "settings", "files"),
    )
)
_PART_KEYS = ("id", "rows", "exact", "documents", "columns")


@dataclass(frozen=True)
class BlockHashes:
    """The sha256 of each block of `block_bytes` bytes of a file; the last block may be shorter."""

    block_bytes: int
    sha256: tuple[str, ...]


@dataclass(frozen=True)
class FileEntry:
    """Hash and size (bytes) of one file, with the hashes of its blocks where the layout asks for them."""

    sha256: str
    size: int
    blocks: BlockHashes | None = None

    def document(self) -> dict[str, object]:
        """The entry as it stands in the manifest."""
        entry: dict[str, object] = {"sha256": self.sha256, "bytes": self.size}
        if self.blocks is not None:
            entry["blocks"] = {"bytes": self.blocks.block_bytes, "sha256": list(self.blocks.sha256)}
        return entry


@dataclass(frozen=True)
class PartEntry:
    """A segment or a set of tombstones.

    exact: of a segment without a coarse index, all of whose rows are compared. documents, columns: the parts of its
    documents and of their metadata; None: there are none, or documents lie in the segment, as up to format 2. unknown:
    keys of other versions, left as they are.
    """

    id: str
    rows: int
    exact: bool = False
    documents: str | None = None
    columns: str | None = None
    unknown: Mapping[str, object] = field(default_factory=dict)

    def document(self) -> dict[str, object]:
        """The entry as it stands in the manifest."""
        told = {"exact": self.exact, "documents": self.documents, "columns": self.columns}
        return {**self.unknown, "id": self.id, "rows": self.rows, **{key: one for key, one in told.items() if one}}

    @property
    def beside(self) -> dict[str, str]:
        """The parts of its own that it names: kind and identifier."""
        named = {"documents": self.documents, "columns": self.columns}
        return {kind: one for kind, one in named.items() if one is not None}


@dataclass(frozen=True)
class Manifest:
    """One generation: everything that makes up one state of an index.

    `d` is the full width, `ladder` the rising prefix widths, `counts` named row counts, `files` every file
    by its path relative to the index folder, `settings` what else is needed to open it again.
    """

    generation: int
    created: str
    versions: Mapping[str, str]
    d: int
    ladder: tuple[int, ...]
    counts: Mapping[str, int]
    segments: tuple[PartEntry, ...]
    tombstones: tuple[PartEntry, ...]
    adaptor: str | None
    calibration: str | None
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

    def shared(self, segments: Iterable[PartEntry]) -> list[str]:
        """The files of the adaptor, the calibration and these segments, for a generation that keeps them."""
        parts = {("adaptor", self.adaptor), ("calibrations", self.calibration)}
        parts |= {part for segment in segments for part in (("segments", segment.id), *segment.beside.items())}
        owners = {path: split_path(path)[:2] for path in self.files}
        return [path for path, (folder, owner) in owners.items() if (folder.kind, owner) in parts]

    def body(self) -> dict[str, Any]:
        """What `Transaction.commit` takes to commit the same again, to be changed."""
        names = ("d", "ladder", "counts", "segments", "tombstones", "adaptor", "calibration", "settings")
        return {name: getattr(self, name) for name in names}

    def paths(self, kind: str, identifier: str) -> dict[str, str]:
        """The files of one part: `{file name: path relative to the index folder}`."""
        named: dict[str, str] = {}
        for path in self.files:
            folder, owner, name = split_path(path)
            if (folder.kind, owner) == (kind, identifier):
                named[name] = path
        return named


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
    version = _integer(document.get("format_version"), "format_version", 1, BOUNDS.files)
    if version > FORMAT_VERSION:
        raise FormatVersionError(
            f"the index has format version {version}, this funnel reads up to {FORMAT_VERSION}: upgrade with "
            "'pip install --upgrade funnel-retrieval'"
        )
    if document.keys() != _KEYS:
        odd = ", ".join(sorted(document.keys() ^ _KEYS))
        raise InputError(f"the manifest has missing or unknown keys ({odd}); free values go in 'settings'")
    width = _integer(document["d"], "d", 1, BOUNDS.dimensions)
    manifest = Manifest(
        format_version=version,
        generation=_integer(document["generation"], "generation", 1, 10**12 - 1),
        created=_text(document["created"], "created", _is_created),
        versions={
            key: _text(value, f"versions.{key}") for key, value in _mapping(document["versions"], "versions").items()
        },
        d=width,
        ladder=_ladder(document["ladder"], width),
        counts={
            key: _integer(value, f"counts.{key}", 0, BOUNDS.rows)
            for key, value in _mapping(document["counts"], "counts").items()
        },
        segments=_parts(document["segments"], "segments"),
        tombstones=_parts(document["tombstones"], "tombstones"),
        adaptor=_optional_identifier(document["adaptor"], "adaptor"),
        calibration=_optional_identifier(document["calibration"], "calibration"),
        settings=Settings.read(_mapping(document["settings"], "settings")),
        files=_files(document["files"]),
    )
    _check_references(manifest)
    return manifest


def _plain(value: object) -> object:
    if isinstance(value, PartEntry | Settings):
        return value.document()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} {value!r} is not plain; give numbers, text, lists or dicts")


def _load(data: bytes) -> dict[str, object]:
    try:
        document = json.loads(data, object_pairs_hook=_unique, parse_constant=_refuse_constant)
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


def _integer(value: object, name: str, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InputError(f"{name} is {_short(value)}, expected a whole number from {low:,} to {high:,}")
    return value


def _flag(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{name} is {_short(value)}, expected true or false")
    return value


def _text(value: object, name: str, accepts: Callable[[str], object] = bool) -> str:
    if not isinstance(value, str) or not accepts(value):
        raise InputError(f"{name} is {_short(value)}, which is not a text of the form expected there")
    return value


def _mapping(value: object, name: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise InputError(f"{name} is {_short(value)}, expected an object")
    return cast(dict[str, object], value)


def _sequence(value: object, name: str, most: int) -> list[object]:
    if not isinstance(value, list) or len(value) > most:
        raise InputError(f"{name} is {_short(value)}, expected a list of at most {most:,} values")
    return cast(list[object], value)


def _short(value: object) -> str:
    # A hostile value can be megabytes long; a message should not.
    text = f"a list of {len(value):,} values" if isinstance(value, list) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_created(text: str) -> bool:
    return _CREATED.fullmatch(text) is not None


def _is_sha256(text: str) -> bool:
    return _SHA256.fullmatch(text) is not None


def _ladder(value: object, width: int) -> tuple[int, ...]:
    widths = _sequence(value, "ladder", BOUNDS.widths)
    ladder = tuple(_integer(item, f"ladder[{place}]", 1, width) for place, item in enumerate(widths))
    if not ladder or any(low >= high for low, high in pairwise(ladder)):
        raise InputError(f"ladder is {list(ladder)}, expected one or more rising widths up to {width}")
    return ladder


def _parts(value: object, name: str) -> tuple[PartEntry, ...]:
    parts: list[PartEntry] = []
    for place, item in enumerate(_sequence(value, name, BOUNDS.parts)):
        entry = _mapping(item, f"{name}[{place}]")
        parts.append(
            PartEntry(
                id=_text(entry.get("id"), f"{name}[{place}].id", is_identifier),
                rows=_integer(entry.get("rows"), f"{name}[{place}].rows", 0, BOUNDS.rows),
                exact=_flag(entry.get("exact", False), f"{name}[{place}].exact"),
                documents=_optional_identifier(entry.get("documents"), f"{name}[{place}].documents"),
                columns=_optional_identifier(entry.get("columns"), f"{name}[{place}].columns"),
                unknown={key: value for key, value in entry.items() if key not in _PART_KEYS},
            )
        )
    if len({part.id for part in parts}) != len(parts):
        raise InputError(f"{name} names one id twice")
    return tuple(parts)


def _optional_identifier(value: object, name: str) -> str | None:
    return None if value is None else _text(value, name, is_identifier)


def _files(value: object) -> dict[str, FileEntry]:
    files = _mapping(value, "files")
    if len(files) > BOUNDS.files:
        raise InputError(f"files has {len(files):,} entries, expected at most {BOUNDS.files:,}")
    return {path: _file_entry(path, entry) for path, entry in files.items()}


def _file_entry(path: str, value: object) -> FileEntry:
    try:
        split_path(path)
    except ValueError as error:
        raise InputError(f"a file has an unsafe or unknown path: {error}") from error
    entry = _mapping(value, path)
    size = _integer(entry.get("bytes"), f"{path}: bytes", 0, BOUNDS.file_bytes)
    blocks = _blocks(path, size, entry["blocks"]) if "blocks" in entry else None
    return FileEntry(_text(entry.get("sha256"), f"{path}: sha256", _is_sha256), size, blocks)


def _blocks(path: str, size: int, value: object) -> BlockHashes:
    entry = _mapping(value, f"{path}: blocks")
    block_bytes = _integer(entry.get("bytes"), f"{path}: blocks.bytes", 1, BOUNDS.block_bytes)
    expected = -(-size // block_bytes)
    hashes = _sequence(entry.get("sha256"), f"{path}: blocks.sha256", expected)
    if len(hashes) != expected:
        raise InputError(f"{path}: {len(hashes)} block hashes, expected {expected} for {size:,} bytes")
    return BlockHashes(block_bytes, tuple(_text(item, f"{path}: block hash", _is_sha256) for item in hashes))


def _check_references(manifest: Manifest) -> None:
    """Every part that is named has its files, every file belongs to a part that is named, and widths are known."""
    width, known = manifest.settings.coarse_width, {*manifest.ladder, manifest.d}
    if width is not None and width not in known:
        raise InputError(f"settings.coarse_width is {width}, expected one of {sorted(known)}; restore the file")
    named = {("segments", part.id) for part in manifest.segments}
    named |= {beside for part in manifest.segments for beside in part.beside.items()}
    named |= {("tombstones", part.id) for part in manifest.tombstones}
    named |= {("adaptor", manifest.adaptor)} if manifest.adaptor else set()
    named |= {("calibrations", manifest.calibration)} if manifest.calibration else set()
    present: dict[tuple[str, str], set[str]] = {}
    for path in manifest.files:
        folder, identifier, name = split_path(path)
        present.setdefault((folder.kind, identifier), set()).add(name)
    for kind, identifier in sorted(present.keys() - named):
        raise InputError(f"files of {kind} {identifier} are listed, but the manifest does not name that part")
    for kind, identifier in sorted(named):
        names = present.get((kind, identifier), set())
        missing = [file.name for file in _required(kind) if file.name not in names]
        if missing:
            raise InputError(f"{kind} {identifier} has no {', '.join(missing)} among the files")


def _required(kind: str) -> list[FileFormat]:
    return [file for file in KINDS[kind].files if file.required]
