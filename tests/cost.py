"""What reading a text costs, in passes of a plain loop over a text of the same length: the same on any machine.

Processor time of this process, so other work on the machine is not counted; each try has its own control, measured
around it, so that a processor that is slower for a while is slower for both.
"""

from __future__ import annotations

import time
from collections.abc import Callable


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def control(size: int) -> float:
    """Seconds of one pass over `size` letters, one at a time."""
    text = "1" * size

    def read() -> int:
        number = 0
        for letter in text:
            number += letter == "0"
        return number

    return seconds(read)


_CONTROLS: dict[int, float] = {}  # the cheapest of each size so far


def passes(work: Callable[[], object], size: int, enough: float, tries: int = 7) -> float:
    """The cost of the cheapest try, in passes over `size` letters; no more tries than it needs to be under `enough`."""
    if size not in _CONTROLS:
        _CONTROLS[size] = min(control(size) for _ in range(5))
    least = seconds(work) / _CONTROLS[size]
    for _ in range(tries):
        if least < enough:
            break
        before, spent, after = control(size), seconds(work), control(size)
        least = min(least, spent / max(before, after))
    return least
