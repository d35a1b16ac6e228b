"""Stopping at the answer: when the `#### N` line is whole."""

from __future__ import annotations

import pytest

from gsm8k_core.scoring.answers import TAIL, AnswerLine


def decode(tokens: list[int] | tuple[int, ...]) -> str:
    return "".join(map(chr, tokens))


def first_stop(text: str) -> int | None:
    """After how many tokens (here: characters) the answer is complete."""
    rule = AnswerLine(decode)
    tokens = [ord(letter) for letter in text]
    return next((count for count in range(1, len(tokens) + 1) if rule(tokens[:count])), None)


@pytest.mark.parametrize(
    ("text", "stop"),
    [
        ("So 2.\n#### 18\nNext", 14),
        ("#### 18", None),  # it may go on: 180
        ("#### 1,800.50 dollars\nx", 22),
        ("####\n18\n", None),
        ("#### the answer\n18\n", None),
        ("### 18\n", None),
        ("18\n19\n", None),
        ("####18\n", 7),
    ],
)
def test_the_line_has_a_mark_a_digit_and_an_end(text: str, stop: int | None) -> None:
    assert first_stop(text) == stop


def test_only_a_line_break_is_worth_a_look() -> None:
    looked: list[int] = []

    def counted(tokens: list[int] | tuple[int, ...]) -> str:
        looked.append(len(tokens))
        return decode(tokens)

    rule = AnswerLine(counted)
    text = [ord(letter) for letter in "a" * 200 + "\n"]
    for count in range(1, len(text) + 1):
        rule(text[:count])
    assert looked == [1, 1, TAIL]  # each token once for its line breaks, then the tail where one is
