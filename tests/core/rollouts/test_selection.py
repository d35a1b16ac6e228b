"""What is kept of a problem's verified answers, and the rows that they become."""

from __future__ import annotations

import pytest

from gsm8k_core.problems.batching import pad, rows_hash
from gsm8k_core.rollouts.record import Rollout
from gsm8k_core.rollouts.selection import choose, distance, kept_of, mix, own_row, pairs
from gsm8k_core.scoring.verify import Verification
from gsm8k_core.types import IGNORE_INDEX, Completion, Example
from tests.core.rollouts.script import problem


def candidate(
    sample: int, chain: str, tokens: tuple[int, ...], end: int | None = 1, forced: tuple[int, ...] = ()
) -> Rollout:
    """A verified answer."""
    verdict = Verification(True, "", (chain,), (), gold_right=True)
    return Rollout(problem("train-7"), sample, Completion(tokens, "stop", end, forced), "", 0.0, verdict)


SAME = (5, 6, 7, 8)
NEAR = (5, 6, 7, 9)
FAR = (20, 21, 22, 23)


def samples(chosen: list[Rollout]) -> list[int]:
    return [each.sample for each in chosen]


def test_one_answer_is_kept_for_each_chain_and_at_most_so_many() -> None:
    given = [candidate(0, "2+3", SAME), candidate(1, "2+3", FAR), candidate(2, "3+2", NEAR), candidate(3, "1+4", FAR)]
    assert samples(choose(given, keep=9)) == [0, 3, 2]
    assert samples(choose(given, keep=2)) == [0, 3]
    assert choose([], keep=4) == []


def test_of_one_chain_the_answer_least_like_those_kept_is_taken() -> None:
    given = [candidate(0, "2+3", SAME), candidate(1, "3+2", NEAR), candidate(2, "3+2", FAR)]
    assert samples(choose(given, keep=2)) == [0, 2]
    # The control: where both are as far, the one that was sampled first.
    given[1] = candidate(1, "3+2", (30, 31, 32, 33))
    assert samples(choose(given, keep=2)) == [0, 1]


def test_a_chain_that_is_trained_already_is_not_kept() -> None:
    given = [candidate(0, "2+3", SAME), candidate(1, "3+2", FAR)]
    assert samples(choose(given, 4, known=[("2+3",)])) == [1]


def test_what_is_kept_does_not_depend_on_the_order_in_which_answers_ended() -> None:
    given = [candidate(0, "2+3", SAME), candidate(1, "3+2", NEAR), candidate(2, "3+2", FAR), candidate(3, "1+4", FAR)]
    wanted = kept_of(given, 2, "steps", lambda each: True, {})
    assert samples(wanted["train-7"]) == [0, 2]
    assert kept_of(given[::-1], 2, "steps", lambda each: True, {}) == wanted
    assert samples(kept_of(given, 2, "steps", lambda each: each.sample > 0, {})["train-7"]) == [1, 3]
    assert samples(kept_of(given, 2, "steps", lambda each: True, {"train-7": ("3+2",)})["train-7"]) == [0, 3]


def test_the_distance_is_of_the_pairs_that_are_shared() -> None:
    one, near, far = (pairs(candidate(0, "", tokens)) for tokens in (SAME, NEAR, FAR))
    assert distance(one, one) == 0
    assert distance(one, near) == pytest.approx(1 - 2 / 4)
    assert distance(one, far) == 1
    assert distance(frozenset(), frozenset()) == 0


def test_a_row_is_the_ids_as_sampled_with_the_end_token_that_was_drawn() -> None:
    answer = candidate(5, "2+3", (10, 11, 12, 13), end=2, forced=(1, 2))
    row = own_row(answer, (3, 4, 5))
    assert row == Example("train-7/own-5", (3, 4, 5, 10, 11, 12, 13, 2), 3, (4, 5))
    assert row.num_targets == 3


def test_an_answer_that_did_not_end_by_itself_becomes_no_row() -> None:
    with pytest.raises(ValueError, match="no end token"):
        own_row(candidate(0, "2+3", SAME, end=None), (3,))


def test_forced_tokens_are_read_and_are_no_targets() -> None:
    row = Example("a", (3, 4, 5, 10, 11, 12, 13, 2), 3, (4, 5))
    batch = pad([row])
    assert batch.tokens[0, :8].tolist() == list(row.tokens)
    assert batch.labels[0].tolist() == [IGNORE_INDEX] * 3 + [10] + [IGNORE_INDEX] * 2 + [13, 2]
    assert batch.targets().targets_N.tolist() == [10, 13, 2]
    assert batch.num_targets == row.num_targets  # what the loss is divided by
    plain = pad([Example("a", row.tokens, 3)])
    assert plain.targets().targets_N.tolist() == [10, 11, 12, 13, 2]


def test_forced_positions_are_in_the_hash_of_the_rows_and_others_keep_theirs() -> None:
    plain, forced = Example("a", (3, 4, 5), 1), Example("a", (3, 4, 5), 1, (2,))
    assert rows_hash([plain]) != rows_hash([forced])
    assert rows_hash([plain])[:12] == "bf784a8582d3"  # as before there were any


HUMAN = {name: Example(name, (1, 2, 3), 1) for name in ("a", "b")}
OWN = {"b": [Example("b/own-0", (1, 4, 2), 1), Example("b/own-1", (1, 5, 2), 1)], "c": [Example("c/own-0", (1, 6), 1)]}


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        ("own", ["b/own-0", "b/own-1", "c/own-0"]),
        ("own-first", ["a", "b/own-0", "b/own-1", "c/own-0"]),
        ("both", ["a", "b", "b/own-0", "b/own-1", "c/own-0"]),
    ],
)
def test_own_rows_are_mixed_with_human_ones(how: str, wanted: list[str]) -> None:
    rows = mix(how, ["a", "b", "c", "d"], OWN, HUMAN)  # type: ignore[arg-type]
    assert [row.id for row in rows] == wanted
