"""How many updates a budget holds: plain arithmetic, one second an update where nothing else is said."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gsm8k_core.training.budget import replanned


def plan(
    update: int, total: int, asked: int, left: float, *, step: float = 1.0, rest: float = 0.0, unsure: float = 0.0
) -> int:
    needed: Callable[[int], float] = lambda number: (number - update) * step + rest  # noqa: E731
    return replanned(update, total, asked, left=left, needed=needed, unsure=unsure)


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
