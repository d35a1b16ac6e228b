"""Training to a budget, and the guard in it. The clock moves only when work is done."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gsm8k_core.config.train import TrainConfig
from gsm8k_core.training.measure import DevResult, Guard
from gsm8k_core.training.plan import PlanEvent, rate_at
from tests.core.simulation import Simulation, dev


@pytest.mark.parametrize("seed", range(60))
def test_the_budget_is_never_passed_by_more_than_an_update(seed: int) -> None:
    rng = np.random.default_rng([2026, seed])
    low = float(rng.uniform(0.5, 5))
    seconds = rng.uniform(low, low * rng.choice([1.0, 1.2, 3.0]), size=400)
    save, final, keep = (float(rng.choice([0.0, 1.0, 10.0, 40.0])) for _ in range(3))
    keep = min(keep, final)  # a best model is saved as the final one is
    budget = round(float(rng.uniform(save + final + keep + low, 600)), 3)
    made = Simulation(
        int(rng.integers(1, 400)),
        update=lambda n: float(seconds[n - 1]),
        save=save,
        keep=keep,
        final=final,
        evaluation=float(rng.choice([0.0, 2.0, 30.0, 400.0])),
        token=float(rng.uniform(0.1, low)),
        results=lambda n: dev(min(n, 10), 1 / n),
        eval_steps=int(rng.integers(0, 8)),
        save_steps=int(rng.integers(0, 8)),
        max_time=str(budget),
    ).run()
    assert made.now <= budget + seconds[: made.done].max() + 1e-9
    reason = made.orders[made.done]
    assert (reason is None) == (made.done == made.pilot.asked)
    assert reason is None or made.done in made.checkpoints
    assert len(made.names("plan")) <= 16  # of up to 400 updates, whose time varies threefold in a third of the cases


@pytest.mark.parametrize("seed", range(30))
def test_the_budget_is_used_and_the_rate_has_fallen_when_it_ends(seed: int) -> None:
    rng = np.random.default_rng([7, seed])
    low = float(rng.uniform(0.5, 5))
    seconds = rng.uniform(low, 1.3 * low, size=2000)
    made = Simulation(
        2000,
        update=lambda n: float(seconds[n - 1]),
        save=3.0,
        final=2.0,
        warmup_ratio=0.0,
        max_time=f"{rng.uniform(20 * low + 9, 400):.3f}",
    ).run()
    assert made.orders[made.done] == "budget"
    unused = made.pilot._config.budget_seconds - made.now
    assert unused < 2 * 1.3 * low
    peak = TrainConfig().learning_rate
    assert made.values("update", "rate")[-1] < 0.1 * peak
    asked = Simulation(2000, warmup_ratio=0.0).pilot.rate(made.done)
    assert asked > 0.6 * peak  # the control: on the asked plan it would not have


def test_an_ample_budget_changes_nothing() -> None:
    made = Simulation(20, update=lambda n: 4.0, final=2.0, save=1.0, max_time="94.4").run()  # 82 s, and 15 % to spare
    assert made.names("plan") == []
    assert made.pilot.events == (PlanEvent(0, 20),)
    assert made.values("update", "rate") == [rate_at(n, 20, TrainConfig()) for n in range(1, 21)]


def test_what_all_of_it_would_take_is_said_once() -> None:
    made = Simulation(40, update=lambda n: 30.0 if n == 1 else 4.0, final=2.0, save=1.0, max_time="100").run()
    (said,) = [event.values for event in made.events if event.name == "estimate"]
    assert (said["asked"], said["update"]) == (40, 1)  # at once: with 30 s an update, few would fit
    slow = Simulation(40, update=lambda n: 4.0, final=2.0, max_time="1000").run()
    (said,) = [event.values for event in slow.events if event.name == "estimate"]
    assert (said["update"], said["seconds"], said["total"]) == (3, 162.0, 40)


def test_what_is_kept_for_the_last_answers_is_not_said_to_be_work() -> None:
    made = Simulation(40, update=lambda n: 4.0, final=2.0, guard=Guard(base=dev()), max_time="20h").run()
    (said,) = [event.values for event in made.events if event.name == "estimate"]
    assert said["enough"]
    assert said["seconds"] == pytest.approx(made.now, abs=5)  # a hundredth of 20 hours is 12 minutes


def test_a_slow_first_update_costs_no_updates_in_the_end() -> None:
    made = Simulation(90, update=lambda n: 20.0 if n == 1 else 1.0, max_time="100").run()
    assert made.done == 80
    assert made.pilot.events[-1].total == 80
    assert made.values("update", "rate")[-1] == rate_at(80, 80, TrainConfig())


def test_a_machine_that_slows_down_gets_a_smaller_plan_and_each_change_is_an_event() -> None:
    made = Simulation(200, update=lambda n: 1.0 if n <= 40 else 1.6, max_time="150").run()
    totals = made.values("plan", "total")
    assert made.done == totals[-1] == 40 + (150 - 40) // 1.6
    assert totals[0] > 140
    assert [event.as_json() for event in made.pilot.events[1:]] == [
        {"update": event.values["update"], "total": event.values["total"], "rate_factor": 1.0}
        for event in made.events
        if event.name == "plan"
    ]
    assert len(totals) < 20


def test_a_machine_that_gets_faster_trains_more_and_never_more_than_asked() -> None:
    made = Simulation(100, update=lambda n: 2.0 if n <= 20 else 0.5, max_time="120").run()
    assert made.values("plan", "total")[0] < 65
    assert (made.done, made.pilot.total, made.orders[100]) == (100, 100, None)


def test_small_noise_changes_no_plan() -> None:
    rng = np.random.default_rng(3)
    noise = rng.normal(1.0, 0.03, size=1000)
    made = Simulation(1000, update=lambda n: float(noise[n - 1]), max_time="300").run()
    on_the_way = [event for event in made.events if event.name == "plan" and event.values["update"] <= 250]  # type: ignore[operator]
    assert len(on_the_way) <= 3
    assert made.now > 297


def test_rates_are_those_of_the_events() -> None:
    made = Simulation(100, update=lambda n: 3.0 if n == 4 else 1.0, max_time="30").run()
    events = made.pilot.events
    assert len(events) > 1
    for n, rate in enumerate(made.values("update", "rate"), 1):
        total = [event.total for event in events if event.update < n][-1]
        assert rate == rate_at(n, total, TrainConfig())
    factors = Simulation(plan=(PlanEvent(0, 10), PlanEvent(4, 10, 0.5))).run().values("update", "rate")
    assert factors == [rate_at(n, 10, TrainConfig()) * (1.0 if n <= 4 else 0.5) for n in range(1, 11)]


def test_a_change_of_the_plan_keeps_the_rate_factor() -> None:
    made = Simulation(plan=(PlanEvent(0, 50), PlanEvent(0, 50, 0.5)), max_time="20").run()
    assert made.pilot.total < 50
    assert {event.rate_factor for event in made.pilot.events[1:]} == {0.5}


def test_a_plan_that_is_changed_before_a_change_of_the_rate_stays_in_order() -> None:
    """The rate was halved from update 40 on, and the run goes on from an older checkpoint."""
    made = Simulation(plan=(PlanEvent(0, 50), PlanEvent(40, 50, 0.5)), max_time="46").run()
    events = made.pilot.events
    numbers = [event.update for event in events]
    assert numbers == sorted(numbers)
    assert numbers[1] < 40
    assert [event.rate_factor for event in events if event.update >= 40] == [0.5] * sum(n >= 40 for n in numbers)
    assert {event.rate_factor for event in events if event.update < 40} == {1.0}
    assert made.pilot.total == events[-1].total < 50


def test_an_older_event_has_no_factor() -> None:
    assert PlanEvent.from_json({"update": 3, "total": 9}) == PlanEvent(3, 9, 1.0)


@pytest.mark.parametrize("seed", range(20))
def test_the_time_to_go_is_right_within_a_tenth_from_a_quarter_on(seed: int) -> None:
    """Rows differ in length, so updates do; the end holds an evaluation, a checkpoint and the model."""
    rng = np.random.default_rng([11, seed])
    tokens = [int(n) for n in rng.uniform(500, 2000, size=400)]
    noise = rng.normal(1.0, 0.05, size=400)
    base = DevResult(1.0, 10, {"strict": 0, "flexible": 3, "robust": 0}, 10, 5, 6.0, (True,) * 3 + (False,) * 7)
    made = Simulation(
        400,
        update=lambda n: tokens[n - 1] / 500 * float(noise[n - 1]) + (8.0 if n == 1 else 0.0),
        tokens=tokens,
        save=4.0,
        save_steps=20,
        final=3.0,
        evaluation=6.0,
        guard=Guard(base=base),
        results=lambda n: base,
        max_time=str(int(rng.integers(200, 2000))),
    ).run()
    late = [event.values for event in made.events if event.name == "update"]
    late = [values for values in late if made.now / 4 <= values["elapsed"] <= made.now * 3 / 4]  # type: ignore[operator]
    assert len(late) > 20
    for values in late:
        to_go = made.now - values["elapsed"]  # type: ignore[operator]
        assert abs(values["eta"] - to_go) < 0.1 * to_go


def test_sleep_is_reported_and_does_not_count_as_the_pace() -> None:
    made = Simulation(200, sleep=lambda n: 60.0 if n == 10 else 0.0, max_time="160").run()
    (slept,) = [event.values for event in made.events if event.name == "slept"]
    assert slept == {"update": 10, "seconds": 60.0, "left": 90.0}
    assert made.now <= 160
    assert 98 <= made.done <= 100  # the budget counts the sleep, and the estimate does not
    assert Simulation(20, sleep=lambda n: 0.2).run().names("slept") == []


def test_a_run_that_ended_by_its_plan_goes_on_with_more_time() -> None:
    stopped = Simulation(100, max_time="30", final=1.0).run()
    at = stopped.done
    past = stopped.checkpoints[at]
    past["events"].append(PlanEvent(at, 100).as_json())  # as the job does
    resumed = Simulation(past=past, offset=stopped.now, max_time="200").run()
    assert (resumed.done, resumed.orders[100]) == (100, None)
    assert resumed.values("update", "rate") == [rate_at(n, 100, TrainConfig()) for n in range(at + 1, 101)]


# --- the guard -----------------------------------------------------------------------------------------------------

BASE = DevResult(1.0, 10, {"strict": 0, "flexible": 2, "robust": 0}, 10, 5, 6.0, (True,) * 2 + (False,) * 8)
AFTER = DevResult(0.5, 10, {"strict": 0, "flexible": 9, "robust": 0}, 10, 5, 6.0, (True,) * 9 + (False,))


def test_the_guard_measures_after_a_quarter_and_at_the_end() -> None:
    made = Simulation(20, evaluation=2.0, guard=Guard(base=BASE), results=lambda n: AFTER).run()
    assert made.names("guard") == [("guard", 5), ("guard", 20)]
    assert made.values("guard", "when") == ["quarter", "end"]
    assert (made.values("guard", "correct"), made.values("guard", "base_correct")) == ([9, 9], [2, 2])
    assert made.names("dev", "best") == []  # without --eval-steps nothing else changes
    assert made.pilot.guard.outcome()["verdict"] == "better"


def test_without_a_base_nothing_is_measured() -> None:
    assert Simulation(20, evaluation=2.0).run().evaluated == []


def test_a_run_that_the_budget_ends_is_measured_all_the_same() -> None:
    made = Simulation(500, evaluation=6.0, guard=Guard(base=BASE), results=lambda n: AFTER, max_time="60").run()
    assert made.values("guard", "when") == ["quarter", "end"]
    assert made.names("guard")[-1] == ("guard", made.done)
    assert 57 < made.now <= 60
    sudden = Simulation(
        500,
        update=lambda n: 1.0 if n < 20 else 9.0,
        evaluation=6.0,
        guard=Guard(base=BASE),
        results=lambda n: AFTER,
        max_time="60",
    ).run()
    assert sudden.values("guard", "when")[-1] == "end"
    assert sudden.now <= 60 + 9


def test_an_evaluation_serves_the_guard_as_well() -> None:
    more = DevResult(0.5, 20, {"strict": 0, "flexible": 9, "robust": 0}, 20, 5, 6.0, (True,) * 9 + (False,) * 11)
    made = Simulation(20, eval_steps=5, guard=Guard(base=BASE), results=lambda n: more).run()
    assert made.evaluated == [5, 10, 15, 20]
    assert made.names("guard") == [("guard", 5), ("guard", 20)]
    assert made.values("guard", "problems") == [10, 10]


def test_a_quarter_without_time_is_passed_over_once() -> None:
    made = Simulation(20, evaluation=70.0, guard=Guard(base=BASE), results=lambda n: AFTER, max_time="130").run()
    assert made.names("guard_skipped") == [("guard_skipped", 5), ("guard_skipped", 20)]


def test_the_guard_survives_a_resume() -> None:
    settings: dict[str, Any] = {"evaluation": 2.0, "results": lambda n: AFTER}
    stopped = Simulation(20, guard=Guard(base=BASE), signal_at=12.0, **settings).run()
    assert stopped.names("guard") == [("guard", 5)]
    resumed = Simulation(past=stopped.checkpoints[stopped.done], **settings).run()
    assert resumed.names("guard") == [("guard", 20)]
    assert resumed.pilot.guard.quarter == (5, AFTER)
    whole = Simulation(20, guard=Guard(base=BASE), **settings).run()
    assert resumed.pilot.guard.outcome() == whole.pilot.guard.outcome()


def test_a_signal_ends_the_run_without_the_last_measurement() -> None:
    made = Simulation(20, evaluation=2.0, guard=Guard(base=BASE), results=lambda n: AFTER, signal_at=9.0).run()
    assert made.values("guard", "when") == ["quarter"]
    assert made.pilot.guard.outcome()["verdict"] == "not measured"


def test_a_budget_that_ends_sooner_than_planned_is_the_end_of_the_plan() -> None:
    made = Simulation(500, update=lambda n: 1.0 if n < 49 else 8.0, max_time="60").run()
    at = made.done
    assert made.orders[at] == "budget"
    assert made.pilot.events[-1] == PlanEvent(at, at)
    assert made.checkpoints[at]["events"][-1] == {"update": at, "total": at, "rate_factor": 1.0}


def test_the_time_to_go_is_never_more_than_the_budget_holds() -> None:
    made = Simulation(1000, max_time="60").run()
    assert all(
        values["eta"] <= 60 - values["elapsed"]  # type: ignore[operator]
        for values in (event.values for event in made.events if event.name == "update")
    )


# --- a slow machine ------------------------------------------------------------------------------------------------

LOADING, SLOW = 113.0, (85.0, 93.0)


@pytest.mark.parametrize("budget", [60, 90, 115, 150, 200, 230, 260, 300, 420, 600, 1500])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("first", [1.0, 0.8])  # a rehearsal is a little quicker than the update
def test_a_slow_machine_passes_no_budget_by_more_than_an_update(budget: int, seed: int, first: float) -> None:
    """Loading takes 113 s, an update 85 to 93 s, a probe 68 s, an evaluation of the guard's problems 40 s."""
    rng = np.random.default_rng([14, seed])
    seconds = rng.uniform(*SLOW, size=40)
    base = DevResult(1.0, 10, {"strict": 0, "flexible": 2, "robust": 0}, 10, 5, 40.0, (True,) * 2 + (False,) * 8)
    made = Simulation(
        40,
        update=lambda n: float(seconds[n - 1]),
        rehearsed=first * SLOW[0],
        offset=LOADING,
        probe=68.0,
        probe_steps=1,
        evaluation=40.0,
        guard=Guard(base=base),
        results=lambda n: base,
        save=8.0,
        final=6.0,
        max_time=str(budget),
    ).run()
    assert made.now <= max(LOADING, budget) + seconds.max() - first * SLOW[0] + 0.5
    assert made.begun == (made.done > 0)
    if made.begun:
        assert made.done in made.checkpoints or made.done == 40
    else:
        assert made.now == LOADING
        assert made.checkpoints == {}
    assert made.begun == (budget >= LOADING + first * SLOW[0] + 40 * 1.25 + 8 + 6)


