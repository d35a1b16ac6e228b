"""Stopping at the answer: whether a completion, as far as it is written, holds its whole `#### N` line."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

TAIL = 64  # tokens; the line that has just ended is among them
# A line break has to follow: without it, the number may go on.
_LINE = re.compile(r"####[^\n]*[0-9][^\n]*\n")


class AnswerLine:
    """Sampling.complete: true once a line with `####` and a digit has ended.

    It is asked after every token, and decodes only where that token breaks a line.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._breaks: dict[int, bool] = {}

    def __call__(self, tokens: Sequence[int]) -> bool:
        last = tokens[-1]
        if last not in self._breaks:
            self._breaks[last] = "\n" in self._decode([last])
        return self._breaks[last] and _LINE.search(self._decode(tokens[-TAIL:])) is not None
