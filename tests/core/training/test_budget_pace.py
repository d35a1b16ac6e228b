"""Seconds of coming updates, from those that were."""

from __future__ import annotations

import pytest

from gsm8k_core.training.budget import Pace, Times


def pace(*seconds: float, tokens: tuple[int, ...] = ()) -> Pace:
    made = Pace(tokens)
    for update, value in enumerate(seconds, 1):
        made.add(update, value)
    return made


def test_before_the_first_update_nothing_is_known() -> None:
    assert (pace().num, pace().seconds(1, 9), pace().at_most(1), pace().doubt(1)) == (0, 0.0, 0.0, 0.0)


def test_the_first_update_counts_only_while_it_is_alone() -> None:
    assert pace(40.0).seconds(2, 3) == 80.0
    assert pace(40.0, 2.0).seconds(3, 4) == 4.0
    assert pace(40.0, 2.0).longest == 40.0


def test_an_update_of_more_tokens_takes_longer() -> None:
    made = pace(9.0, 4.0, tokens=(100, 200, 100, 50))
    assert (made.seconds(3, 3), made.seconds(4, 4), made.seconds(3, 4)) == (2.0, 1.0, 3.0)
    assert made.seconds(4, 3) == 0.0


def test_updates_beyond_the_known_ones_are_average() -> None:
    made = pace(9.0, 4.0, tokens=(100, 200))
    assert made.tokens(3, 4) == 300.0
    assert made.tokens(2, 3) == 350.0


def test_one_hiccup_counts_as_twice_the_median() -> None:
    made = pace(1.0, *[1.0] * 9, 100.0)
    assert made.seconds(12, 12) == pytest.approx((9 + 2) / 10)
    assert made.at_most(12) == 100.0  # the end of a run takes no chances
    assert made.doubt(12) == pytest.approx(2 - 1.1)


def test_another_speed_is_believed_after_a_few_updates() -> None:
    made = pace(1.0, *[1.0] * 20, *[5.0] * 5)
    assert made.seconds(1, 1) > 2.5


def test_only_the_last_updates_count() -> None:
    assert pace(9.0, *[4.0] * 10, *[1.0] * 32).seconds(1, 1) == 1.0


def test_times_have_a_guess_until_one_was_measured() -> None:
    times = Times(guess=7.0)
    assert (times.mean, times.most, times.least) == (7.0, 7.0, 0.0)
    times.add(2.0)
    times.add(4.0)
    assert (times.mean, times.most, times.least, times.total) == (3.0, 4.0, 2.0, 6.0)
