"""Rows that are made when their update is asked for: the updates are those of rows that were made before."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from gsm8k_core.problems.batching import fullest, make_updates, padded_tokens, rows_hash, width_of
from gsm8k_core.problems.corpus import SAMPLE_ROWS, Corpus, sampled
from gsm8k_core.types import DataError, Example, Problem

MAX_LENGTH = 64


def problems(count: int) -> list[Problem]:
    return [Problem(f"train-{n}", "q" * (n % 23 + 1), "a" * (n % 7 + 1), "1") for n in range(count)]


class Maker:
    """A token a character, one problem refused; counts what it made."""

    def __init__(self, refuse: str = "") -> None:
        self.refuse, self.made = refuse, 0

    def __call__(self, problems: Sequence[Problem]) -> list[Example]:
        if any(problem.id == self.refuse for problem in problems):
            raise DataError("no token prefix")
        self.made += len(problems)
        return [
            Example(each.id, (*map(ord, each.question), *map(ord, each.answer)), len(each.question))
            for each in problems
        ]


def corpus(rows: Sequence[Problem], make: Maker, max_length: int = MAX_LENGTH, content: str = "c") -> Corpus:
    return Corpus(rows, make, Maker()(sampled(rows)), max_length, content)


def test_the_updates_are_those_of_the_same_order_and_only_they_are_made() -> None:
    rows, make = problems(2000), Maker()
    lazy = corpus(rows, make)
    updates = make_updates(lazy, update_size=32, num_epochs=2, seed=3, max_tokens=256)
    first, second = next(updates), next(updates)
    assert make.made == 64
    assert [update.number for update in (first, second)] == [1, 2]
    assert not set(first.rows) & set(second.rows)
    by_id = {row.id: row for row in Maker()(rows)}
    for batch in first.micro_batches:
        for tokens, name in zip(batch.tokens, batch.rows, strict=True):
            assert tuple(tokens[: len(by_id[name].tokens)]) == by_id[name].tokens
    again = make_updates(lazy, update_size=32, num_epochs=2, seed=3, max_tokens=256, after=1)
    assert next(again).rows == second.rows  # a run that goes on makes none of those before
    assert make.made == 96
    everything = list(make_updates(lazy, update_size=32, num_epochs=2, seed=3, max_tokens=256))
    for epoch in (0, 1):
        seen = [name for update in everything if update.epoch == epoch for name in update.rows]
        assert sorted(seen) == sorted(by_id)
    assert everything[0].rows != everything[63].rows


def test_what_is_told_from_a_sample_is_near() -> None:
    rows, make = problems(2000), Maker()
    lazy = corpus(rows, make)
    order = {"update_size": 32, "num_epochs": 1, "seed": 0, "max_tokens": 256}
    about = list(padded_tokens(lazy, **order))
    assert make.made == 0
    real = [update.num_tokens for update in make_updates(lazy, **order)]
    assert len(about) == len(real)
    assert abs(sum(about) / sum(real) - 1) < 0.01  # here a token is a character: the line is exact
    assert width_of(lazy) == MAX_LENGTH
    assert fullest(lazy, 256, 32).tokens.shape == (8, 32)  # the longest have 30 tokens
    assert len(sampled(rows)) == SAMPLE_ROWS == len({problem.id for problem in sampled(rows)})


def test_a_row_that_is_too_long_or_cannot_be_made_is_left_out_whole() -> None:
    rows = problems(2000)
    lazy = corpus(rows, Maker(refuse="train-5"), max_length=20)
    taken = lazy.take(range(46))
    long = {problem.id for problem in rows[:46] if len(problem.question) + len(problem.answer) > 20}
    assert long
    assert {row.id for row in taken} == {f"train-{n}" for n in range(46)} - long - {"train-5"}
    assert lazy.left_out == long | {"train-5"}
    (next_one,) = lazy.take([5])  # an update has one row at least
    assert next_one.id == "train-6"
    with pytest.raises(DataError, match="every row is longer than --max-length 1"):
        corpus(rows, Maker(), max_length=1).take([0])


def test_the_hash_follows_content_and_limit() -> None:
    rows = problems(1500)
    hashes = {
        rows_hash(each)
        for each in (
            corpus(rows, Maker()),
            corpus(rows, Maker(), content="other"),
            corpus(rows, Maker(), max_length=63),
            corpus(rows[:-1], Maker()),
        )
    }
    assert len(hashes) == 4
    assert rows_hash(corpus(rows, Maker())) in hashes
