"""Learning-rate factors: known values, warm-up, limits."""

import math

import pytest

from dim import build
from dim.config import Config, built, flat
from dim.schedule import SCHEDULES, constant, cosine, warmed


def test_constant_and_cosine_have_known_values():
    assert [constant(step, 4) for step in range(4)] == [1, 1, 1, 1]
    expected = [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0]
    assert [cosine(step, 4) for step in range(5)] == pytest.approx(expected, abs=1e-15)


def test_a_warm_up_rises_on_a_line_to_its_last_step():
    factor = warmed(constant, 5)
    assert [factor(step, 100) for step in range(7)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1], abs=1e-15)
    assert factor(4, 100) == factor(5, 100) == factor(99, 100) == 1.0


def test_a_warm_up_multiplies_the_schedule():
    factor = warmed(cosine, 8)
    assert factor(0, 20) == 1 / 8
    assert factor(3, 20) == cosine(3, 20) / 2
    assert [factor(step, 20) for step in (7, 8, 19)] == [cosine(step, 20) for step in (7, 8, 19)]


@pytest.mark.parametrize("warmup", [0, 1])
@pytest.mark.parametrize("name", SCHEDULES)
def test_no_warm_up_changes_nothing(name, warmup):
    factor = warmed(SCHEDULES[name], warmup)
    assert [factor(step, 30) for step in range(30)] == [SCHEDULES[name](step, 30) for step in range(30)]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 1, 7, 30, 50])
def test_factors_are_above_0_and_at_most_1(name, warmup):
    factors = [warmed(SCHEDULES[name], warmup)(step, 30) for step in range(30)]
    assert min(factors) > 0
    assert max(factors) <= 1


def test_the_configuration_names_the_schedule_and_its_warm_up():
    config = built(flat(Config()) | {"train.schedule": "cosine", "train.warmup": 4})
    factor = build.schedule(config)
    assert [factor(step, 10) for step in range(10)] == [warmed(cosine, 4)(step, 10) for step in range(10)]