def test_control_without_a_rehearsal_a_first_update_is_begun_whatever_it_takes() -> None:
    made = Simulation(40, update=lambda n: 90.0, offset=LOADING, max_time="150").run()
    assert (made.begun, made.now > 150 + 50) == (True, True)


@pytest.mark.parametrize("rehearsed", [0.0, 0.7, 1.0, 3.0, 20.0])
def test_the_warm_up_is_of_the_plan_that_is_trained(rehearsed: float) -> None:
    """Far more was asked for than fits: the rate still rises to its peak in steps, and not in a jump."""
    made = Simulation(100_000, rehearsed=rehearsed, save=1.0, final=1.0, max_time="120", warmup_ratio=0.05).run()
    rates, peak = made.values("update", "rate"), TrainConfig().learning_rate
    assert made.done > 100
    steps = [(new - old) / peak for old, new in zip([0.0, *rates], rates, strict=False)]
    smallest = min(event.total for event in made.pilot.events)
    assert max(steps) <= 1 / np.ceil(0.05 * smallest) + 1e-12
    assert 0.9 * peak < max(rates) <= peak
    if 0.7 <= rehearsed <= 3:  # the plan is of the right size from the first update on
        assert made.pilot.events[1].update == 0
        assert rates[0] > 0.05 * peak
    assert rates[-1] < 0.1 * peak


