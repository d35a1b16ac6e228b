"""How many updates a time budget holds, and when a plan is changed.

A plan is the number of updates in the whole run; warm-up and decay lie on it, so it is changed for a reason only:

    nothing changes       while what was asked for fits with SPARE to spare
    it becomes smaller    when the run would pass its budget: to what fits with a margin
    it grows back         when clearly more fits than was planned (DRIFT), to at most what was asked for
"""

from __future__ import annotations

from collections.abc import Callable

SPARE = 0.15
MARGIN = 0.02  # of the time to go: the next estimate will differ a little
DRIFT = 0.05  # of the updates to go: the time to go would be wrong by as much, were it left so
CALIBRATION = 3  # updates before the first change, unless only about twice as many fit


def replanned(
    update: int, total: int, asked: int, *, left: float, needed: Callable[[int], float], unsure: float
) -> int:
    """The number of updates to plan after `update`; `total` when nothing is to change.

    `left` is what the budget still holds, `needed(n)` the time from here to the end of the process if the run ends
    after update n, `unsure` what the next one may take beyond its estimate. All in seconds. Where not even the next
    update fits, the plan stays: the pilot ends the run at once.
    """
    if total == asked and (1 + SPARE) * needed(asked) <= left:
        return total

    def fits(number: int) -> bool:
        return (1 + MARGIN) * needed(number) + unsure <= left

    most = _largest(fits, update, asked)
    if needed(total) + unsure > left:
        return most if update < most < total else total
    return most if most - total >= max(1, DRIFT * (total - update)) else total


def _largest(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The largest number from `low` to `high` that fits; `low` when none does."""
    if fits(high):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
