"""Writing a generation: parts in temporary folders, then one commit that either happens or does not."""

import errno
import secrets
import shutil
import stat
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from funnel.errors import InputError, StorageError
from funnel.progress import Progress
from funnel.storage.checks import hash_file
from funnel.storage.files import (
    FILES,
    Files,
    is_folder,
    is_no_space,
    is_plain_file,
    no_space_error,
    remove_tree,
    there,
    writing,
)
from funnel.storage.generations import current_line, read_manifest, read_old, write_generation
from funnel.storage.layout import (
    CURRENT,
    CURRENT_TEMPORARY,
    FORMAT_VERSION,
    GENERATIONS,
    KINDS,
    LOCK,
    TEMPORARY_PREFIX,
    FolderFormat,
    generation_name,
    is_generation_name,
    part_name,
)
from funnel.storage.locks import Removal, WriterLock
from funnel.storage.manifest import FileEntry, Manifest, encode, parse

# Each library under the names of the distributions that bring it.
_LIBRARIES = {
    "funnel": ("funnel-retrieval",),
    "faiss": ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12", "faiss-gpu-cuvs"),
    "torch": ("torch",),
    "numpy": ("numpy",),
}


NOTHING: dict[str, Any] = {"counts": {}, "segments": [], "tombstones": [], "adaptor": None, "calibration": None}


@dataclass
class _Staged:
    folder: FolderFormat
    identifier: str
    temporary: Path
    linked: dict[str, FileEntry] = field(default_factory=dict)


