"""Which compute dtype a device is fast in: decided from one measured micro-batch in each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from gsm8k_core.types import Choice

PROBE_SECONDS = 10.0
# Another dtype is taken only where it is clearly faster: float32 is what every other figure is compared with.
FASTER = 1.1
NOT_FINITE, OUT_OF_MEMORY = "not finite", "out of memory"


def time_each(
    candidates: Sequence[str], step: Callable[[str], str], clock: Callable[[], float] = time.perf_counter
) -> dict[str, float | str]:
    """Seconds of one micro-batch in each dtype, or the word for why it is out.

    `step` computes it once, forward and backward, and returns that word, or nothing. A candidate runs twice and the
    second time counts, because the first compiles; but nothing begins that would not end within PROBE_SECONDS if it
    took as long as the slowest so far: a slow device is measured less, and not for minutes.
    """
    found: dict[str, float | str] = {}
    began, slowest = clock(), 0.0
    for dtype in candidates:
        if found and clock() - began + slowest > PROBE_SECONDS:
            break
        start = clock()
        reason = step(dtype)
        found[dtype] = reason or clock() - start
        if not reason and 2 * clock() - start - began <= PROBE_SECONDS:
            start = clock()
            found[dtype] = step(dtype) or clock() - start
        slowest = max(slowest, clock() - start)
    return found


def fastest(found: Mapping[str, float | str]) -> Choice:
    """The dtype to take, with the figures. float32, the first candidate, is taken when nothing is clearly faster."""
    said = ", ".join(f"{dtype} {value if isinstance(value, str) else _ms(value)}" for dtype, value in found.items())
    timed = {dtype: value for dtype, value in found.items() if not isinstance(value, str)}
    best = min(timed, key=lambda dtype: timed[dtype], default="float32")
    if "float32" in timed and timed["float32"] < FASTER * timed[best]:
        best = "float32"
    return Choice(best, f"one micro-batch, forward and backward: {said}")


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"
