"""How sure an accuracy is, whether two models differ on the same problems, and what a run can show at all.

Everything is a fraction from 0 to 1 but for the sentences, which speak in points. SciPy is only the tests' oracle.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

from gsm8k_core.types import counted

LEVEL = 0.05  # below this a p is called a difference
POWER = 0.8
DISCORDANCE = 0.2  # share of problems on which two models differ, where none is known; see smallest_effect
DRAWS = 10_000
EXACT_UP_TO = 10_000  # problems; more than that take the normal approximation
BOOTSTRAP_FROM = 400  # problems; below, the bootstrap's 95 % interval holds down to 88 % (tests/core/scoring)


def percent(share: float) -> str:
    """31.5 %."""
    return f"{100 * share:.1f} %"


@dataclass(frozen=True, slots=True)
class Paired:
    """Two models on the same problems, counted in problems.

    `p` is exact McNemar's, the interval difference_interval's: where one shows a difference, so does the other.
    """

    won: int  # only the trained model is right
    lost: int  # only the base model is right
    both: int
    neither: int
    p: float
    difference: float  # of the accuracies, trained minus base
    interval: tuple[float, float]  # 95 %, of the difference


def wilson(correct: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Lower and upper bound of an accuracy, as fractions from 0 to 1, for `correct` of `n` problems.

    They are counts; an effective sample size (tallies.interval) need not be whole.
    Source: Wilson, JASA 22 (1927), the score interval, without continuity correction.
    """
    if not 0 <= correct <= n or n == 0:
        raise ValueError(f"an interval needs 0 <= correct <= n and n >= 1, got {correct} of {n}")
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence lies between 0 and 1, got {confidence}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, scale = correct / n, 1 + z * z / n
    center = (share + z * z / (2 * n)) / scale
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
    # At the ends the bound is exactly 0 or 1; rounding would leave 1e-17.
    lower = 0.0 if correct == 0 else max(0.0, center - half)
    upper = 1.0 if correct == n else min(1.0, center + half)
    return lower, upper


def mcnemar_exact(won: int, lost: int) -> float:
    """Two-sided probability of a split at least this uneven if each of won + lost problems were a fair coin.

    Source: McNemar, Psychometrika 12 (1947), with the exact binomial: twice the smaller tail, at most 1.
    """
    if won < 0 or lost < 0:
        raise ValueError(f"counts cannot be negative, got won {won} and lost {lost}")
    n, smaller = won + lost, min(won, lost)
    ways = tail = 1
    for k in range(smaller):
        ways = ways * (n - k) // (k + 1)  # C(n, k + 1): integers, because 2**-n is no float past n = 1,074
        tail += ways
    return min(1.0, 2 * tail / (1 << n))


def paired(base: Sequence[bool], trained: Sequence[bool]) -> Paired:
    """Compare two models problem by problem; both lists in the same order of problems.

    Source: the 2x2 table of McNemar, Psychometrika 12 (1947).
    """
    if len(base) != len(trained) or len(base) == 0:
        raise ValueError(f"one result per problem is needed from both, got {len(base)} and {len(trained)}")
    won = sum(bool(new and not old) for old, new in zip(base, trained, strict=True))
    lost = sum(bool(old and not new) for old, new in zip(base, trained, strict=True))
    both = sum(bool(old and new) for old, new in zip(base, trained, strict=True))
    n = len(base)
    p = mcnemar_exact(won, lost)
    return Paired(won, lost, both, n - won - lost - both, p, (won - lost) / n, difference_interval(won, lost, n))


def holm(ps: Sequence[float]) -> list[float]:
    """Each p corrected for their number: the chance that any true tie among them has p < LEVEL is LEVEL at most.

    The smallest p times their number, the next times one less, and so on; none less than the one before, at most 1.
    Source: Holm, Scandinavian Journal of Statistics 6 (1979). Raises ValueError for a p outside 0 to 1.
    """
    if not all(0 <= p <= 1 for p in ps):
        raise ValueError(f"a p lies between 0 and 1, got {list(ps)}")
    corrected, least = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        least = max(least, min(1.0, (len(ps) - rank) * ps[place]))
        corrected[place] = least
    return corrected


