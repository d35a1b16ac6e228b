"""The clock of a run: what its time budget is counted in.

Seconds since the process began. They go on while the machine sleeps, because a person's two hours do. They do not
count downloads, which depend on the line and happen once. No wall clock is read, so setting one (NTP, daylight
saving) changes nothing. That the machine slept is seen by a second clock, which stops in sleep.
"""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], float]
NOTICED = 5.0  # seconds of sleep that are worth a line


def through_sleep() -> float:
    """Seconds by a clock that never jumps and goes on in sleep.

    Linux: CLOCK_BOOTTIME. macOS: CLOCK_MONOTONIC_RAW, which goes on in sleep there (time.monotonic does not:
    it is mach_absolute_time; see https://reviews.llvm.org/D74341). Elsewhere time.monotonic.
    """
    return _THROUGH_SLEEP()


def _find() -> Clock:
    # Not the other way round: on Linux CLOCK_MONOTONIC_RAW stops in sleep.
    for name in ("CLOCK_BOOTTIME", "CLOCK_MONOTONIC_RAW"):
        if (number := getattr(time, name, None)) is not None:
            return lambda: time.clock_gettime(number)
    return time.monotonic


_THROUGH_SLEEP = _find()


class RunClock:
    """Called, it gives the seconds that count: `already` at its making, then as the clocks say."""

    def __init__(
        self,
        already: float = 0.0,
        *,
        with_sleep: Clock = through_sleep,
        awake: Clock = time.monotonic,
        left_out: Clock = lambda: 0.0,
    ) -> None:
        """`left_out` gives the seconds since the process began that do not count."""
        self._already, self._left_out = already, left_out
        self._with_sleep, self._awake = with_sleep, awake
        self._began, self._began_awake = with_sleep(), awake()

    def __call__(self) -> float:
        return self._already + self._with_sleep() - self._began - self._left_out()

    @property
    def slept(self) -> float:
        """Seconds that the machine slept so far; the call counts them."""
        return max(0.0, self._with_sleep() - self._began - (self._awake() - self._began_awake))
