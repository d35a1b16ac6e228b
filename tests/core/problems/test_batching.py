"""Which rows an update holds, and what a micro-batch looks like."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from gsm8k_core.problems.batching import (
    OVERHEAD_TOKENS,
    PAD_MULTIPLE,
    budgeted,
    choose_tokens,
    make_updates,
    num_updates,
    pad,
    padded_tokens,
    shared_length,
)
from gsm8k_core.types import IGNORE_INDEX, Choice, Example, Update


def rows(count: int) -> list[Example]:
    return [Example(f"row-{n}", tuple(range(10, 16 + n % 7)), 3) for n in range(count)]


def updates(examples: list[Example], batch_size: int = 2, update_size: int = 4, seed: int = 0) -> list[Update]:
    return list(make_updates(examples, batch_size=batch_size, update_size=update_size, num_epochs=2, seed=seed))


def test_labels_are_unshifted_and_only_the_answer_is_supervised() -> None:
    batch = pad([Example("a", (5, 6, 7, 8, 9), 3), Example("b", (5, 6, 7), 2)])
    assert batch.tokens.shape == (2, PAD_MULTIPLE)
    assert batch.labels[0].tolist() == [IGNORE_INDEX] * 3 + [8, 9] + [IGNORE_INDEX] * 3
    assert batch.labels[1].tolist() == [IGNORE_INDEX] * 2 + [7] + [IGNORE_INDEX] * 5
    assert batch.num_targets == 3
    assert batch.tokens.dtype == batch.labels.dtype == np.int32


def test_every_epoch_holds_every_row_once() -> None:
    found = updates(rows(10))
    for epoch in (0, 1):
        ids = [row for update in found if update.epoch == epoch for row in update.rows]
        assert sorted(ids) == sorted(example.id for example in rows(10))


def test_the_last_update_of_an_epoch_may_be_smaller() -> None:
    found = updates(rows(10))
    assert [len(update.rows) for update in found] == [4, 4, 2, 4, 4, 2]
    assert [update.number for update in found] == [1, 2, 3, 4, 5, 6]
    assert num_updates(10, 4, 2) == 6


def test_micro_batches_do_not_change_which_rows_an_update_holds() -> None:
    small, large = updates(rows(10), batch_size=1), updates(rows(10), batch_size=4)
    assert [update.rows for update in small] == [update.rows for update in large]
    assert [update.num_targets for update in small] == [update.num_targets for update in large]
    assert len(small[0].micro_batches) == 4 * len(large[0].micro_batches)


def test_the_seed_and_the_epoch_change_the_order() -> None:
    found = updates(rows(10))
    assert found[0].rows != found[3].rows
    assert found[0].rows != updates(rows(10), seed=1)[0].rows
    assert [update.rows for update in found] == [update.rows for update in updates(rows(10))]


def test_other_data_gives_another_order() -> None:
    changed = [*rows(9), Example("row-9", (1, 2, 3, 4), 2)]
    assert updates(changed)[0].rows != updates(rows(10))[0].rows


def of_lengths(*lengths: int) -> list[Example]:
    return [Example(f"r{place}", tuple(range(4, 4 + length)), 2) for place, length in enumerate(lengths)]


def shapes(*lengths: int, max_tokens: int) -> list[tuple[int, ...]]:
    return [batch.tokens.shape for batch in budgeted(of_lengths(*lengths), max_tokens)]


def test_rows_of_like_length_share_a_micro_batch() -> None:
    assert shapes(100, 300, 98, 297, 300, max_tokens=1024) == [(3, 304), (2, 104)]


def test_the_budget_counts_padding_and_a_row_alone_may_be_above_it() -> None:
    assert sorted(shapes(16, 16, 16, 16, max_tokens=63)) == [(1, 16), (3, 16)]
    assert shapes(16, 16, 16, 16, max_tokens=64) == [(4, 16)]
    assert shapes(500, 8, max_tokens=64) == [(1, 504), (1, 8)]


def test_padding_is_paid_for_while_it_is_cheaper_than_a_micro_batch() -> None:
    assert OVERHEAD_TOKENS == 64
    assert shapes(88, 24, max_tokens=1024) == [(1, 88), (1, 24)]  # 64 tokens of padding are as dear: no gain
    assert shapes(88, 32, max_tokens=1024) == [(2, 88)]


def test_the_cut_is_the_cheapest_there_is() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        lengths = sorted((int(length) for length in rng.integers(5, 200, 8)), reverse=True)
        widths = [-(-length // PAD_MULTIPLE) * PAD_MULTIPLE for length in lengths]
        every = []
        for marks in range(2**7):  # each place between two rows is cut, or not
            cuts = [0, *(place + 1 for place in range(7) if marks >> place & 1), 8]
            tokens = [(end - start) * widths[start] for start, end in pairwise(cuts)]
            if all(
                count <= 400 or end - start == 1 for count, (start, end) in zip(tokens, pairwise(cuts), strict=True)
            ):
                every.append(sum(tokens) + OVERHEAD_TOKENS * len(tokens))
        found = shapes(*lengths, max_tokens=400)
        assert sum(rows * width + OVERHEAD_TOKENS for rows, width in found) == min(every)


def test_a_budget_changes_no_update() -> None:
    examples = rows(10)
    plain = updates(examples)
    for max_tokens in (8, 64, 4096):
        cut = list(make_updates(examples, update_size=4, num_epochs=2, seed=0, max_tokens=max_tokens))
        assert [update.rows for update in cut] == [update.rows for update in plain]
        assert [update.num_targets for update in cut] == [update.num_targets for update in plain]


def test_how_many_tokens_is_asked_or_the_devices_or_what_the_rows_would_take() -> None:
    device = Choice("1024", "fast")
    assert choose_tokens("77", 1, 100, device).name == "77"
    assert choose_tokens("auto", 4, 512, device) == Choice("1024", "padded tokens at most in a micro-batch; fast")
    assert choose_tokens("auto", 2, 256, device).name == "512"
    assert "2 rows of --max-length 256" in choose_tokens("auto", 2, 256, device).reason
    # On CUDA, whose 8,192 became 2,048 so: what fits is reckoned from the memory alone.
    fast = Choice("8192", "fast")
    assert choose_tokens("auto", 4, 512, fast).name == "2048"
    assert choose_tokens("auto", 4, 512, fast, by_memory=True).name == "8192"
    assert choose_tokens("77", 4, 512, fast, by_memory=True).name == "77"


def test_no_flag_takes_a_device_where_it_is_wrong() -> None:
    fast, limit = Choice("2048", "fast"), Choice("16384", "more are wrong")
    assert choose_tokens("16384", 4, 512, fast, limit=limit).reason.endswith("; --micro-batch-tokens 16384")
    found = choose_tokens("40000", 4, 512, fast, limit=limit)
    assert (found.name, found.reason.split("; ")[1]) == ("16384", "--micro-batch-tokens 40000, but more are wrong")


def test_the_padded_tokens_of_coming_updates_are_known_without_making_them() -> None:
    rng = np.random.default_rng(5)
    uneven = [Example(f"row-{n}", tuple(range(int(rng.integers(9, 200)))), 4) for n in range(70)]
    order = {"update_size": 16, "num_epochs": 2, "seed": 3, "max_tokens": 700}
    made = list(make_updates(uneven, **order))
    assert list(padded_tokens(uneven, **order)) == [update.num_tokens for update in made]
    assert len(made) == 10


def test_what_all_prompts_share_leaves_each_a_token() -> None:
    assert shared_length([[1, 2, 3], [1, 2, 4, 5]]) == 2
    assert shared_length([[1, 2], [1, 2, 4, 5]]) == 1
    assert shared_length([[1, 2], (1, 2)]) == 1
    assert shared_length([[7], [1, 2]]) == 0
    assert shared_length([[1, 2, 3]]) == 0
