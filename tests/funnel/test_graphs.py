"""When graphs are made and kept. Recording one needs a GPU; here work that is quicker or slower stands for it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from funnel.graphs import MOST_TRIED, TRIED_AFTER, Replays, Work, capture

CPU = torch.device("cpu")
QUERIES = np.arange(6, dtype=np.float32).reshape(2, 3)


def doubled(query: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return query * 2, query


def slowly(query: torch.Tensor) -> tuple[torch.Tensor, ...]:
    time.sleep(0.002)
    return doubled(query)


class Recorder:
    """Stands for `capture`: gives other work with the same answers, and counts."""

    def __init__(self, gives: Work) -> None:
        self.gives, self.made, self.replayed = gives, 0, 0

    def __call__(self, work: Work, query: torch.Tensor) -> Work:
        self.made += 1

        def replay(asked: torch.Tensor) -> tuple[torch.Tensor, ...]:
            self.replayed += 1
            return self.gives(asked)

        return replay


def ask(replays: Replays, work: Work, key: object = "one", times: int = 1) -> None:
    for _ in range(times):
        twice, same = replays.answer(key, QUERIES, CPU, work)
        np.testing.assert_array_equal(twice, QUERIES * 2)
        np.testing.assert_array_equal(same, QUERIES)


def test_a_graph_is_tried_after_some_calls_alike_and_kept_where_quicker() -> None:
    recorder = Recorder(doubled)
    replays = Replays(recorder)
    ask(replays, slowly, times=TRIED_AFTER - 1)
    assert recorder.made == 0
    ask(replays, slowly)
    before = recorder.replayed
    ask(replays, slowly, times=5)
    assert (recorder.made, recorder.replayed - before) == (1, 5)


def test_a_graph_that_is_no_quicker_is_not_kept() -> None:
    recorder = Recorder(slowly)
    replays = Replays(recorder)
    ask(replays, doubled, times=TRIED_AFTER)
    before = recorder.replayed
    ask(replays, doubled, times=5)
    assert (recorder.made, recorder.replayed) == (1, before)


def test_what_cannot_be_recorded_is_launched_after_a_word() -> None:
    def refuse(work: Work, query: torch.Tensor) -> Work:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    replays = Replays(refuse)
    ask(replays, doubled, times=TRIED_AFTER - 1)
    with pytest.warns(UserWarning, match="launched as before: operation not permitted when stream is capturing$"):
        ask(replays, doubled)
    ask(replays, doubled, times=3)


def test_not_more_than_so_many_are_tried() -> None:
    recorder = Recorder(doubled)
    replays = Replays(recorder)
    for key in range(MOST_TRIED + 3):
        ask(replays, doubled, key, TRIED_AFTER)
    assert recorder.made == MOST_TRIED


def test_threads_get_their_own_answers() -> None:
    place = torch.zeros(2, 3)

    def in_one_place(query: torch.Tensor) -> tuple[torch.Tensor, ...]:
        place.copy_(query)
        time.sleep(0.0005)
        return (place.clone(),)

    def slower(query: torch.Tensor) -> tuple[torch.Tensor, ...]:
        time.sleep(0.003)
        return (query.clone(),)

    replays = Replays(Recorder(in_one_place))

    def one(number: int) -> bool:
        asked = np.full((2, 3), number, np.float32)
        return bool((replays.answer("one", asked, CPU, slower)[0] == number).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(one, range(60)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_a_recorded_graph_gives_the_same_for_other_queries() -> None:
    device = torch.device("cuda")
    replay = capture(doubled, torch.zeros(2, 3, device=device))
    for scale in (1, 5):
        asked = torch.from_numpy(QUERIES * scale).to(device)
        torch.testing.assert_close(replay(asked)[0], asked * 2)
