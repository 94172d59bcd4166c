"""What is fuzzed: a function of bytes each, which lets through only errors that are not documented."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from funnel.adaptors import Adaptor
from funnel.data.corpus import READERS, located
from funnel.errors import DamagedIndexError, FormatVersionError, InputError
from funnel.planning.calibration import Calibration
from funnel.storage.manifest import parse

__all__ = ["TARGETS", "Target"]

SEEDS = Path(__file__).parent / "seeds"
MEMORY = Path("/dev/shm")  # files there cost no writes


@dataclass(frozen=True)
class Target:
    """A reader, the errors that its docstring names, and the names of the seed files."""

    run: Callable[[bytes], None]
    errors: tuple[type[Exception], ...]
    seeds: tuple[str, ...]

    def __call__(self, data: bytes) -> bool:
        """Whether the data was taken. Raises whatever is not documented."""
        try:
            self.run(data)
        except self.errors:
            return False
        return True

    def seed_bytes(self) -> list[bytes]:
        """The contents of the seed files."""
        return [(SEEDS / name).read_bytes() for name in self.seeds]


@lru_cache(maxsize=1)
def _folder() -> Path:
    made = tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None)
    _folder.made = made  # type: ignore[attr-defined]  # removed when the process ends
    return Path(made.name)


def _file(name: str, data: bytes) -> Path:
    path = _folder() / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


def _manifest(data: bytes) -> None:
    parse(data)


def _jsonl(data: bytes) -> None:
    list(located(READERS[".jsonl"](_file("corpus.jsonl", data))))


def _csv(data: bytes) -> None:
    list(located(READERS[".csv"](_file("corpus.csv", data))))


def _calibration(json_data: bytes, arrays: bytes) -> None:
    _file("calibration/calibration.json", json_data)
    calibration = Calibration.load(_file("calibration/calibration.npz", arrays).parent)
    for run in calibration.runs():
        if run is not None:
            assert run.candidate_scores.shape == (*run.candidates.shape, len(run.widths))


def _calibration_json(data: bytes) -> None:
    _calibration(data, (SEEDS / "calibration.npz").read_bytes())


def _calibration_arrays(data: bytes) -> None:
    _calibration((SEEDS / "calibration.json").read_bytes(), data)


def _adaptor(header: bytes, tensors: bytes) -> None:
    _file("adaptor/adaptor.json", header)
    adaptor = Adaptor.load(_file("adaptor/adaptor.safetensors", tensors).parent)
    adaptor.transform(np.ones((2, adaptor.dim), np.float32))


def _adaptor_json(data: bytes) -> None:
    _adaptor(data, (SEEDS / "adaptor.safetensors").read_bytes())


def _adaptor_tensors(data: bytes) -> None:
    """The tensors' file with its checksum mended, so that the parser behind it is reached."""
    header = json.loads((SEEDS / "adaptor.json").read_bytes())
    header["sha256"] = hashlib.sha256(data).hexdigest()
    _adaptor(json.dumps(header).encode(), data)


TARGETS: dict[str, Target] = {
    "manifest": Target(_manifest, (InputError, FormatVersionError), ("manifest.json",)),
    "jsonl": Target(_jsonl, (InputError,), ("corpus.jsonl",)),
    "csv": Target(_csv, (InputError,), ("corpus.csv",)),
    "calibration-json": Target(_calibration_json, (DamagedIndexError, FormatVersionError), ("calibration.json",)),
    "calibration-arrays": Target(_calibration_arrays, (DamagedIndexError, FormatVersionError), ("calibration.npz",)),
    "adaptor-json": Target(
        _adaptor_json, (DamagedIndexError, FormatVersionError, InputError), ("adaptor.json", "mlp.json")
    ),
    "adaptor-tensors": Target(_adaptor_tensors, (DamagedIndexError,), ("adaptor.safetensors",)),
}
