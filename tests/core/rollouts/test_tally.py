"""A round's counts against a count by hand, and what run.json accepts of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pydantic
import pytest

from gsm8k_core.rollouts.progress import Progress, StoredProgress, Timed, folder_of
from gsm8k_core.rollouts.record import Rollout, judged
from gsm8k_core.rollouts.tally import StoredTally, tally
from gsm8k_core.types import Choice, Completion
from tests.core.rollouts.script import END, NO_STEP, OTHER, RIGHT, WRONG, WRONG_STEP, decode, encode, problem

TEXTS = [(RIGHT, WRONG), (WRONG_STEP, OTHER), (NO_STEP, NO_STEP), (WRONG, WRONG)]


def answers() -> list[Rollout]:
    made = []
    for number, texts in enumerate(TEXTS):
        for sample, text in enumerate(texts):
            completion = Completion(encode(text), "stop", END, (1,) if sample else ())
            made.append(judged(problem(f"train-{number}"), sample, completion, decode, 3.0))
    return made


def test_a_round_is_counted() -> None:
    every = answers()
    kept, human = [every[0], every[3]], {"train-0": ("2+3",), "train-1": ("2+3",)}
    found = tally(1, every, [each for each in every if each.sample == 0], kept, human, "steps", 9.0)
    assert (found.asked, found.answered, found.verified, found.kept) == (4, 8, 2, 2)
    assert (found.gold_right, found.wrong_step, found.new_chains) == (5, 1, 1)
    assert found.tokens == sum(len(text) for texts in TEXTS for text in texts)
    assert found.forced_tokens == 4
    assert (found.solved, found.of, found.rate) == (1, 4, 0.25)
    assert found.interval == pytest.approx((0.0456, 0.6994), abs=1e-4)  # Wilson, 1 of 4
    assert found.refused == {"wrong number": 3, "no readable step": 2, "a wrong step": 1}
    StoredTally.model_validate(found.as_json())
    of_one = tally(1, every, [], kept, {"train-0": ("2+3",)}, "steps", 9.0)
    assert of_one.new_chains == 0  # train-1 comes with its number alone


def test_by_number_alone_more_is_verified() -> None:
    every = answers()
    found = tally(1, every, [], [], {}, "gold", 9.0)
    assert found.verified == found.gold_right == 5
    assert found.refused == {"wrong number": 3}
    assert found.rate is None
    assert found.interval is None
    StoredTally.model_validate(found.as_json())


def test_progress_comes_back_from_json() -> None:
    progress = Progress().with_decision("warm", Choice("on", "few")).with_done("warm", updates=7)
    assert Progress.from_json(progress.as_json()) == progress
    begun = Progress(phase=Timed("sample-1", 1.0, 2.0, 600.0), elapsed=1.5, together=32)
    assert Progress.from_json(begun.as_json()) == begun
    for each in (progress, begun):
        StoredProgress.model_validate(each.as_json())
    assert Progress.from_json(None) == Progress()
    assert progress.decided("warm") == "on"
    assert progress.decided("rounds") is None


def left_open(updates: int, **more: Any) -> Progress:
    """As an older version wrote it; `more`: otherwise."""
    progress = Progress(phase=Timed("warm", 1.0, 2.0, 30.0))
    for name, choice in (("together", "64"), ("warm", "on"), ("rounds", "1"), ("verify", "steps"), ("pays", "open")):
        progress = progress.with_decision(name, Choice(choice, "why"))
    progress = progress.with_done("warm", updates).with_done("sample-1")
    return replace(progress, **{"phase": Timed("train-1", 20.0, 28.0, 30.0), **more})


@pytest.mark.parametrize(("updates", "decided"), [(3, {"together", "warm"}), (0, {"together"})])
def test_what_a_short_time_left_open_is_taken_up_with_twice_as_much(updates: int, decided: set[str]) -> None:
    written = {name: value for name, value in left_open(updates).as_json().items() if name != "left_open"}
    StoredProgress.model_validate(written)
    again = Progress.from_json(written).taken_up(60.0)
    assert set(again.decisions) == decided
    assert (again.done, again.updates) == ((("warm",), {"warm": 3}) if updates else ((), {}))
    assert again.phase is None


def test_nothing_is_taken_up_with_as_little_time_or_where_it_is_decided() -> None:
    progress = left_open(3)
    decided = progress.with_decision("pays", Choice("no", "why"))
    assert progress.taken_up(59.0) is progress
    assert decided.taken_up(600.0) is decided
    assert Progress().taken_up(600.0) == Progress()


@pytest.mark.parametrize(
    "phase",
    [
        None,  # straight after the sampling: a kill came, or --mix own had no row
        Timed("train-1", 20.0, 28.0, 40.0),  # which went on with less than twice as much
    ],
)
def test_twice_the_time_is_that_of_the_time_that_was_too_short(phase: Timed | None) -> None:
    progress = left_open(3, phase=phase, left_open=30.0)
    assert Progress.from_json(progress.as_json()) == progress
    StoredProgress.model_validate(progress.as_json())
    assert progress.enough == 60.0
    assert progress.taken_up(59.0) is progress
    again = progress.taken_up(60.0)
    assert (again.decided("pays"), again.done, again.left_open) == (None, ("warm",), None)


@pytest.mark.parametrize("name", ["warm", "train-1"])
def test_a_training_that_is_done_without_its_updates_is_refused(name: str) -> None:
    values = Progress().with_done(name, updates=7).as_json()
    with pytest.raises(pydantic.ValidationError, match=f"updates lacks those of {name}"):
        StoredProgress.model_validate({**values, "updates": {}})


def test_a_round_has_one_folder_for_its_answers_and_its_training() -> None:
    assert [folder_of(name) for name in ("base", "warm", "sample-2", "train-2")] == [
        "base",
        "warm",
        "round-2",
        "round-2",
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [("rounds", "0"), ("rounds", "x"), ("together", "-1"), ("verify", "magic"), ("warm", ""), ("pays", "y\n")],
)
def test_a_decision_that_no_run_takes_is_refused(name: str, value: str) -> None:
    values = Progress().with_decision(name, Choice(value, "why")).as_json()
    with pytest.raises(pydantic.ValidationError, match=f"{name} cannot be"):
        StoredProgress.model_validate(values)


def test_a_phase_asks_the_model_or_trains_it() -> None:
    asks = {
        name: Progress(phase=Timed(name, 0.0, 1.0, 2.0)).sampling for name in ("base", "sample-1", "warm", "train-2")
    }
    assert asks == {"base": True, "sample-1": True, "warm": False, "train-2": False}
    assert not Progress().sampling
