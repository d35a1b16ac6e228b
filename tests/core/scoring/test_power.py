"""What a run can show: against SciPy, simulation and literals."""

from __future__ import annotations

import numpy as np
import pytest

from gsm8k_core.scoring.stats import (
    EXACT_UP_TO,
    _normal_power,
    cannot_show,
    mcnemar_exact,
    mcnemar_power,
    smallest_effect,
)


@pytest.mark.parametrize(
    ("n", "discordance", "difference"),
    [(20, 0.4, 0.4), (20, 0.2, 0.05), (100, 0.3, 0.15), (1319, 0.2, 0.035), (50, 1, 0.3)],
)
def test_power_is_the_sum_over_all_tables(n: int, discordance: float, difference: float) -> None:
    from scipy.stats import binom

    expected = 0.0
    for differing in range(n + 1):
        won = np.arange(differing + 1)
        p = np.minimum(1, 2 * binom.cdf(np.minimum(won, differing - won), differing, 0.5))
        shares = binom.pmf(won, differing, (1 + difference / discordance) / 2)
        expected += binom.pmf(differing, n, discordance) * shares[p < 0.05].sum()
    assert mcnemar_power(n, discordance, difference) == pytest.approx(expected, abs=1e-11)  # measured 2e-12


def test_power_is_how_often_simulated_runs_are_significant() -> None:
    rng = np.random.default_rng(3)
    tables = rng.multinomial(400, [0.135, 0.065, 0.80], size=4000)
    share = sum(mcnemar_exact(int(won), int(lost)) < 0.05 for won, lost, _ in tables) / 4000
    assert mcnemar_power(400, 0.2, 0.07) == pytest.approx(share, abs=0.025)  # 4 standard errors of 0.0063
    assert abs(mcnemar_power(400, 0.2, 0.05) - share) > 0.25  # and would be seen to be wrong


def test_no_difference_is_found_at_most_as_often_as_the_level() -> None:
    assert 0.03 < mcnemar_power(1319, 0.2, 0.0) < 0.05
    assert mcnemar_power(20, 0.0, 0.0) == 0.0
    assert mcnemar_power(5, 1.0, 1.0) == 0.0
    assert mcnemar_power(6, 1.0, 1.0) == pytest.approx(1.0)


def test_power_does_not_know_which_model_is_better() -> None:
    assert mcnemar_power(100, 0.3, 0.1) == pytest.approx(mcnemar_power(100, 0.3, -0.1), abs=1e-12)


@pytest.mark.parametrize(("n", "effect"), [(20, 0.37), (100, 0.13), (400, 0.064), (1319, 0.035)])
def test_the_smallest_effect_has_the_power_and_a_smaller_one_has_not(n: int, effect: float) -> None:
    found = smallest_effect(n)
    assert found == pytest.approx(effect, rel=0.03)
    assert mcnemar_power(n, max(0.2, found), found) >= 0.8
    assert mcnemar_power(n, max(0.2, found - 2e-4), found - 2e-4) < 0.8


def test_the_normal_approximation_meets_the_exact_sum_where_it_takes_over() -> None:
    exact, approximate = smallest_effect(EXACT_UP_TO), smallest_effect(EXACT_UP_TO + 1)
    assert exact is not None
    assert approximate == pytest.approx(exact, rel=0.02)
    # Where n is small it would promise too much.
    assert _normal_power(20, 0.3, 0.3, 0.05) > mcnemar_power(20, 0.3, 0.3) + 0.1


def test_more_changed_answers_hide_a_difference() -> None:
    few, many = smallest_effect(400, 0.1), smallest_effect(400, 0.4)
    assert few is not None
    assert many is not None
    assert few < many


def test_one_line_says_what_a_run_cannot_show() -> None:
    assert cannot_show(20) == (
        "20 problems cannot show a difference under about 37 points "
        "(80 % power at p < 0.05, if 37 % of the answers change)"
    )
    assert "under about 3.5 points" in cannot_show(1319)
    assert cannot_show(5) == (
        "5 problems cannot show any difference: even if all go one way, chance alone has p = 0.062"
    )
    assert cannot_show(1).startswith("1 problem cannot")


@pytest.mark.parametrize(("n", "discordance"), [(0, 0.2), (10, 0.0), (10, 1.1)])
def test_a_plan_needs_problems_and_a_share(n: int, discordance: float) -> None:
    with pytest.raises(ValueError, match="shares"):
        smallest_effect(n, discordance)
    with pytest.raises(ValueError, match="power needs"):
        mcnemar_power(max(n, 1), 0.2, 0.3)
