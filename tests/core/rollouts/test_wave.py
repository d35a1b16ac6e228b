"""Waves: every problem once, then those that lack chains, the hardest last; blocks that are pure functions."""

from __future__ import annotations

from gsm8k_core.rollouts.wave import Ask, asks, blocks, shuffled, wave

IDS = [f"train-{number}" for number in range(50)]


def test_a_round_asks_in_an_order_of_its_own_that_the_seed_gives() -> None:
    orders = [shuffled(IDS, seed, number) for seed, number in ((0, 1), (0, 2), (1, 1))]
    assert all(sorted(order) == sorted(IDS) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert shuffled(IDS, 0, 1) == orders[0]


def test_the_first_wave_asks_every_problem_whatever_it_has_already() -> None:
    assert wave(IDS, 1, dict.fromkeys(IDS, 9), {}, keep=4) == IDS


def test_a_later_wave_asks_those_with_too_few_chains_and_the_hardest_last() -> None:
    ordered = ["a", "b", "c", "d", "e"]
    chains = {"a": 4, "b": 1, "d": 3, "e": 1}
    verified = {"a": 4, "b": 1, "d": 3, "e": 2}
    assert wave(ordered, 2, chains, verified, keep=4) == ["d", "e", "b", "c"]
    assert wave(ordered, 2, chains, verified, keep=1) == ["c"]


def test_samples_are_counted_on_over_waves_and_rounds_so_no_two_draw_alike() -> None:
    every = [ask for number in (1, 2) for part in (1, 2, 3) for ask in asks(["a", "b"], part, number, samples=3)]
    assert len(set(every)) == len({ask.key for ask in every}) == 12
    assert [ask.sample for ask in every if ask.id == "a"] == [0, 1, 2, 3, 4, 5]


def test_blocks_hold_every_request_in_order() -> None:
    wanted = asks(IDS, 1, 1, samples=1)
    assert [len(block) for block in blocks(wanted, 16)] == [16, 16, 16, 2]
    assert [ask for block in blocks(wanted, 16) for ask in block] == wanted
    assert list(blocks(list[Ask](), 16)) == []
