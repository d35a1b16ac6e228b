"""Which problems an update asks."""

from __future__ import annotations

from collections import Counter

import pytest

from gsm8k_core.rollouts.order import MOST_ASKED, chunks

IDS = [f"train-{number}" for number in range(50)]


def test_every_problem_is_asked_once_before_one_is_asked_again() -> None:
    asked = [name for rollout in range(25) for name in chunks(IDS, 0, rollout, 8)[0][:8]]
    first = Counter(name for rollout in range(6) for name in chunks(IDS, 0, rollout, 8)[0])
    assert set(first.values()) == {1}
    passes = [[name for rollout in range(5) for name in chunks(IDS, 0, 5 * at + rollout, 10)[0]] for at in (0, 1)]
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(IDS)
    assert passes[0] != passes[1]  # each in an order of its own
    assert len(asked) == 25 * 8  # four passes
    assert max(Counter(asked).values()) - min(Counter(asked).values()) <= 2  # a pass's end is filled up


@pytest.mark.parametrize("rollout", [0, 6, 11])  # two of them go over the end of a pass
def test_more_are_asked_none_twice_in_one_update(rollout: int) -> None:
    found = chunks(IDS, 0, rollout, 8)
    asked = [name for chunk in found for name in chunk]
    assert [len(chunk) for chunk in found] == [8] * MOST_ASKED
    assert len(set(asked)) == len(asked)


def test_the_order_is_a_function_of_seed_and_rollout() -> None:
    assert chunks(IDS, 0, 7, 8) == chunks(IDS, 0, 7, 8)
    assert chunks(IDS, 1, 7, 8) != chunks(IDS, 0, 7, 8)
    assert chunks(IDS, 0, 8, 8) != chunks(IDS, 0, 7, 8)


def test_few_problems_are_all_asked_at_most_once() -> None:
    assert [sorted(chunk) for chunk in chunks(IDS[:3], 0, 5, 8)] == [IDS[:3]]
    assert list(map(len, chunks(IDS[:10], 0, 1, 8))) == [8, 2]
