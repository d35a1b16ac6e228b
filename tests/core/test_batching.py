"""Which rows an update holds, and what a micro-batch looks like."""

from __future__ import annotations

import numpy as np

from gsm8k_core.batching import PAD_MULTIPLE, make_updates, num_updates, pad
from gsm8k_core.types import IGNORE_INDEX, Example, Update


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
