"""An answer while it is written: what is forced behind a token, and what ends it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from gsm8k_core.scoring.writing import Writing
from gsm8k_core.types import Completion, Sampling

END = 1


def write(drawn: Sequence[int], sampling: Sampling) -> tuple[Completion | None, list[tuple[int, int]]]:
    """What became of the answer, and what was told on the way."""
    told: list[tuple[int, int]] = []
    answer, done = Writing(3, 0, (5,), 3, sampling), None
    for token in drawn:
        assert done is None
        done = answer.write(token, frozenset({END}), lambda index, token: told.append((index, token)))
    return done, told


def scripted(behind: dict[int, tuple[int, ...]]) -> Sampling:
    return Sampling(6, 1, force=lambda written: behind.get(written[-1], ()))


def test_forced_tokens_follow_the_one_they_were_asked_with_and_are_told() -> None:
    done, told = write([4, 9, END], scripted({4: (7, 8)}))
    assert done == Completion((4, 7, 8, 9), "stop", END, (1, 2))
    assert told == [(3, token) for token in (4, 7, 8, 9)]


def test_force_is_asked_again_behind_what_it_gave_but_not_in_the_middle_of_it() -> None:
    done, _ = write([4, END], scripted({4: (4, 7), 7: (8,)}))  # the forced 4 is not the last of its run
    assert done == Completion((4, 4, 7, 8), "stop", END, (1, 2, 3))


@pytest.mark.parametrize(
    ("behind", "tokens", "reason", "end", "forced"),
    [
        ({4: (7, END, 8)}, (4, 7), "stop", END, (1,)),
        ({4: (END,)}, (4,), "stop", END, ()),
        ({4: (7, 8, 9, 10, 11, 12)}, (4, 7, 8, 9, 10, 11), "length", None, (1, 2, 3, 4, 5)),
        ({4: (4,)}, (4, 4, 4, 4, 4, 4), "length", None, (1, 2, 3, 4, 5)),  # one that never stops
    ],
)
def test_forced_tokens_end_an_answer_as_drawn_ones_do(
    behind: dict[int, tuple[int, ...]], tokens: tuple[int, ...], reason: str, end: int | None, forced: tuple[int, ...]
) -> None:
    assert write([4], scripted(behind))[0] == Completion(tokens, reason, end, forced)  # type: ignore[arg-type]


def test_a_forced_token_completes_an_answer() -> None:
    sampling = Sampling(6, 1, complete=lambda written: written[-1] == 7, force=lambda written: (7, 8))
    assert write([4], sampling)[0] == Completion((4, 7), "complete", None, (1,))
