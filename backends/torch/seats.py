"""Who sits where while prompts are decoded together: a batch of seats that are taken again as answers end.

A backend computes, this keeps the books. One turn is: `arrivals` sit down and are prefilled, a token is written to
each seat, who is done leaves, and `order` says which old seat each seat now has. A text depends on its own prompt and
key alone, so none of this changes a text; it changes how much of the machine's work is for nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from gsm8k_core.types import Completion, OnToken, Sampling

GROUP = 16  # neighbours of about one length: what reads cached positions group by group reads few for nothing
AT_ONCE = 8  # prompts that are prefilled together at most: little padding, and the first token comes early


@dataclass(slots=True)
class Seat:
    """One prompt that is being answered."""

    index: int  # into the prompts
    key: int  # of the noise
    prompt: Sequence[int]
    written: list[int] = field(default_factory=list)

    @property
    def num_cached(self) -> int:
        """Positions before the token that is fed next: the prompt and all written tokens but the last."""
        return len(self.prompt) + len(self.written) - 1


class Seats:
    """The books of one call of `generate`."""

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        end_ids: frozenset[int],
        on_token: OnToken,
        keys: Sequence[int] | None = None,
    ) -> None:
        # Similar lengths together: little padding in a prefill, and the answers of one kind end together.
        order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
        self._waiting = deque(Seat(index, index if keys is None else keys[index], prompts[index]) for index in order)
        self._sampling, self._end_ids, self._on_token = sampling, end_ids, on_token
        self.taken: list[Seat] = []  # in the order of the batch's rows
        self._filling = True
        self._done: set[int] = set()  # rows of `taken` whose answer has ended

    def __bool__(self) -> bool:
        return bool(self.taken or self._waiting)

    def arrivals(self) -> list[Seat]:
        """Prompts that sit down now, after those in `taken`; ask until there are none.

        There are none while too few seats are free to be worth a prefill.
        """
        free = self._sampling.batch_size - len(self.taken)
        if free < self._sampling.batch_size // GROUP and not self._filling:
            return []
        new = [self._waiting.popleft() for _ in range(min(free, AT_ONCE, len(self._waiting)))]
        self._filling = bool(new)
        self.taken += new
        return new

    def write(self, first: int, tokens: Sequence[int]) -> Iterator[tuple[int, Completion]]:
        """Give a token to each row from `first` on; yields (index, completion) of the answers that this ends."""
        for row, token in enumerate(tokens, start=first):
            seat = self.taken[row]
            if token in self._end_ids:
                self._done.add(row)
                yield seat.index, Completion(tuple(seat.written), "stop")
                continue
            seat.written.append(token)
            self._on_token(seat.index, token)
            if reason := self._sampling.ended(seat.written):
                self._done.add(row)
                yield seat.index, Completion(tuple(seat.written), reason)

    def order(self) -> list[int]:
        """Let those leave whose answer has ended: the old row of each row that is now taken.

        A gap is filled by the first row of the next group, whose gap by that of the one after it, and so on to the
        last row: few rows move, each to a lower place, and neighbours stay of about one length.
        """
        old = list(range(len(self.taken)))
        for gap in sorted(self._done, reverse=True):
            for start in range((gap // GROUP + 1) * GROUP, len(old), GROUP):
                old[gap], gap = old[start], start
            old[gap] = old[-1]
            old.pop()
        self.taken, self._done = [self.taken[row] for row in old], set()
        return old
