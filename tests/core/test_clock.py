"""The clock of a budget: sleep counts, a set wall clock does not, downloads do not."""

from __future__ import annotations

import time

import pytest

from gsm8k_core import clock as run_clock
from gsm8k_core.clock import RunClock, through_sleep


class Machine:
    """Two clocks: `awake` stands still while the machine sleeps."""

    def __init__(self) -> None:
        self.with_sleep, self.awake, self.downloads = 1000.0, 50.0, 0.0

    def work(self, seconds: float) -> None:
        self.with_sleep += seconds
        self.awake += seconds

    def sleep(self, seconds: float) -> None:
        self.with_sleep += seconds

    def clock(self, already: float = 0.0) -> RunClock:
        return RunClock(
            already, with_sleep=lambda: self.with_sleep, awake=lambda: self.awake, left_out=lambda: self.downloads
        )


def test_it_counts_from_the_beginning_of_the_process() -> None:
    machine = Machine()
    clock = machine.clock(already=0.75)
    machine.work(10.0)
    assert clock() == 10.75
    assert clock.slept == 0.0


def test_sleep_counts_and_is_seen() -> None:
    machine = Machine()
    clock = machine.clock()
    machine.work(10.0)
    machine.sleep(600.0)
    machine.work(1.0)
    assert (clock(), clock.slept) == (611.0, 600.0)


def test_downloads_do_not_count() -> None:
    machine = Machine()
    clock = machine.clock()
    machine.work(100.0)
    machine.downloads = 90.0
    assert clock() == 10.0


def test_setting_the_wall_clock_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = RunClock()
    before = clock()
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert clock() - before < 5
    assert clock.slept < run_clock.NOTICED


def test_the_systems_clock_goes_on() -> None:
    before = through_sleep()
    time.sleep(0.02)
    assert 0.015 < through_sleep() - before < 5


@pytest.mark.parametrize(
    ("has", "taken"), [(("CLOCK_BOOTTIME", "CLOCK_MONOTONIC_RAW"), 7), (("CLOCK_MONOTONIC_RAW",), 4), ((), None)]
)
def test_which_clock_is_taken(monkeypatch: pytest.MonkeyPatch, has: tuple[str, ...], taken: int | None) -> None:
    """Linux has both, and its CLOCK_MONOTONIC_RAW stops in sleep; macOS has the latter alone, which does not there."""
    asked = []
    for name, number in (("CLOCK_BOOTTIME", 7), ("CLOCK_MONOTONIC_RAW", 4)):
        monkeypatch.delattr(time, name, raising=False)
        if name in has:
            monkeypatch.setattr(time, name, number, raising=False)
    monkeypatch.setattr(time, "clock_gettime", lambda number: asked.append(number) or 1.0)  # type: ignore[func-returns-value]
    run_clock._find()()
    assert asked == ([] if taken is None else [taken])
