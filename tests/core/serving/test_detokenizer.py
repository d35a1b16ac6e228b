"""Text as its tokens come: whole characters, stop texts, and never other words than the whole has."""

from __future__ import annotations

import pytest

from gsm8k_core.serving.detokenizer import Detokenizer

TEXT = "Tom's 🍎 costs 3 €; 東京では 48/2 = <<48/2=24>>24.\n\n#### 24"
HALF = "\N{REPLACEMENT CHARACTER}"


class Bytes:
    """A token is a byte, as the rarest ones of a byte-level tokenizer are."""

    def decode(self, tokens: list[int], **unused: object) -> str:
        return bytes(tokens).decode("utf-8", errors="replace")


class Letters:
    """A token is a letter."""

    def decode(self, tokens: list[int], **unused: object) -> str:
        return "".join(map(chr, tokens))


def pieces(text: str, *stops: str) -> tuple[list[str], Detokenizer]:
    detokenizer = Detokenizer(Letters(), stops)  # type: ignore[arg-type]
    return [*(detokenizer.add(ord(letter)) for letter in text), detokenizer.end()], detokenizer


def test_the_pieces_are_the_whole_and_no_character_is_halved() -> None:
    detokenizer = Detokenizer(Bytes())  # type: ignore[arg-type]
    found = [detokenizer.add(token) for token in TEXT.encode()]
    assert "".join(found) == TEXT
    assert not any(HALF in piece for piece in found)
    assert detokenizer.end() == ""
    assert any(HALF in Bytes().decode([token]) for token in TEXT.encode())  # the control


def test_a_character_that_is_never_finished_comes_at_the_end() -> None:
    detokenizer = Detokenizer(Bytes())  # type: ignore[arg-type]
    assert [detokenizer.add(token) for token in "a🍎".encode()[:3]] == ["a", "", ""]
    assert detokenizer.end() == HALF


@pytest.mark.parametrize(
    ("text", "stops", "shown"),
    [
        ("one two three", ("two",), "one "),
        ("one two three", ("three", "two"), "one "),
        ("one tw", ("two",), "one tw"),
        ("ababac!", ("abac",), "ab"),
        ("xyz", ("x",), ""),
        ("no such", ("thing",), "no such"),
    ],
)
def test_it_ends_before_a_stop_text_and_never_shows_the_beginning_of_one(
    text: str, stops: tuple[str, ...], shown: str
) -> None:
    found, detokenizer = pieces(text, *stops)
    assert "".join(found) == shown == detokenizer.given
    assert detokenizer.stopped == (shown != text)
    ends = ["".join(found[: place + 1]) for place in range(len(found))]
    assert all(shown.startswith(end) for end in ends)


def test_nothing_waits_that_is_no_beginning_of_a_stop_text() -> None:
    found, _ = pieces("abc", "xyz")
    assert found == ["a", "b", "c", ""]
