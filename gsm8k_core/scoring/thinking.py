"""What a model thinks before it answers is no part of its answer: no rule reads it, its tokens are counted apart.

A thought stands between two marks. One that is never closed has no answer behind it. A closing mark alone ends a
thought that began with the answer's text: some templates write the first mark themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gsm8k_core.models.prompt_settings import THOUGHTS

_CLOSING = frozenset(THOUGHTS.values())
_ANY = re.compile("|".join(re.escape(mark) for mark in (*THOUGHTS, *_CLOSING)))


@dataclass(frozen=True, slots=True)
class Thought:
    """What was found in a completion."""

    answer: str  # what rules read
    end: int  # characters up to the end of the last thought; 0: none
    closed: bool = True


def split(completion: str) -> Thought:
    """The answer apart from the thoughts. Linear in the completion, whatever that holds."""
    if "<" not in completion and "[" not in completion:
        return Thought(completion, 0)
    kept: list[str] = []
    at, end, waits = 0, 0, ""
    for mark in _ANY.finditer(completion):
        if waits:
            if mark[0] != waits:
                continue
            waits = ""
        elif mark[0] in _CLOSING:
            kept.clear()  # it began before the text did
        else:
            kept.append(completion[at : mark.start()])
            waits = THOUGHTS[mark[0]]
            continue
        at = end = mark.end()
    if waits:
        return Thought("", len(completion), closed=False)
    return Thought("".join([*kept, completion[at:]]) if end else completion, end)


def count_tokens(tokens: Sequence[int], end: int, decode: Callable[[Sequence[int]], str]) -> int:
    """How many tokens the first `end` characters took: the fewest whose text is so long."""
    low, high = 0, len(tokens)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(decode(tokens[:middle])) >= end else (middle + 1, high)
    return low
