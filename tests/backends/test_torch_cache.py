"""The blocks that torch decodes from: whole, no wider than their group needs, and a row keeps its positions."""

from __future__ import annotations

import torch

from backends.torch.cache import STEP, SeatCache
from backends.torch.seats import GROUP


def states(*rows: list[float]) -> torch.Tensor:
    """Keys of one head of size 1: (B, 1, T, 1)."""
    return torch.tensor(rows)[:, None, :, None]


def filled(*lengths: int) -> SeatCache:
    """One row of each length; row i holds i + 1."""
    cache = SeatCache(len(lengths), grouped=True)
    for row, length in enumerate(lengths):
        cache.at_prompts(slice(row, row + 1), length, None, 0)
        new = states([row + 1.0] * length)
        cache.update(new, -new, 0)
    return cache


def step(cache: SeatCache, cached: list[int]) -> tuple[torch.Tensor, ...]:
    """Each group's keys after one more position, which holds 100."""
    cache.at_step(cached, torch.tensor(cached))
    new = states(*[[100.0]] * len(cached))
    keys, values = cache.update(new, -new, 0)
    assert all(torch.equal(key, -value) for key, value in zip(keys, values, strict=True))
    return tuple(keys)


def test_a_step_reads_whole_blocks_each_as_wide_as_its_own_group_needs() -> None:
    lengths = [5] * GROUP + [3 * STEP, 3]
    keys = step(filled(*lengths), lengths)
    assert [key.shape[0] for key in keys] == [GROUP, 2]
    assert [key.shape[2] for key in keys] == [STEP, 4 * STEP]
    assert all(key.is_contiguous() for key in keys)
    assert keys[1][0, 0, :, 0].tolist() == [GROUP + 1.0] * 3 * STEP + [100.0] + [0.0] * (STEP - 1)


def test_a_block_grows_with_its_longest_row_and_shrinks_when_that_has_left() -> None:
    cache = filled(STEP, 4)
    assert step(cache, [STEP, 4])[0].shape[2] == 2 * STEP
    assert step(cache, [5 * STEP, 5])[0].shape[2] == 6 * STEP
    cache.reorder([1], [6])
    (key,) = step(cache, [6])
    assert key.shape[2] == STEP
    assert key[0, 0, :7, 0].tolist() == [2.0] * 4 + [100.0] * 3
    assert key.is_contiguous()


def test_a_row_that_moves_to_a_narrower_group_keeps_its_positions() -> None:
    long = 2 * STEP + 1
    cache = filled(*[3] * GROUP, long)
    cache.reorder([GROUP, *range(1, GROUP)], [long, *[3] * (GROUP - 1)])
    (key,) = step(cache, [long, *[3] * (GROUP - 1)])
    assert key[0, 0, : long + 1, 0].tolist() == [GROUP + 1.0] * long + [100.0]
    assert key[1, 0, :4, 0].tolist() == [2.0] * 3 + [100.0]


def test_prompts_read_their_common_beginning_from_another_cache() -> None:
    prefix, cache = filled(2), SeatCache(2, grouped=True)
    cache.at_prompts(slice(0, 2), 4, prefix, 2)
    new = states([7.0, 8.0], [9.0, 6.0])
    keys, _ = cache.update(new, -new, 0)
    assert keys[:, 0, :, 0].tolist() == [[1.0, 1.0, 7.0, 8.0], [1.0, 1.0, 9.0, 6.0]]
    assert step(cache, [4, 3])[0][:, 0, :5, 0].tolist() == [[1.0, 1.0, 7.0, 8.0, 100.0], [1.0, 1.0, 9.0, 100.0, 0.0]]


def test_other_attention_gets_one_block_of_all_rows() -> None:
    cache = SeatCache(GROUP + 1, grouped=False)
    cache.at_prompts(slice(0, GROUP + 1), 1, None, 0)
    new = states(*[[1.0]] * (GROUP + 1))
    cache.update(new, -new, 0)
    cache.at_step([1] * (GROUP + 1), torch.ones(GROUP + 1, dtype=torch.long))
    keys, _ = cache.update(new, -new, 0)
    assert keys.shape == (GROUP + 1, 1, STEP, 1)
