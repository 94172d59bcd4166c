import time

import pytest

from tests.model.model import run

SECONDS = 20  # for each seed at most


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 7))])
def test_the_index_does_what_a_dictionary_does(seed: int) -> None:
    run(seed, time.monotonic() + SECONDS)
