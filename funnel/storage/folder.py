"""The index folder as its users see it: read the live generation, verify it, begin the next."""

import os
from contextlib import suppress
from pathlib import Path

from funnel.checks import checked_path
from funnel.errors import DamagedIndexError, InputError, StorageError
from funnel.storage.checks import Verification, VerifyMode, verify
from funnel.storage.files import FILES, Files, there
from funnel.storage.generations import read_current, read_locked, read_manifest
from funnel.storage.layout import CURRENT
from funnel.storage.locks import ReaderLock
from funnel.storage.manifest import Manifest
from funnel.storage.transactions import Transaction


class IndexFolder:
    """A folder that holds an index, or is to hold one. Readers stand in nobody's way; writers go one by one."""

    def __init__(self, path: str | os.PathLike[str], files: Files = FILES) -> None:
        """Nothing is read yet: the folder may be missing. A relative path is that of the working folder now.

        Raises InputError for a path that is not UTF-8: FAISS and safetensors take none.
        """
        self.path: Path = Path(os.path.abspath(checked_path("the path of the index", path)))
        try:
            str(self.path).encode()
        except UnicodeEncodeError:
            raise InputError(f"the path {os.fsencode(self.path)!r} is not UTF-8; give the index another one") from None
        self._files = files

    def exists(self) -> bool:
        """Whether an index was committed here. OSError where the system cannot say."""
        return there(self.path / CURRENT)

    def manifest(self) -> Manifest:
        """The live generation's manifest, its hash checked before it is parsed.

        Raises NotAnIndexError, FormatVersionError, or DamagedIndexError naming the file.
        """
        return read_manifest(self.path, self._files)

    def read(self) -> tuple[Manifest, ReaderLock]:
        """As `manifest`, with a lock: as long as it is held, a writer leaves this generation's files alone."""
        return read_locked(self.path, self._files)

    def begin(self) -> Transaction:
        """Begin the next generation: the only writer until the transaction is left.

        Raises StorageError saying who writes where another process does, and what `Transaction` raises.
        """
        return Transaction(self.path, self._files)

    def tidy(self) -> None:
        """Remove old generations that nobody reads any more; a writer at work does it when it ends."""
        with suppress(OSError):
            if self.exists():
                with self.begin():
                    pass

    def verify(self, manifest: Manifest, mode: VerifyMode = "full", progress: bool = False) -> Verification:
        """Check the files that `manifest` names: all of them, or with "lazy" the big ones on first touch.

        Raises DamagedIndexError naming the file (damage to a cache is reported instead), or StorageError
        where a writer replaced this generation in the meantime.
        """
        try:
            return verify(self.path, manifest, mode, progress, self._files)
        except DamagedIndexError as error:
            generation, _ = read_current(self.path, self._files)
            if generation == manifest.generation:
                raise
            raise StorageError(
                f"{self.path} was replaced by generation {generation} while generation {manifest.generation} "
                "was being opened; open it again"
            ) from error
