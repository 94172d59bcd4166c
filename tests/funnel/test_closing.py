"""`close` and `with`: nothing of the index stays open, and what comes later is told so in one line."""

from __future__ import annotations

import gc
import os
import pickle
import re
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from funnel import FunnelIndex
from funnel.errors import InputError
from tests.funnel.corpora import documents, hashed_words


def held(folder: Path) -> list[str]:
    """What this process has open or mapped of a folder."""
    maps = [line.split(maxsplit=5)[-1].strip() for line in Path("/proc/self/maps").read_text().splitlines()]
    files = []
    for number in os.listdir("/proc/self/fd"):
        try:
            files.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:  # that of the listing itself
            continue
    return [name for name in (*maps, *files) if name.startswith(str(folder))]


@pytest.fixture
def opened(text_folder: Path, copied: Callable[[Path], Path]) -> FunnelIndex:
    index = FunnelIndex.open(copied(text_folder), encoder=hashed_words)
    index.add([{"_id": "new", "text": "the parser of part 44, again"}])
    index.delete("d3")
    index.search("the parser of part 44", hybrid=0.5, where="year > 1900")
    return index


@pytest.mark.parametrize("by_with", [True, False])
def test_nothing_stays_open(opened: FunnelIndex, by_with: bool) -> None:
    folder, before = opened.path, threading.active_count()
    assert held(folder)
    gc.collect()
    gc.disable()  # at once, not when the collector comes
    try:
        if by_with:
            with opened as index:
                assert index is opened
                assert len(index)
        else:
            opened.close()
        assert held(folder) == []
    finally:
        gc.enable()
    assert threading.active_count() <= before
    opened.close()
    assert opened.closed
    assert repr(opened) == f"FunnelIndex({str(folder)!r}, closed)"


def test_any_use_of_a_closed_index_is_one_line(opened: FunnelIndex) -> None:
    opened.close()
    said = re.escape(f"the index {opened.path} was closed; open it again by FunnelIndex.open({str(opened.path)!r})")
    calls: list[Callable[[], object]] = [
        *(lambda: opened.search("file"), lambda: opened.search_vectors(np.ones((1, 64))), opened.explain),
        *(opened.health, opened.audit, opened.tune, opened.info, opened.ids, opened.document_ids, opened.warm_up),
        *(lambda: opened.export("x.npy"), lambda: opened.encode_queries(["file"]), lambda: len(opened)),
        *(lambda: opened.add(documents(1)), lambda: opened.upsert(documents(1)), lambda: opened.delete("d1")),
        *(opened.compact, opened.refresh, lambda: opened.dim, lambda: opened.manifest, lambda: opened.certification),
    ]
    for call in calls:
        with pytest.raises(InputError, match=said):
            call()
    assert not hasattr(opened, "no_such_name")
    assert len(pickle.loads(pickle.dumps(opened))) == len(FunnelIndex.open(opened.path))


def test_a_search_in_another_thread_finishes(opened: FunnelIndex) -> None:
    def slow(texts: list[str]) -> np.ndarray:
        if texts == ["slow"]:
            begun.set()
            assert closed.wait(30)
        return hashed_words(texts)

    begun, closed = threading.Event(), threading.Event()
    index = FunnelIndex.open(opened.path, encoder=slow)
    index.warm_up()
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(index.search("slow", 3)))
    thread.start()
    assert begun.wait(30)
    index.close()
    closed.set()
    thread.join(30)
    assert len(found[0]) == 3  # type: ignore[arg-type]
