"""The run's clock, which counts sleep, and keeping a Mac awake while a run lasts."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Clock = Callable[[], float]
NOTICED = 5.0  # seconds of sleep that are worth a line
PROGRAM = "caffeinate"  # keeps a Mac from idle sleep
END_SECONDS = 5.0  # that the program may take to end


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


@contextmanager
def kept_awake(system: str, pid: int, say: Callable[[str], None]) -> Iterator[None]:
    """On macOS (`system` is Darwin), no idle sleep until the end, or until process `pid` is gone, killed or not.

    A closed lid still puts it to sleep; the budget counts that, and the run says so.
    """
    if system != "Darwin":
        yield
        return
    program = shutil.which(PROGRAM)
    if program is None:
        say(f"awake    there is no {PROGRAM} on this Mac's PATH: if it sleeps, the time counts all the same")
        yield
        return
    # A session of its own: Ctrl-C goes to the run, which still has a model to save.
    holder = subprocess.Popen(
        [program, "-i", "-w", str(pid)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        holder.terminate()
        try:
            holder.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            holder.kill()
            holder.wait()
