"""What a run changed about itself, replayed on the plan of a checkpoint."""

from __future__ import annotations

from gsm8k_core.adjust import Adjustment, planned
from gsm8k_core.pilot import PlanEvent

HALF = Adjustment("rate", 50, 0.5, "loss nan")


def test_a_change_comes_after_the_events_before_it() -> None:
    assert planned([PlanEvent(0, 100), PlanEvent(20, 80)], [HALF], done=50) == [
        PlanEvent(0, 100), PlanEvent(20, 80), PlanEvent(50, 80, 0.5),
    ]  # fmt: skip


def test_a_change_is_not_recorded_again() -> None:
    events = [PlanEvent(0, 100), PlanEvent(50, 100, 0.5)]
    assert planned(events, [HALF], done=75) == events


def test_an_older_checkpoint_takes_the_change_at_once() -> None:
    """Its own is damaged: a plan that went back in time could not be read again."""
    assert planned([PlanEvent(0, 100)], [HALF], done=25) == [PlanEvent(0, 100), PlanEvent(25, 100, 0.5)]
