"""What checkers of types make of a search; `make types` reads this file, nothing runs it."""

from typing import Any, assert_type

import numpy as np
import numpy.typing as npt

from funnel import FunnelIndex, Hits

Float32 = np.dtype[np.float32]


def search(
    index: FunnelIndex,
    vector: np.ndarray[tuple[int], Float32],
    vectors: np.ndarray[tuple[int, int], Float32],
    texts: np.ndarray[tuple[int], np.dtype[np.str_]],
    either: npt.NDArray[Any],
) -> None:
    """One query gives its hits, several a list of them."""
    assert_type(index.search("a text", 5, recall=0.9), Hits)
    assert_type(index.search(vector), Hits)
    assert_type(index.search([0.1, 0.2]), Hits)
    assert_type(index.search(["a text", "another"]), list[Hits])
    assert_type(index.search(vectors, where="year > 2020"), list[Hits])
    assert_type(index.search([[0.1, 0.2], [0.3, 0.4]]), list[Hits])
    index.search(texts, 5)
    index.search(either, 5)
