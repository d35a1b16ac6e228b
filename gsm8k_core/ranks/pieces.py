"""Prompts that are answered on all ranks, given out in pieces: who is done with one takes the next.

A piece is decoded in one call, which lasts as long as its longest answer: on a device whose step takes as long for one
row as for many, two small pieces take twice as long as one. So a piece is no smaller than the prompts that are decoded
together, unless all of them at once would leave a rank without one; and while many prompts are left it is larger, so
that places are taken again within it. The last pieces are the smallest, and balance what the others left uneven.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gsm8k_core.ranks import messages
from gsm8k_core.ranks.wire import Frame, Wire
from gsm8k_core.types import Completion, RankLostError

PIECES = 2  # that each rank could still take, where as many as fit together are fewer


def next_piece(left: int, total: int, ranks: int, together: int) -> int:
    """How many of the `left` prompts the next piece has, of `total` over so many ranks, `together` at a time."""
    return min(left, -(-total // ranks), max(together, -(-left // (PIECES * ranks))))


@dataclass(frozen=True, slots=True)
class Come:
    """What a rank has done of a piece: (place, token) of what it wrote since the last time, and whole answers."""

    written: Sequence[tuple[int, int]] = ()
    answers: Iterable[tuple[int, Completion]] = ()


@dataclass(slots=True)
class Work:
    """The prompts of a `generate`, by place. `come` gets what the other ranks do, and None where one does no more."""

    prompts: Sequence[Sequence[int]]
    keys: Sequence[int]
    sampling: dict[str, Any]  # messages.sampling_values
    ranks: int
    model: int
    job: int
    come: queue.SimpleQueue[Come | None] = field(default_factory=queue.SimpleQueue)
    _failure: Exception | None = None  # of another rank, the first
    _given: int = 0
    _stopped: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> list[int] | None:
        """The places of the next piece; None where all are given out."""
        total = len(self.prompts)
        with self._lock:
            if self._stopped or self._given == total:
                return None
            first = self._given
            self._given += next_piece(total - first, total, self.ranks, self.sampling["batch_size"])
            return list(range(first, self._given))

    def stop(self) -> None:
        """Nobody waits for the rest."""
        with self._lock:
            self._stopped = True

    def hand_out(self, line: Wire) -> None:
        """Give a rank one piece after the other."""
        try:
            while (places := self.take()) is not None:
                prompts, keys = [list(self.prompts[place]) for place in places], [self.keys[place] for place in places]
                line.send(
                    "generate", model=self.model, job=self.job, sampling=self.sampling, prompts=prompts, keys=keys
                )
                self._hear(line, places)
        except Exception as error:  # for the thread that waits for the answers
            self._failure = self._failure or error
        self.come.put(None)

    def check(self) -> None:
        """Raise what has failed on another rank."""
        if self._failure is not None:
            raise self._failure

    def _hear(self, line: Wire, places: Sequence[int]) -> None:
        while (message := line.receive()).kind != "answers" or message.values["job"] != self.job:
            messages.raise_if_ended(line.peer, message)
            if message.kind == "written" and message.values["job"] == self.job:
                self.come.put(Come(written=[(places[index], token) for index, token in message.values["tokens"]]))
        messages.raise_failure(line.peer, message)
        self.come.put(Come(answers=self._answers(line, places, message)))

    def _answers(self, line: Wire, places: Sequence[int], message: Frame) -> list[tuple[int, Completion]]:
        answers = message.values["answers"]
        if len(answers) < len(places) and not self._stopped:
            raise RankLostError(f"{line.peer} answered {len(answers)} of {len(places)} prompts; report this")
        return [(places[index], messages.completion(values)) for index, values in answers]
