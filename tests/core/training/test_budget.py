"""How long updates take, and how many of them a budget holds: plain arithmetic, nothing is timed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gsm8k_core.training.budget import Pace, Times, replan


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


# --- how many fit -----------------------------------------------------------------------------------------------


def plan(  # one second an update where nothing else is said
    update: int, total: int, asked: int, left: float, *, step: float = 1.0, rest: float = 0.0, unsure: float = 0.0
) -> int:
    needed: Callable[[int], float] = lambda number: (number - update) * step + rest  # noqa: E731
    return replan(update, total, asked, left=left, needed=needed, unsure=unsure)


def test_nothing_changes_while_all_of_it_fits_with_15_per_cent_to_spare() -> None:
    assert plan(3, 103, 103, left=115.1) == 103
    assert plan(3, 103, 103, left=101.0) == 103  # it fits, if barely
    assert plan(3, 103, 103, left=99.0) == 3 + 97  # it does not: 97 fit with 2 % to spare


def test_what_follows_the_last_update_counts() -> None:
    assert plan(3, 103, 103, left=60.0, rest=20.0) == 3 + 38


def test_the_doubt_about_an_update_counts() -> None:
    assert plan(3, 103, 103, left=60.0, unsure=9.0) == 3 + 50


def test_a_plan_that_still_fits_stays() -> None:
    assert plan(10, 60, 100, left=50.5) == 60
    assert plan(10, 60, 100, left=52.9) == 60  # one more would fit: no clear difference
    assert plan(10, 60, 100, left=49.9) == 58


def test_it_grows_back_when_clearly_more_fits_and_never_above_what_was_asked() -> None:
    assert plan(10, 60, 100, left=55.0) == 63
    assert plan(10, 60, 100, left=500.0) == 100
    assert plan(59, 60, 100, left=2.1) == 61


def test_where_not_even_one_update_fits_the_plan_stays() -> None:
    assert plan(10, 60, 100, left=0.5) == 60


@pytest.mark.parametrize("left", [0.0, 1.0, 7.0, 33.3, 88.0, 1e9])
def test_the_plan_lies_between_now_and_what_was_asked(left: float) -> None:
    assert 10 < plan(10, 60, 100, left=left) <= 100
