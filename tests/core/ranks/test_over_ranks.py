"""An update's rows over ranks: evenly, each once, and with the totals of all."""

from __future__ import annotations

import numpy as np
import pytest

from gsm8k_core.parity import tiny
from gsm8k_core.problems.batching import make_updates, over_ranks, padded_width
from gsm8k_core.types import IGNORE_INDEX, Batch, Example, Update

BUDGET = 96


def update_of(count: int) -> Update:
    return next(make_updates(tiny.make_rows(count), update_size=count, num_epochs=1, seed=0, max_tokens=BUDGET))


def rows_of(update: Update) -> dict[str, tuple[list[int], list[int]]]:
    """Of each row the tokens and labels, as far as its last target."""
    found = {}
    for batch in update.micro_batches:
        for name, tokens_T, labels_T in zip(batch.rows, batch.tokens, batch.labels, strict=True):
            end = int(np.flatnonzero(labels_T != IGNORE_INDEX)[-1]) + 1
            found[name] = (tokens_T[:end].tolist(), labels_T[:end].tolist())
    return found


@pytest.mark.parametrize("size", [2, 3, 5])
def test_each_row_is_on_one_rank_as_it_was_and_loads_are_within_a_row(size: int) -> None:
    whole = update_of(22)
    shares = over_ranks(whole, size, BUDGET)
    together = [rows_of(share) for share in shares]
    assert sum(map(len, together)) == len(whole.rows)
    assert {name: row for rows in together for name, row in rows.items()} == rows_of(whole)
    loads = [sum(padded_width(len(tokens)) for tokens, _ in rows.values()) for rows in together]
    assert max(loads) - min(loads) <= max(padded_width(len(tokens)) for tokens, _ in rows_of(whole).values())
    assert all(batch.tokens.size <= BUDGET or len(batch.rows) == 1 for share in shares for batch in share.micro_batches)


def test_a_long_row_counts_as_many_short_ones() -> None:
    rows = [Example(f"row {place}", tuple(range(2, 2 + length)), 1) for place, length in enumerate([64, *[8] * 8])]
    whole = next(make_updates(rows, update_size=9, num_epochs=1, seed=0, max_tokens=BUDGET))
    assert [len(share.rows) for share in over_ranks(whole, 2, BUDGET)] == [1, 8]


def test_every_share_has_the_totals_of_all() -> None:
    whole = update_of(7)
    shares = over_ranks(whole, 3, BUDGET)
    assert {share.num_targets for share in shares} == {whole.num_targets}
    assert {share.num_tokens for share in shares} == {
        sum(batch.tokens.size for share in shares for batch in share.micro_batches)
    }


def test_a_rank_without_a_row_has_an_empty_share() -> None:
    first, second = over_ranks(update_of(1), 2, BUDGET)
    assert (len(first.rows), len(second.rows), second.micro_batches) == (1, 0, ())
    assert second.num_targets == first.num_targets > 0


def test_weights_stay_with_their_tokens() -> None:
    tokens, labels = np.arange(12, dtype=np.int32).reshape(2, 6), np.arange(12, dtype=np.int32).reshape(2, 6)
    weights = np.arange(12, dtype=np.float32).reshape(2, 6)
    given = Update(1, 0, ("a", "b"), (Batch(tokens, labels, weights, ("a", "b")),))
    for share in over_ranks(given, 2, BUDGET):
        (batch,) = share.micro_batches
        assert batch.weights is not None
        assert batch.weights[0, :6].tolist() == batch.tokens[0, :6].tolist()
