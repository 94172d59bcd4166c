from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from funnel.planning.frontier import (
    KEEP_STEPS,
    SHORTLISTS,
    SMALLEST_SHARE,
    keep_sizes,
    shortlists,
)
from tests.funnel.planning.made_up import plans_of_effort


@given(st.integers(1, 5000))
def test_shortlists_rise_to_the_largest_and_not_below_an_eighth(largest: int) -> None:
    sizes = shortlists(largest)
    assert sizes[-1] == largest
    assert list(sizes) == sorted(set(sizes))
    assert all(size * SMALLEST_SHARE >= largest for size in sizes)
    assert set(sizes) - {largest} <= set(SHORTLISTS)


def test_a_free_shortlist_goes_down_to_the_smallest() -> None:
    assert shortlists(1024, None) == tuple(size for size in SHORTLISTS if size <= 1024)
    assert shortlists(5, None) == (5,)


@given(st.integers(1, 5000))
def test_a_stage_drops_at_least_a_third(candidates: int) -> None:
    kept = keep_sizes(candidates)
    assert len(kept) <= KEEP_STEPS
    assert list(kept) == sorted(set(kept), reverse=True)
    assert all(3 * size <= 2 * candidates for size in kept)


@pytest.mark.parametrize("widths", [(), (32,), (32, 48), (16, 24, 32, 48)])
def test_plans_are_valid_distinct_and_bounded(widths: tuple[int, ...]) -> None:
    sizes = shortlists(256)
    plans = list(plans_of_effort(256, sizes, widths))
    assert len(set(plans)) == len(plans)
    for plan in plans:
        plan.check((*widths, 64))
        assert plan.effort == 256
        assert plan.shortlist in sizes
        assert len(plan.stages) <= min(len(widths), 1)
        if plan.stages:
            assert plan.stages[0].keep < plan.shortlist
    assert {plan.shortlist for plan in plans if not plan.stages} == set(sizes)
    used = {tuple(stage.width for stage in plan.stages) for plan in plans}
    assert len(used) == 1 + len(widths)


def test_the_grid_stays_small_enough_to_record() -> None:
    assert len(list(plans_of_effort(1024, shortlists(1024, None), (96, 128, 192, 256)))) < 5_000
