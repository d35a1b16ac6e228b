"""How long updates are thought to take whose tokens are not known beforehand."""

from __future__ import annotations

import pytest

from gsm8k_core.training.rollout_pace import RolloutPace


def measured(per_rollout: int, *updates: tuple[int, float, float]) -> RolloutPace:
    """After updates of (problems asked, seconds of sampling, seconds in all)."""
    pace = RolloutPace(per_rollout, lambda update: updates[update - 1][:2])
    for number, (_, _, seconds) in enumerate(updates, 1):
        pace.add(number, seconds)
    return pace


def test_nothing_is_known_before_an_update() -> None:
    pace = measured(1)
    assert (pace.num, pace.seconds(1, 10), pace.at_most(1), pace.rest) == (0, 0, 0, 0)


def test_the_first_training_is_thought_to_take_what_was_rehearsed() -> None:
    pace = RolloutPace(1, lambda update: (16, 32.0), 7.0)
    assert (pace.rest, pace.at_most(1)) == (7.0, 7.0)
    pace.add(1, 37.0)
    assert pace.rest == 5.0


def test_seconds_are_those_of_the_problems_asked_and_of_the_rest() -> None:
    """2 s a problem and 5 s of training; the first update, which compiles, is left out where there is another."""
    pace = measured(1, (16, 90.0, 120.0), (16, 32.0, 37.0), (32, 64.0, 69.0), (16, 32.0, 37.0))
    asked = (16 + 16 + 32 + 16) / 4
    assert pace.seconds(5, 5) == pytest.approx(asked * 2 + 5)
    assert pace.seconds(5, 14) == pytest.approx(10 * (asked * 2 + 5))
    assert pace.seconds(6, 5) == 0
    assert pace.at_most(5) == pytest.approx(32 * 2 + 5)  # it may ask as many as the one that asked most
    assert pace.doubt(5) == pytest.approx((32 - asked) * 2)
    assert (pace.rest, pace.longest, pace.num) == (5.0, 120.0, 4)


def test_later_updates_of_a_rollout_ask_nothing() -> None:
    updates = [(16, 32.0, 37.0), (0, 0.0, 5.0), (0, 0.0, 5.0)] * 2
    pace = measured(3, *updates)
    assert pace.seconds(7, 9) == pytest.approx(32 + 3 * 5)
    assert pace.seconds(8, 9) == pytest.approx(2 * 5)
    assert pace.seconds(8, 10) == pytest.approx(32 + 3 * 5)
    assert pace.at_most(8) == 5
    assert pace.at_most(10) == 37
