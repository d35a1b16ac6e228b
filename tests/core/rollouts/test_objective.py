"""The weights of GRPO's tokens: advantages, the clip, the first weights, and what the sum is divided by."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from gsm8k_core.rollouts.objective import FARTHEST, LossName, Objective, advantages


def test_an_advantage_is_the_reward_less_the_groups_mean() -> None:
    assert advantages([1, 0, 0, 0]) == (0.75, -0.25, -0.25, -0.25)
    assert advantages([1, 1]) == (0, 0)
    assert sum(advantages([1, 0, 1])) == pytest.approx(0)


Array = Any  # of numpy
STEP = 1e-6


def drawn(seed: int = 0, count: int = 400) -> tuple[Array, ...]:
    """Advantages, log p now, then and of the first weights."""
    rng = np.random.default_rng(seed)
    now = -rng.exponential(1.0, count)
    then, first = now + rng.normal(0, 0.3, count), now + rng.normal(0, 0.3, count)
    signs = rng.choice([0.75, -0.25, 0.0], count)
    return tuple(array.astype(np.float32) for array in (signs, now, then, first))


def goal(objective: Objective, advantages_N: Array, now: Array, then: Array, first: Array | None) -> Array:
    """What is maximised, token by token, written down as the papers have it."""
    ratio = np.exp(now - then)
    clipped = np.minimum(ratio * advantages_N, np.clip(ratio, 1 - objective.low, 1 + objective.high) * advantages_N)
    if first is None:
        return clipped
    return clipped - objective.kl * (np.exp(first - now) - (first - now) - 1)


def slope(objective: Objective, advantages_N: Array, now: Array, then: Array, first: Array | None) -> Array:
    """Its slope by log p now; no token of these lies within STEP of the clip's corners."""
    ends = [goal(objective, advantages_N, now + step, then, first) for step in (STEP, -STEP)]
    return (ends[0] - ends[1]) / (2 * STEP)


@pytest.mark.parametrize("kl", [0.0, 0.1])
def test_the_weight_is_the_gradient_of_the_clipped_objective(kl: float) -> None:
    signs, now, then, first = drawn()
    objective = Objective(kl=kl)
    right = slope(objective, *(array.astype(np.float64) for array in (signs, now, then)), first if kl else None)
    found = objective.weigh(signs, now, then, first if kl else None)
    assert np.abs(found.weights_N - right).max() < 1e-6  # measured: 5e-8
    assert 40 < found.num_clipped < 120
    unclipped = Objective(low=0.999, high=99.0, kl=kl).weigh(signs, now, then, first if kl else None)
    assert np.abs(unclipped.weights_N - right).max() > 0.3  # control


def test_the_clip_has_two_sides_and_looks_at_the_sign() -> None:
    ratios = np.log(np.array([1.27, 1.29, 1.29, 0.81, 0.79, 0.79], np.float32))
    signs = np.array([1, 1, -1, -1, -1, 1], np.float32)
    found = Objective(low=0.2, high=0.28).weigh(signs, ratios, np.zeros(6, np.float32))
    assert found.weights_N == pytest.approx([1.27, 0, -1.29, -0.81, 0, 0.79], rel=1e-5)
    assert found.num_clipped == 2


def test_without_older_scores_the_ratio_is_one() -> None:
    signs, now, _, _ = drawn()
    assert np.array_equal(Objective().weigh(signs).weights_N, signs)
    assert np.array_equal(Objective().weigh(signs, now).weights_N, signs)
    assert Objective().weigh(signs).num_clipped == 0


def test_held_near_the_first_weights_even_a_token_without_an_advantage_has_a_weight() -> None:
    now, first = np.float32([-1.0, -2.0]), np.float32([-2.0, -1.0])
    found = Objective(kl=0.5).weigh(np.zeros(2, np.float32), now, None, first)
    assert found.weights_N == pytest.approx([0.5 * (math.exp(-1) - 1), 0.5 * (math.e - 1)])
    assert found.kl == pytest.approx(math.exp(-1) + 1 - 1 + math.e - 1 - 1)


def test_a_ratio_out_of_all_bounds_stays_a_number() -> None:
    found = Objective(kl=1.0).weigh(np.float32([-1.0]), np.float32([0.0]), np.float32([-500.0]), np.float32([-900.0]))
    assert np.isfinite(found.weights_N).all()
    assert found.weights_N[0] == pytest.approx(-math.exp(FARTHEST), rel=1e-5)


COUNTS = [3, 5, 2]  # targets of three answers, of which the last is not trained


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dapo", [8 / 10, 8 / 10, 8 / 10]),
        ("grpo", [8 / (3 * 3), 8 / (3 * 5), 8 / (3 * 2)]),
        ("dr_grpo", [8 / (3 * 7)] * 3),
    ],
)
def test_a_backends_division_becomes_the_one_of_the_loss(name: LossName, expected: list[float]) -> None:
    """It divides by the 8 targets that are in the update."""
    assert Objective(loss=name, longest=7).factors(COUNTS, 8) == pytest.approx(expected)
