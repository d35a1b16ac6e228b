"""An answer while it is written: which tokens count, which were forced, and when it ends.

A backend hands it one drawn token at a time. What `Sampling.force` gives behind it is written at once, so a backend may
find more tokens here than it drew; it reads them before it draws again, and what it drew in their places meanwhile
counts for nothing. It may also ask its device for tokens before it has seen those before them: up to one at a time is
then on its way, and one is drawn behind the end of an answer and thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from gsm8k_core.problems.batching import first_alike
from gsm8k_core.types import Completion, FinishReason, OnToken, Query, Sampling


@dataclass(slots=True, eq=False)
class Writing:
    """One prompt that is being answered."""

    index: int  # into the prompts
    key: int  # of what is drawn
    prompt: Sequence[int]
    alike: int  # the first index of the same prompt
    sampling: Sampling
    written: list[int] = field(default_factory=list)
    forced: list[int] = field(default_factory=list)  # places in `written`
    launched: int = 0  # tokens asked of the device, those that the host has not seen included
    landed: int = 0  # of them, those that the host has seen
    done: bool = False

    @classmethod
    def of_prompts(
        cls, prompts: Sequence[Sequence[int]], sampling: Sampling, keys: Sequence[int] | None = None
    ) -> list[Self]:
        """One for each prompt; a key is its index where there are none."""
        alike = first_alike(prompts)
        return [
            cls(index, index if keys is None else keys[index], prompt, alike[index], sampling)
            for index, prompt in enumerate(prompts)
        ]

    @classmethod
    def of_queries(cls, queries: Sequence[Query]) -> list[Self]:
        """One for each of those that come together."""
        alike = first_alike([query.prompt for query in queries])
        return [
            cls(query.number, query.key, query.prompt, queries[first].number, query.sampling)
            for query, first in zip(queries, alike, strict=True)
        ]

    @property
    def needs_no_step(self) -> bool:
        """Whether nothing more is to be asked of the device for it."""
        return self.done or self.launched >= self.sampling.max_new_tokens

    @property
    def forced_input(self) -> int | None:
        """What the next step reads, where it was forced; else it is what the device drew last."""
        place = self.launched - 1
        return self.written[place] if place < len(self.written) and place in self.forced else None

    def land(self, token: int, end_ids: frozenset[int], on_token: OnToken) -> Completion | None:
        """The host sees the next of the tokens that were launched; the answer, where this ends it."""
        self.landed += 1
        if self.done or self.landed <= len(self.written):
            return None  # one too many, or its place was forced before it was seen
        done = self.write(token, end_ids, on_token)
        self.done = done is not None
        return done

    def write(self, token: int, end_ids: frozenset[int], on_token: OnToken) -> Completion | None:
        """Write a drawn token and all that is forced behind it; the answer, where one of them ends it."""
        done = self._add(token, end_ids, on_token)
        while done is None and self.sampling.force is not None:
            given = self.sampling.force(self.written)
            if not given:
                break
            for token in map(int, given):
                if token not in end_ids:
                    self.forced.append(len(self.written))
                done = self._add(token, end_ids, on_token)
                if done is not None:
                    break
        return done

    def _add(self, token: int, end_ids: frozenset[int], on_token: OnToken) -> Completion | None:
        if token in end_ids:
            return self._ended("stop", token)
        self.written.append(token)
        on_token(self.index, token)
        reason = self.sampling.ended(self.written)
        return None if reason is None else self._ended(reason)

    def _ended(self, reason: FinishReason, end_token: int | None = None) -> Completion:
        return Completion(tuple(self.written), reason, end_token, tuple(self.forced))


def manners(rows: Sequence[Writing]) -> list[tuple[Sampling, list[int]]]:
    """Which rows draw their next token in the same manner: a sampling that says how, and their places."""
    found: dict[tuple[float, float, int, int], tuple[Sampling, list[int]]] = {}
    for place, row in enumerate(rows):
        found.setdefault(row.sampling.manner, (row.sampling, []))[1].append(place)
    return list(found.values())
