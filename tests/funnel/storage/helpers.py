"""A tiny index to write, and file layers that fail or kill at a chosen operation."""

import errno
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np

from funnel.storage import AdaptorNote, Manifest, PartEntry, Settings, Transaction
from funnel.storage.files import Files

OPERATIONS = ("make_folder", "write", "sync", "replace", "link", "remove", "remove_folder")
DIMENSIONS = 4


def write_segment(folder: Path, rows: int = 3) -> None:
    np.save(folder / "vectors.npy", np.eye(rows, DIMENSIONS, dtype=np.float16))
    np.save(folder / "norms.npy", np.ones((rows, 2), dtype=np.float32))
    np.save(folder / "order.npy", np.arange(rows))
    np.save(folder / "ids.npy", np.arange(rows) + 100)
    (folder / "coarse.faiss").write_bytes(b"a coarse index")


def write_adaptor(folder: Path) -> None:
    (folder / "adaptor.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    (folder / "adaptor.json").write_text('{"kind": "pca"}\n')


def write_calibration(folder: Path) -> None:
    (folder / "calibration.json").write_text('{"queries": 2}\n')
    np.savez(folder / "calibration.npz", truth=np.zeros((2, 3), dtype=np.int64))


def segment_entry(transaction: Transaction, folder: Path, rows: int = 3) -> PartEntry:
    return PartEntry(transaction.identifier(folder), rows)


def settings(**given: object) -> Settings:
    """Those of an index of bare vectors under a flat search, unless others are given."""
    known: dict[str, Any] = {"coarse": "flat", "coarse_settings": {}, "documents": False, "dtype": "float16"}
    known |= {"encoder": None, "encoder_reopenable": False, "exact_encoding": False, "memory_mb": None, "seed": 0}
    return Settings(**known | {"adaptor": AdaptorNote(kind="pca")} | given)


def body(**parts: object) -> dict[str, object]:
    return {"d": DIMENSIONS, "ladder": [2, 4], "counts": {"rows": 3}, "settings": settings(), **parts}


def commit_all(transaction: Transaction, rows: int = 3) -> Manifest:
    """Write one part of each kind and commit them."""
    segment, adaptor = transaction.folder("segments"), transaction.folder("adaptor")
    calibration, tombstones = transaction.folder("calibrations"), transaction.folder("tombstones")
    write_segment(segment, rows)
    write_adaptor(adaptor)
    write_calibration(calibration)
    np.save(tombstones / "tombstones.npy", np.array([1]))
    return transaction.commit(
        body(
            segments=[segment_entry(transaction, segment, rows)],
            tombstones=[PartEntry(transaction.identifier(tombstones), 1)],
            adaptor=transaction.identifier(adaptor),
            calibration=transaction.identifier(calibration),
            settings=settings(seed=rows),
        )
    )


def commit_second(transaction: Transaction) -> Manifest:
    """The segment with a new coarse index and its other files linked; the adaptor kept, the rest dropped."""
    previous = transaction.previous
    assert previous is not None
    segment = transaction.folder("segments")
    for name, path in previous.paths("segments", previous.segments[0].id).items():
        if name != "coarse.faiss":
            transaction.link(path, segment)
    (segment / "coarse.faiss").write_bytes(b"another coarse index")
    transaction.reuse("adaptor")
    return transaction.commit(
        body(segments=[segment_entry(transaction, segment)], adaptor=previous.adaptor, settings=settings(seed=2))
    )


class CountingFiles(Files):
    """Counts the operations that change the disk; a subclass decides what happens at number `at`."""

    def __init__(self, at: int | None = None) -> None:
        self.at = at
        self.done: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name in OPERATIONS:
            self.done.append(name)
            if len(self.done) - 1 == self.at:
                return lambda *arguments: self.strike(name, *arguments)
        if name == "sync":  # flushing is slow, and nothing a test can see depends on it
            return lambda _path: None
        return super().__getattribute__(name)

    def strike(self, name: str, *arguments: Any) -> None:
        raise NotImplementedError


class FailingFiles(CountingFiles):
    """Fails at one operation with an error of the system; a write leaves half of its bytes behind."""

    code = errno.EIO

    def strike(self, name: str, *arguments: Any) -> None:
        if name == "write":
            path, data = arguments
            path.write_bytes(data[: len(data) // 2])
        raise OSError(self.code, os.strerror(self.code), str(arguments[0]))


class FullDiskFiles(FailingFiles):
    code = errno.ENOSPC


class KillingFiles(FailingFiles):
    """Kills the process at one operation, with no chance to clean up."""

    def strike(self, name: str, *arguments: Any) -> None:
        if name == "write":
            path, data = arguments
            path.write_bytes(data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
