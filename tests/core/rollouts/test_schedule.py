"""The phases of a run and their ends: shares that sum to one, nothing past the end, what is left passed on."""

from __future__ import annotations

from fractions import Fraction

import pytest

from gsm8k_core.rollouts.schedule import (
    Phase,
    cannot_pay,
    end_of,
    end_of_first_block,
    longer_sampling,
    needs_warm_start,
    phases,
    rounds_that_fit,
    share,
    tokens_a_row,
)

PLANS = [(rounds, warm) for rounds in (1, 2, 3, 5) for warm in (False, True)]


def test_the_phases_come_in_order() -> None:
    assert [phase.name for phase in phases(2, warm=True)] == ["warm", "sample-1", "train-1", "sample-2", "train-2"]
    assert [phase.name for phase in phases(1, warm=False)] == ["sample-1", "train-1"]


@pytest.mark.parametrize(("rounds", "warm"), PLANS)
def test_the_shares_of_a_plan_sum_to_one_and_sampling_takes_as_long_as_training(rounds: int, warm: bool) -> None:
    planned = phases(rounds, warm)
    total = {
        kind: sum(share(each, rounds, warm) for each in planned if each.kind == kind)
        for kind in ("warm", "sample", "train")
    }
    assert sum(total.values()) == 1
    assert total["sample"] == total["train"]
    assert total["warm"] == (Fraction(1, 4) if warm else 0)
    trainings = [share(each, rounds, warm) for each in planned if each.kind == "train"]
    assert max(trainings) == trainings[-1]
    assert trainings.count(trainings[-1]) == 1


@pytest.mark.parametrize(("rounds", "warm"), PLANS)
def test_each_end_lies_in_the_budget_and_what_is_left_passes_on(rounds: int, warm: bool) -> None:
    punctual, now = [], 100.0
    for phase in phases(rounds, warm):
        now = end_of(phase, rounds, warm, now, 1000.0)
        punctual.append(now)
    assert punctual == sorted(punctual)
    assert punctual[-1] == pytest.approx(1000.0)
    now = 100.0
    for phase, planned in zip(phases(rounds, warm)[:-1], punctual, strict=False):
        end = end_of(phase, rounds, warm, now, 1000.0)
        assert end <= planned + 1e-9
        now += 0.5 * (end - now)  # it needs half of its time
    last = phases(rounds, warm)[-1]
    assert end_of(last, rounds, warm, now, 1000.0) == pytest.approx(1000.0)


def test_a_phase_without_time_ends_at_once() -> None:
    assert end_of(Phase("sample", 1), 1, warm=False, now=1001.0, end=1000.0) == 1001.0


def test_the_answers_that_decide_about_a_warm_start_take_an_eighth_at_most() -> None:
    assert end_of_first_block(200.0, 1000.0) == 300.0
    assert end_of_first_block(1001.0, 1000.0) == 1001.0


def test_the_last_sampling_goes_on_while_training_has_time_to_spare() -> None:
    assert longer_sampling(end=500, last=1000, training=300) == 700
    assert longer_sampling(end=500, last=1000, training=1) == 750  # and half of the rest is not touched
    assert longer_sampling(end=1000, last=900, training=1) == 1000
    assert longer_sampling(end=500, last=1000, training=600) == 500


@pytest.mark.parametrize(
    ("left", "each", "problems", "rounds"),
    [(4000, 1.0, 7000, 2), (3999, 1.0, 7000, 1), (400, 1.0, 100, 2), (399, 1.0, 100, 1), (0, 1.0, 100, 1)],
)
def test_two_rounds_are_planned_where_each_can_ask_enough(left: float, each: float, problems: int, rounds: int) -> None:
    assert rounds_that_fit(left, each, problems) == rounds


def test_the_thresholds_of_the_warm_start() -> None:
    assert needs_warm_start(9, 100)
    assert not needs_warm_start(10, 100)
    assert cannot_pay(2, 100)
    assert not cannot_pay(3, 100)
    assert not cannot_pay(0, 0)


def test_what_a_kept_row_costs() -> None:
    assert tokens_a_row([100, 50, 30], 2) == 90
    assert tokens_a_row([100], 0) is None