class Transaction(AbstractContextManager["Transaction", None]):
    """One writer's way from the live generation to the next; use it in a `with` statement.

    Write each part into `folder(kind)`, name with `reuse` what stays, then `commit`. Leaving without a
    commit removes what was written, and the old generation stays. A full disk anywhere inside the `with`
    raises NoSpaceError.
    """

    def __init__(self, root: Path, files: Files = FILES) -> None:
        """Make the folder if needed and take the writer's lock.

        Raises StorageError where another process writes, where `root` holds something other than an index,
        or where it cannot be written; DamagedIndexError and FormatVersionError where the index that stands
        there cannot be read.
        """
        self._root = root
        self._files = files
        self._staged: dict[Path, _Staged] = {}
        self._reused: dict[str, FileEntry] = {}
        self._committed: Manifest | None = None
        with writing(root):
            _claim(root, files)
            self._lock = WriterLock(root)
        try:
            with writing(root):
                self.previous: Manifest | None = _live(root, files)
                _sweep(root, self.previous, files)
        except BaseException:
            self._lock.release()
            raise

    @property
    def generation(self) -> int:
        """The number that the generation being written will have."""
        return 1 if self.previous is None else self.previous.generation + 1

    def folder(self, kind: str) -> Path:
        """A new empty folder to write the files of one part in: a key of `layout.KINDS`.

        Raises StorageError in a child that was forked meanwhile.
        """
        self._require_own()
        identifier = f"{self.generation:06d}-{secrets.token_hex(4)}"
        parent = self._root / kind
        temporary = parent / f"{TEMPORARY_PREFIX}{identifier}"
        with writing(self._root):
            if parent.is_symlink():
                raise StorageError(f"{parent} is a link; put a folder in its place")
            self._files.make_folder(parent)
            self._files.make_folder(temporary)
        self._staged[temporary] = _Staged(KINDS[kind], identifier, temporary)
        return temporary

    def identifier(self, folder: Path) -> str:
        """The identifier that the part written in `folder` will have, for the body of the manifest."""
        return self._staged[folder].identifier

    def reuse(self, *paths: str) -> None:
        """Keep the files of the live generation under some paths: "segments", "segments/<id>" or one file."""
        for path in paths:
            inside = f"{path.rstrip('/')}/"
            self._reused |= {
                one: entry for one, entry in self._files_now.items() if one == path or one.startswith(inside)
            }

    def drop(self, folder: Path) -> None:
        """Give up a part that was begun: its folder is removed."""
        with writing(self._root):
            remove_tree(self._staged.pop(folder).temporary, self._files)

    def link(self, path: str, folder: Path) -> None:
        """Give a file of the live generation to the part written in `folder`, copying no bytes if possible.

        For a part of which only some files change, such as a segment with a new coarse index.
        """
        self._require_own()
        source, target = self._root / path, folder / path.rsplit("/", 1)[-1]
        with writing(self._root):
            try:
                self._files.link(source, target)
            except OSError as error:
                if is_no_space(error):
                    raise
                # Not every file system has hard links.
                shutil.copyfile(source, target, follow_symlinks=False)
        self._staged[folder].linked[target.name] = self._files_now[path]

    def commit(self, body: Mapping[str, Any], progress: bool = False) -> Manifest:
        """Make what was written and reused the live generation; gives its manifest.

        `body` holds `d` and `ladder`, and where they apply `counts`, `segments` and `tombstones` (of
        `PartEntry`), `adaptor` and `calibration` (identifiers), `settings` (a `Settings`) and `versions`.
        Raises InputError for a body or files that do not fit the layout, StorageError or NoSpaceError where
        the disk refuses; the old generation then stays.
        """
        self._require_own()
        with writing(self._root):
            hashed = self._hash_parts(progress)
            own = {
                "format_version": FORMAT_VERSION,
                "generation": self.generation,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "versions": {**_library_versions(), **body.get("versions", {})},
                "files": hashed | self._reused,
            }
            data = encode({**NOTHING, **body, **own})
            manifest = parse(data)
            written = self._place_parts(hashed)
            written += write_generation(self._root, self.generation, data, self._files)
            current = self._root / CURRENT_TEMPORARY
            self._files.write(current, current_line(self.generation, data))
            # All of it is on the disk before CURRENT speaks of it; until then nothing reads it.
            self._files.sync_all([*written, current, self._root])
            self._files.replace(current, self._root / CURRENT)
        self._committed = manifest
        try:
            self._files.sync(self._root)
        except OSError as error:
            raise StorageError(
                f"generation {self.generation} of {self._root} is complete and live, but the disk did not "
                f"confirm it ({error.strerror}): a power failure now could bring the one before back"
            ) from error
        return manifest

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Remove what the live generation does not name, and let the next writer in."""
        if not self._lock.owned:  # a child that was forked inside the `with`: the writing is its parent's
            self._lock.release()
            return
        try:
            # What cannot be removed now is removed when the next transaction begins.
            with suppress(OSError):
                _sweep(self._root, self._committed or _live(self._root, self._files), self._files)
        finally:
            self._lock.release()
        failed = error is not None and self._committed is None and not isinstance(error, StorageError)
        if error is not None and failed and is_no_space(error):
            raise no_space_error(self._root) from error

    @property
    def _files_now(self) -> Mapping[str, FileEntry]:
        """The files of the live generation."""
        return {} if self.previous is None else self.previous.files

    def _require_own(self) -> None:
        if not self._lock.owned:
            raise StorageError(f"this transaction on {self._root} is that of the process that forked this one")

    def _hash_parts(self, progress: bool) -> dict[str, FileEntry]:
        entries: dict[str, FileEntry] = {}
        sizes = [(part, path, path.lstat()) for part in self._staged.values() for path in part.temporary.iterdir()]
        total = sum(status.st_size for _, _, status in sizes)
        with Progress(total=total, desc="hashing", unit="B", unit_scale=True, disable=not progress) as bar:
            for part, path, status in sorted(sizes, key=lambda item: item[1]):
                form = part.folder.file(path.name)
                if form is None or not stat.S_ISREG(status.st_mode):
                    raise InputError(
                        f"{part.folder.kind} cannot hold {path.name!r}: expected plain files called "
                        f"{', '.join(file.name for file in part.folder.files)}"
                    )
                entry = part.linked.get(path.name) or hash_file(path, form.blocks, self._files)
                entries[part.folder.path(part.identifier, path.name)] = entry
                bar.update(status.st_size)
        return entries

    def _place_parts(self, hashed: Iterable[str]) -> list[Path]:
        """Move the parts to where the manifest says that they are; gives their files and folders, to be flushed."""
        folders: set[Path] = set()
        for part in self._staged.values():
            source, target = part.temporary, self._root / part.folder.kind / part.identifier
            folders |= {target.parent} if part.folder.flat else {target.parent, target}
            if part.folder.flat:
                name = part.folder.files[0].name
                source, target = source / name, self._root / part.folder.path(part.identifier, name)
            self._files.replace(source, target)
        return [*(self._root / path for path in hashed), *sorted(folders)]


def _live(root: Path, files: Files) -> Manifest | None:
    return read_manifest(root, files) if there(root / CURRENT) else None


def _claim(root: Path, files: Files) -> None:
    """Make the index folder, or see to it that the one there is an index or empty."""
    if not is_folder(root):
        if there(root):
            raise StorageError(f"{root} is not a folder; choose another path for the index")
        for folder in reversed([root, *(parent for parent in root.parents if not parent.exists())]):
            files.make_folder(folder)
            files.sync(folder.parent)
    names = files.names(root.resolve())
    if names and CURRENT not in names and LOCK not in names:
        raise StorageError(f"{root} holds other files ({names[0]}, ...) and no index; choose an empty or new folder")


def _sweep(root: Path, live: Manifest | None, files: Files) -> None:
    """Remove unfinished writes and parts that no generation in use names; others' files stay.

    In use are the live generation and those that a reader holds.
    """
    keep = _names(live) if live else set()
    for name in files.names(root / GENERATIONS):
        if is_generation_name(name) and f"{GENERATIONS}/{name}" not in keep:
            keep |= _kept_by_readers(root, name, files)
    for kind in (GENERATIONS, *KINDS):
        for name in files.names(root / kind):
            own = is_generation_name(name) if kind == GENERATIONS else part_name(kind, name) is not None
            if (own or name.startswith(TEMPORARY_PREFIX)) and f"{kind}/{name}" not in keep:
                _remove_unless_open(root / kind / name, files)
    if there(root / CURRENT_TEMPORARY):
        remove_tree(root / CURRENT_TEMPORARY, files)


def _remove_unless_open(path: Path, files: Files) -> None:
    """Remove a part; what NFS still shows because somebody has it open (`.nfs...`) goes with a later sweep."""
    try:
        remove_tree(path, files)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            raise


def _names(manifest: Manifest) -> set[str]:
    """The entries of the index folder's own folders that a generation needs."""
    parts = {"/".join(path.split("/")[:2]) for path in manifest.files}
    return {f"{GENERATIONS}/{generation_name(manifest.generation)}"} | parts


def _kept_by_readers(root: Path, name: str, files: Files) -> set[str]:
    """What an old generation needs, where somebody reads it; otherwise its manifest is removed, and nothing kept."""
    path = root / GENERATIONS / name
    if not is_plain_file(path):
        return set()
    removal = Removal(path)
    try:
        if removal.unread:
            files.remove(path)  # under the lock, so that a reader who comes now sees that it is gone
            return set()
        manifest = read_old(root, name, files)
        return set() if manifest is None else _names(manifest)
    finally:
        removal.close()


@cache
def _library_versions() -> Mapping[str, str]:
    versions: dict[str, str] = {}
    for library, distributions in _LIBRARIES.items():
        for name in distributions:
            with suppress(metadata.PackageNotFoundError):
                versions.setdefault(library, metadata.version(name))
    return versions
