from typing import Any

import pytest

from funnel.adaptors import RECIPES, Phase, Recipe
from funnel.adaptors.recipes import weight_at
from funnel.errors import InputError


def test_a_schedule_changes_at_its_epochs() -> None:
    schedule = {0: 1.0, 3: 0.25, 5: 0.0}
    assert [weight_at(schedule, epoch) for epoch in range(7)] == [1.0, 1.0, 1.0, 0.25, 0.25, 0.0, 0.0]
    assert weight_at({2: 1.0}, 1) == 0.0
    assert weight_at(0.5, 100) == 0.5


def test_an_unknown_loss_is_named() -> None:
    with pytest.raises(InputError, match="'magic' is not known; choose among pairwise"):
        Phase("one", {"magic": 1.0}, 10, 1e-3)


@pytest.mark.parametrize(("steps", "rate"), [(0, 1e-3), (10, 0.0), (10, float("nan"))])
def test_steps_and_rates_are_above_zero(steps: int, rate: Any) -> None:
    with pytest.raises(InputError, match="must be above 0"):
        Phase("one", {"pairwise": 1.0}, steps, rate)


def test_every_recipe_begins_without_judgements() -> None:
    for recipe in RECIPES.values():
        assert not recipe.phases[0].judged


@pytest.mark.parametrize("changed", [{"temperature": 0}, {"judged_temperature": float("inf")}])
def test_temperatures_are_finite_and_above_zero(changed: Any) -> None:
    with pytest.raises(InputError, match=r"a temperature is .*; expected a finite number above 0"):
        Recipe(phases=(), **changed)
