"""The rate of each update, and when a run evaluates, saves and ends. The clock moves only when work is done."""

from __future__ import annotations

from typing import Any

import pytest

from gsm8k_core.config.train import TrainConfig
from gsm8k_core.training.plan import PlanEvent, rate_at
from tests.core.simulation import Simulation, dev


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


# An H200 on the default run: 141 updates of 0.18 s. Where nobody asked, saves took 6 s of it and probes 5.
FAST: dict[str, Any] = {"update": lambda n: 0.18, "save": 3.0, "save_reserve": 5.0, "probe": 0.8, "token": 0.05}
AUTO: dict[str, Any] = {"save_steps": "auto", "probe_steps": "auto"}


def test_a_fast_machine_saves_and_probes_within_their_share_of_the_time() -> None:
    short = Simulation(141, **FAST, **AUTO).run()
    assert short.names("save") == []
    assert [update for _, update in short.names("probe")] == [25, 141]  # the first one shows what one takes
    made = Simulation(3_000, **FAST, **AUTO).run()
    saves, probes = (dict.fromkeys(update for _, update in made.names(name)) for name in ("save", "probe"))
    assert 0.04 < len(saves) * 3.0 / made.now <= 0.05
    assert 0.04 < (len(probes) - 1) * 0.8 / made.now <= 0.05
    assert set(saves) <= set(probes)  # each was looked at
    assert all(update % 25 == 0 for update in saves)


def test_a_dear_probe_keeps_no_checkpoint_back() -> None:
    """The first probe compiles, and takes longer than its share for long: a kill would lose everything meanwhile."""
    cheap: dict[str, Any] = {"update": lambda n: 0.1, "save": 0.05, "save_reserve": 0.1, "token": 0.001}
    for probe in (3.0, 10.0):
        made = Simulation(400, **cheap, probe=probe, **AUTO).run()
        assert [update for _, update in made.names("probe")] == [25, 400]
        assert [update for _, update in made.names("save")] == [50, 100, 150, 200, 250, 300, 350]


def test_a_checkpoint_that_has_no_share_yet_is_owed_and_not_forgotten() -> None:
    made = Simulation(160, update=lambda n: 3.0, save=4.0, save_reserve=8.0, probe=1.0, **AUTO).run()
    assert (
        next(update for _, update in made.names("save")) == 75
    )  # 50 x 3 s x 5 % is less than the 8 s that were feared


def test_control_what_was_asked_for_stays_as_it_was_asked_for() -> None:
    made = Simulation(141, **FAST, save_steps=50, probe_steps=25).run()
    assert made.names("save") == [("save", 50), ("save", 100)]
    assert [update for _, update in made.names("probe")] == [25, 50, 75, 100, 125, 141]


def test_where_there_is_time_auto_is_every_50_and_every_25_updates() -> None:
    slow: dict[str, Any] = {"update": lambda n: 6.0, "save": 4.0, "save_reserve": 7.0, "probe": 4.0}
    asked = Simulation(160, **slow, save_steps=50, probe_steps=25).run()
    made = Simulation(160, **slow, **AUTO).run()
    assert made.names("save", "probe") == asked.names("save", "probe")


def test_saves_by_the_clock_change_no_rate_and_a_stop_is_always_saved() -> None:
    rates = []
    for more in (AUTO, {"save_steps": 50, "probe_steps": 25}):
        made = Simulation(400, **FAST, **more, signal_at=60.0).run()
        assert max(made.checkpoints) == made.done
        rates.append([made.pilot.rate(update) for update in range(1, 101)])
    assert rates[0] == rates[1]


@pytest.mark.parametrize("update", [0.01, 0.18, 2.0, 30.0])
@pytest.mark.parametrize("save", [0.1, 3.0, 40.0])
def test_with_auto_the_budget_is_passed_by_no_more_than_an_update(update: float, save: float) -> None:
    work: dict[str, Any] = {"update": lambda n: update, "save": save, "probe": 0.8, "token": 0.05, "final": save / 3}
    made = Simulation(3000, **work, **AUTO, max_time="600").run()
    assert made.now <= 600 + update
    assert made.now > 560 or made.done == 3000


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
    # A first checkpoint was thought to take 48 s; it took 1 s, so there is more time than there was.
    made = Simulation(9, evaluation=30.2, eval_steps=3, max_time="112", save=1.0, save_reserve=48.0, save_steps=4).run()
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
    made = Simulation(62, evaluation=25.0, eval_steps=20, max_time="130").run()  # all of it would take 162 s
    assert (made.evaluated, made.names("dev_skipped")) == ([20, 40, made.done], [])
    assert made.orders[made.done] == "budget"
    assert 130 - 0.25 * 25 - 2 <= made.now <= 130  # the last one may take a quarter longer than those before


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
        "save": 2.0,
        "save_steps": 4,
        "evaluation": 3.0,
        "eval_steps": 3,
        "keep": 1.0,
        "final": 1.0,
        "results": lambda n: dev(n * 7 % 5, 1 / n),
    }
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
