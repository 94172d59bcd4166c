"""Folders of somebody else, with right checksums: settings, order and SQL are checked before anything is made."""

import hashlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from funnel import FunnelIndex
from funnel.errors import DamagedIndexError

ROWS = np.random.default_rng(0).standard_normal((60, 16)).astype(np.float32)


def crafted(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest, with hashes and sizes of the files as they now are."""
    path = root / "generations/000001.json"
    said = json.loads(path.read_text())
    change(said)
    for name, entry in said["files"].items():
        data = (root / name).read_bytes()
        entry.update(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
        if "blocks" in entry:
            step = entry["blocks"]["bytes"]
            entry["blocks"]["sha256"] = [
                hashlib.sha256(data[at : at + step]).hexdigest() for at in range(0, len(data), step)
            ]
    data = json.dumps(said, sort_keys=True, indent=2).encode() + b"\n"
    path.write_bytes(data)
    (root / "CURRENT").write_text(f"000001 {hashlib.sha256(data).hexdigest()}\n")


def built(root: Path, coarse: str = "hnsw-sq8") -> Path:
    corpus = [{"_id": str(place), "text": "x", "vector": row} for place, row in enumerate(ROWS)]
    FunnelIndex.build(corpus, root, progress=False, coarse=coarse, dims=(8, 16), adaptor="identity")
    return root


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("coarse", 3),
        ("coarse", "no-such"),
        ("coarse", None),
        ("coarse_settings", []),
        ("coarse_settings", {"degree": 800_000}),
        ("coarse_settings", {"degree": 2**70}),
        ("coarse_settings", {"degree": True}),
        ("coarse_settings", {"unknown": 1}),
        ("coarse_width", 12),
        ("coarse_width", "8"),
        ("documents", "yes"),
        ("dtype", []),
        ("encoder", 7),
        ("memory_mb", -1),
        ("seed", -1),
        ("seed", "1"),
        ("adaptor", None),
    ],
)
def test_a_bad_setting_is_named_with_its_file(tmp_path: Path, key: str, value: object) -> None:
    root = built(tmp_path / "index")
    crafted(root, lambda said: said["settings"].update({key: value}))
    with pytest.raises(DamagedIndexError, match=f"000001.json.*{key}"):
        FunnelIndex.open(root)


@pytest.mark.parametrize(
    "key", ["coarse", "coarse_settings", "documents", "dtype", "encoder", "exact_encoding", "memory_mb", "seed"]
)
def test_a_missing_setting_is_named(tmp_path: Path, key: str) -> None:
    root = built(tmp_path / "index")
    crafted(root, lambda said: said["settings"].pop(key))
    with pytest.raises(DamagedIndexError, match=key):
        FunnelIndex.open(root)


def test_there_are_no_more_cells_than_rows_also_where_the_file_is_missing(tmp_path: Path) -> None:
    root = built(tmp_path / "index", "ivf-sq8")

    def change(said: dict[str, Any]) -> None:
        said["settings"]["coarse_settings"]["nlist"] = len(ROWS) + 1
        for name in [name for name in said["files"] if name.endswith("coarse.faiss")]:
            del said["files"][name]

    crafted(root, change)
    with pytest.raises(DamagedIndexError, match="nlist of ivf-sq8 is 61"):
        FunnelIndex.open(root)


def test_settings_of_later_versions_do_not_stand_in_the_way(tmp_path: Path) -> None:
    root = built(tmp_path / "index")
    crafted(root, lambda said: said["settings"].update(later={"a": [1]}))
    assert FunnelIndex.open(root).search_vectors(ROWS[:1], k=1)[0].tolist() == [["0"]]


@pytest.mark.parametrize("order", [[0] * 60, [*range(59), 60], [-1, *range(1, 60)]])
def test_an_order_is_a_permutation(tmp_path: Path, order: list[int]) -> None:
    root = built(tmp_path / "index")
    np.save(next(root.rglob("order.npy")), np.array(order, dtype=np.int64))
    crafted(root, lambda _said: None)
    with pytest.raises(DamagedIndexError, match="no permutation"):
        FunnelIndex.open(root)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE VIEW other AS SELECT 1",
        "CREATE TABLE other (a)",
        "CREATE INDEX other ON documents (title)",
        "CREATE TRIGGER other AFTER INSERT ON documents BEGIN SELECT 1; END",
        "ALTER TABLE documents ADD COLUMN more AS (hex(zeroblob(9)))",
    ],
)
def test_sql_that_is_not_our_own_is_refused(tmp_path: Path, statement: str) -> None:
    root = built(tmp_path / "index")
    connection = sqlite3.connect(next(root.glob("documents/*/documents.sqlite")), isolation_level=None)
    connection.execute(statement)
    connection.close()
    crafted(root, lambda _said: None)
    with pytest.raises(DamagedIndexError, match="funnel did not write"):
        FunnelIndex.open(root)


@pytest.mark.parametrize(
    "values", ["metadata = '[1]'", "metadata = 7", "metadata = '" + "[" * 100_000 + "'", "title = x'00'"]
)
def test_a_document_of_other_types_is_refused(tmp_path: Path, values: str) -> None:
    root = built(tmp_path / "index")
    connection = sqlite3.connect(next(root.glob("documents/*/documents.sqlite")), isolation_level=None)
    connection.execute(f"UPDATE documents SET {values}")
    connection.close()
    crafted(root, lambda _said: None)
    with pytest.raises(DamagedIndexError, match=r"document|metadata"):
        FunnelIndex.open(root).search(ROWS[0], k=3)
