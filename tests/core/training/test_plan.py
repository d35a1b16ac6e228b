"""What a run changed about itself, replayed on the plan of a checkpoint."""

from __future__ import annotations

from gsm8k_core.training.plan import Adjustment, PlanEvent, planned

HALF = Adjustment("rate", 50, 0.5, "loss nan")


def test_a_change_comes_after_the_events_before_it() -> None:
    assert planned([PlanEvent(0, 100), PlanEvent(20, 80)], [HALF]) == [
        PlanEvent(0, 100),
        PlanEvent(20, 80),
        PlanEvent(50, 80, 0.5),
    ]


def test_a_change_is_not_recorded_again() -> None:
    events = [PlanEvent(0, 100), PlanEvent(50, 100, 0.5)]
    assert planned(events, [HALF]) == events
