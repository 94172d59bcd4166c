from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from funnel.errors import InputError
from funnel.plan import FLAT, Plan, Stage
from funnel.results import stage_lines

WIDTHS = (32, 48, 64)

stages = st.builds(Stage, st.integers(1, 1024), st.integers(1, 4096))
uniform = st.builds(Plan, st.integers(0, 2048), st.integers(1, 4096), st.lists(stages, max_size=4).map(tuple))


@given(uniform)
def test_json_round_trip(plan: Plan) -> None:
    read = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert read == plan
    assert hash(read) == hash(plan)
    assert str(read) == str(plan)


def test_flat_is_flat_and_survives_json() -> None:
    assert FLAT.is_flat
    assert Plan.from_json(FLAT.to_json()) == FLAT
    assert not Plan(0, 10).is_flat
    assert str(FLAT) == "flat"


def test_survivors_are_what_the_last_stage_keeps() -> None:
    assert Plan(16, 100).survivors == 100
    assert Plan(16, 100, (Stage(32, 50), Stage(48, 20))).survivors == 20


def test_text_names_every_step() -> None:
    text = str(Plan(64, 100, (Stage(32, 50),)))
    assert text == "effort 64, shortlist 100 → 50 at 32 → exact"
    assert "effort" not in str(Plan(0, 100))


@pytest.mark.parametrize(
    "plan",
    [
        FLAT,
        Plan(0, 10),
        Plan(16, 100, (Stage(32, 100),)),
        Plan(16, 100, (Stage(48, 40),)),
        Plan(16, 100, (Stage(32, 50), Stage(48, 50))),
    ],
)
def test_plans_that_can_be_run(plan: Plan) -> None:
    plan.check(WIDTHS)


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (Plan(0, 0, (Stage(32, 10),)), "takes no stages"),
        (Plan(-1, 10), "must not be negative"),
        (Plan(0, -10), "must not be negative"),
        (Plan(16, 100, (Stage(40, 50),)), "no stage can be run at 40 dims"),
        (Plan(16, 100, (Stage(64, 50),)), "no stage can be run at 64 dims"),
        (Plan(16, 100, (Stage(32, 0),)), "fall in candidates"),
        (Plan(16, 100, (Stage(32, 101),)), "fall in candidates"),
        (Plan(16, 100, (Stage(32, 50), Stage(48, 51))), "fall in candidates"),
        (Plan(16, 100, (Stage(48, 50), Stage(32, 20))), "rise in width"),
        (Plan(16, 100, (Stage(32, 50), Stage(32, 20))), "rise in width"),
    ],
)
def test_plans_that_cannot_be_run(plan: Plan, said: str) -> None:
    with pytest.raises(InputError, match=said):
        plan.check(WIDTHS)


@given(uniform)
def test_check_accepts_exactly_what_rises_and_falls(plan: Plan) -> None:
    widths = [stage.width for stage in plan.stages]
    keeps = [plan.shortlist, *(stage.keep for stage in plan.stages)]
    valid = widths == sorted(set(widths)) and keeps == sorted(keeps, reverse=True)
    known = (*sorted(set(widths)), 5000)  # every width of the plan is one of the index
    if valid:
        plan.check(known)
    else:
        with pytest.raises(InputError):
            plan.check(known)


def test_steps_are_the_coarse_search_each_stage_and_the_exact_one() -> None:
    assert [plan.steps for plan in (FLAT, Plan(8, 20), Plan(8, 20, (Stage(16, 12), Stage(24, 11))))] == [1, 2, 4]


def test_a_widened_plan_has_room_for_one_more_at_each_step() -> None:
    assert FLAT.widened() == FLAT
    assert Plan(32, 20, (Stage(16, 12),)).widened() == Plan(32, 21, (Stage(16, 13),))
    assert Plan(32, 32).widened() == Plan(33, 33)  # a graph's effort is at least its shortlist


def test_a_coarse_index_that_answers_alone_has_no_step_behind_it() -> None:
    plan = Plan(16, 8)
    alone = plan.answering_alone()
    assert str(alone) == "effort 16, shortlist 8"
    assert str(plan) == "effort 16, shortlist 8 → exact"
    assert alone == plan
    assert hash(alone) == hash(plan)
    assert (alone.steps, alone.widened().steps) == (1, 1)
    (line,) = stage_lines(alone, 5, 100, (64, 64), 2, [0.1], [0.9])
    assert (line.name, line.candidates_out, line.recall) == ("coarse", 8, 0.9)


WRITTEN = "8:400 16:200 32:100 64:50"


def test_a_plan_by_hand_is_read_from_its_text() -> None:
    plan = Plan.parse(WRITTEN)
    assert plan == Plan(0, 400, (Stage(16, 200), Stage(32, 100), Stage(64, 50)), width=8)
    assert Plan.parse(" 64:100@120\n128:50 ") == Plan(120, 100, (Stage(128, 50),), width=64)
    assert Plan.parse("flat") is FLAT
    assert (plan.steps, plan.survivors, plan.widened().width) == (5, 50, 8)


@given(uniform, st.integers(1, 4096))
def test_the_text_of_a_plan_by_hand_is_read_back(plan: Plan, width: int) -> None:
    by_hand = replace(plan, width=width)
    assert Plan.parse(str(by_hand)) == by_hand
    assert Plan.from_json(json.loads(json.dumps(by_hand.to_json()))) == by_hand
    assert by_hand != plan


@pytest.mark.parametrize(
    "text", ["", "8", "8:0", "0:8", "8:10,16:5", "8:10 16", "8:-1", "8:1e3", "8:10 16:5@7", "٨:10"]
)
def test_texts_that_are_no_plan(text: str) -> None:
    with pytest.raises(InputError, match=r"plan is '.*'; expected w:n for each step"):
        Plan.parse(text)


def test_a_halving_funnel_doubles_the_width_and_halves_what_is_kept() -> None:
    assert str(Plan.halving(8, 128, 400)) == WRITTEN
    assert str(Plan.halving(8, 127, 400)) == "8:400 16:200 32:100"
    assert str(Plan.halving(8, 1536, 400)) == "8:400 16:200 32:100 64:50 128:25 256:12 512:10"
    assert str(Plan.halving(16, 384, 100, k=60)) == "16:100 32:60"
    assert str(Plan.halving(64, 65, 10)) == "64:10"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ((64, 64, 400), "width is 64; expected a whole number from 1 to 63"),
        ((0, 64, 400), "width is 0"),
        ((8, 64, 9), "keep is 9; expected a whole number from 10"),
        ((8, 64, 400, 0), "k is 0"),
        ((8, 64.5, 400), "dim is 64.5"),
    ],
)
def test_no_halving_funnel(asked: tuple[int, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Plan.halving(*asked)
