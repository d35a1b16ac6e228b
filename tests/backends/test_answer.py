"""`answer`: prompts that come while others are answered, on both backends, beside `generate` with one at a time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

import backends
from gsm8k_core.types import Completion, Example, Query, Sampling
from tests import tiny

PLACES = 5
MANNERS = (
    Sampling(18, 1),
    Sampling(8, 1, temperature=1.0),
    Sampling(15, 1, temperature=0.7, top_p=0.8),
    Sampling(12, 1, temperature=1.3, top_k=5),
)


@pytest.fixture(scope="module", params=list(backends.PROVIDERS))
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if not backends.installed(request.param):
        pytest.skip(f"backend {request.param} is not installed here")
    folder = tiny.make(tmp_path_factory.mktemp("answer") / "llama", "llama")
    return backends.open(request.param, folder, "cpu", "float32")


def queries_of(examples: list[Example]) -> list[Query]:
    """Each of its own length and manner; the last two are one prompt."""
    prompts = [example.tokens[: 4 + 3 * (number % 7)] for number, example in enumerate(examples[:9])]
    prompts[-1] = prompts[-2]
    return [Query(100 + n, prompt, MANNERS[n % len(MANNERS)], 7 * n) for n, prompt in enumerate(prompts)]


def alone(backend: Any, query: Query) -> Completion:
    ((_, done),) = backend.generate([query.prompt], query.sampling, keys=[query.key])
    return done


class Crowd:
    """Comes in small groups, some turns apart."""

    def __init__(self, queries: Sequence[Query], groups: Sequence[int]) -> None:
        self.left, self._groups, self.free = list(queries), itertools.cycle(groups), []

    def __call__(self, free: int) -> Sequence[Query]:
        self.free.append(free)
        count = min(free, next(self._groups))
        come, self.left = self.left[:count], self.left[count:]
        return come


def run(backend: Any, crowd: Crowd, count: int, **more: Any) -> tuple[dict[int, Completion], int]:
    """The answers, and after how many turns the last one was there."""
    found: dict[int, Completion] = {}
    turns = backend.answer(crowd, PLACES, 200, **more)
    for turn in itertools.count(1):
        found.update(next(turns))
        if len(found) == count:
            turns.close()
            return found, turn
        assert turn < 2000
    raise AssertionError


def test_who_comes_later_gets_the_text_that_it_gets_alone(backend: Any, examples: list[Example]) -> None:
    queries, told = queries_of(examples), {}
    crowd = Crowd(queries, [2, 0, 0, 1, 0, 3])
    found, _ = run(
        backend, crowd, len(queries), on_token=lambda number, token: told.setdefault(number, []).append(token)
    )
    assert found == {query.number: alone(backend, query) for query in queries}
    assert {number: tuple(tokens) for number, tokens in told.items()} == {
        number: done.tokens for number, done in found.items() if done.tokens
    }
    assert max(crowd.free) == PLACES
    assert len({done.tokens for done in found.values()}) > 6  # the control: they are not all the same


def test_they_share_steps(backend: Any, examples: list[Example]) -> None:
    queries = [replace(query, sampling=MANNERS[0]) for query in queries_of(examples)[:PLACES]]
    ends = [len(alone(backend, query).tokens) for query in queries]
    _, together = run(backend, Crowd(queries, [PLACES]), PLACES)
    _, apart = run(backend, Crowd(queries, [1, 1, 1, 0]), PLACES)
    assert together <= max(ends) + 3
    assert apart <= max(ends) + 8
    assert sum(ends) > 2 * apart  # one after the other


def test_a_place_is_free_again_as_soon_as_nobody_wants_the_answer(backend: Any, examples: list[Example]) -> None:
    gone: set[int] = set()
    queries = queries_of(examples)
    whole = Sampling(30, 1)
    long = next(query for query in queries if len(alone(backend, replace(query, sampling=whole)).tokens) == 30)
    watched = [replace(whole, complete=lambda written, n=n: n in gone) for n in range(PLACES)]
    queries = [replace(long, number=number, sampling=each) for number, each in enumerate(watched)]
    crowd = Crowd(queries, [PLACES])
    turns = backend.answer(crowd, PLACES, 200)
    for _ in range(5):
        assert list(next(turns)) == []
    gone |= {1, 3}
    ended = [number for _ in range(3) for number, _ in next(turns)]
    assert sorted(ended) == [1, 3]
    crowd.left = [replace(long, number=9, sampling=whole)]
    gone |= {0, 2, 4}
    ends = dict(pair for _ in range(40) for pair in next(turns))
    assert ends.keys() == {0, 2, 4, 9}
    assert ends[9].tokens == alone(backend, replace(long, sampling=whole)).tokens
    assert len(ends[0].tokens) < 15
