"""A short run of every fuzz target by mutation; `make fuzz` runs them under atheris."""

from __future__ import annotations

import pytest

from tests.fuzz.mutation import mutations
from tests.fuzz.targets import TARGETS

INPUTS = 400


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_taken(name: str) -> None:
    for seed in TARGETS[name].seed_bytes():
        if seed.startswith(b"{") and b'"mlp"' in seed:
            continue  # its tensors are others: it is refused
        assert TARGETS[name](seed)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of arithmetic on numbers that nobody measured
@pytest.mark.parametrize("name", TARGETS)
def test_only_documented_errors_come_out(name: str) -> None:
    target = TARGETS[name]
    refused = sum(not target(data) for data in mutations(target.seed_bytes(), INPUTS, seed=1))
    assert refused > INPUTS // 10  # the mutations do reach what is refused
