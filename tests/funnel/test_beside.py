from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from funnel import FunnelIndex
from funnel.beside import Beside, sample_texts
from funnel.errors import BudgetError
from funnel.query_encoder import QueryEncoder

DIM = 8


class Slow:
    """An encoder that takes 3 ms a call."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        self.calls.append(len(texts))
        time.sleep(0.003)
        return np.ones((len(texts), DIM), dtype=np.float32)


@pytest.fixture
def slow() -> Slow:
    return Slow()


def beside(encode: Slow) -> Beside:
    return Beside(QueryEncoder(encode, {}, DIM, "cpu"), None, 100)


def test_encoding_is_measured_once_for_each_batch_size(slow: Slow) -> None:
    made = beside(slow)
    first = made.ms(1, 10, from_text=True, hits=True, latency_ms=10_000)
    assert first >= 3
    calls = len(slow.calls)
    assert made.ms(1, 10, from_text=True, hits=True, latency_ms=10_000) == first
    assert len(slow.calls) == calls
    made.ms(32, 10, from_text=True, hits=True, latency_ms=10_000)
    assert slow.calls[-1] == 32


def test_what_is_not_done_takes_nothing(slow: Slow) -> None:
    assert beside(slow).ms(1, 10, from_text=False, hits=True, latency_ms=1) == 0.0
    assert slow.calls == []


def test_an_encoder_slower_than_the_latency_is_refused_at_once(slow: Slow) -> None:
    with pytest.raises(BudgetError, match=r"encoding 32 queries takes .* ms by itself, and 2 ms are left"):
        beside(slow).ms(32, 10, from_text=True, hits=True, latency_ms=2)
    assert len(slow.calls) < 70


def test_documents_count_where_they_are_read(texts: FunnelIndex) -> None:
    made = texts._state.beside
    assert made.ms(1, 5, from_text=False, hits=False, latency_ms=1000) == 0.0
    assert made.ms(1, 5, from_text=False, hits=True, latency_ms=1000) > 0
    both = made.ms(1, 5, from_text=True, hits=True, latency_ms=1000)
    assert both > made.ms(1, 5, from_text=True, hits=False, latency_ms=1000)


def test_as_many_sample_texts_as_wanted(tmp_path: Path) -> None:
    assert [len(sample_texts(count)) for count in (0, 1, 256)] == [0, 1, 256]
    assert len(set(sample_texts(32))) == 32
