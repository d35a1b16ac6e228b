"""The rate of each update, and when a run evaluates, saves and ends. The clock moves only when work is done."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gsm8k_core.config import TrainConfig
from gsm8k_core.dev import DevResult
from gsm8k_core.guard import Guard
from gsm8k_core.pilot import PlanEvent, RunPilot, rate_at
from gsm8k_core.types import StepEvent, UpdateStats

LIVE = object()
TIMES = ("seconds", "elapsed", "eta")


def dev(correct: int = 1, loss: float = 1.0) -> DevResult:
    return DevResult(loss, 100, {"strict": 0, "flexible": correct, "robust": 0}, 10, 5, 0.25)


class Simulation:
    """A run whose work takes the seconds that it is told; as a backend, it does what the pilot orders."""

    def __init__(
        self,
        total: int = 10,
        *,
        update: Callable[[int], float] = lambda number: 1.0,
        save: float = 0.0,
        keep: float = 0.0,
        evaluation: float = 0.0,
        token: float = 0.5,  # the deadline is asked once in so many seconds
        final: float = 0.0,
        save_reserve: float | None = None,  # what the pilot is told; the truth if nothing else
        results: Callable[[int], DevResult] = lambda number: dev(),
        signal_at: float = float("inf"),
        past: dict[str, Any] | None = None,
        plan: tuple[PlanEvent, ...] | None = None,
        offset: float = 0.0,
        tokens: Sequence[int] = (),
        guard: Guard | None = None,
        sleep: Callable[[int], float] = lambda number: 0.0,  # how long the machine sleeps in that update
        **settings: Any,
    ) -> None:
        self.now, self.signal_at = offset, signal_at
        self.events: list[StepEvent] = []
        self.checkpoints: dict[int, dict[str, Any]] = {}
        self.kept: list[int] = []
        self.evaluated: list[int] = []
        self.orders: dict[int, str | None] = {}
        self.update_seconds, self.save_seconds, self.keep_seconds = update, save, keep
        self.evaluation, self.token, self.final, self.results = evaluation, token, final, results
        self.sleep, self.slept = sleep, 0.0
        past = past or {"events": [PlanEvent(0, total).as_json()], "losses": [], "best": None}
        self.pilot: RunPilot[object] = RunPilot(
            TrainConfig(**{"save_steps": 0, **settings}),
            plan or [PlanEvent.from_json(event) for event in past["events"]],
            emit=self.events.append, elapsed=lambda: self.now, interrupted=lambda: self.now >= self.signal_at,
            save=self._save, keep_best=self._keep, evaluate=self._evaluate, reserve=final,
            save_reserve=save if save_reserve is None else save_reserve, losses=past["losses"], best=past["best"],
            tokens=tokens, guard=guard or Guard.from_json(past.get("guard", Guard().as_json())), answer=self._evaluate,
            slept=lambda: self.slept,
        )  # fmt: skip
        self.done = len(past["losses"])

    def _save(self, update: int, live: object) -> Path:
        assert live is LIVE
        assert update not in self.checkpoints
        self.now += self.save_seconds
        self.checkpoints[update] = json.loads(json.dumps(self.pilot.as_json(), allow_nan=False))
        return Path(f"checkpoints/{update}")

    def _keep(self, update: int, live: object) -> Path:
        self.now += self.keep_seconds
        self.kept.append(update)
        return Path("best")

    def _evaluate(self, live: object, deadline: Callable[[], bool]) -> DevResult | None:
        self.evaluated.append(self.done)
        left = self.evaluation
        while left > 0:
            if deadline():
                return None
            self.now += min(self.token, left)
            left -= self.token
        return self.results(self.done)

    def run(self) -> Simulation:
        for number in range(self.done + 1, self.pilot.asked + 1):
            self.now += self.update_seconds(number) + self.sleep(number)
            self.slept += self.sleep(number)
            self.done = number
            stats = UpdateStats(number, 1 / number, 10, 16, 2.0, self.pilot.rate(number))
            self.orders[number] = self.pilot.after(stats, LIVE).stop
            if self.orders[number]:
                break
        self.now += self.final
        return self

    def names(self, *names: str) -> list[tuple[str, object]]:
        return [(event.name, event.values["update"]) for event in self.events if event.name in names]

    def values(self, name: str, key: str) -> list[Any]:
        return [event.values[key] for event in self.events if event.name == name]

    def without_times(self, after: int) -> list[tuple[str, dict[str, object]]]:
        """The events of later updates; how long all would take is said anew in each process."""
        return [
            (event.name, {key: value for key, value in event.values.items() if key not in TIMES})
            for event in self.events
            if event.values["update"] > after and event.name != "estimate"  # type: ignore[operator]
        ]


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


def test_a_plan_with_a_change_in_the_middle_is_replayed() -> None:
    plan = (PlanEvent(0, 20), PlanEvent(6, 10))
    whole = Simulation(plan=plan, max_time="10.5").run()
    expected = [rate_at(n, 20 if n <= 6 else 10, TrainConfig()) for n in range(1, 11)]
    assert whole.values("update", "rate") == expected
    assert whole.values("update", "total") == [10] * 10
    stopped = Simulation(plan=plan, signal_at=8.0, max_time="10.5").run()
    resumed = Simulation(past=stopped.checkpoints[8], offset=8.0, max_time="10.5").run()
    assert [resumed.pilot.rate(n) for n in range(1, 11)] == expected
    assert resumed.values("update", "rate") == expected[8:]


def test_control_the_plan_makes_a_difference() -> None:
    assert Simulation(10).pilot.rate(6) != Simulation(plan=(PlanEvent(0, 20), PlanEvent(6, 10))).pilot.rate(6)


@pytest.mark.parametrize("plan", [(PlanEvent(1, 5),), (PlanEvent(0, 9), PlanEvent(4, 8), PlanEvent(2, 7))], ids=str)
def test_a_plan_begins_at_the_start_and_goes_forward(plan: Any) -> None:
    with pytest.raises(ValueError, match="a plan begins at update 0"):
        Simulation(plan=plan)


def test_an_update_is_reported_with_its_own_seconds() -> None:
    made = Simulation(6, update=lambda n: float(n), save=7.0, save_steps=2, evaluation=5.0, eval_steps=3, keep=3.0)
    made.run()
    assert made.values("update", "seconds") == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert made.values("save", "seconds") == [7.0, 7.0]
    assert made.values("update", "elapsed") == [1.0, 3.0, 13.0, 25.0, 37.0, 43.0]
    assert made.values("update", "loss") == made.pilot.losses


def test_the_time_to_go_holds_what_is_still_to_be_saved_and_evaluated() -> None:
    made = Simulation(
        10, save=7.0, save_steps=4, evaluation=5.0, eval_steps=3, results=lambda n: dev(9 - n), final=3.0
    ).run()
    etas = made.values("update", "eta")
    assert etas[0] == 9 + 2 * 7.0 + 3.0  # no evaluation was measured yet; the final model takes 3
    assert etas[3] == 6 + 2 * 7.0 + 3 * 5.0 + 3.0  # saves at 4 and 8, evaluations at 6, 9 and 10
    assert etas[8] == 1 + 2 * 5.0 + 3.0  # its own, and the last
    assert made.now == made.values("update", "elapsed")[-1] + 5.0 + 3.0


def test_save_steps_saves_on_the_way_but_not_at_the_end() -> None:
    made = Simulation(6, save_steps=2).run()
    assert made.names("save") == [("save", 2), ("save", 4)]
    assert made.values("save", "folder") == ["checkpoints/2", "checkpoints/4"]


@pytest.mark.parametrize("steps", [0, 2, 3])
def test_a_signal_ends_the_run_after_the_update_with_one_checkpoint_of_it(steps: int) -> None:
    made = Simulation(10, signal_at=4.0, save_steps=steps).run()
    assert made.orders[4] == "interrupted"
    assert max(made.orders) == max(made.checkpoints) == 4


def test_the_last_update_is_done_not_stopped() -> None:
    made = Simulation(1, update=lambda n: 1000.0, max_time="10", signal_at=0.0).run()
    assert made.orders == {1: None}
    assert made.checkpoints == {}


def test_the_run_ends_before_another_update_would_pass_the_budget() -> None:
    made = Simulation(9, update=lambda n: 30.0 + n, max_time="100", final=2.0).run()
    assert made.orders == {1: None, 2: None, 3: "budget"}  # 63 + 32 + 2 <= 100, 96 + 33 + 2 > 100
    assert made.now == 98.0


def test_time_is_left_for_the_checkpoint_of_the_stop_and_for_the_model() -> None:
    assert max(Simulation(9, update=lambda n: 20.0, max_time="101").run().orders) == 5
    assert max(Simulation(9, update=lambda n: 20.0, max_time="101", final=15.0).run().orders) == 4
    stopped = Simulation(9, update=lambda n: 20.0, max_time="101", final=15.0, save=15.0).run()
    assert (max(stopped.orders), stopped.now) == (3, 90.0)
    assert Simulation(4, update=lambda n: 20.0, max_time="100", final=15.0, save=15.0).run().orders[4] is None


def test_the_final_model_is_thought_to_take_as_long_as_the_best_one_did() -> None:
    made = Simulation(99, eval_steps=5, keep=30.0, final=0.0, max_time="100").run()
    assert made.kept == [5]
    assert made.orders[made.done] == "budget"
    assert made.now + 30.0 <= 100


def test_earlier_processes_count() -> None:
    assert max(Simulation(9, update=lambda n: 20.0, max_time="101", offset=40.0).run().orders) == 3


@pytest.mark.parametrize("seed", range(60))
def test_the_budget_is_never_passed_by_more_than_an_update(seed: int) -> None:
    rng = np.random.default_rng([2026, seed])
    low = float(rng.uniform(0.5, 5))
    seconds = rng.uniform(low, low * rng.choice([1.0, 1.2, 3.0]), size=400)
    save, final, keep = (float(rng.choice([0.0, 1.0, 10.0, 40.0])) for _ in range(3))
    keep = min(keep, final)  # a best model is saved as the final one is
    budget = round(float(rng.uniform(save + final + keep + low, 600)), 3)
    made = Simulation(
        int(rng.integers(1, 400)), update=lambda n: float(seconds[n - 1]), save=save, keep=keep, final=final,
        evaluation=float(rng.choice([0.0, 2.0, 30.0, 400.0])), token=float(rng.uniform(0.1, low)),
        results=lambda n: dev(min(n, 10), 1 / n), eval_steps=int(rng.integers(0, 8)),
        save_steps=int(rng.integers(0, 8)), max_time=str(budget),
    ).run()  # fmt: skip
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
        2000, update=lambda n: float(seconds[n - 1]), save=3.0, final=2.0, warmup_ratio=0.0,
        max_time=f"{rng.uniform(20 * low + 9, 400):.3f}",
    ).run()  # fmt: skip
    assert made.orders[made.done] == "budget"
    unused = made.pilot._config.budget_seconds - made.now
    assert unused < 2 * 1.3 * low
    peak = TrainConfig().learning_rate
    assert made.values("update", "rate")[-1] < 0.1 * peak
    asked = Simulation(2000, warmup_ratio=0.0).pilot.rate(made.done)
    assert asked > 0.6 * peak  # the control: on the asked plan it would not have


def test_control_a_checkpoint_that_nobody_expected_passes_the_budget() -> None:
    assert Simulation(99, save=40.0, max_time="60").run().now <= 61
    assert Simulation(99, save=40.0, max_time="60", save_reserve=0.0).run().now > 61
    # The second time it is known.
    assert Simulation(99, save=20.0, max_time="60", save_reserve=0.0, save_steps=5).run().now <= 61


def test_evaluations_come_when_they_are_due_and_after_the_last_update() -> None:
    made = Simulation(8, eval_steps=3).run()
    assert made.names("dev") == [("dev", 3), ("dev", 6), ("dev", 8)]
    assert made.values("dev", "accuracy") == [0.1] * 3
    assert Simulation(6, eval_steps=3).run().evaluated == [3, 6]
    assert Simulation(6, eval_steps=0).run().evaluated == []


def test_an_evaluation_without_time_is_skipped_and_not_tried_again() -> None:
    made = Simulation(40, evaluation=70.0, eval_steps=10, max_time="100").run()
    # At 10 it may take (100 - 10 - 1) / 2 s. At 20 and 30 that is less, and so is all that is left after the last one.
    assert made.evaluated == [10]
    assert made.values("dev_skipped", "update") == [10, 20, 30, 40]
    assert set(made.values("dev_skipped", "reason")) == {"budget"}
    assert made.orders[40] is None
    assert made.now == pytest.approx(40 + 44.5)


def test_the_last_evaluation_is_tried_again_when_it_has_more_time() -> None:
    made = Simulation(4, evaluation=60.0, eval_steps=2, max_time="120").run()
    assert made.evaluated == [2]  # (120 - 2 - 1) / 2 s were not enough, and they are gone
    # A first checkpoint was thought to take 40 s; it took 1 s, so there is more time than there was.
    made = Simulation(9, evaluation=30.2, eval_steps=3, max_time="104", save=1.0, save_reserve=40.0, save_steps=4).run()
    assert made.names("dev", "dev_skipped") == [("dev_skipped", 3), ("dev", 6), ("dev", 9)]
    assert made.values("update", "eta")[6] == pytest.approx(2 + 1.0 + 30.2)


def test_the_last_evaluation_has_all_that_is_left() -> None:
    assert Simulation(4, evaluation=60.0, eval_steps=9, max_time="100").run().names("dev") == [("dev", 4)]
    assert Simulation(9, evaluation=60.0, eval_steps=4, max_time="100").run().values("dev_skipped", "update") == [
        4,
        8,
        9,
    ]


def test_an_evaluation_leaves_time_to_keep_a_new_best() -> None:
    made = Simulation(1, evaluation=80.0, eval_steps=1, keep=12.0, final=12.0, max_time="100").run()
    assert made.names("dev", "dev_skipped") == [("dev_skipped", 1)]
    assert Simulation(1, evaluation=70.0, eval_steps=1, keep=12.0, final=12.0, max_time="100").run().now == 95.0


def test_the_plan_leaves_time_for_the_evaluations() -> None:
    made = Simulation(62, evaluation=25.0, eval_steps=20, max_time="120").run()  # all of it would take 162 s
    assert (made.evaluated, made.names("dev_skipped")) == ([20, 40, 44], [])
    assert (made.orders[44], made.now) == ("budget", 119.0)


def test_a_signal_ends_an_evaluation() -> None:
    made = Simulation(10, evaluation=50.0, eval_steps=2, signal_at=4.0, max_time="2h").run()
    assert made.values("dev_skipped", "reason") == ["interrupted"]
    assert made.now == pytest.approx(4.0)
    assert made.orders == {1: None, 2: "interrupted"}
    assert list(made.checkpoints) == [2]
    already = Simulation(10, evaluation=50.0, eval_steps=2, signal_at=2.0, max_time="2h").run()
    assert already.evaluated == []


def test_the_best_is_kept_and_of_equals_the_one_with_the_lower_loss() -> None:
    found = {1: dev(2, 1.0), 2: dev(1, 0.1), 3: dev(2, 1.0), 4: dev(2, 0.9), 5: dev(2, 0.95), 6: dev(3, 5.0)}
    made = Simulation(6, eval_steps=1, results=found.__getitem__).run()
    assert made.kept == [1, 4, 6]
    assert made.names("best") == [("best", 1), ("best", 4), ("best", 6)]
    assert (made.values("best", "accuracy"), made.values("best", "folder")) == ([0.2, 0.2, 0.3], ["best"] * 3)
    assert made.pilot.best == (6, found[6])


def test_the_best_survives_a_resume() -> None:
    found = {2: dev(5, 1.0), 4: dev(4, 0.5), 6: dev(5, 1.0), 8: dev(5, 0.9), 10: dev(5, 0.9)}
    stopped = Simulation(eval_steps=2, results=found.__getitem__, signal_at=5.0).run()
    assert stopped.pilot.best == (2, found[2])
    resumed = Simulation(past=stopped.checkpoints[5], eval_steps=2, results=found.__getitem__)
    assert resumed.pilot.best == (2, found[2])
    assert resumed.run().kept == [8]


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_resumed_run_is_the_same_run(cut: int) -> None:
    settings: dict[str, Any] = {
        "save": 2.0, "save_steps": 4, "evaluation": 3.0, "eval_steps": 3, "keep": 1.0, "final": 1.0,
        "results": lambda n: dev(n * 7 % 5, 1 / n),
    }  # fmt: skip
    whole = Simulation(20, **settings).run()
    probe = next(event for event in whole.events if event.name == "update" and event.values["update"] == cut)
    stopped = Simulation(20, signal_at=float(probe.values["elapsed"]) - 0.5, **settings).run()  # type: ignore[arg-type]
    at = stopped.done
    assert at == max(stopped.checkpoints)
    resumed = Simulation(past=stopped.checkpoints[at], offset=stopped.now, **settings).run()
    assert {**stopped.orders, at: None, **resumed.orders} == whole.orders
    assert resumed.pilot.losses == whole.pilot.losses
    if at % 3:  # where the signal met an evaluation, that one is lost
        assert resumed.without_times(0) == whole.without_times(at)
        assert resumed.pilot.best == whole.pilot.best


@pytest.mark.parametrize("at", [4, 8, 12, 16])
def test_a_killed_run_goes_on_from_its_checkpoint(at: int) -> None:
    settings: dict[str, Any] = {"save_steps": 4, "eval_steps": 2, "results": lambda n: dev(n * 7 % 5, 1 / n)}
    whole = Simulation(20, **settings).run()
    resumed = Simulation(past=whole.checkpoints[at], **settings).run()
    assert resumed.without_times(0) == whole.without_times(at)
    assert resumed.pilot.best == whole.pilot.best
    assert resumed.checkpoints == {number: past for number, past in whole.checkpoints.items() if number > at}


# --- to the budget -------------------------------------------------------------------------------------------------


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
        for event in made.events if event.name == "plan"
    ]  # fmt: skip
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
        400, update=lambda n: tokens[n - 1] / 500 * float(noise[n - 1]) + (8.0 if n == 1 else 0.0), tokens=tokens,
        save=4.0, save_steps=20, final=3.0, evaluation=6.0, guard=Guard(base=base),
        results=lambda n: base, max_time=str(int(rng.integers(200, 2000))),
    ).run()  # fmt: skip
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
        500, update=lambda n: 1.0 if n < 20 else 9.0, evaluation=6.0, guard=Guard(base=BASE),
        results=lambda n: AFTER, max_time="60",
    ).run()  # fmt: skip
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
