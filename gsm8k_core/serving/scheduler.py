"""Requests that come while others are answered: who waits, who is in the batch, who hears of it.

One thread owns the device: it opens the models, takes from those who wait as many as there are free places, and asks a
backend for one step after the other. All other threads speak to it through `submit` and `cancel`. What a ticket hears
of a step is handed over in one piece, by `post`, in that thread; `post` brings it to where the tickets live.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from gsm8k_core.serving.detokenizer import Detokenizer
from gsm8k_core.types import (
    Choice,
    Completion,
    DeviceLostError,
    GSM8KError,
    OutOfMemoryError,
    Query,
    Sampling,
    UsageError,
    counted,
)

if TYPE_CHECKING:
    from gsm8k_core.backend import Backend

Post = Callable[[Sequence["News"]], None]
CLOSING = "the server is shutting down"


class BusyError(GSM8KError):
    """As many wait as may."""


class ClosingError(GSM8KError):
    """The server ends; running answers are cut."""


@dataclass(slots=True, eq=False)
class Ticket:
    """One answer that somebody waits for."""

    model: str
    prompt: Sequence[int]
    sampling: Sampling
    key: int
    text: Detokenizer
    hear: Callable[[News], None]  # called where `post` brings the news
    number: int = 0
    gone: bool = False  # nobody waits for it any more

    def over(self, written: Sequence[int]) -> bool:
        """Whether nothing more is to be written: see Sampling.complete."""
        return self.gone or self.text.stopped


@dataclass(frozen=True, slots=True)
class News:
    """What a ticket hears: a piece of text, and at its end how it ended, or why it did not."""

    ticket: Ticket
    piece: str = ""
    tokens: int = 0  # that were written for the piece
    done: Completion | None = None
    error: GSM8KError | None = None

    def tell(self) -> None:
        self.ticket.hear(self)

    @property
    def is_last(self) -> bool:
        return self.done is not None or self.error is not None


@dataclass(slots=True, eq=False)
class Served:
    """One model: how it is opened, how many are answered at once, and what is known once it is open."""

    open: Callable[[], Backend]
    places: int
    longest: int  # tokens of a prompt and its answer
    backend: Backend | None = None
    turns: Iterator[Sequence[tuple[int, Completion]]] | None = None
    active: dict[int, Ticket] = field(default_factory=dict)

    @property
    def choices(self) -> dict[str, Choice]:
        return {} if self.backend is None else self.backend.choices


class Scheduler:
    """Who waits and who is answered, of one or more models on one device."""

    def __init__(self, models: Mapping[str, Served], max_waiting: int, say: Callable[[str], None]) -> None:
        self.models = dict(models)
        self.post: Post = lambda news: None
        self.failed: GSM8KError | None = None  # why the thread ended, where it did by itself
        self.on_end: Callable[[], None] = lambda: None
        self._max_waiting, self._say = max_waiting, say
        self._waiting: dict[str, deque[Ticket]] = {name: deque() for name in models}
        self._numbers = itertools.count()
        self._change = threading.Condition()
        self._end_at: float | None = None  # when answers that still run are cut
        self._news: list[News] = []
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)
        self._opened = threading.Event()
        self.answered = self.cut = 0

    # --- from other threads ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Open the first model. Raises what its opening raises."""
        self._thread.start()
        self._opened.wait()
        if self.failed is not None:
            raise self.failed

    def check_room(self, model: str, count: int) -> None:
        """Raises UsageError for more answers at once than ever fit."""
        most = self.models[model].places + self._max_waiting
        if count > most:
            raise UsageError(f"{count} answers are asked for at once, and there is room for {most}; ask for fewer")

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """All of them or none. Raises BusyError where too many wait, ClosingError where nobody is answered any more,
        and UsageError for more than ever fit."""
        with self._change:
            if self._end_at is not None or not self._thread.is_alive():
                raise ClosingError(CLOSING)
            name = tickets[0].model
            served, waiting = self.models[name], self._waiting[name]
            self.check_room(name, len(tickets))
            free = served.places - len(served.active)
            if len(waiting) + len(tickets) > max(free, 0) + self._max_waiting:
                raise BusyError(
                    f"{counted(len(served.active), 'answer')} being written and {len(waiting)} waiting, as many as may "
                    f"(--max-waiting {self._max_waiting}); try again later"
                )
            for ticket in tickets:
                ticket.number = next(self._numbers)
                ticket.sampling = replace(ticket.sampling, complete=ticket.over)
                waiting.append(ticket)
            self._change.notify_all()

    def cancel(self, ticket: Ticket) -> None:
        """Nobody waits for it any more: its place is free after the next step."""
        with self._change:
            ticket.gone = True
            waiting = self._waiting[ticket.model]
            if ticket in waiting:
                waiting.remove(ticket)

    def close(self, grace: float) -> None:
        """Take nobody any more, let those who wait know, and cut what still runs after so many seconds."""
        with self._change:
            self._end_at = min(self._end_at or math.inf, time.monotonic() + grace)
            left = [ticket for waiting in self._waiting.values() for ticket in waiting]
            for waiting in self._waiting.values():
                waiting.clear()
            self._change.notify_all()
        if left:
            self.post([News(ticket, error=ClosingError(CLOSING)) for ticket in left])

    def join(self, timeout: float | None = None) -> bool:
        """Whether the thread has ended, after so long at most."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def is_idle(self) -> bool:
        with self._change:
            return not any(served.active for served in self.models.values()) and not any(self._waiting.values())

    # --- in the one that owns the device --------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._open(next(iter(self.models.values())))
            self._opened.set()
            while self._wait_for_work():
                for name, served in self.models.items():
                    if served.active or self._waiting[name]:
                        self._turn(name, served)
                self._hand_over()
        except GSM8KError as error:
            self.failed = error
        except BaseException as error:
            self._say(traceback.format_exc())
            self.failed = GSM8KError(f"unexpected {type(error).__name__}: {error}")
        finally:
            self._end()

    def _open(self, served: Served) -> None:
        if served.backend is None:
            served.backend = served.open()

    def _wait_for_work(self) -> bool:
        """Waits until there is something to do; whether there is more than to end."""
        with self._change:
            while True:
                busy = any(served.active for served in self.models.values())
                if self._end_at is not None:
                    return busy and time.monotonic() < self._end_at
                if busy or any(self._waiting.values()):
                    return True
                self._change.wait()

    def _turn(self, name: str, served: Served) -> None:
        """One step of one model's batch. What goes wrong ends the answers that are in it, and no others."""
        try:
            self._open(served)
            assert served.backend is not None
            if served.turns is None:
                served.turns = served.backend.answer(
                    lambda free: self._take(name, served, free), served.places, served.longest, self._wrote(served)
                )
            for number, done in next(served.turns):
                self._finish(served.active.pop(number), done)
        except DeviceLostError:
            raise
        except GSM8KError as error:
            if isinstance(error, OutOfMemoryError):
                served.places = max(1, served.places // 2)
            self._say(f"error: {name}: {error}")
            self._drop(name, served, error)
        except (
            Exception
        ) as error:  # a bug of ours, or a framework's: who waits hears of it, and the next ones are tried
            self._say(traceback.format_exc())
            self._drop(name, served, GSM8KError(f"unexpected {type(error).__name__}: {error}"))

    def _take(self, name: str, served: Served, free: int) -> list[Query]:
        """Those who begin now."""
        with self._change:
            waiting = self._waiting[name]
            taken = [waiting.popleft() for _ in range(min(free, len(waiting)))] if self._end_at is None else []
            served.active |= {ticket.number: ticket for ticket in taken}
        return [Query(ticket.number, ticket.prompt, ticket.sampling, ticket.key) for ticket in taken]

    def _wrote(self, served: Served) -> Callable[[int, int], None]:
        def on_token(number: int, token: int) -> None:
            ticket = served.active[number]
            self._news.append(News(ticket, ticket.text.add(token), 1))

        return on_token

    def _finish(self, ticket: Ticket, done: Completion) -> None:
        self.answered += not ticket.gone
        self._news.append(News(ticket, ticket.text.end(), done=done))

    def _drop(self, name: str, served: Served, error: GSM8KError) -> None:
        """The answers in the batch cannot go on; where the model cannot even be opened, nobody waits for it."""
        if served.turns is not None:
            served.turns.close()  # type: ignore[attr-defined]
        served.turns = None
        left = list(served.active.values())
        served.active.clear()
        if served.backend is None:
            with self._change:
                left += self._waiting[name]
                self._waiting[name].clear()
        self._news += [News(ticket, error=error) for ticket in left]

    def _hand_over(self) -> None:
        news, self._news = [each for each in self._news if not each.ticket.gone], []
        if news:
            self.post(news)

    def _end(self) -> None:
        """Everyone who still waits hears why, and the device's memory is given back."""
        error = self.failed or ClosingError(CLOSING)
        with self._change:
            self._end_at = self._end_at or time.monotonic()
            left = [ticket for served in self.models.values() for ticket in served.active.values() if not ticket.gone]
            self.cut += len(left)
            left += [ticket for waiting in self._waiting.values() for ticket in waiting]
            for waiting in self._waiting.values():
                waiting.clear()
        self._news += [News(ticket, error=error) for ticket in left]
        self._hand_over()
        for served in self.models.values():
            served.active.clear()
            if served.turns is not None:
                served.turns.close()  # type: ignore[attr-defined]
            if served.backend is not None:
                served.backend.close()
        self._opened.set()
        self.on_end()
