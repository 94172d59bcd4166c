"""The layout of an index folder, as data: names, formats, bounds. Nothing here touches the disk.

A new file is one line in `LAYOUT`; a change that an older funnel could not read is a new `FORMAT_VERSION`.
"""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

# 1: one segment and no tombstones; 2: documents inside of segments, no columns; 3: rows adapted, all of them
FORMAT_VERSION = 4

CURRENT = "CURRENT"
CURRENT_TEMPORARY = "CURRENT.tmp"
GENERATIONS = "generations"
# A name nobody else uses: its presence is what tells an unfinished first build from a user's own folder.
LOCK = ".funnel-lock"
TEMPORARY_PREFIX = ".tmp-"
VECTORS, ADAPTED, DOCUMENTS, COLUMNS = "vectors.npy", "adapted.npy", "documents.sqlite", "columns.sqlite"

# 21,845 rows of 384 float16; sha256 at 1.5 GB/s checks one in about 10 ms, and 1,024 of them cover 16 GiB.
BLOCK_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class FileFormat:
    """One file of a folder: its name, what it holds, and how it is checked.

    `cache` files can be made again from the others, so damage to them is not fatal. `blocks` files have a
    hash for each block beside the hash of the whole, so that they can be checked on first touch.
    """

    name: str
    content: str
    required: bool = True
    cache: bool = False
    blocks: bool = False


@dataclass(frozen=True)
class FolderFormat:
    """One kind of immutable part: `kind/<id>/<file>`, or `kind/<id>.npy` for a `flat` kind of one file."""

    kind: str
    files: tuple[FileFormat, ...]
    flat: bool = False

    def file(self, name: str) -> FileFormat | None:
        """The format of the file called `name`, or None where the layout knows no such file."""
        return next((file for file in self.files if file.name == name), None)

    def path(self, identifier: str, name: str) -> str:
        """The path of file `name` of part `identifier`, relative to the index folder."""
        if self.flat:
            return f"{self.kind}/{identifier}{PurePosixPath(name).suffix}"
        return f"{self.kind}/{identifier}/{name}"


LAYOUT: tuple[FolderFormat, ...] = (
    FolderFormat(
        "segments",
        (
            FileFormat(VECTORS, "float16 or float32 [n, d], row-major", blocks=True),
            FileFormat(
                ADAPTED,
                "float16 [n, the ladder's last but one], adapted prefixes, where vectors.npy holds rows as given",
                required=False,
                blocks=True,
            ),
            FileFormat(
                "norms.npy",
                "float32 [n, len(ladder)], the norm of each prefix; none beside rows searched exactly",
                required=False,
                blocks=True,
            ),
            FileFormat("coarse.faiss", "the coarse index over one prefix", required=False, cache=True),
            FileFormat(
                "order.npy", "int64 [n], stored row to input position; none where they are equal", required=False
            ),
            FileFormat("ids.npy", "int64 [n] in input order, or uint8 [bytes] of UTF-8 text"),
            FileFormat("id_offsets.npy", "int64 [n + 1], where each text id starts", required=False),
            FileFormat("documents.sqlite", "as those of documents/, in folders up to format 2", required=False),
        ),
    ),
    FolderFormat("documents", (FileFormat(DOCUMENTS, "titles, texts and metadata, by input position"),)),
    FolderFormat("columns", (FileFormat(COLUMNS, "the metadata as filters read it", cache=True),)),
    FolderFormat(
        "tombstones",
        (FileFormat("tombstones.npy", "int64 [deleted], rising: stored rows, counted through the segments"),),
        flat=True,
    ),
    FolderFormat(
        "adaptor",
        (
            FileFormat("adaptor.safetensors", "the adaptor's tensors", required=False),
            FileFormat("adaptor.json", "the adaptor's kind and settings"),
            FileFormat("training.json", "how it was trained and why it was chosen", required=False),
        ),
    ),
    FolderFormat(
        "calibrations",
        (
            FileFormat("calibration.json", "what was measured, and on which machine"),
            FileFormat("calibration.npz", "queries, truth and recorded scores"),
        ),
    ),
)

KINDS: dict[str, FolderFormat] = {folder.kind: folder for folder in LAYOUT}


@dataclass(frozen=True)
class Bounds:
    """The largest values a manifest may hold: they keep a hostile one from costing memory or time."""

    current_bytes: int = 128  # a CURRENT line is 72 bytes, or a few more after a million generations
    manifest_bytes: int = 64 * 1024 * 1024  # block hashes of 14 TiB of vectors
    files: int = 100_000
    parts: int = 10_000
    file_bytes: int = 2**50
    block_bytes: int = 2**30
    rows: int = 2**40
    dimensions: int = 65_536  # 16 times the widest embedding in the MTEB list
    widths: int = 64


BOUNDS = Bounds()

# What identifiers look like is fixed, so that sweeping never removes a file that funnel did not make.
IDENTIFIER = r"[0-9]{6,12}-[0-9a-f]{8}"
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", re.ASCII)
_GENERATION_FILE = re.compile(r"[0-9]{6,12}\.json", re.ASCII)


def generation_name(number: int) -> str:
    """The file name of a generation's manifest: `000001.json` for 1."""
    return f"{number:06d}.json"


def is_generation_name(name: str) -> bool:
    """Whether `name` has the form of a generation's file name."""
    return _GENERATION_FILE.fullmatch(name) is not None


def part_name(kind: str, entry: str) -> str | None:
    """The identifier of a directory entry of folder `kind`, or None where funnel made no such entry."""
    folder = KINDS[kind]
    identifier = entry.removesuffix(PurePosixPath(folder.files[0].name).suffix) if folder.flat else entry
    named_so = re.fullmatch(IDENTIFIER, identifier) is not None and (not folder.flat or identifier != entry)
    return identifier if named_so else None


def split_path(path: str) -> tuple[FolderFormat, str, str]:
    """Take a manifest's file path apart: `(folder, identifier, file name)`.

    Raises ValueError for everything that is not the plain relative path of a part's file: absolute paths,
    "..", empty or odd names, unknown folders.
    """
    kind, _, rest = path.partition("/")
    folder = KINDS.get(kind)
    if folder is None:
        raise ValueError(f"the path {path!r} does not start with one of {', '.join(KINDS)}")
    if folder.flat:
        identifier, name = part_name(kind, rest), folder.files[0].name
    else:
        head, _, name = rest.partition("/")
        identifier = part_name(kind, head)
    if identifier is None or _FILE_NAME.fullmatch(name) is None:
        raise ValueError(f"the path {path!r} is not like {folder.path('<id>', folder.files[0].name)!r}")
    return folder, identifier, name


def is_cache(path: str) -> bool:
    """Whether the file at a manifest's path can be made again from the others."""
    folder, _, name = split_path(path)
    file = folder.file(name)
    return file is not None and file.cache
