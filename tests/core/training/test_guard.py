"""Is the trained model better than its base? On how many problems, and in which words."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gsm8k_core.training.measure import (
    ANSWERS,
    BETTER,
    LOSS,
    TIMED_TOKENS,
    WORSE,
    DevResult,
    DevSet,
    Guard,
    advice,
    base_line,
    end_line,
    event_line,
    measure_base,
    recipe_line,
    room_for_base,
    verdict,
)
from gsm8k_core.types import Batch, Completion, Example, Problem, Sampling


class Slow:
    """A model whose every answer takes `seconds` of a clock of its own; it knows every other answer.

    Its first token comes in no time, the others take `seconds` in all, or until the end that it is given.
    """

    def __init__(
        self, seconds: float, slower_after: int = 10**9, length: int = 9, scoring: float = 0.0, loss: float = 1.0
    ) -> None:
        self.now, self.seconds, self.asked, self.slower_after = 100.0, seconds, 0, slower_after
        self.length, self.scoring, self.loss, self.ends = length, scoring, loss, list[int]()

    def score(self, batch: Batch) -> Any:
        self.now += self.scoring * len(batch.tokens)
        return np.full((len(batch.tokens), batch.tokens.shape[1] - 1), -self.loss, np.float32)

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, on_token: Callable[[int, int], None]
    ) -> Iterator[tuple[int, Completion]]:
        written = min(sampling.max_new_tokens, self.length)
        self.ends.append(sampling.max_new_tokens)
        for index in range(len(prompts)):
            on_token(index, 5)
        for index, prompt in enumerate(prompts):
            slower = 10 if self.asked >= self.slower_after else 1
            for _ in range(written - 1):
                self.now += self.seconds * slower / (self.length - 1)
                on_token(index, 5)
            self.asked += written == self.length
            yield index, Completion((prompt[1],), "stop" if written == self.length else "length")


def dev_set(live: Slow, num: int, longest: int = 9, gold: int = 2) -> DevSet:
    examples = [Example(f"train-{n}", (7, n, *[8] * gold), 2) for n in range(num)]
    problems = [Problem(f"train-{n}", "?", f"#### {n}", str(n)) for n in range(num)]
    return DevSet(
        examples,
        problems,
        lambda tokens: f"#### {tokens[0] if tokens[0] % 2 else 1000}",
        batch_size=4,
        eval_batch_size=4,
        max_new_tokens=longest,
        clock=lambda: live.now,
    )


def measured(
    seconds: float, room: float, num: int = 64, problems: int = 100, longest: int = 9, gold: int = 2, **more: Any
) -> tuple[Guard, Slow]:
    live = Slow(seconds, **more)
    return measure_base(dev_set(live, problems, longest, gold), live, num, room, lambda: False), live


def test_as_many_problems_as_fit_into_the_time() -> None:
    guard, live = measured(0.1, room=2.81)  # 0.3 of it to see how fast it goes
    assert (guard.num_problems, live.asked) == (25, 25)
    assert guard.base is not None
    assert guard.base.verdicts == tuple(n % 2 == 1 for n in range(25))
    assert guard.base.num_correct["flexible"] == 12
    assert guard.seconds == pytest.approx(2.5)


@pytest.mark.parametrize(("together", "rounds"), [(4, [8, 16, 16, 16, 8]), (64, [8, 56])])
def test_the_guards_rounds_are_as_large_as_what_is_answered_together(together: int, rounds: list[int]) -> None:
    live, asked = Slow(0.1), []
    generate = live.generate

    def noted(prompts: Any, sampling: Any, on_token: Any = lambda index, token: None) -> Any:
        if sampling.max_new_tokens != TIMED_TOKENS:
            asked.append(len(prompts))
        return generate(prompts, sampling, on_token)

    live.generate = noted  # type: ignore[method-assign]
    dev = replace(dev_set(live, 64), eval_batch_size=together)
    assert measure_base(dev, live, 64, 1e3, lambda: False).num_problems == 64
    assert asked == rounds


def test_never_more_than_asked_for_or_there_are() -> None:
    assert measured(0.1, room=1e3)[0].num_problems == 64
    assert measured(0.1, room=1e3, problems=30)[0].num_problems == 30


def test_not_even_eight_losses_are_said() -> None:
    guard, live = measured(1.0, room=7.5, scoring=2.0)
    assert guard.base is None
    assert live.now - 100 <= 7.5 + 8.0  # one batch past the time at most
    assert "its loss on 8 gold answers took longer than 7.5 s" in base_line(guard)
    assert guard.outcome() == {"verdict": "not measured", "reason": guard.reason}


def test_where_eight_whole_answers_have_no_time_all_are_cut_alike() -> None:
    """A token takes a second: whole answers 8 x 319 s. The gold answers have two tokens, so a cut at 30 is no harm."""
    guard, live = measured(319.0, room=400.0, length=320, longest=320)
    assert guard.by == ANSWERS
    assert 8 <= guard.num_problems <= 12
    assert set(live.ends) == {TIMED_TOKENS, guard.max_new_tokens}
    assert 30 <= guard.max_new_tokens <= 50
    assert live.now - 100 <= 400
    after = Slow(319.0, length=320)
    assert guard.measurement(dev_set(after, 100, 320))(after, lambda: False) is not None
    assert after.ends == [guard.max_new_tokens]
    assert not guard.is_an_evaluation
    assert f"all answers cut at {guard.max_new_tokens} tokens since time is short" in base_line(guard)


def test_a_cut_that_would_cut_gold_answers_gives_way_to_the_loss() -> None:
    guard, live = measured(319.0, room=400.0, length=320, longest=320, gold=60, scoring=1.0)
    assert (guard.by, guard.num_problems, guard.max_new_tokens) == (LOSS, 64, 0)
    assert guard.base is not None
    assert guard.base.losses == (1.0,) * 64
    assert live.now - 100 <= 400
    assert "answers have no time; the base's loss on 64 gold answers of the dev split is 1.000" in base_line(guard)
    better = Slow(319.0, loss=0.5)
    after = guard.measurement(dev_set(better, 100))(better, lambda: False)
    assert after is not None
    assert better.ends == []  # no answer was written
    found = guard.against_base(after)
    assert (found["won"], found["lost"], found["verdict"], found["by"]) == (64, 0, BETTER, LOSS)
    assert "loss 0.500 on 64 gold answers, the base 1.000 (lower on 64, higher on 0" in event_line(
        {"update": 30, "when": "end", **found}
    )
    assert guard.against_base(replace(after, losses=(math.nan,) * 64))["verdict"] == WORSE
    seen = guard.seen(30, after, last=True)
    assert Guard.from_json(json.loads(json.dumps(seen.as_json(), allow_nan=False))) == seen
    assert seen.outcome()["base"] == {"problems": 64, "loss": 1.0, "seconds": guard.seconds, "by": LOSS}


def test_a_loss_that_is_lower_on_half_of_the_rows_shows_nothing() -> None:
    base = replace(result(*[True] * 8), losses=(1.0,) * 8)
    found = Guard(base=base, by=LOSS).against_base(replace(base, losses=(0.5, 1.5) * 4))
    of_targets = Guard(base=replace(base, loss=0.9), by=LOSS)  # what both lines and run.json say is of rows
    assert found["base_loss"] == of_targets.outcome()["base"]["loss"] == 1.0
    assert "of the dev split is 1.000" in base_line(of_targets)
    assert (found["won"], found["lost"], found["verdict"]) == (4, 4, "not distinguishable at n = 8")


def test_the_base_may_take_a_share_of_the_time_or_two_updates_and_never_most_of_it() -> None:
    assert room_for_base(7200.0, 10.0) == pytest.approx(360.0)
    assert room_for_base(600.0, 40.0) == pytest.approx(80.0)
    assert room_for_base(300.0, 90.0) == pytest.approx(50.0)
    assert room_for_base(0.0, 90.0) == 0.0


def test_an_older_runs_guard_is_read() -> None:
    values = Guard(base=result(True, False)).as_json()
    del values["by"], values["max_new_tokens"], values["base"]["losses"]
    assert Guard.from_json(values) == Guard(base=result(True, False))


def test_too_few_problems_are_said_and_cost_nothing() -> None:
    guard, live = measured(1.0, room=100.0, problems=7)
    assert (guard.base, live.asked) == (None, 0)
    assert "there are 7 dev problems" in guard.reason


def test_no_time_at_all_costs_nothing() -> None:
    assert measured(1.0, room=0.0)[1].asked == 0


def test_a_round_that_ran_out_of_time_is_dropped_whole() -> None:
    guard, live = measured(0.1, room=2.7, slower_after=10)
    assert guard.num_problems == 8
    assert live.now - 100 <= 2.7 + 1.0


def test_a_signal_ends_it() -> None:
    live = Slow(0.1)
    guard = measure_base(dev_set(live, 64), live, 64, 100.0, lambda: live.asked >= 3)
    assert (guard.base, guard.reason) == (None, "a signal came")


def result(*right: bool, seconds: float = 2.0) -> DevResult:
    return DevResult(
        1.0, 30, {"strict": 0, "flexible": sum(right), "robust": 0}, len(right), len(right), seconds, right
    )


WON, LOST, SAME = [False, True], [True, False], [True, True]


def guard_of(*pairs: list[bool]) -> tuple[Guard, DevResult]:
    return Guard(base=result(*(old for old, _ in pairs))), result(*(new for _, new in pairs))


def test_problems_are_compared_one_by_one() -> None:
    guard, after = guard_of(*[WON] * 9, LOST, *[SAME] * 10)
    found = guard.against_base(after)
    assert (found["won"], found["lost"], found["base_correct"], found["correct"]) == (9, 1, 11, 19)
    assert found["p"] == pytest.approx(2 * 11 / 1024)
    assert found["verdict"] == BETTER


def test_what_so_few_cannot_tell_is_neither_better_nor_worse() -> None:
    guard, after = guard_of(*[WON] * 5, *[SAME] * 59)
    assert guard.against_base(after)["verdict"] == "not distinguishable at n = 64"
    guard, after = guard_of(*[LOST] * 6, *[SAME] * 58)
    assert guard.against_base(after)["verdict"] == WORSE
    assert verdict(0, 0, 1.0, 8) == "not distinguishable at n = 8"


def test_more_answers_than_the_base_gave_are_not_looked_at() -> None:
    guard, after = guard_of(*[WON] * 6)
    longer = result(*after.verdicts, False, False)
    assert guard.against_base(longer) == guard.against_base(after)
    assert guard.against_base(result(True, True))["problems"] == 2


def test_it_is_due_after_a_quarter_of_the_plan_once_and_at_the_end() -> None:
    guard = Guard(base=result(True))
    assert [n for n in range(1, 21) if guard.due(n, 20, last=False)] == list(range(5, 21))
    seen = guard.seen(5, result(False), last=False)
    assert not any(seen.due(n, 20, last=False) for n in range(6, 20))
    assert seen.due(20, 20, last=True)
    assert (guard.num_due(1, 20), seen.num_due(6, 20), guard.num_due(20, 20)) == (2, 1, 1)
    assert not guard.due(2, 7, last=False)  # a quarter of so few is no time to look
    assert not Guard().due(20, 20, last=True)


def test_it_survives_json() -> None:
    guard = Guard(base=result(True, False)).seen(5, result(True, True), last=False).seen(20, result(False, True), True)
    assert Guard.from_json(json.loads(json.dumps(guard.as_json(), allow_nan=False))) == guard
    nothing = Guard(reason="why", passed=True)
    assert Guard.from_json(json.loads(json.dumps(nothing.as_json()))) == nothing


def test_the_outcome_has_each_measurement() -> None:
    guard, after = guard_of(*[WON] * 6, SAME)
    done = guard.seen(5, after, last=False).seen(20, after, last=True).outcome()
    assert (done["base"]["correct"], done["quarter"]["update"], done["end"]["won"]) == (1, 5, 6)
    assert done["verdict"] == BETTER
    assert guard.outcome()["verdict"] == "not measured"


def test_one_line_each() -> None:
    guard, after = guard_of(*[WON] * 3, *[SAME] * 5)
    assert base_line(guard) == (
        "guard    the base answers 5 of 8 dev problems right (2 s); the trained model will answer the same ones"
    )
    values = {"update": 30, "when": "quarter", **guard.against_base(after)}
    assert event_line(values) == (
        "guard    after update 30: 8 of 8 right, the base 5 (3 won, 0 lost, p = 0.25): not distinguishable at n = 8"
    )
    assert event_line({**values, "when": "end"}).startswith("guard    at the end: 8 of 8 right")


def test_a_model_that_is_not_better_is_said_to_be_so_with_what_to_try() -> None:
    assert "the base model is better" in end_line(WORSE, "base-model", "runs/x/model")
    unsure = end_line("not distinguishable at n = 64", "base-model", "runs/x/model")
    assert "do not show that the trained model is better" in unsure
    assert unsure.endswith("both are kept: the base base-model, the trained one runs/x/model")
    tries = advice(WORSE, adapter=False, rate=3e-5, budget="2h")
    assert "--learning-rate 1e-05" in tries
    assert "--method lora" in tries
    assert "a longer --max-time than 2h" in tries
    done = advice(WORSE, adapter=False, rate=3e-5, budget="")
    assert "--max-time" not in done
    assert "more --num-epochs" in done
    assert "--recipe rft" in tries
    assert "--method lora" not in advice(WORSE, adapter=True, rate=3e-4, budget="2h")
    assert "more --guard-problems" in advice("not distinguishable at n = 9", adapter=True, rate=3e-4, budget="2h")


def test_a_base_that_solves_a_tenth_is_shown_the_other_recipe() -> None:
    def guard(right: int, by: str = ANSWERS) -> Guard:
        verdicts = tuple(place < right for place in range(64))
        return Guard(DevResult(1.0, 640, {}, 64, 64, 1.0, verdicts, (1.0,) * 64), by=by)

    assert recipe_line(guard(6)) == ""
    assert "the base solves 7 of 64 by itself" in recipe_line(guard(7))
    assert "--recipe rft" in recipe_line(guard(7))
    assert recipe_line(guard(64, LOSS)) == ""
    assert recipe_line(Guard(reason="off")) == ""
    again = advice(WORSE, adapter=False, rate=3e-5, budget="2h", solved=(23, 64))
    assert "--recipe rft" in again
    assert "the base solves 23 of 64 dev problems by itself" in again
    own = advice(WORSE, adapter=False, rate=3e-5, budget="2h", own=9, solved=(23, 64))
    none = advice(WORSE, adapter=False, rate=3e-5, budget="2h", own=0)
    assert "--samples" not in none
    assert "--recipe rft" not in none
    assert "a larger --model" in none
    assert "--recipe rft" not in own
    assert "more --samples" in own


def test_more_time_is_advised_only_where_time_was_short() -> None:
    assert "a longer one helps" in base_line(measured(1.0, room=7.5, scoring=2.0)[0])
    assert "longer" not in base_line(Guard(reason="these rows have no dev split"))
