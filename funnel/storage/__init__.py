"""The index on disk: an atomic, checksummed, versioned folder of immutable parts.

```
CURRENT                     the live generation's number and the sha256 of its manifest
generations/000001.json     the manifest: what makes up this state, with a hash for every file
segments/<id>/  documents/<id>/  columns/<id>/  tombstones/<id>.npy  adaptor/<id>/  calibrations/<id>/
                            the parts: see `layout.LAYOUT`
```
"""

from funnel.storage.checks import BlockVerifier, CheckReport, FileStatus, Verification, check
from funnel.storage.folder import IndexFolder
from funnel.storage.layout import BLOCK_BYTES, FORMAT_VERSION
from funnel.storage.locks import ReaderLock
from funnel.storage.manifest import BlockHashes, FileEntry, Manifest, PartEntry
from funnel.storage.settings import AdaptorNote, Settings
from funnel.storage.transactions import Transaction

__all__ = [
    "BLOCK_BYTES",
    "FORMAT_VERSION",
    "AdaptorNote",
    "BlockHashes",
    "BlockVerifier",
    "CheckReport",
    "FileEntry",
    "FileStatus",
    "IndexFolder",
    "Manifest",
    "PartEntry",
    "ReaderLock",
    "Settings",
    "Transaction",
    "Verification",
    "check",
]
