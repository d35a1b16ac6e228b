"""How sure an accuracy is, and whether two models differ on the same problems. Two formulas need no SciPy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True, slots=True)
class Paired:
    """Two models on the same problems, counted in problems. `p` is exact McNemar's."""

    won: int  # only the trained model is right
    lost: int  # only the base model is right
    both: int
    neither: int
    p: float


def wilson(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Lower and upper bound of an accuracy, as fractions from 0 to 1, for `correct` of `n` problems.

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
    return Paired(won, lost, both, len(base) - won - lost - both, mcnemar_exact(won, lost))
