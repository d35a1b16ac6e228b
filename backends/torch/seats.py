"""Who sits where while prompts are decoded together: a batch of seats that are taken again as answers end.

A backend computes, this keeps the books. One turn is: `arrivals` sit down, and each of their prompts is read once, a
token of each seat is read, those that the host sees by then are written, who is done leaves, and `order` says which old
seat each seat now has. A text depends on its own prompt and key alone, so none of this changes a text; it changes how
much of the machine's work is for nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from gsm8k_core.scoring.writing import Writing
from gsm8k_core.types import Completion, Incoming, OnToken

GROUP = 16  # neighbours of about one length: what reads cached positions group by group reads few for nothing
AT_ONCE = 8  # prompts that are prefilled together at most: little padding, and the first token comes early


@dataclass(slots=True, eq=False)
class Seat(Writing):
    """One prompt that is being answered, and how much of it and its answer is in the cache."""

    @property
    def num_cached(self) -> int:
        """Positions before the token that is read next, which is the last one launched."""
        return len(self.prompt) + self.launched - 1


@dataclass(slots=True, eq=False)
class Arrivals:
    """Who sits down: first those whose prompts are read, behind them those with the prompt of one before.

    `sources` says of each of the latter whose: a number in `read`, or None for the prompt that was kept last time.
    `keep` is the number in `read` of the prompt that more are waiting with, if any.
    """

    read: list[Seat]
    copied: list[Seat]
    sources: list[int | None]
    keep: int | None = None

    @property
    def seats(self) -> list[Seat]:
        return self.read + self.copied


def _by_length(seats: Iterable[Seat]) -> list[Seat]:
    """Similar lengths together: little padding in a prefill, and the answers of one kind end together."""
    return sorted(seats, key=lambda seat: (len(seat.prompt), seat.alike, seat.index))


class Seats:
    """The books of one call of `generate`, whose rows are all there, or of `answer`, where more are `incoming`."""

    def __init__(
        self,
        rows: Iterable[Seat],
        num_seats: int,
        end_ids: frozenset[int],
        on_token: OnToken,
        incoming: Incoming | None = None,
    ) -> None:
        self._waiting = deque(_by_length(rows))
        self._num_seats, self._end_ids, self._on_token, self._incoming = num_seats, end_ids, on_token, incoming
        self.taken: list[Seat] = []  # in the order of the batch's rows
        self._filling = True
        self._kept: int | None = None  # `alike` of the prompt that is kept

    def __bool__(self) -> bool:
        return bool(self.taken or self._waiting)

    @property
    def keeps(self) -> bool:
        """Whether a prompt is kept for those who wait with it: one at most, as those follow each other."""
        return self._kept is not None

    def arrivals(self) -> Arrivals:
        """Those who sit down now, after those in `taken`; ask until there are none.

        There are none while too few seats are free to be worth a prefill; but nobody who is incoming waits for that.
        """
        free = self._num_seats - len(self.taken)
        new = Arrivals([], [], [])
        if self._incoming is not None:
            if free > len(self._waiting):
                self._waiting.extend(_by_length(Seat.of_queries(self._incoming(free - len(self._waiting)))))
        elif free < self._num_seats // GROUP and not self._filling:
            return new
        last = self._kept
        while self._waiting and len(new.seats) < free:
            if self._waiting[0].alike == last:
                new.copied.append(self._waiting.popleft())
                new.sources.append(len(new.read) - 1 if new.read else None)
            elif len(new.read) < AT_ONCE:
                new.read.append(self._waiting.popleft())
                last = new.read[-1].alike
            else:
                break
        self._filling = bool(new.seats)
        self.taken += new.seats
        self._kept = last if self._waiting and self._waiting[0].alike == last else None
        new.keep = len(new.read) - 1 if self.keeps and new.read else None
        return new

    def land(self, seats: Sequence[Seat], tokens: Sequence[int]) -> Iterator[tuple[int, Completion]]:
        """The host sees a token of each of `seats`; yields (index, completion) of the answers that this ends."""
        for seat, token in zip(seats, tokens, strict=True):
            done = seat.land(token, self._end_ids, self._on_token)
            if done is not None:
                yield seat.index, done

    def order(self) -> list[int]:
        """Let those leave who need no step more: the old row of each row that is now taken.

        A gap is filled by the first row of the next group, whose gap by that of the one after it, and so on to the
        last row: few rows move, each to a lower place, and neighbours stay of about one length.
        """
        old = list(range(len(self.taken)))
        gaps = [row for row, seat in enumerate(self.taken) if seat.needs_no_step]
        for gap in reversed(gaps):
            for start in range((gap // GROUP + 1) * GROUP, len(old), GROUP):
                old[gap], gap = old[start], start
            old[gap] = old[-1]
            old.pop()
        self.taken = [self.taken[row] for row in old]
        return old
