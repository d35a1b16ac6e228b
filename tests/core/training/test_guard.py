"""Is the trained model better than its base? On how many problems, and in which words."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from gsm8k_core.training.measure import (
    BETTER,
    WORSE,
    DevResult,
    DevSet,
    Guard,
    advice,
    base_line,
    end_line,
    event_line,
    measure_base,
    verdict,
)
from gsm8k_core.types import Batch, Completion, Example, Problem, Sampling


class Slow:
    """A model whose every answer takes `seconds` of a clock of its own; it knows every other answer."""

    def __init__(self, seconds: float, slower_after: int = 10**9) -> None:
        self.now, self.seconds, self.asked, self.slower_after = 100.0, seconds, 0, slower_after

    def score(self, batch: Batch) -> Any:
        return np.full((len(batch.tokens), batch.tokens.shape[1] - 1), -1.0, np.float32)

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, on_token: Callable[[int, int], None]
    ) -> Iterator[tuple[int, Completion]]:
        for index, prompt in enumerate(prompts):
            self.now += self.seconds * (10 if self.asked >= self.slower_after else 1)
            self.asked += 1
            on_token(index, 5)
            yield index, Completion((prompt[1],), "stop")


def dev_set(live: Slow, num: int) -> DevSet:
    examples = [Example(f"train-{n}", (7, n, 8, 9), 2) for n in range(num)]
    problems = [Problem(f"train-{n}", "?", f"#### {n}", str(n)) for n in range(num)]
    return DevSet(
        examples,
        problems,
        lambda tokens: f"#### {tokens[0] if tokens[0] % 2 else 1000}",
        batch_size=4,
        eval_batch_size=4,
        max_new_tokens=9,
        clock=lambda: live.now,
    )


def measured(seconds: float, room: float, num: int = 64, problems: int = 100, **more: Any) -> tuple[Guard, Slow]:
    live = Slow(seconds, **more)
    return measure_base(dev_set(live, problems), live, num, room, lambda: False), live


def test_as_many_problems_as_fit_into_the_time() -> None:
    guard, live = measured(0.1, room=2.5)
    assert (guard.num_problems, live.asked) == (25, 25)
    assert guard.base is not None
    assert guard.base.verdicts == tuple(n % 2 == 1 for n in range(25))
    assert guard.base.num_correct["flexible"] == 12
    assert guard.seconds == pytest.approx(2.5)


def test_never_more_than_asked_for_or_there_are() -> None:
    assert measured(0.1, room=1e3)[0].num_problems == 64
    assert measured(0.1, room=1e3, problems=30)[0].num_problems == 30


def test_not_even_eight_is_said() -> None:
    guard, live = measured(1.0, room=7.5)
    assert guard.base is None
    assert live.now - 100 <= 7.5 + 1.0  # one token past the time at most
    assert "8 answers of the base took longer than 7.5 s" in base_line(guard)
    assert guard.outcome() == {"verdict": "not measured", "reason": guard.reason}


def test_too_few_problems_are_said_and_cost_nothing() -> None:
    guard, live = measured(1.0, room=100.0, problems=7)
    assert (guard.base, live.asked) == (None, 0)
    assert "there are 7 dev problems" in guard.reason


def test_no_time_at_all_costs_nothing() -> None:
    assert measured(1.0, room=0.0)[1].asked == 0


def test_a_round_that_ran_out_of_time_is_dropped_whole() -> None:
    guard, live = measured(0.1, room=2.4, slower_after=10)
    assert guard.num_problems == 8
    assert live.now - 100 <= 2.4 + 1.0


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
    assert "own style" in tries
    assert "--method lora" not in advice(WORSE, adapter=True, rate=3e-4, budget="2h")
    assert "more --guard-problems" in advice("not distinguishable at n = 9", adapter=True, rate=3e-4, budget="2h")


def test_more_time_is_advised_only_where_time_was_short() -> None:
    assert "a longer one helps" in base_line(measured(1.0, room=7.5)[0])
    assert "longer" not in base_line(Guard(reason="these rows have no dev split"))
