"""An answer's text as its tokens come: whole characters alone, and nothing that a stop text may be the beginning of."""

from __future__ import annotations

from collections.abc import Sequence

from gsm8k_core.models.tokenizer import Tokenizer
from gsm8k_core.problems.prompts import decode

HALF = "\N{REPLACEMENT CHARACTER}"  # stands for a character whose last bytes are in a token to come


class Detokenizer:
    """The text of one answer. It ends before the first of `stops` that appears in it.

    Each token is decoded with a few before it and not with all: what comes out is the text of the whole.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        self._tokens: list[int] = []
        self._start = self._read = 0  # tokens before `read` are in `text`; those from `start` on are decoded again
        self.text = ""  # what is certain
        self.stopped = False  # a stop text was found; what follows counts for nothing
        self._given = 0

    def add(self, token: int) -> str:
        """One token more; what of the text may be shown now."""
        self._tokens.append(token)
        if self.stopped:
            return ""
        before = decode(self._tokenizer, self._tokens[self._start : self._read])
        now = decode(self._tokenizer, self._tokens[self._start :])
        if len(now) <= len(before) or now.endswith(HALF):
            return ""
        self._take(now[len(before) :])
        self._start, self._read = self._read, len(self._tokens)
        return self._give(len(self.text) - self._held())

    def end(self) -> str:
        """What is left to be shown when no token follows: half a character as well."""
        if not self.stopped:
            before = decode(self._tokenizer, self._tokens[self._start : self._read])
            self._take(decode(self._tokenizer, self._tokens[self._start :])[len(before) :])
        return self._give(len(self.text))

    @property
    def given(self) -> str:
        """All that was shown."""
        return self.text[: self._given]

    def _take(self, piece: str) -> None:
        longest = max(map(len, self._stops), default=1)
        begin = max(0, len(self.text) - longest + 1)
        self.text += piece
        found = [place for stop in self._stops if (place := self.text.find(stop, begin)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True

    def _held(self) -> int:
        """How much of the end may be the beginning of a stop text."""
        if self.stopped:
            return 0
        sizes = (
            size
            for stop in self._stops
            for size in range(min(len(stop) - 1, len(self.text)), 0, -1)
            if self.text.endswith(stop[:size])
        )
        return max(sizes, default=0)

    def _give(self, end: int) -> str:
        piece = self.text[self._given : end]
        self._given = max(self._given, end)
        return piece
