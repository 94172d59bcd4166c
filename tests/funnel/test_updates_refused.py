"""Changes that are refused, those that fail, and who reads and writes meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from funnel import FLAT, FunnelError, FunnelIndex
from funnel.errors import FormatVersionError, InputError, NoSpaceError, StorageError
from funnel.storage import IndexFolder, check
from funnel.storage.files import Files
from tests.funnel.corpora import DIM, ROWS
from tests.funnel.living import Model, named

Float32 = npt.NDArray[np.float32]


def bad_calls(index: FunnelIndex, more: Float32) -> Iterator[tuple[Any, str]]:
    yield lambda: index.add(more[:1], ids=["row 7"]), "row 7.*upsert"
    yield lambda: index.add(more[:2], ids=["a", "a"]), "duplicate ids: 'a'"
    yield lambda: index.add(more[:2, :32], ids=["a", "b"]), "vectors of 32 dims, the index holds 64"
    yield lambda: index.add(np.full((1, DIM), np.nan), ids=["a"]), "NaN"
    yield lambda: index.add(more[:1]), "text; give ids"
    yield lambda: index.add(more[:1], ids=[5]), "whole numbers, those of the index text"
    yield lambda: index.add([{"_id": "a", "vector": more[0]}]), "bare vectors and no documents"
    yield lambda: index.add({"_id": str(n), "text": "x"} for n in range(3)), "bare vectors and no documents"
    yield lambda: index.delete(["row 1", "nowhere"], strict=True), "'nowhere'.*nothing was deleted"
    yield lambda: index.delete([1.5]), r"1.5 \(float\)"  # type: ignore[arg-type]
    yield lambda: index.delete(None), r"ids is None \(NoneType\); expected a list"  # type: ignore[arg-type]
    yield lambda: index.delete(1.5), r"ids is 1.5 \(float\); expected a list"  # type: ignore[arg-type]
    yield lambda: index.search(more[0], budget=0.9), "budget is 0.9; expected a Budget"  # type: ignore[call-overload]


def test_bad_input_changes_nothing(index: FunnelIndex, more: Float32) -> None:
    generation = index.manifest.generation
    for call, said in bad_calls(index, more):
        with pytest.raises(InputError, match=said):
            call()
    assert FunnelIndex.open(index.path).manifest.generation == generation
    assert not any("unfinished" in line.detail for line in check(index.path).lines)


def test_whole_numbers_run_out(more: Float32, tmp_path: Path) -> None:
    last = np.iinfo(np.int64).max
    index = FunnelIndex.build(more[:3], tmp_path / "index", ids=[1, 2, last - 1], progress=False)
    with pytest.raises(InputError, match=f"the largest id is {last - 1}, and behind it there are not 2 whole numbers"):
        index.add(more[3:5])
    assert index.add(more[3:4]).added == 1
    assert index.ids()[-1] == last
    assert index.add(more[4:5], ids=[7]).added == 1
    with pytest.raises(InputError, match="holds documents, and this index bare vectors"):
        index.add([{"_id": "a", "text": "x"}])


def test_a_second_writer_is_refused(index: FunnelIndex, more: Float32) -> None:
    """And says who writes; afterwards the first one's change is seen."""
    holder = "import sys; from funnel.storage import IndexFolder\n" + (
        "with IndexFolder(sys.argv[1]).begin(): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(index.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(StorageError, match=f"being written by process {process.pid}"):
            index.add(more[:1], ids=["x"])
        process.kill()
    assert index.add(more[:1], ids=["x"]).added == 1


def test_a_writer_goes_on_from_what_another_committed(index: FunnelIndex, more: Float32) -> None:
    other = FunnelIndex.open(index.path)
    other.add(more[:1], ids=["theirs"])
    index.add(more[1:2], ids=["mine"])
    assert index.ids()[-2:] == ["theirs", "mine"]
    with pytest.raises(InputError, match="theirs"):
        index.add(more[2:3], ids=["theirs"])


def test_a_folder_that_cannot_be_written(index: FunnelIndex, more: Float32, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Files, path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Files, "make_folder", refuse)
    with pytest.raises(StorageError, match="Permission denied"):
        index.add(more[:1], ids=["x"])


def test_a_full_disk(index: FunnelIndex, model: Model, more: Float32, unseen: Float32, monkeypatch: Any) -> None:
    def full(_: Files, path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Files, "sync", full)
        for change in (lambda: index.add(more[:5], ids=named(0, 5)), lambda: index.delete(["row 1"]), index.compact):
            if change == index.compact:
                continue  # nothing to compact yet
            with pytest.raises(NoSpaceError, match="untouched"):
                change()
    model.agrees(index, unseen[:5])
    model.agrees(FunnelIndex.open(index.path), unseen[:5])


def test_a_newer_version_is_refused(index: FunnelIndex) -> None:
    import hashlib

    path = index.path / "generations" / f"{index.manifest.generation:06d}.json"
    document = json.loads(path.read_bytes())
    document["format_version"] += 1
    path.write_bytes(json.dumps(document).encode())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (index.path / "CURRENT").write_text(f"{index.manifest.generation:06d} {digest}\n")
    for call in (index.refresh, lambda: index.delete(["row 1"]), lambda: FunnelIndex.open(index.path)):
        with pytest.raises(FormatVersionError, match="upgrade"):
            call()


# Readers -----------------------------------------------------------------------------------------------------------


def test_searches_in_threads_while_rows_come_and_go(index: FunnelIndex, more: Float32, unseen: Float32) -> None:
    """Each search sees one state as a whole: of a pair that is swapped in one step, it finds exactly one."""
    index.add(np.stack([more[0]]), ids=["a"])
    stop = threading.Event()
    wrong: list[object] = []

    def search() -> None:
        try:
            while not stop.is_set():
                found = index.search_vectors(more[:1], 10, plan=FLAT)
                if not ({"a"} & set(found.ids[0])) or found.scores[0, 0] < 0.99:
                    wrong.append(found)
                index.search_vectors(unseen[:20], 10)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(12):
        index.upsert(more[:1], ids=["a"])
        index.add(more[20 * number + 1 : 20 * number + 21], ids=named(20 * number, 20))
        index.delete(named(20 * number, 10))
    index.compact()
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_generations_stay_as_long_as_a_reader_has_them(index: FunnelIndex, more: Float32) -> None:
    """Another process reads the first generation through compactions; when it ends, the files go."""
    reader = "\n".join(
        (
            "import sys, numpy as np; from funnel import FLAT, FunnelIndex",
            "index = FunnelIndex.open(sys.argv[1]); print('open', flush=True)",
            "sys.stdin.readline()",
            "print(len(index), len(index.search_vectors(np.ones((1, 64)), 3, plan=FLAT).ids), flush=True)",
            "print(index.refresh(), len(index), flush=True)",
            "sys.stdin.readline()",
        )
    )
    with subprocess.Popen(
        [sys.executable, "-c", reader, str(index.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        first = index.segments[0].folder
        index.delete(["row 0"])
        index.compact()
        index.add(more[:1], ids=["x"])
        index.add(more[1:2], ids=["y"])
        assert first.exists()
        assert not any(line.status == "damaged" for line in check(index.path).lines)
        print(file=process.stdin, flush=True)
        assert process.stdout.readline() == f"{ROWS} 1\n"
        assert process.stdout.readline() == f"True {ROWS + 1}\n"
        index.add(more[2:3], ids=["z"])
        assert not first.exists()
        print(file=process.stdin, flush=True)
    assert len(IndexFolder(index.path).manifest().segments) == 4


def test_errors_are_of_one_family() -> None:
    assert issubclass(NoSpaceError, FunnelError)
