"""The interval of an accuracy and the paired test, against literals and against exact arithmetic."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from statistics import NormalDist

import pytest

from gsm8k_core.stats import Paired, mcnemar_exact, paired, wilson

# --- wilson -------------------------------------------------------------------------------------------------


def test_seven_of_twenty_is_anything_from_18_to_57_percent() -> None:
    assert wilson(7, 20) == pytest.approx((0.181, 0.567), abs=5e-4)


def test_a_third_of_the_whole_test_split_is_known_to_three_points() -> None:
    lower, upper = wilson(475, 1319)
    assert (upper - lower) / 2 == pytest.approx(1.96 * 0.0132, rel=0.01)


def score_error(bound: float, correct: int, n: int, confidence: float) -> float:
    """How far `bound` is from a root of n (share - p)^2 = z^2 p (1 - p), Wilson's definition."""
    z = Fraction(NormalDist().inv_cdf((1 + confidence) / 2))
    p = Fraction(bound)
    return float(abs(n * (Fraction(correct, n) - p) ** 2 - z * z * p * (1 - p)))


@pytest.mark.parametrize(
    ("correct", "n", "confidence"),
    [(7, 20, 0.95), (1, 3, 0.95), (475, 1319, 0.95), (475, 1319, 0.99), (0, 20, 0.95), (20, 20, 0.95)],
)
def test_both_bounds_solve_the_score_equation(correct: int, n: int, confidence: float) -> None:
    for bound in wilson(correct, n, confidence):
        assert score_error(bound, correct, n, confidence) < 7e-14  # measured 7e-15


def test_the_plain_normal_interval_does_not_solve_the_score_equation() -> None:
    bound = 0.35 - 1.96 * math.sqrt(0.35 * 0.65 / 20)
    assert score_error(bound, 7, 20, 0.95) > 7e-13


@pytest.mark.parametrize("n", [1, 2, 20, 1319])
def test_the_interval_lies_in_zero_to_one_and_holds_the_accuracy(n: int) -> None:
    for correct in range(n + 1):
        lower, upper = wilson(correct, n)
        assert 0.0 <= lower <= correct / n <= upper <= 1.0
        assert lower < upper


@pytest.mark.parametrize("n", [1, 3, 20, 1319])
def test_none_right_starts_at_zero_and_all_right_ends_at_one(n: int) -> None:
    assert wilson(0, n)[0] == 0.0
    assert wilson(n, n)[1] == 1.0


def test_the_interval_of_the_wrong_ones_is_the_mirror_image() -> None:
    lower, upper = wilson(7, 20)
    assert wilson(13, 20) == pytest.approx((1 - upper, 1 - lower), abs=1e-12)


def test_more_confidence_is_a_wider_interval() -> None:
    assert wilson(7, 20, 0.99)[0] < wilson(7, 20)[0]
    assert wilson(7, 20, 0.99)[1] > wilson(7, 20)[1]


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_an_interval_needs_problems_and_a_count_among_them(correct: int, n: int) -> None:
    with pytest.raises(ValueError, match="0 <= correct <= n"):
        wilson(correct, n)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95, math.nan])
def test_a_confidence_lies_between_zero_and_one(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        wilson(7, 20, confidence)


# --- McNemar ------------------------------------------------------------------------------------------------


def exact_p(won: int, lost: int) -> Fraction:
    """The sum of the probabilities of every split that is at least as uneven."""
    n, uneven = won + lost, abs(won - lost)
    ways = sum(math.comb(n, k) for k in range(n + 1) if abs(n - 2 * k) >= uneven)
    return Fraction(ways, 2**n)


def test_140_won_against_100_lost_is_rarely_chance() -> None:
    assert mcnemar_exact(won=140, lost=100) == pytest.approx(0.012, abs=5e-4)


def test_130_won_against_100_lost_may_be_chance() -> None:
    assert mcnemar_exact(won=130, lost=100) == pytest.approx(0.056, abs=5e-4)


@pytest.mark.parametrize(
    ("won", "lost", "p"), [(0, 0, 1.0), (1, 0, 1.0), (2, 0, 1 / 2), (6, 0, 1 / 32), (1, 5, 7 / 32)]
)
def test_small_counts_have_exact_values(won: int, lost: int, p: float) -> None:
    assert mcnemar_exact(won, lost) == p


def test_p_is_the_rounded_exact_probability_for_every_split_of_up_to_40() -> None:
    for n in range(41):
        for won in range(n + 1):
            assert mcnemar_exact(won, n - won) == float(exact_p(won, n - won))


def test_the_normal_approximation_would_not_pass() -> None:
    chi_square = (140 - 100) ** 2 / (140 + 100)
    assert abs(math.erfc(math.sqrt(chi_square / 2)) - exact_p(140, 100)) > 1e-3


def test_ten_thousand_differences_are_exact_too() -> None:
    less_uneven = sum(math.comb(10_000, k) for k in range(4901, 5100))
    assert mcnemar_exact(5100, 4900) == float(1 - Fraction(less_uneven, 2**10_000))


def test_a_probability_too_small_for_most_sums_is_exact_too() -> None:
    assert mcnemar_exact(1000, 1) == float(Fraction(2 * (1 + 1001), 2**1001))


def test_an_even_split_is_certain_chance_and_a_landslide_is_none() -> None:
    assert mcnemar_exact(5000, 5000) == 1.0
    assert mcnemar_exact(10_000, 0) == 0.0


def test_winning_and_losing_are_the_same_distance_from_chance() -> None:
    assert mcnemar_exact(140, 100) == mcnemar_exact(100, 140)


def test_a_more_uneven_split_is_never_more_likely() -> None:
    values = [mcnemar_exact(won, 61 - won) for won in range(31, 62)]
    assert values == sorted(values, reverse=True)
    assert all(0.0 < value <= 1.0 for value in values)


@pytest.mark.parametrize(("won", "lost"), [(-1, 3), (3, -1)])
def test_counts_are_not_negative(won: int, lost: int) -> None:
    with pytest.raises(ValueError, match="negative"):
        mcnemar_exact(won, lost)


# --- paired -------------------------------------------------------------------------------------------------


def test_each_problem_falls_into_one_of_four_cells() -> None:
    base = [True, True, True, False, False, False, False]
    trained = [True, True, False, True, True, True, False]
    assert paired(base, trained) == Paired(won=3, lost=1, both=2, neither=1, p=0.625)


def test_swapping_the_models_swaps_won_and_lost_and_keeps_p() -> None:
    rng = random.Random(1)
    base, trained = ([rng.random() < 0.4 for _ in range(50)] for _ in range(2))
    one, other = paired(base, trained), paired(trained, base)
    assert (one.won, one.lost, one.both, one.neither) == (other.lost, other.won, other.both, other.neither)
    assert one.p == other.p
    assert one.won != one.lost


def test_equal_models_differ_by_chance_only() -> None:
    assert paired([True, False], [True, False]) == Paired(won=0, lost=0, both=1, neither=1, p=1.0)


@pytest.mark.parametrize(("base", "trained"), [([], []), ([True], []), ([True], [True, False])])
def test_a_comparison_needs_one_result_per_problem_from_both(base: list[bool], trained: list[bool]) -> None:
    with pytest.raises(ValueError, match="one result per problem"):
        paired(base, trained)
