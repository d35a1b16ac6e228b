"""Intervals, the paired test, pass@k: against literals, exact arithmetic, simulation and SciPy."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import pytest

from gsm8k_core.scoring.stats import (
    BOOTSTRAP_FROM,
    LEVEL,
    Paired,
    Spread,
    adjusted_difference,
    bootstrap_difference,
    difference_interval,
    holm,
    majority,
    mcnemar_exact,
    paired,
    pass_at_k,
    spread,
    wilson,
)

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
    result = paired(base, trained)
    assert (result.won, result.lost, result.both, result.neither, result.p) == (3, 1, 2, 1, 0.625)


def test_swapping_the_models_swaps_won_and_lost_and_keeps_p() -> None:
    rng = random.Random(1)
    base, trained = ([rng.random() < 0.4 for _ in range(50)] for _ in range(2))
    one, other = paired(base, trained), paired(trained, base)
    assert (one.won, one.lost, one.both, one.neither) == (other.lost, other.won, other.both, other.neither)
    assert one.p == other.p
    assert one.won != one.lost


def test_equal_models_differ_by_chance_only() -> None:
    assert paired([True, False], [True, False]) == Paired(
        0, 0, both=1, neither=1, p=1.0, difference=0.0, interval=adjusted_difference(0, 0, 2)
    )


@pytest.mark.parametrize(("won", "lost", "n"), [(0, 0, 2), (0, 0, 1319), (1, 0, 1), (5, 0, 5), (0, 5, 5)])
def test_no_interval_claims_to_be_certain(won: int, lost: int, n: int) -> None:
    same = [True] * (n - won - lost)
    result = paired([False] * won + [True] * lost + same, [True] * won + [False] * lost + same)
    assert result.interval[0] < result.interval[1]
    assert result.interval[0] <= result.difference <= result.interval[1]


def test_the_adjusted_interval_is_the_published_one() -> None:
    # One is added to each count: (won + 1 - lost - 1) / (n + 2) is in the middle.
    low, high = adjusted_difference(40, 20, 198)
    assert (low + high) / 2 == pytest.approx(0.1)
    assert high - low == pytest.approx(2 * 1.959964 * ((0.205 + 0.105 - 0.1**2) / 200) ** 0.5)


@pytest.mark.parametrize(("base", "trained"), [([], []), ([True], []), ([True], [True, False])])
def test_a_comparison_needs_one_result_per_problem_from_both(base: list[bool], trained: list[bool]) -> None:
    with pytest.raises(ValueError, match="one result per problem"):
        paired(base, trained)


# --- SciPy as an oracle -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("correct", "n"), [(0, 5), (7, 20), (20, 20), (475, 1319)])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_the_interval_is_that_of_scipy(correct: int, n: int, confidence: float) -> None:
    from scipy.stats import binomtest  # slow to import

    expected = binomtest(correct, n).proportion_ci(confidence, method="wilson")
    assert wilson(correct, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-13)  # measured 2e-16


@pytest.mark.parametrize(("won", "lost"), [(140, 100), (130, 100), (6, 0), (1, 5), (3, 3)])
def test_p_is_that_of_scipys_sign_test(won: int, lost: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(won, won + lost, 0.5).pvalue
    assert mcnemar_exact(won, lost) == pytest.approx(expected, abs=1e-12)


# --- the interval of the difference -------------------------------------------------------------------------


def test_a_comparison_has_the_difference_and_its_interval() -> None:
    result = paired([False] * 40 + [True] * 60, [True] * 30 + [False] * 30 + [True] * 40)
    assert (result.won, result.lost, result.difference) == (30, 20, 0.1)
    assert result.interval == difference_interval(30, 20, 100) == adjusted_difference(30, 20, 100)
    assert result.interval[0] < 0 < 0.1 < result.interval[1]


@pytest.mark.parametrize(("won", "lost", "n"), [(140, 100, 1319), (30, 10, 100), (3, 1, 20)])
def test_the_interval_is_that_of_scipys_paired_bootstrap(won: int, lost: int, n: int) -> None:
    from scipy.stats import bootstrap

    base = np.array([0] * won + [1] * lost + [0] * (n - won - lost))
    trained = np.array([1] * won + [0] * lost + [0] * (n - won - lost))
    oracle = bootstrap(
        (base, trained),
        lambda old, new, axis: new.mean(axis) - old.mean(axis),
        paired=True,
        vectorized=True,
        n_resamples=10_000,
        method="percentile",
        rng=1,
        batch=500,
    ).confidence_interval
    # The standard error of a 2.5 % quantile of 10,000 normal draws is 0.027 deviations; two of them, four times.
    error = 4 * math.sqrt(2) * 0.027 * math.sqrt(won + lost - (won - lost) ** 2 / n) / n
    room = max(error, 1.001 / n)  # the difference is a whole number of problems
    assert bootstrap_difference(won, lost, n) == pytest.approx((oracle.low, oracle.high), abs=room)
    unpaired = 1.96 * math.sqrt(2 * 0.25 / n)
    assert abs((oracle.high - oracle.low) / 2 - unpaired) > room or n == 20


Interval = Callable[[int, int, int], tuple[float, float]]
SHARES = [(d * (1 + tilt) / 2, d * (1 - tilt) / 2) for d in (0.1, 0.2, 0.4) for tilt in (0.0, 0.5)]  # of won, lost


def coverage(interval: Interval, won: float, lost: float, n: int) -> float:
    """The chance that the interval of n problems, each won and lost with these chances, holds won - lost.

    No draws: the sum over every table of more than a billionth.
    """
    inside = 0.0
    for up in range(n + 1):
        for down in range(n - up + 1):
            ways = math.lgamma(n + 1) - math.lgamma(up + 1) - math.lgamma(down + 1) - math.lgamma(n - up - down + 1)
            logs = up * math.log(won) + down * math.log(lost) + (n - up - down) * math.log1p(-won - lost)
            if (chance := math.exp(ways + logs)) > 1e-9:
                low, high = interval(up, down, n)
                inside += chance * (low - 1e-12 <= won - lost <= high + 1e-12)
    return inside


@pytest.mark.parametrize("n", [8, 16, 32, 64])
def test_the_interval_of_few_problems_covers_the_difference_as_often_as_it_says(n: int) -> None:
    covered = [coverage(difference_interval, *shares, n) for shares in SHARES]
    assert min(covered) > 0.945, covered
    if n == 64:
        assert sum(covered) / len(covered) == pytest.approx(0.972, abs=0.005)


def test_the_bootstrap_of_few_problems_would_not_pass() -> None:
    quick = lru_cache(None)(lambda won, lost, n: bootstrap_difference(won, lost, n, draws=500))
    assert coverage(quick, *SHARES[1], 32) < 0.93


@pytest.mark.parametrize("shares", SHARES[1:3])
def test_the_interval_of_many_problems_covers_the_difference_as_often_as_it_says(shares: tuple[float, float]) -> None:
    tables = np.random.default_rng(5).multinomial(BOOTSTRAP_FROM, [*shares, 1 - sum(shares)], size=400)
    true = shares[0] - shares[1]
    found = [difference_interval(int(won), int(lost), BOOTSTRAP_FROM) for won, lost, _ in tables]
    inside = [low - 1e-12 <= true <= high + 1e-12 for low, high in found]
    assert 0.91 < sum(inside) / 400 < 0.985  # 3,000 draws: 0.950 to 0.966, a share of 0.03 included
    assert difference_interval(40, 20, BOOTSTRAP_FROM) == bootstrap_difference(40, 20, BOOTSTRAP_FROM)
    assert difference_interval(40, 20, BOOTSTRAP_FROM - 1) == adjusted_difference(40, 20, BOOTSTRAP_FROM - 1)


def agree(won: int, lost: int, n: int) -> bool:
    low, high = difference_interval(won, lost, n)
    return (low > 0 or high < 0) == (mcnemar_exact(won, lost) < LEVEL)


def test_the_interval_and_the_test_agree_in_every_table_of_up_to_32_problems() -> None:
    tables = [(won, lost, n) for n in range(1, 33) for won in range(n + 1) for lost in range(n - won + 1)]
    assert [table for table in tables if not agree(*table)] == []
    # Neither alone does: the first is 4 won of 32, p = 0.125.
    assert bootstrap_difference(4, 0, 32)[0] > 0
    assert adjusted_difference(5, 0, 5)[0] > 0
    assert difference_interval(5, 0, 5)[0] == 0 == difference_interval(0, 5, 5)[1]


@pytest.mark.parametrize("n", [100, BOOTSTRAP_FROM - 1, BOOTSTRAP_FROM, 1319])
def test_the_interval_and_the_test_agree_on_either_side_of_the_level(n: int) -> None:
    for lost in (0, 1, 2, 5, 10, 20, 30):
        won = next(won for won in range(lost + 1, n) if mcnemar_exact(won, lost) < LEVEL)
        for table in ((won, lost, n), (won - 1, lost, n), (lost, won, n), (lost, won - 1, n)):
            assert agree(*table), table


def test_the_same_seed_is_the_same_interval_and_swapped_models_mirror_it() -> None:
    assert bootstrap_difference(14, 10, 100) == bootstrap_difference(14, 10, 100, seed=0)
    assert bootstrap_difference(14, 10, 1000, draws=999) != bootstrap_difference(14, 10, 1000, draws=999, seed=1)
    low, high = bootstrap_difference(14, 10, 100)
    assert bootstrap_difference(10, 14, 100) == pytest.approx((-high, -low), abs=0.011)
    assert bootstrap_difference(14, 10, 100, 0.99)[1] > high


def test_equal_answers_leave_no_width() -> None:
    assert bootstrap_difference(0, 0, 20) == (0.0, 0.0)
    assert bootstrap_difference(20, 0, 20) == (1.0, 1.0)


@pytest.mark.parametrize(("won", "lost", "n"), [(-1, 0, 5), (3, 3, 5), (0, 0, 0)])
def test_the_interval_needs_a_table(won: int, lost: int, n: int) -> None:
    with pytest.raises(ValueError, match="won \\+ lost <= n"):
        bootstrap_difference(won, lost, n)


# --- many answers, many runs --------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "correct", "k"), [(5, 2, 1), (5, 2, 3), (5, 0, 2), (5, 5, 5), (6, 4, 3)])
def test_pass_at_k_is_the_share_of_all_draws_with_a_correct_one(n: int, correct: int, k: int) -> None:
    draws = list(itertools.combinations([True] * correct + [False] * (n - correct), k))
    assert pass_at_k(n, correct, k) == sum(any(draw) for draw in draws) / len(draws)


def test_pass_at_k_is_unbiased_and_the_plain_estimate_is_not() -> None:
    chance, n, k = 0.3, 8, 4
    weights = [math.comb(n, c) * chance**c * (1 - chance) ** (n - c) for c in range(n + 1)]
    unbiased = sum(weight * pass_at_k(n, c, k) for c, weight in enumerate(weights))
    plain = sum(weight * (1 - (1 - c / n) ** k) for c, weight in enumerate(weights))
    assert unbiased == pytest.approx(1 - 0.7**4, abs=1e-12)
    assert abs(plain - (1 - 0.7**4)) > 0.03


def test_pass_at_k_of_many_samples_does_not_overflow() -> None:
    assert pass_at_k(10_000, 100, 1) == 0.01
    assert 0.63 < pass_at_k(10_000, 100, 100) < 0.64


@pytest.mark.parametrize(("n", "correct", "k"), [(5, 6, 1), (5, -1, 1), (5, 2, 6), (5, 2, 0)])
def test_pass_at_k_needs_k_samples(n: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass@k"):
        pass_at_k(n, correct, k)


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        (["18", "20", "18"], "18"),
        (["20", "18", "18", "20"], "20"),  # a tie: the first
        (["18", "20", "20", "18"], "18"),
        ([None, None, "7"], "7"),
        ([None, None], None),
        ([], None),
    ],
)
def test_the_majority_is_the_most_frequent_answer_and_of_these_the_first(
    answers: list[str | None], winner: str | None
) -> None:
    assert majority(answers) == winner


def test_repeats_have_a_mean_and_the_samples_deviation() -> None:
    found = spread([0.30, 0.32, 0.34])
    assert found.deviation == pytest.approx(float(np.std([0.30, 0.32, 0.34], ddof=1)), abs=1e-15)
    assert (found.runs, found.mean, found.lowest, found.highest) == (3, pytest.approx(0.32), 0.30, 0.34)


def test_one_run_has_no_deviation_and_none_has_nothing() -> None:
    assert spread([0.3]) == Spread(1, 0.3, None, 0.3, 0.3)
    with pytest.raises(ValueError, match="at least one"):
        spread([])


def closed_testing(ps: list[float]) -> list[float]:
    """The definition that Holm's steps are the short way for (Marcus, Peritz and Gabriel 1976).

    A hypothesis is rejected where Bonferroni's test rejects every group of hypotheses that it is in: its p is the
    largest of those groups', each the smallest p in the group times how many there are in it, 1 at most.
    """
    places = range(len(ps))
    groups = [group for size in range(1, len(ps) + 1) for group in itertools.combinations(places, size)]
    worth = {group: min(1.0, len(group) * min(ps[place] for place in group)) for group in groups}
    return [max(worth[group] for group in groups if place in group) for place in places]


def test_holms_correction_is_closed_testing_by_bonferroni() -> None:
    drawn = random.Random(0)
    for _ in range(300):
        ps = [drawn.choice((0.0, 0.01, 0.05, 1.0, drawn.random())) for _ in range(drawn.randint(1, 6))]
        assert holm(ps) == pytest.approx(closed_testing(ps))


def test_holms_correction_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="between 0 and 1"):
            holm([0.5, bad])
