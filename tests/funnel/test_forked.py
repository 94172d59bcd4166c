"""An index that was opened before a fork, searched in the child; and many threads with few files."""

import os
import resource
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from funnel import FunnelIndex, Plan
from funnel.planning.remembered import MOST

DIM = 16
WAIT_S = 40.0


def encoder(texts: list[str]) -> np.ndarray:
    return np.stack([np.random.default_rng(len(text)).standard_normal(DIM) for text in texts]).astype(np.float32)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> FunnelIndex:
    documents = [{"_id": str(n), "text": "word " * (n % 40 + 1), "n": n} for n in range(300)]
    return FunnelIndex.build(documents, tmp_path_factory.mktemp("forked") / "index", encoder=encoder, progress=False)


def answered_in_child(call: object) -> bool:
    assert callable(call)
    child = os.fork()
    if child == 0:
        try:
            call()
            os._exit(0)
        finally:
            os._exit(1)
    limit = time.monotonic() + WAIT_S
    while time.monotonic() < limit:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of os.fork beside threads, which is what is tested
@pytest.mark.parametrize("options", [{}, {"where": "n > 10"}, {"hybrid": True}, {"recall": 1.0}])
def test_a_forked_child_answers_while_the_parent_searches(index: FunnelIndex, options: dict[str, object]) -> None:
    texts = ["word " * (n + 1) for n in range(64)]
    expected = [[hit.id for hit in hits] for hits in index.search(texts, k=3, **options)]  # type: ignore[call-overload]
    over = threading.Event()

    def busy() -> None:
        while not over.is_set():
            index.search("word word", k=3, **options)  # type: ignore[call-overload]

    def again() -> None:
        assert [[hit.id for hit in hits] for hits in index.search(texts, k=3, **options)] == expected  # type: ignore[call-overload]

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        assert answered_in_child(again)
    finally:
        over.set()
        thread.join()


def test_threads_that_searched_leave_no_file_open(index: FunnelIndex) -> None:
    index.search("word", k=1)
    before = len(os.listdir("/proc/self/fd"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 60, limits[1]))
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            index.search("word", k=1)
        except BaseException as error:
            failed.append(error)

    try:
        for _ in range(10):
            threads = [threading.Thread(target=ask) for _ in range(20)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert not failed
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_refresh_waits_for_no_encoder(tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(texts: list[str]) -> np.ndarray:
        if texts == ["late"]:
            begun.set()
            assert go_on.wait(WAIT_S)
        return encoder(texts)

    index = FunnelIndex.build([{"_id": "a", "text": "w"}], tmp_path / "index", encoder=slow, progress=False)
    thread = threading.Thread(target=index.add, args=([{"_id": "b", "text": "late"}],))
    thread.start()
    try:
        assert begun.wait(WAIT_S)
        began = time.monotonic()
        assert not index.refresh()
        assert time.monotonic() - began < WAIT_S / 2
    finally:
        go_on.set()
        thread.join()
    assert len(index) == 2


def test_a_new_recall_in_every_call_takes_no_more_memory(index: FunnelIndex) -> None:
    for number in range(MOST + 100):
        index.search_vectors(np.ones((1, DIM), np.float32), k=1, recall=0.5 + number / 10_000)
    assert len(index._state.choices) <= MOST


def test_after_chdir_and_rename_it_is_still_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    index = FunnelIndex.build([{"_id": "a", "text": "w"}], "index", encoder=encoder, progress=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    index.add([{"_id": "b", "text": "ww"}])
    (tmp_path / "index").rename(tmp_path / "renamed")
    assert {hit.id for hit in index.search("w", k=2)} == {"a", "b"}
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("coarse", ["hnsw-sq8", "ivf-sq8", "ivf-pq", "symqg"])
def test_a_forked_child_walks_every_kind_of_coarse_index(coarse: str, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(600, DIM)).astype(np.float32)
    index = FunnelIndex.build(rows, tmp_path / "index", adaptor="pca", dims=[DIM // 2], coarse=coarse, progress=False)
    family = index.searcher.cascade.coarse
    plan = Plan(next(effort for effort in family.efforts() if family.largest_shortlist(effort) >= 32), 32)
    expected = index.search_vectors(rows[:64], 5, plan=plan).ids

    def again() -> None:
        assert (index.search_vectors(rows[:64], 5, plan=plan).ids == expected).all()
        assert len(index.search_vectors(rows[:64], 5, recall=1.0).ids) == 64

    assert answered_in_child(again)
