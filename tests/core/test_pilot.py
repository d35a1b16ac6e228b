"""The rate of each update, and when a run ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gsm8k_core.config import TrainConfig
from gsm8k_core.pilot import RunPilot, rate_at
from gsm8k_core.types import StepEvent, UpdateStats


def stats(update: int) -> UpdateStats:
    return UpdateStats(update, 1.5, 10, 16, 2.0, 1e-3)


class Clock:
    def __init__(self, *times: float) -> None:
        self.times = list(times)

    def __call__(self) -> float:
        return self.times.pop(0) if len(self.times) > 1 else self.times[0]


class Saves:
    def __init__(self) -> None:
        self.folders: list[Path] = []

    def save(self, directory: Path) -> None:
        self.folders.append(directory)


def pilot(clock: Any, total: int = 10, interrupted: bool = False, **settings: Any) -> tuple[RunPilot, list[StepEvent]]:
    events: list[StepEvent] = []
    made = RunPilot(
        TrainConfig(**settings), total, emit=events.append, elapsed=clock, reserve=2.0,
        interrupted=lambda: interrupted, checkpoints=Path("out"),
    )  # fmt: skip
    return made, events


def test_the_rate_rises_to_the_peak_and_falls_in_a_line() -> None:
    config = TrainConfig(learning_rate=1e-2, warmup_ratio=0.2)
    rates = [rate_at(update, 10, config) for update in range(1, 11)]
    assert rates[:3] == pytest.approx([5e-3, 1e-2, 8 / 9 * 1e-2])
    assert rates[-1] == pytest.approx(1 / 9 * 1e-2)


def test_the_first_update_is_never_idle() -> None:
    assert rate_at(1, 1000, TrainConfig()) > 0
    assert rate_at(1, 10, TrainConfig(warmup_ratio=0.0)) == pytest.approx(TrainConfig().learning_rate)


def test_a_constant_schedule_stays() -> None:
    assert rate_at(10, 10, TrainConfig(schedule="constant")) == TrainConfig().learning_rate


def test_an_update_is_reported_with_its_seconds() -> None:
    made, events = pilot(Clock(5.0, 8.0))
    made.after(stats(1), Saves())
    assert events[0].name == "update"
    assert events[0].values["seconds"] == 3.0
    assert events[0].values["loss"] == 1.5


def test_the_run_ends_before_another_update_would_pass_the_budget() -> None:
    made, _ = pilot(Clock(0.0, 30.0, 30.0, 66.0, 66.0), max_time="100")
    assert made.after(stats(1), Saves()).stop is None  # 30 + 30 + 2 < 100
    assert made.after(stats(2), Saves()).stop == "budget"  # 66 + 36 + 2 > 100


def test_the_last_update_is_done_not_stopped() -> None:
    made, _ = pilot(Clock(0.0, 1000.0), total=1, max_time="10")
    assert made.after(stats(1), Saves()).stop is None


def test_a_signal_ends_the_run_after_the_update() -> None:
    made, _ = pilot(Clock(0.0, 1.0), interrupted=True)
    assert made.after(stats(1), Saves()).stop == "interrupted"


def test_save_steps_saves_on_the_way_but_not_at_the_end() -> None:
    made, _ = pilot(Clock(0.0), total=4, save_steps=2)
    saves = Saves()
    for update in range(1, 5):
        made.after(stats(update), saves)
    assert saves.folders == [Path("out/update-000002")]
