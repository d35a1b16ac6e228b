"""An evaluation with a limit of time: which problems count, when it ends, and that it never counts a broken block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from gsm8k_core.scoring.timed import FIRST, Limit, answer_in_time, in_random_order
from gsm8k_core.types import PreflightError, Problem

PROBLEMS = [Problem(f"test-{n}", f"what is {n} ?", f"#### {n}", str(n)) for n in range(100)]


@dataclass
class Model:
    """Answers with a clock of its own: `seconds` a problem and `opening` once; each problem one token."""

    seconds: float
    opening: float = 0.0
    now: float = 0.0
    there: set[str] = field(default_factory=set)
    blocks: list[int] = field(default_factory=list)

    def ask(self, problems: Sequence[Problem], check: Callable[..., None]) -> int:
        new = [each for each in problems if each.id not in self.there]
        self.blocks.append(len(new))
        if new:
            check()
        for each in new:
            self.now += self.seconds
            check()
            self.there.add(each.id)
        return len(new)

    def limit(self, seconds: float, most: int | None = None) -> Limit:
        self.now += self.opening
        return Limit(f"{seconds:.0f}s", seconds, lambda: self.now, most)


def test_it_ends_in_time_with_whole_blocks_alone() -> None:
    model = Model(seconds=1.0, opening=5.0)
    done = answer_in_time(PROBLEMS, model.limit(60), model.ask)
    assert model.now <= 60
    assert done == sum(model.blocks) >= 0.75 * 55  # of what there was time for
    assert model.blocks[0] == FIRST


def test_a_block_that_runs_out_of_time_counts_nowhere_and_its_answers_are_kept() -> None:
    model = Model(seconds=1.0)
    limit = model.limit(40)

    def slower(problems: Sequence[Problem], check: Callable[..., None]) -> int:
        found = model.ask(problems, check)
        model.seconds *= 3
        return found

    assert answer_in_time(PROBLEMS, limit, slower) == FIRST
    assert len(model.there) > FIRST
    assert model.now <= 40 + model.seconds  # the token that it found too late


def test_what_was_answered_before_costs_nothing_and_a_limit_of_problems_holds() -> None:
    model = Model(seconds=1.0)
    model.there = {each.id for each in PROBLEMS[:60]}
    assert answer_in_time(PROBLEMS, model.limit(50), model.ask) > 90
    model.there = {each.id for each in PROBLEMS}
    assert answer_in_time(PROBLEMS, Model.limit(model, 0), model.ask) == len(PROBLEMS)  # needs no time at all
    model = Model(seconds=1.0)
    assert answer_in_time(PROBLEMS, model.limit(1000, most=17), model.ask) == 17
    assert answer_in_time(PROBLEMS, model.limit(1000), model.ask) == len(PROBLEMS)


def test_no_time_for_the_first_block_is_an_error_that_says_what_to_type() -> None:
    model = Model(seconds=10.0)
    with pytest.raises(PreflightError, match=r"--max-time 20s ended before the first 8 problems.*longer --max-time"):
        answer_in_time(PROBLEMS, model.limit(20), model.ask)
    with pytest.raises(PreflightError):  # it was over before the first token
        answer_in_time(PROBLEMS, Model(seconds=1.0, opening=30).limit(20), model.ask)


def test_a_share_is_of_what_is_left() -> None:
    model = Model(seconds=1.0, opening=10.0)
    assert model.limit(60).share(0.5).left == 25


def test_the_order_is_fixed_random_and_of_each_problem_alone() -> None:
    order = [each.id for each in in_random_order(PROBLEMS)]
    assert order != [each.id for each in PROBLEMS]
    assert sorted(order) == sorted(each.id for each in PROBLEMS)
    assert [each.id for each in in_random_order(PROBLEMS[::-1])] == order
    fewer = {each.id for each in PROBLEMS[:40]}
    assert [each.id for each in in_random_order(PROBLEMS[:40])] == [name for name in order if name in fewer]
    first = [int(name.split("-")[1]) for name in order[:50]]
    assert 35 < sum(first) / 50 < 64  # the file's first fifty would give 24.5
