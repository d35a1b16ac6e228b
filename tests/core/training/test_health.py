"""Healthy answers trip nothing, collapsed ones do; and the run hears of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from gsm8k_core.training import health
from gsm8k_core.training.health import Vitals, collapsed, longest_run, vitals, warnings
from gsm8k_core.types import Completion

LONG = 999  # updates: enough for everything

# The worst that 2,638 healthy answers of 64 tokens gave, and the worst of 20,000 groups of four: see health.py.
WORST_ANSWER = Vitals(1, token_0=0.0, distinct=0.203, longest_run=0.375, no_answer=1.0, stopped=0.0, could_stop=0)
WORST_FOUR = Vitals(4, token_0=0.0, distinct=0.270, longest_run=0.133, no_answer=0.75, stopped=0.0, could_stop=0)
# The base model's 1,319 whole answers, and the end token after 50 updates.
BASE = Vitals(1319, 0.0, 0.274, 0.013, 0.004, 0.732, 1319, end_probability=0.997)


def answers(*tokens: Sequence[int], finish: Any = "length") -> list[Completion]:
    return [Completion(tuple(each), finish) for each in tokens]


def of(tokens: Sequence[int], text: str = "18", end: float = 1.0, count: int = 4) -> Vitals:
    """Some answers that are all alike."""
    return vitals(answers(*[tokens] * count), [text] * count, [math.log(end)] * count)


HEALTHY = [*range(5, 37), *range(5, 37)]


@pytest.mark.parametrize("found", [WORST_ANSWER, WORST_FOUR, BASE, of(HEALTHY)], ids=["one", "four", "base", "made"])
def test_healthy_answers_trip_nothing(found: Vitals) -> None:
    assert warnings(found, LONG) == []
    assert not collapsed(found)


def test_the_worst_healthy_figures_are_far_from_the_thresholds() -> None:
    assert WORST_FOUR.distinct >= 2 * health.LEAST_DISTINCT
    assert 2 * WORST_FOUR.longest_run <= health.LONGEST_RUN
    assert BASE.stopped >= 2 * health.LEAST_STOPPED
    assert BASE.end_probability is not None
    assert BASE.end_probability >= 2 * health.LEAST_END


SICK = {
    "100% of what it writes is token 0: token 0 ('!' in Qwen's vocabulary)": of([0] * 64, "!" * 64 + "18"),
    "31% of what it writes is token 0": of([0] * 20 + HEALTHY[:44]),
    "100% of an answer is one token in a row": of([7] * 64),
    "answers repeat themselves (5% different tokens)": of([7, 8, 9] * 21),
    "none of 4 answers holds a number": of(HEALTHY, "I do not know."),
    "0% of the answers end by themselves": of([*range(5, 261)], count=32),
    "the end token has a probability of 0.16 after 999 updates: it is not learned": of(HEALTHY, end=0.16),
}


@pytest.mark.parametrize("says", SICK)
def test_what_is_sick_is_named(says: str) -> None:
    (warning,) = warnings(SICK[says], LONG)
    assert says in warning
    assert "\n" not in warning


@pytest.mark.parametrize("short", [[9], [5, 5], [3, 1, *[10] * 6]], ids=["9", "55", "# 1000000"])
def test_short_answers_are_no_loop(short: list[int]) -> None:
    assert warnings(of(short, "9"), LONG) == []
    assert health.telling(answers(short, HEALTHY[:20] * 3)) == 1
    few = vitals(answers(*[short] * 3, [7] * 64), ["9"] * 4)  # the control: of these, one is a loop
    assert few.longest_run == 0.25
    assert warnings(of([7] * health.FEWEST_TOKENS), LONG) != []


def test_the_shortest_answer_of_token_0_is_called_by_its_name() -> None:
    assert warnings(of([0]), LONG)[0].startswith("100% of what it writes is token 0")


def test_empty_answers_are_called_empty_and_hold_no_number() -> None:
    found = vitals(answers([], [], [], [], finish="stop"), [""] * 4)
    said = ["100% of the answers are empty: the end token comes first", "none of 4 answers holds a number"]
    assert warnings(found, LONG) == said
    some = answers(HEALTHY, [], HEALTHY, [])
    assert warnings(vitals(some, ["18", "", "18", ""]), LONG) == [said[0].replace("100%", "50%")]
    assert health.telling(some) == 1
    assert warnings(vitals(answers(*[HEALTHY] * 3, []), ["18"] * 4), LONG) == []


def test_the_end_token_has_time_to_be_learned() -> None:
    assert warnings(of(HEALTHY, end=0.16), health.ENOUGH_UPDATES - 1) == []
    assert len(warnings(of(HEALTHY, end=0.16), health.ENOUGH_UPDATES)) == 1


def test_short_answers_say_nothing_of_the_stop_rate() -> None:
    assert warnings(of(HEALTHY), LONG) == []
    assert of(HEALTHY).could_stop == 0
    assert vitals(answers(HEALTHY, finish="stop"), ["18"]).could_stop == 1


def test_four_healthy_answers_may_all_be_cut() -> None:
    assert warnings(of([*range(5, 261)]), LONG) == []


def test_a_loop_late_in_an_answer_is_no_collapse() -> None:
    assert warnings(of([*HEALTHY, *[7] * 180]), LONG) == []
    assert len(warnings(of([*[7] * 180, *HEALTHY]), LONG)) == 1  # the control: at its beginning


def test_only_token_0_is_a_collapse() -> None:
    assert collapsed(of([0] * 64))
    assert not collapsed(of([7] * 64))
    assert not collapsed(of([0] * 60 + [5, 6, 7, 8]))


def test_a_run_is_of_one_token() -> None:
    assert [longest_run(tokens) for tokens in ([], [3], [3, 3, 4, 3], [1, 2, 2, 2, 1])] == [0, 1, 2, 3]
