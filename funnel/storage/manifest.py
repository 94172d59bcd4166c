"""The manifest of a generation: what it holds, written as JSON and read with every value checked."""

import json
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Annotated, Any

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

    def __post_init__(self) -> None:
        """Raises ValueError unless there is a hash for each block."""
        expected = -(-self.size // self.blocks.block_bytes) if self.blocks else 0
        if self.blocks and len(self.blocks.sha256) != expected:
            raise ValueError(f"{len(self.blocks.sha256)} block hashes, expected {expected} for {self.size:,} bytes")


class PartEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """A segment or a set of tombstones.

    exact: of a segment without a coarse index, all of whose rows are compared. documents, columns: the parts of its
    documents and of their metadata; None: there are none, or documents lie in the segment, as up to format 2.
    """

    id: Identifier
    rows: Rows
    exact: bool = False
    documents: Identifier | None = None
    columns: Identifier | None = None

    @property
    def beside(self) -> dict[str, str]:
        """The parts of its own that it names: kind and identifier."""
        named = {"documents": self.documents, "columns": self.columns}
        return {kind: one for kind, one in named.items() if one is not None}


Parts = Annotated[tuple[PartEntry, ...], msgspec.Meta(max_length=BOUNDS.parts)]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
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
    segments: Parts
    tombstones: Parts
    adaptor: Identifier | None
    calibration: Identifier | None
    settings: Settings
    files: Annotated[dict[str, FileEntry], msgspec.Meta(max_length=BOUNDS.files)]
    format_version: Annotated[int, msgspec.Meta(ge=1)]

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


_NAMED = {"versions": str, "counts": Rows, "files": FileEntry}  # what stands there under each name


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
    version = document.get("format_version") if isinstance(document, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise FormatVersionError(
            f"the index has format version {version}, this funnel reads up to {FORMAT_VERSION}: upgrade with "
            "'pip install --upgrade funnel-retrieval'"
        )
    for key, kind in _NAMED.items() if isinstance(document, dict) else ():
        if isinstance(document.get(key), dict):
            for name, one in document[key].items():  # one by one, so that an error has the name
                converted(one, kind, f"{key}.{name}")
    manifest: Manifest = converted(document, Manifest)
    _check_references(manifest)
    return manifest


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value, enc_hook=_plain)
    raise TypeError(f"{type(value).__name__} {value!r} is not plain; give numbers, text, lists or dicts")


def _load(data: bytes) -> Any:
    try:
        msgspec.json.decode(data)  # refuses NaN, and halves of surrogate pairs, which nothing else takes
        return json.loads(data, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the manifest is not valid JSON: {error}") from error


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
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
    for name, parts in (("segments", manifest.segments), ("tombstones", manifest.tombstones)):
        if len({part.id for part in parts}) != len(parts):
            raise InputError(f"{name} names one id twice")
    named = manifest.parts(manifest.segments) | {("tombstones", part.id) for part in manifest.tombstones}
    try:
        present = set(map(_owner, manifest.files))
    except ValueError as error:
        raise InputError(f"a file has an unsafe or unknown path: {error}") from error
    for kind, identifier in sorted(present - named):
        raise InputError(f"files of {kind} {identifier} are listed, but the manifest does not name that part")
    for kind, identifier in sorted(named):
        required = [file.name for file in KINDS[kind].files if file.required]
        missing = [name for name in required if KINDS[kind].path(identifier, name) not in manifest.files]
        if missing:
            raise InputError(f"{kind} {identifier} has no {', '.join(missing)} among the files")
