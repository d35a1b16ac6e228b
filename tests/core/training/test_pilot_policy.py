"""The pilot over updates that sample what they train on: its budget, a recipe's reasons to end, a stream cut off."""

from __future__ import annotations

import pytest

from gsm8k_core.config.train import GRPO_WARMUP, TrainConfig
from gsm8k_core.training.measure import Guard
from gsm8k_core.training.pilot import STOP_BUDGET, STOP_INTERRUPTED
from gsm8k_core.training.plan import PlanEvent, planned_rate
from gsm8k_core.training.rollout_pace import RolloutPace
from tests.core.simulation import LIVE, Simulation, dev

BASE = Guard(base=dev())


def uneven(update: int) -> tuple[int, float]:
    """Each third update asks four times as many problems, at half a second each."""
    asked = 64 if update % 3 == 0 else 16
    return asked, asked / 2


def simulated(total: int, **settings: object) -> Simulation:
    """Updates of `uneven`, and 5 s of training each."""
    pace = RolloutPace(1, uneven)
    made: Simulation = Simulation(total, update=lambda n: uneven(n)[1] + 5, pace=pace, **settings)  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize("budget", [137, 300, 411, 1000])  # before the first dear update, the stream itself is late
def test_a_run_of_uneven_updates_ends_in_its_budget_with_guard_and_save(budget: int) -> None:
    made = simulated(400, max_time=str(budget), guard=BASE, evaluation=4.0, final=3.0, save=2.0).run()
    assert made.now <= budget
    assert made.orders[made.done] == STOP_BUDGET
    assert made.names("guard")[-1] == ("guard", made.done)
    assert list(made.checkpoints)[-1] == made.done
    dearest = uneven(3)[1] + 5
    assert budget - made.now <= dearest + 0.25 * 4 + 4 + 0.02 * budget + 5  # no more is left than one update needs


def test_the_plan_comes_near_what_was_done() -> None:
    made = simulated(400, max_time="3000").run()
    early = made.values("plan", "total")
    assert early  # it was changed
    assert abs(early[-1] - made.done) <= 0.1 * made.done


def test_a_recipes_own_reason_ends_the_run_measured_and_saved() -> None:
    made = Simulation(40, guard=BASE, evaluation=1.0, stops=lambda guard: "cut" if made.done >= 7 else None)
    made.run()
    assert (made.done, made.orders[7]) == (7, "cut")
    assert ("guard", 7) in made.names("guard")
    assert list(made.checkpoints) == [7]
    assert made.pilot.guard.end is not None
    assert made.pilot.total == 40  # its plan stays: it may go on


def test_a_reason_that_the_guard_gives_is_heard_at_once() -> None:
    made = Simulation(40, guard=BASE, evaluation=1.0, stops=lambda guard: "worse" if guard.quarter else None).run()
    assert (made.done, made.orders[10]) == (10, "worse")
    assert made.evaluated == [10]  # the measurement after a quarter is that of the end


def test_a_run_that_ended_so_trains_nothing_more_when_it_goes_on() -> None:
    assert Simulation(40, guard=BASE, stops=lambda guard: None).pilot.begin()
    assert not Simulation(40, guard=BASE, stops=lambda guard: "cut").pilot.begin()


def test_a_signal_comes_before_a_recipes_reason() -> None:
    made = Simulation(40, signal_at=5.0, stops=lambda guard: "cut" if made.done else None)
    made.run()
    assert made.orders[1] == "cut"
    other = Simulation(40, signal_at=1.0, stops=lambda guard: "cut" if other.done else None)
    other.run()
    assert other.orders[1] == STOP_INTERRUPTED


def cut_off(at: int, **settings: object) -> Simulation:
    """A run whose stream of updates ends after `at` of 40."""
    made: Simulation = Simulation(40, guard=BASE, evaluation=1.0, max_time="1000", **settings)  # type: ignore[arg-type]
    made.pilot._events = (PlanEvent(0, 40),)
    asked = made.pilot.after

    def after(stats: object, live: object) -> object:
        orders = asked(stats, live)  # type: ignore[arg-type]
        return orders if made.done < at else type(orders)("the stream")

    made.pilot.after = after  # type: ignore[assignment, method-assign]
    return made.run()


def test_where_no_update_has_time_the_run_is_measured_and_saved_as_it_is() -> None:
    made = cut_off(6)
    assert made.checkpoints == {}
    assert made.pilot.left_early(LIVE) == STOP_BUDGET
    assert list(made.checkpoints) == [6]
    assert made.names("guard") == [("guard", 6)]
    assert made.pilot.total == 6


def test_a_signal_in_a_rollout_saves_and_measures_nothing() -> None:
    made = cut_off(6, signal_at=6.0)
    assert made.pilot.left_early(LIVE) == STOP_INTERRUPTED
    assert list(made.checkpoints) == [6]
    assert made.names("guard") == []
    again = Simulation(past=made.checkpoints[6], offset=6.0, max_time="1000", signal_at=6.0)
    assert again.pilot.left_early(LIVE) == STOP_INTERRUPTED
    assert again.checkpoints == {}  # nothing is new


def test_an_update_has_to_end_before_all_that_must_follow_it() -> None:
    made = Simulation(40, guard=BASE, final=3.0, save=2.0, max_time="100")
    spare = 1.25 * BASE.seconds
    assert made.pilot.latest_end(5) == pytest.approx(100 - max(spare, BASE.seconds + 1) - 3 - 2)
    kept = made.pilot.kept_after(5)
    assert (list(kept), kept["saving"]) == (["the last measurement", "saving"], 5)
    assert made.pilot.latest_end(5) == 100 - sum(kept.values())
    assert made.pilot.latest_end(40) == made.pilot.latest_end(5) + 2  # behind the last one there is no checkpoint


def test_the_rate_rises_over_ten_updates_and_stays_however_many_there_will_be() -> None:
    config = TrainConfig(recipe="grpo", schedule="constant", learning_rate=1e-6)
    plans = [(PlanEvent(0, 300),), (PlanEvent(0, 300), PlanEvent(4, 12)), (PlanEvent(0, 12), PlanEvent(7, 300))]
    for events in plans:
        rates = [planned_rate(update, events, config) for update in range(1, 13)]
        assert rates == pytest.approx([1e-6 * min(update / GRPO_WARMUP, 1) for update in range(1, 13)])
