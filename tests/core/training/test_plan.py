"""What a run changes about itself after a failure, and how that is replayed on the plan of a checkpoint."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gsm8k_core.config.train import TrainConfig
from gsm8k_core.training.pilot import Hooks, Past, RunPilot
from gsm8k_core.training.plan import (
    Adjustment,
    Change,
    PlanEvent,
    adjustments_of,
    after_failure,
    dtype_of,
    fewer_tokens,
    planned_rate,
    rate_at,
    replay,
)
from gsm8k_core.types import (
    Choice,
    CollapsedError,
    DivergedError,
    GSM8KError,
    OutOfMemoryError,
    StorageError,
    UpdateStats,
)

HALF = Adjustment("rate", 50, 0.5, "loss nan")
FEWER = Adjustment("micro_batch_tokens", 50, 512, "no memory")
NAN = DivergedError("loss nan")
FULL = OutOfMemoryError("no memory")


def asked(error: GSM8KError, **facts: Any) -> Change | None:
    """After 50 updates, 10 of them in this segment: updates of 8 rows, the longest of 128 tokens."""
    usual = {"adjustments": (), "begun": 40, "done": 50, "tokens": 1024, "widest": 128, "update_size": 8}
    return after_failure(error, **{**usual, "dtype": "float32", **facts})


def test_a_change_comes_after_the_events_before_it() -> None:
    assert replay([PlanEvent(0, 100), PlanEvent(20, 80)], [HALF]) == [
        PlanEvent(0, 100),
        PlanEvent(20, 80),
        PlanEvent(50, 80, 0.5),
    ]


def test_a_change_is_not_recorded_again() -> None:
    events = [PlanEvent(0, 100), PlanEvent(50, 100, 0.5)]
    assert replay(events, [HALF]) == events


def test_fewer_tokens_change_no_plan() -> None:
    assert replay([PlanEvent(0, 100)], [FEWER]) == [PlanEvent(0, 100)]


def test_a_change_is_recorded_where_the_run_went_on() -> None:
    change = asked(NAN)
    assert change is not None
    assert change.at(48) == Adjustment("rate", 48, 0.5, "loss nan")
    assert adjustments_of({"adjustments": [change.at(48).as_json()]}) == [change.at(48)]
    assert adjustments_of({}) == []


# --- a loss, a gradient or a weight that is not finite ------------------------------------------------------


def test_the_weights_before_the_bad_update_go_on_at_half_the_rate() -> None:
    assert asked(NAN) == Change("rate", 0.5, "loss nan", save=True)


@pytest.mark.parametrize("at", [0, 50])
def test_weights_that_a_segment_began_with_are_not_saved_again(at: int) -> None:
    assert asked(NAN, begun=at, done=at) == Change("rate", 0.5, "loss nan")


def test_memory_that_ran_out_before_is_no_retry() -> None:
    assert asked(NAN, adjustments=[FEWER]) == Change("rate", 0.5, "loss nan", save=True)


def test_a_retry_that_fails_at_once_goes_back_to_the_checkpoint_before() -> None:
    again = asked(NAN, adjustments=[HALF], begun=50)
    assert again == Change("rate", 0.5, "its weights were the trouble: loss nan", before=50)
    assert asked(NAN, adjustments=[HALF, FEWER], begun=50) == again


@pytest.mark.parametrize(
    ("adjustments", "begun", "done"),
    [
        ([HALF], 40, 50),  # the retry was resumed from an older checkpoint, and came here again
        ([HALF], 50, 51),  # it did an update more
        ([HALF], 60, 60),  # another update
        ([Adjustment("rate", 0, 0.5, "loss nan")], 0, 0),  # nothing is before the beginning
        ([HALF, Adjustment("rate", 40, 0.5, "its weights")], 40, 50),  # it went back already
        ([HALF, HALF], 50, 50),  # so it did, and found nothing older
    ],
)
def test_the_retry_is_one(adjustments: list[Adjustment], begun: int, done: int) -> None:
    assert asked(NAN, adjustments=adjustments, begun=begun, done=done) is None


# --- the same where float16 may have had no room for a number ------------------------------------------------


def test_float16_goes_on_in_float32_and_leaves_the_rate_alone() -> None:
    change = asked(NAN, dtype="float16")
    assert change == Change("dtype", "float32", "loss nan", save=True)
    wide = change.at(50)
    assert adjustments_of({"adjustments": [wide.as_json()]}) == [wide]
    assert dtype_of([HALF, wide, FEWER]) == Choice("float32", "float16 had no room after update 50")
    assert dtype_of([HALF, FEWER]) is None
    assert replay([PlanEvent(0, 100)], [wide]) == [PlanEvent(0, 100)]
    # The retry at half the rate is still to be had, in float32.
    assert asked(NAN, adjustments=[wide], begun=50) == Change("rate", 0.5, "loss nan")


def test_what_is_bad_in_every_dtype_is_none_of_float16s() -> None:
    damaged = DivergedError("loss nan", tensor="the weight w", damaged=True)
    assert asked(damaged, dtype="float16") == asked(damaged) == Change("rate", 0.5, str(damaged), save=True)
    assert asked(NAN, dtype="bfloat16") == Change("rate", 0.5, "loss nan", save=True)


def test_logits_that_a_probe_found_not_finite_are_float16s_as_well() -> None:
    logits = CollapsedError("probe: the logits are not finite", update=50)
    assert asked(logits, dtype="float16") == Change("dtype", "float32", str(logits), save=True)
    assert asked(logits, dtype="bfloat16") is asked(logits) is None  # the step was applied: no lower rate mends it
    assert asked(CollapsedError("token 0", update=50, damaged=True), dtype="float16") is None


# --- memory that ran out ----------------------------------------------------------------------------------


def test_memory_that_ran_out_halves_the_tokens() -> None:
    assert asked(FULL) == Change("micro_batch_tokens", 512, "no memory", save=True)
    assert asked(FULL, begun=50) == Change("micro_batch_tokens", 512, "no memory")


def test_it_does_so_as_often_as_there_is_something_to_halve() -> None:
    tokens, seen = 1024, list[float]()
    while change := asked(FULL, tokens=tokens, adjustments=[HALF, FEWER]):
        seen.append(change.value)
        tokens = int(change.value)
    assert seen == [512, 256, 128]


def test_the_last_half_is_one_row() -> None:
    assert fewer_tokens(200, 128, 8) == 128
    assert fewer_tokens(128, 128, 8) is None
    assert fewer_tokens(100, 128, 8) is None  # the longest row is a micro-batch of its own


def test_what_an_update_never_filled_is_not_halved() -> None:
    assert fewer_tokens(100_000, 128, 8) == 512
    assert fewer_tokens(100_000, 128, 1) is None


# --- what nothing helps against ---------------------------------------------------------------------------


@pytest.mark.parametrize("error", [CollapsedError("token 0", update=50), StorageError("the disk is full")], ids=repr)
def test_nothing_is_changed_for_what_that_would_not_mend(error: GSM8KError) -> None:
    assert asked(error) is None


def test_the_pilot_answers_by_the_facts_of_its_run() -> None:
    hooks: Hooks[str] = Hooks(
        emit=lambda event: None,
        elapsed=lambda: 0.0,
        interrupted=lambda: False,
        save=lambda update, live: pytest.fail("nothing is due"),
        keep_best=lambda update, live, result: pytest.fail("nothing is due"),
    )
    config = TrainConfig(batch_size=8, gradient_accumulation_steps=1, save_steps=0)
    past = Past([PlanEvent(0, 100)], [1.0] * 40, micro_batch_tokens=1024, widest=128)
    pilot = RunPilot(config, hooks, past)
    assert pilot.after_failure(FULL) == asked(FULL, begun=40, done=40)
    assert pilot.after_failure(NAN) == asked(NAN, begun=40, done=40)
    pilot.after(UpdateStats(41, 1.0, 10, 16, 2.0, 0.1), "weights")
    assert pilot.after_failure(NAN) == asked(NAN, begun=40, done=41)
    retried = RunPilot(config, hooks, Past([PlanEvent(0, 100)], [1.0] * 50, adjustments=[HALF]))
    assert retried.after_failure(NAN) == asked(NAN, begun=50, adjustments=[HALF])
    assert retried.after_failure(FULL) is None  # nothing is known that could be halved


# --- the rate -----------------------------------------------------------------------------------------------


def plain(update: int, total: int, config: TrainConfig) -> float:
    """The rate of a plan that nothing changes, as it always was."""
    warmup = math.ceil(config.warmup_ratio * total)
    if update <= warmup:
        return config.learning_rate * update / warmup
    if config.schedule == "constant":
        return config.learning_rate
    return config.learning_rate * max(total - update + 1, 0) / (total - warmup + 1 if warmup else total)


@pytest.mark.parametrize("schedule", ["linear", "constant"])
@pytest.mark.parametrize("ratio", [0.0, 0.03, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("total", [1, 2, 7, 50, 141, 1000])
def test_a_plan_that_nothing_changes_has_its_rates_to_the_last_bit(schedule: Any, ratio: float, total: int) -> None:
    config = TrainConfig(schedule=schedule, warmup_ratio=ratio, learning_rate=3e-5)
    again = [PlanEvent(0, total), PlanEvent(min(3, total), total), PlanEvent(min(5, total), total)]
    for update in range(1, total + 1):
        assert rate_at(update, total, config) == plain(update, total, config)
        assert planned_rate(update, again, config) == plain(update, total, config)


def test_a_smaller_plan_goes_on_with_the_rise_in_its_own_steps() -> None:
    config = TrainConfig(warmup_ratio=0.1, learning_rate=0.5)
    events = [PlanEvent(0, 10_000), PlanEvent(3, 40)]
    rates = [planned_rate(update, events, config) for update in range(1, 9)]
    assert rates[:3] == [0.5 * n / 1000 for n in (1, 2, 3)]
    assert rates[3:6] == pytest.approx([0.5 * (0.003 + n / 4) for n in (1, 2, 3)])
    assert max(rates) <= 0.5


def test_a_larger_plan_never_begins_the_rise_again() -> None:
    config = TrainConfig(warmup_ratio=0.1, learning_rate=0.5)
    events = [PlanEvent(0, 20), PlanEvent(4, 1000)]
    rates = [planned_rate(update, events, config) for update in range(1, 101)]
    assert rates[:4] == [rate_at(update, 20, config) for update in range(1, 5)]
    assert rates[4:] == [0.5] * 96
