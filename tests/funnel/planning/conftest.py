from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import pytest

from funnel.engine.cascade import Cascade, Float32
from funnel.engine.measuring import record
from funnel.planning.run import Run
from tests.funnel.cascades import cascade_over
from tests.funnel.clustered import clustered_rows

DIM = 64
LADDER = (16, 32, 48, DIM)
ROWS = 3_000
DUPLICATES = 200  # rows that stand twice, as in real corpora
QUERIES = 120
LARGEST_EFFORT = 256
FEWER_EFFORTS = 4  # of those that there are, to be quicker
FAMILIES: dict[str, dict[str, int]] = {
    "flat": {},
    "hnsw-sq8": {"degree": 4, "ef_construction": 20},  # a poor graph, so that effort matters
    "ivf-sq8": {"nlist": 50},
    "ivf-pq": {"nlist": 20},
}

Recorded: TypeAlias = tuple[Cascade, Run, Run]


@pytest.fixture(scope="session")
def rows() -> Float32:
    rows = clustered_rows(ROWS, DIM, seed=1)
    rows[-DUPLICATES:] = rows[:DUPLICATES]
    return rows


@pytest.fixture(scope="session")
def queries() -> Float32:
    """Among them some that stand in the index themselves, with and without a duplicate."""
    queries = clustered_rows(QUERIES, DIM, seed=2)
    queries[:10] = clustered_rows(ROWS, DIM, seed=1)[195:205]
    return queries


@pytest.fixture(scope="session")
def recorded(rows: Float32, queries: Float32, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Recorded]:
    """Name of a family -> cascade, record of its own rows (held out) and record of the queries."""
    made: dict[str, Recorded] = {}

    def of(name: str) -> Recorded:
        if name not in made:
            cascade, widths = cascade_over(
                rows, tmp_path_factory.mktemp(name), LADDER, name, "float32", **FAMILIES[name]
            )
            own = np.arange(0, ROWS, 20)
            efforts = [effort for effort in cascade.coarse.efforts() if effort <= LARGEST_EFFORT]
            efforts = sorted({*efforts[::FEWER_EFFORTS], efforts[-1]})
            corpus = record(cascade, np.ascontiguousarray(rows[own]), own, widths, efforts)
            made[name] = (cascade, corpus, record(cascade, queries, None, widths, corpus.efforts))
        return made[name]

    return of
