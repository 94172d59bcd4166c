from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from funnel.errors import InputError
from funnel.explanation import stage_lines
from funnel.plan import FLAT, Escalation, Plan, Stage

WIDTHS = (32, 48, 64)

stages = st.builds(Stage, st.integers(1, 1024), st.integers(1, 4096))
uniform = st.builds(Plan, st.integers(0, 2048), st.integers(1, 4096), st.lists(stages, max_size=4).map(tuple))
numbers = st.floats(-1e6, 1e6)
rules = st.builds(
    Escalation, st.integers(1, 100), numbers, numbers, numbers, uniform, st.one_of(st.just(math.nan), st.floats(0, 1))
)
plans = st.builds(lambda plan, rule: replace(plan, escalation=rule), uniform, st.one_of(st.none(), rules))
ESCALATION = Escalation(10, 2.0, 0.5, 1.25, Plan(128, 100, (Stage(32, 20),)), 0.0625)


@given(plans)
def test_json_round_trip(plan: Plan) -> None:
    read = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert read == plan
    assert hash(read) == hash(plan)
    if plan.escalation is not None and read.escalation is not None:
        assert str(read) == str(plan)  # the rate too


def test_a_plan_written_before_there_were_escalations_is_read() -> None:
    assert Plan.from_json({"effort": 3, "shortlist": 9, "stages": [[32, 5]]}) == Plan(3, 9, (Stage(32, 5),))
    assert "escalation" not in Plan(3, 9).to_json()


def test_the_rate_says_what_to_expect_and_makes_no_other_plan() -> None:
    plan = Plan(16, 100, escalation=ESCALATION)
    assert plan == replace(plan, escalation=replace(ESCALATION, rate=0.5))
    assert plan != replace(plan, escalation=replace(ESCALATION, threshold=1.0))
    assert plan.parts == (Plan(16, 100), ESCALATION.then)
    assert Plan(16, 100).parts == (Plan(16, 100),)


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
    assert str(Plan(16, 40, escalation=ESCALATION)) == (
        "effort 16, shortlist 40 → exact; the hardest 6.2% again: effort 128, shortlist 100 → 20 at 32 → exact"
    )
    assert "hard queries again" in str(Plan(16, 40, escalation=replace(ESCALATION, rate=math.nan)))


@pytest.mark.parametrize(
    "plan",
    [
        FLAT,
        Plan(0, 10),
        Plan(16, 100, (Stage(32, 100),)),
        Plan(16, 100, (Stage(48, 40),)),
        Plan(16, 100, (Stage(32, 50), Stage(48, 50))),
        Plan(16, 100, (Stage(48, 40),), ESCALATION),
    ],
)
def test_plans_that_can_be_run(plan: Plan) -> None:
    plan.check(WIDTHS)


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (Plan(0, 0, (Stage(32, 10),)), "takes no stages"),
        (Plan(0, 0, (), ESCALATION), "nothing to go on to or from"),
        (Plan(0, 10, (), replace(ESCALATION, then=FLAT)), "nothing to go on to or from"),
        (Plan(0, 10, (), replace(ESCALATION, then=Plan(0, 20, (), ESCALATION))), "a query goes on once"),
        (Plan(0, 10, (), replace(ESCALATION, threshold=math.nan)), "expected finite numbers"),
        (Plan(0, 10, (), replace(ESCALATION, k=11)), "looks at the best 11 of 10 candidates"),
        (Plan(0, 10, (), replace(ESCALATION, k=0)), "looks at the best 0 of 10 candidates"),
        (Plan(0, 10, (), replace(ESCALATION, then=Plan(0, 20, (Stage(33, 9),)))), "no stage can be run at 33"),
        (Plan(0, 10, (Stage(33, 10),), ESCALATION), "no stage can be run at 33"),
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
    assert str(alone) == "effort 16, shortlist 8" and str(plan) == "effort 16, shortlist 8 → exact"
    assert alone == plan and hash(alone) == hash(plan)
    hard = Plan(16, 8, (), Escalation(1, 0.0, 1.0, 0.5, Plan(64, 32), 0.1)).answering_alone()
    assert str(hard) == "effort 16, shortlist 8; the hardest 10.0% again: effort 64, shortlist 32"
    assert [part.reranked for part in hard.parts] == [False, False]
    assert (alone.steps, hard.steps, alone.widened().steps) == (1, 2, 1)
    (line,) = stage_lines(alone, 5, 100, (64, 64), 2, [0.1], [0.9])
    assert (line.name, line.candidates_out, line.recall) == ("coarse", 8, 0.9)