def test_a_rehearsal_that_was_too_slow_costs_no_updates() -> None:
    made = Simulation(50, rehearsed=30.0, max_time="70").run()
    assert (made.done, made.orders[50]) == (50, None)


def test_a_rehearsal_changes_no_plan_that_may_fit() -> None:
    made = Simulation(50, rehearsed=1.9, max_time="60").run()
    assert made.pilot.events == (PlanEvent(0, 50),)
    assert made.values("update", "rate") == [rate_at(n, 50, TrainConfig()) for n in range(1, 51)]


def test_a_changed_warm_up_is_replayed() -> None:
    settings: dict[str, Any] = {"rehearsed": 1.0, "warmup_ratio": 0.2, "max_time": "60"}
    whole = Simulation(10_000, **settings).run()
    assert len(whole.pilot.events) > 1
    stopped = Simulation(10_000, signal_at=7.5, **settings).run()
    resumed = Simulation(past=stopped.checkpoints[stopped.done], offset=stopped.now, **settings)
    same = [event for event in resumed.pilot.events if event.update < stopped.done]
    assert [resumed.pilot.rate(n) for n in range(1, stopped.done + 1)] == stopped.values("update", "rate")
    assert same == [event for event in whole.pilot.events if event.update < stopped.done]


def test_the_time_to_go_has_the_models_save_when_the_budget_is_passed() -> None:
    made = Simulation(10, update=lambda n: 1.0 if n < 6 else 30.0, final=7.0, max_time="25").run()
    assert made.now > 25
    last = [event.values for event in made.events if event.name == "update"][-1]
    assert last["eta"] >= 7.0


def test_the_guards_own_cut_is_measured_beside_an_evaluation() -> None:
    """Answers of an evaluation are longer than those of the base were: they are not compared with them."""
    guard = Guard(base=BASE, max_new_tokens=50)
    made = Simulation(20, eval_steps=5, evaluation=1.0, guard=guard, results=lambda n: AFTER).run()
    assert made.evaluated == [5, 5, 10, 15, 20, 20]
    assert made.names("guard") == [("guard", 5), ("guard", 20)]
    assert made.names("dev") == [("dev", 5), ("dev", 10), ("dev", 15), ("dev", 20)]
    assert made.values("guard", "max_new_tokens") == [50, 50]
