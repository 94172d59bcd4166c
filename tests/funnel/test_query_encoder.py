"""The encoder of an opened index."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from funnel import query_encoder
from funnel.data.encoding import load_encoder
from funnel.query_encoder import QueryEncoder


def test_it_is_loaded_once_however_many_threads_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[Any] = []

    def slowly(source: Any, **options: Any) -> Any:
        loads.append(source)
        time.sleep(0.05)
        return load_encoder(lambda texts: np.ones((len(texts), 2)))

    monkeypatch.setattr(query_encoder, "load_encoder", slowly)
    encoder = QueryEncoder("name", {}, 2, "cpu")
    with ThreadPoolExecutor(8) as pool:
        loaded = list(pool.map(lambda _: encoder.load(), range(8)))
    assert loads == ["name"]
    assert all(one is loaded[0] for one in loaded)


def test_an_object_with_ways_of_its_own_for_queries_and_documents() -> None:
    class Own:
        def encode_query(self, texts: list[str]) -> Any:
            return np.tile([1.0, 0.0], (len(texts), 1))

        def encode_document(self, texts: list[str]) -> Any:
            return np.tile([0.0, 1.0], (len(texts), 1))

    encoder = load_encoder(Own())
    assert encoder.encode(["a"]).tolist() == [[0.0, 1.0]]
    assert encoder.encode_query(["a"]).tolist() == [[1.0, 0.0]]
