from __future__ import annotations

import os
import threading

import faiss
import pytest
import torch

from funnel.engine.workers import Workers, workers


def test_every_piece_is_run_once_on_a_worker() -> None:
    pool, lock = Workers(3), threading.Lock()
    seen: list[tuple[int, str]] = []

    def piece(number: int) -> None:
        with lock:
            seen.append((number, threading.current_thread().name))

    pool.run(piece, range(50))
    assert sorted(number for number, _ in seen) == list(range(50))
    assert all(name.startswith("funnel") for _, name in seen)


def test_workers_use_one_thread_and_leave_the_others_alone() -> None:
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    inside: list[tuple[int, int]] = []
    Workers(2).run(lambda _: inside.append((torch.get_num_threads(), faiss.omp_get_max_threads())), range(8))
    assert set(inside) == {(1, 1)}
    assert (torch.get_num_threads(), faiss.omp_get_max_threads()) == before
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [before[0]]


def test_an_error_in_a_piece_is_raised() -> None:
    def piece(number: int) -> None:
        if number == 3:
            raise ValueError("piece 3")

    with pytest.raises(ValueError, match="piece 3"):
        Workers(2).run(piece, range(6))


# Python 3.12 warns of any fork in a process with threads; nothing of theirs is used in the child.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_makes_its_own() -> None:
    ours = workers()
    assert workers() is ours
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        made = workers()
        fine = made is not ours and made.process == os.getpid()
        os.write(write, b"1" if fine else b"0")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 1) == b"1"
    os.close(read)
    os.close(write)
