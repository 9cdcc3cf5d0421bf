"""The law of losses: what it is fitted to it finds again, its intervals hold what they say, and it is held to account."""

import numpy as np
import pytest

from recipe.cost import law

BUDGETS = (0.01, 0.03, 0.1, 0.3)


def runs(seed: int, noise: float, seeds: int = 3, floor: float = 2.0, power: float = 0.3) -> tuple[list, list]:
    draw = np.random.default_rng(seed)
    costs = [budget for budget in BUDGETS for _ in range(seeds)]
    return costs, [floor + 1.5 * (cost / 0.05) ** -power + noise * draw.standard_normal() for cost in costs]


@pytest.mark.parametrize("floor, power", [(2.0, 0.3), (0.0, 0.1), (3.5, 1.2)])
def test_the_law_that_made_the_losses_is_found(floor, power):
    found = law.fit(*runs(0, noise=0.0, floor=floor, power=power))
    assert found.power == pytest.approx(power, rel=0.01)
    for cost in (0.01, 0.05, 0.9):
        assert found.at(cost).loss == pytest.approx(floor + 1.5 * (cost / 0.05) ** -power, abs=5e-3)


def test_its_interval_holds_one_more_run_as_often_as_it_says():
    """At three times the largest budget; 95 % of 200, within four standard deviations of a binomial count and the linear
    approximation's own error."""
    held = 0
    for seed in range(200):
        told = law.fit(*runs(seed, noise=0.02)).at(0.9)
        true = 2.0 + 1.5 * (0.9 / 0.05) ** -0.3 + 0.02 * np.random.default_rng(10_000 + seed).standard_normal()
        held += abs(true - told.loss) <= told.half_width
    assert 0.88 <= held / 200 <= 0.99


def test_the_interval_widens_beyond_the_runs():
    found = law.fit(*runs(1, noise=0.02))
    inside, beyond = found.at(0.05).half_width, found.at(0.9).half_width
    assert 0 < inside < beyond


def test_the_back_test_has_not_seen_the_largest_budget():
    costs, losses = runs(2, noise=0.01)
    test = law.back_test(costs, losses)
    assert test.measured == pytest.approx(np.mean(losses[-3:])) and test.foretold.cost == pytest.approx(0.3)
    other = law.back_test(costs, [*losses[:-3], 9.0, 9.0, 9.0])
    assert other.foretold == test.foretold and test.inside and other.inside is False


def test_without_more_runs_than_parameters_there_is_no_interval():
    test = law.back_test(*runs(3, noise=0.01, seeds=1))
    assert test.foretold.half_width is None and test.inside is None


def test_costs_that_are_nearly_the_same_are_one_budget():
    assert law.count_budgets([1.0, 1.1, 3.0, 3.1, 9.0]) == 3
