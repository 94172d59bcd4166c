from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from indexes.exact import ExactTop
from indexes.torchbins import BinnedTop, rows_of_a_bin
from tests.indexes.bins import expected_recall


def survivors(
    scores: torch.Tensor, size: int, kept: int, shortlist: int, block: int
) -> tuple[torch.Tensor, torch.Tensor]:
    top = BinnedTop(len(scores), scores.shape[1], size, kept, scores)
    for start in range(0, scores.shape[1], block):
        top.update(scores[:, start : start + block].clone(), start)
    return top.best(shortlist)


@pytest.mark.parametrize(
    ("rows", "bins", "kept", "shortlist"),
    [(4_000, 400, 1, 100), (4_000, 100, 1, 100), (4_000, 100, 2, 100), (4_000, 40, 4, 64), (1_000, 300, 1, 10)],
)
def test_expected_recall_is_what_is_found(rows: int, bins: int, kept: int, shortlist: int) -> None:
    generator = torch.Generator().manual_seed(rows + bins)
    scores = torch.rand((400, rows), generator=generator)  # any order of distinct scores: rows lie in bins at random
    size = rows_of_a_bin(rows, bins)
    _, found = survivors(scores, size, kept, shortlist, size * 7)
    true = torch.topk(scores, shortlist, dim=1).indices
    shares = np.array([np.isin(t, f).mean() for t, f in zip(true.numpy(), found.numpy(), strict=True)])
    error = shares.std() / math.sqrt(len(shares))
    assert abs(shares.mean() - expected_recall(rows, bins, kept, shortlist)) <= 4 * error + 1e-6


def test_expected_recall_by_hand() -> None:
    # Two best rows of four, two bins of two: together in one with probability 1/3, and then one of them is lost.
    assert expected_recall(4, 2, 1, 2) == pytest.approx(1 - 1 / 6)
    assert expected_recall(4, 4, 1, 4) == 1.0
    assert expected_recall(100, 10, 10, 50) == 1.0
    assert expected_recall(1_000, 10, 1, 1_000) == pytest.approx(0.01)


def test_expected_recall_rises_with_bins_and_kept() -> None:
    by_bins = [expected_recall(1_000_000, bins, 1, 128) for bins in (1_024, 4_096, 16_384, 65_536)]
    by_kept = [expected_recall(1_000_000, 1_024, kept, 128) for kept in (1, 2, 4)]
    for values in (by_bins, by_kept):
        assert all(0 < low < high <= 1 for low, high in itertools.pairwise(values))


@pytest.mark.parametrize(("rows", "size", "kept"), [(100, 7, 1), (100, 7, 3), (103, 10, 2), (5, 10, 3), (64, 1, 1)])
def test_the_best_of_every_bin_survive(rows: int, size: int, kept: int) -> None:
    scores = torch.rand((3, rows), generator=torch.Generator().manual_seed(0))
    found, places = survivors(scores, size, kept, rows, size * 4)
    real = ~found.isneginf()
    assert (places >= 0).all()
    assert (places < rows).all()
    for query in range(3):
        kept_rows = places[query][real[query]].tolist()
        assert len(set(kept_rows)) == len(kept_rows)
        torch.testing.assert_close(scores[query, kept_rows], found[query][real[query]])
        expected = set()
        for start in range(0, rows, size * 4):
            block = scores[query, start : start + size * 4]
            bins = -(-len(block) // size)
            for number in range(bins):
                members = torch.arange(number, len(block), bins)
                best = members[block[members].argsort(descending=True)[:kept]] + start
                expected |= set(best.tolist())
        assert set(kept_rows) == expected


def test_blocks_looked_at_exactly_give_the_best_of_all() -> None:
    scores = torch.rand((4, 50), generator=torch.Generator().manual_seed(1))
    top = ExactTop(12)
    for start in range(0, 50, 8):
        top.update(scores[:, start : start + 8], start)
    found, places = top.best()
    expected = torch.topk(scores, 12, dim=1)
    torch.testing.assert_close(found, expected.values)
    assert torch.equal(places, expected.indices)
