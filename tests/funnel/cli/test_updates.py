"""The commands that change an index: add, delete, compact."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from funnel import FunnelIndex
from tests.funnel.cli.test_main import refused, run
from tests.funnel.clustered import clustered_rows
from tests.funnel.corpora import DIM, ROWS


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """An index of bare vectors with numbers for ids."""
    FunnelIndex.build(clustered_rows(120, DIM), tmp_path / "small", adaptor="identity", progress=False)
    return tmp_path / "small"


def test_add_delete_and_compact(small: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "more.npy", clustered_rows(5, DIM, seed=4))
    said = run(["add", small, tmp_path / "more.npy", "--quiet"]).output
    assert "5 added; generation 2; 125 rows" in said
    assert FunnelIndex.open(small).ids()[-1] == 124

    (tmp_path / "ids.txt").write_text("3\n\n 124\n999\n")
    said = run(["delete", small, "7", "--from", tmp_path / "ids.txt"]).output
    assert "3 deleted, 1 unknown; generation 3; 122 rows" in said
    assert "1 of 1 ids are not in the index: 999" in refused(["delete", small, "999", "--strict"])
    assert "2 deleted" in run(["delete", small, "--from", "-"], input="8\n9\n").output

    assert "120 rows in one segment" in run(["compact", small, "--quiet"]).output
    assert "nothing to do" in run(["compact", small]).output
    assert "ok" in run(["check", small, "--deep"]).output


def test_upsert_with_ids(graph_folder: Path, copied: Callable[[Path], Path], tmp_path: Path) -> None:
    index = copied(graph_folder)
    np.save(tmp_path / "more.npy", clustered_rows(2, DIM, seed=4))
    (tmp_path / "ids.txt").write_text("row 1\nnovel\n")
    arguments = ["add", index, tmp_path / "more.npy", "--ids", tmp_path / "ids.txt", "--quiet"]
    assert "row 1; use upsert" in refused(arguments)
    assert f"2 added, 1 deleted; generation 2; {ROWS + 1:,} rows" in run([*arguments, "--upsert"]).output


def test_files_of_ids_as_other_programs_write_them(small: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "more.npy", clustered_rows(2, DIM, seed=4))
    more = tmp_path / "more.npy"
    lines = tmp_path / "ids.txt"
    lines.write_bytes(b"\xef\xbb\xbf500\r\n\r\n007\r\n")
    assert "7; use upsert" in refused(["add", small, more, "--ids", lines, "--quiet"])
    lines.write_bytes(b"\xef\xbb\xbf500\r\n\r\n600\r\n")
    run(["add", small, more, "--ids", lines, "--quiet"])
    assert FunnelIndex.open(small).ids()[-2:] == [500, 600]
    lines.write_bytes(b"500\nx7\n")
    assert "whole numbers, and 'x7' is none" in refused(["delete", small, "--from", lines])

    texts, names = tmp_path / "texts", [" a", "a", "b\u2028c", "b", "007"]
    FunnelIndex.build(clustered_rows(5, DIM), texts, ids=names, adaptor="identity", progress=False)
    lines.write_bytes("\ufeff a\r\nb\u2028c\r\n7\r\n".encode())
    assert "2 deleted, 1 unknown" in run(["delete", texts, "--from", lines]).output
    assert FunnelIndex.open(texts).ids() == ["a", "b", "007"]
    lines.write_bytes("\ufeff a\r\n7 ".encode())
    run(["add", texts, more, "--ids", lines, "--quiet"])
    assert FunnelIndex.open(texts).ids()[-2:] == [" a", "7 "]


def test_documents_from_a_file(tmp_path: Path) -> None:
    records = [
        {"_id": f"d{i}", "text": f"text {i}", "vector": row.tolist()} for i, row in enumerate(clustered_rows(30, 8))
    ]
    FunnelIndex.build(records[:20], tmp_path / "index", adaptor="identity", progress=False)
    path = tmp_path / "more.jsonl"
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records[20:]))
    assert "10 added" in run(["add", tmp_path / "index", path, "--quiet"]).output
    assert "d20, d21" in refused(["add", tmp_path / "index", path, "--quiet"])


def test_wrong_usage_is_one_line(small: Path, tmp_path: Path) -> None:
    assert "at least one id" in refused(["delete", small])
    assert "whole numbers" in refused(["delete", small, "seven"])
    assert "no index" in refused(["compact", tmp_path])
    assert "no corpus at" in refused(["add", small, tmp_path / "nowhere.npy"])


def test_fields_are_named(tmp_path: Path) -> None:
    rows = [{"key": f"k{n}", "body": f"text {n}", "emb": [1.0, n], "year": n, "other": 1} for n in range(3)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    (tmp_path / "b.jsonl").write_text(json.dumps(rows[2]))
    named = ["--text", "body", "--id", "key", "--vector", "emb", "--metadata", "year", "--quiet"]
    run(["build", tmp_path / "a.jsonl", tmp_path / "index", *named])
    run(["add", tmp_path / "index", tmp_path / "b.jsonl", *named])
    found = run(["search", tmp_path / "index", "text", "--hybrid", 1, "--json", "--where", "year >= 0"]).stdout
    assert json.loads(found)["served"]["allowed_rows"] == 3
    assert "no field 'words', which was named" in refused(
        ["add", tmp_path / "index", tmp_path / "b.jsonl", "--text", "words", "--quiet"]
    )
