"""An answer while it is written: which tokens count, which were forced, and when it ends.

A backend hands it one drawn token at a time. What `Sampling.force` gives behind it is written at once, so a backend may
find more tokens here than it drew; it reads them before it draws again, and what it drew in their places meanwhile
counts for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from gsm8k_core.types import Completion, FinishReason, OnToken, Sampling


@dataclass(slots=True, eq=False)
class Writing:
    """One prompt that is being answered."""

    index: int  # into the prompts
    key: int  # of what is drawn
    prompt: Sequence[int]
    alike: int  # the first index of the same prompt
    written: list[int] = field(default_factory=list)
    forced: list[int] = field(default_factory=list)  # places in `written`

    def write(self, token: int, sampling: Sampling, end_ids: frozenset[int], on_token: OnToken) -> Completion | None:
        """Write a drawn token and all that is forced behind it; the answer, where one of them ends it."""
        done = self._add(token, sampling, end_ids, on_token)
        while done is None and sampling.force is not None:
            given = sampling.force(self.written)
            if not given:
                break
            for token in map(int, given):
                if token not in end_ids:
                    self.forced.append(len(self.written))
                done = self._add(token, sampling, end_ids, on_token)
                if done is not None:
                    break
        return done

    def _add(self, token: int, sampling: Sampling, end_ids: frozenset[int], on_token: OnToken) -> Completion | None:
        if token in end_ids:
            return self._ended("stop", token)
        self.written.append(token)
        on_token(self.index, token)
        reason = sampling.ended(self.written)
        return None if reason is None else self._ended(reason)

    def _ended(self, reason: FinishReason, end_token: int | None = None) -> Completion:
        return Completion(tuple(self.written), reason, end_token, tuple(self.forced))