def difference_interval(won: int, lost: int, n: int) -> tuple[float, float]:
    """The 95 % interval of the accuracy difference (won - lost) / n; it holds 0 exactly where McNemar's p >= LEVEL.

    Below BOOTSTRAP_FROM problems it is Bonett and Price's, from there on the bootstrap's. McNemar's exact test is the
    more careful one: where it shows nothing, and the interval ends short of 0, the interval is drawn out to 0, which
    only adds to what it covers. The other case, p < LEVEL and 0 inside, does not occur (tests/core/scoring).
    """
    lower, upper = bootstrap_difference(won, lost, n) if n >= BOOTSTRAP_FROM else adjusted_difference(won, lost, n)
    if lower == upper:  # every resample is the sample: that is no certainty
        lower, upper = adjusted_difference(won, lost, n)
    if mcnemar_exact(won, lost) >= LEVEL:
        lower, upper = min(lower, 0.0), max(upper, 0.0)
    return lower, upper


def bootstrap_difference(
    won: int, lost: int, n: int, confidence: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """The interval of the accuracy difference (won - lost) / n under drawing n problems again, in pairs.

    The difference depends on three counts alone, so that one multinomial draw is one resample of the problems.
    It is the percentile interval, the same for the same seed; it has no width where no answer changed.
    Source: Efron, Annals of Statistics 7 (1979); Efron and Tibshirani, An Introduction to the Bootstrap (1993), 13.3.
    """
    if min(won, lost) < 0 or n < 1 or won + lost > n:
        raise ValueError(f"an interval needs won + lost <= n and n >= 1, got won {won} and lost {lost} of {n}")
    if not 0 < confidence < 1 or draws < 1:
        raise ValueError(f"a confidence lies between 0 and 1, and draws are 1 or more, got {confidence} and {draws}")
    import numpy as np

    shares = [won / n, lost / n, (n - won - lost) / n]
    counts = np.random.default_rng(seed).multinomial(n, shares, size=draws)
    lower, upper = np.quantile((counts[:, 0] - counts[:, 1]) / n, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(lower), float(upper)


def adjusted_difference(won: int, lost: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of (won - lost) / n that has a width even where no answer changed, or all did.

    Source: Bonett and Price, J. Educ. Behav. Stat. 37 (2012): Wald's, after adding one to both counts.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    up, down = (won + 1) / (n + 2), (lost + 1) / (n + 2)
    half = z * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return max(-1.0, up - down - half), min(1.0, up - down + half)


# --- what a run can show ------------------------------------------------------------------------------------


def mcnemar_power(n: int, discordance: float, difference: float, level: float = LEVEL) -> float:
    """The chance that the exact McNemar test of n problems gives p < level.

    Each problem is won with (discordance + difference) / 2 and lost with (discordance - difference) / 2. Summed over
    how many problems differ, binomial in n, and how many of those go the rarer way, binomial again.
    Source: Duffy, Biometrics 40 (1984), the unconditional power of the exact conditional test.
    """
    if n < 1 or not 0 <= abs(difference) <= discordance <= 1:
        raise ValueError(
            f"power needs n >= 1 and |difference| <= discordance <= 1, got {n}, {difference} and {discordance}"
        )
    if discordance == 0:
        return 0.0
    share = (1 + difference / discordance) / 2
    # Eight standard deviations leave out less than 1e-14.
    reach = 8 * math.sqrt(n * discordance * (1 - discordance)) + 8
    low, high = max(0, math.floor(n * discordance - reach)), min(n, math.ceil(n * discordance + reach))
    power, most, tails = 0.0, -1, (0.0, 0.0, 0.0)
    for differing in range(low, high + 1):
        most, tails = _rejected(differing, most, tails, (0.5, share, 1 - share), level)
        power += _binomial(differing, n, discordance) * (tails[1] + tails[2])
        # P(K <= k) among one more: Pascal's rule.
        tails = _less(tails, [p * _binomial(most, differing, p) for p in (0.5, share, 1 - share)])
    return min(1.0, power)


_Three = tuple[float, float, float]


def _rejected(differing: int, most: int, tails: _Three, ps: _Three, level: float) -> tuple[int, _Three]:
    """The largest count of the rarer way that is still p < level, and the chance of at most that for each p."""
    while 2 * (tails[0] + (more := _binomial(most + 1, differing, ps[0]))) < level and 2 * most + 2 < differing:
        most += 1
        tails = _less(tails, [-more, *(-_binomial(most, differing, p) for p in ps[1:])])
    return most, tails


def _less(tails: _Three, parts: Sequence[float]) -> _Three:
    return tails[0] - parts[0], tails[1] - parts[1], tails[2] - parts[2]


def _binomial(k: int, n: int, p: float) -> float:
    """The probability of k successes among n."""
    if not 0 <= k <= n:
        return 0.0
    if p in (0.0, 1.0):
        return float(k == n * p)
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(ways + k * math.log(p) + (n - k) * math.log1p(-p))


def _normal_power(n: int, discordance: float, difference: float, level: float) -> float:
    """The approximation of mcnemar_power. Source: Connor, Biometrics 43 (1987)."""
    normal = NormalDist()
    spread = math.sqrt(max(discordance - difference * difference, 1e-300))
    distance = abs(difference) * math.sqrt(n) - normal.inv_cdf(1 - level / 2) * math.sqrt(discordance)
    return normal.cdf(distance / spread)


def smallest_effect(
    n: int, discordance: float = DISCORDANCE, power: float = POWER, level: float = LEVEL
) -> float | None:
    """The smallest accuracy difference that n problems show with that power; None if they can show none.

    The share of problems on which two models differ is not known before the run: 0.2 is an assumption, and after a
    first run (won + lost) / n is better. A difference beyond it needs at least as many problems to differ, so the
    discordance is never below the difference. More than EXACT_UP_TO problems take the normal approximation.
    """
    if n < 1 or not 0 < discordance <= 1 or not 0 < power < 1 or not 0 < level < 1:
        raise ValueError(f"n is 1 or more and the shares lie between 0 and 1, got {n}, {discordance}, {power}, {level}")
    reach = mcnemar_power if n <= EXACT_UP_TO else _normal_power
    if reach(n, 1.0, 1.0, level) < power:
        return None
    low, high = 0.0, 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        if reach(n, max(discordance, middle), middle, level) < power:
            low = middle
        else:
            high = middle
    return high


def cannot_show(n: int, discordance: float = DISCORDANCE) -> str:
    """One line: what n problems cannot show about two models."""
    effect = smallest_effect(n, discordance)
    problems = counted(n, "problem")
    if effect is None:
        return f"{problems} cannot show any difference: even if all go one way, chance alone has p = {2 / 2**n:.2g}"
    points = f"{100 * effect:.0f}" if effect >= 0.1 else f"{100 * effect:.1f}"
    return (
        f"{problems} cannot show a difference under about {points} points "
        f"({100 * POWER:.0f} % power at p < {LEVEL}, if {100 * max(discordance, effect):.0f} % of the answers change)"
    )


# --- many answers to one problem, many runs -----------------------------------------------------------------


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """The unbiased chance that k of the samples hold a correct one: 1 - C(n - c, k) / C(n, k).

    Source: Chen et al., Evaluating Large Language Models Trained on Code (2021), arXiv 2107.03374, equation 1.
    """
    if not 0 <= num_correct <= num_samples or not 1 <= k <= num_samples:
        raise ValueError(f"pass@k needs 1 <= k <= samples, got k = {k}, {num_correct} correct of {num_samples}")
    missed = math.comb(num_samples - num_correct, k)
    every = math.comb(num_samples, k)
    return (every - missed) / every


def majority(answers: Sequence[str | None]) -> str | None:
    """maj@k's answer: the most frequent one. Of equally frequent ones that which came first; None does not vote.

    The answers are compared as texts: pass one rule's normal form (robust's), or 18 and 18.0 are two.
    Source: Wang et al., Self-Consistency (2022), arXiv 2203.11171, the unweighted vote. The rule for ties is ours.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    return max(votes, key=votes.__getitem__, default=None)  # max and Counter both keep the first


@dataclass(frozen=True, slots=True)
class Spread:
    """The same evaluation, repeated. `deviation` is the sample's, over runs - 1; None for a single run."""

    runs: int
    mean: float
    deviation: float | None
    lowest: float
    highest: float


def spread(accuracies: Sequence[float]) -> Spread:
    """Mean and sample standard deviation (Bessel's correction) over repeats."""
    if not accuracies:
        raise ValueError("a spread needs at least one accuracy")
    deviation = stdev(accuracies) if len(accuracies) > 1 else None
    return Spread(len(accuracies), fmean(accuracies), deviation, min(accuracies), max(accuracies))
