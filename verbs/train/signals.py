"""Signals that end a run in good order."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from gsm8k_core.types import EXIT_INTERRUPTED

SAME = 1.0  # seconds
FINISHING = b"\nfinishing this update, then saving the model; the same again quits at once\n"
# Of a training or a sampling that others follow: there is no model yet.
KEEPING = b"\nstopping: what is there so far is kept, for --resume; the same again quits at once\n"
STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")


class Interrupted(BaseException):
    """A signal came before there was anything to save: the run is as it stands on the disk, and has no model yet."""


def wanted() -> list[signal.Signals]:
    """Those that exist here and are not ignored: nohup asks for that, and a shell does for what it starts with &."""
    there = [signal.Signals[name] for name in STOPPING if hasattr(signal, name)]
    return [number for number in there if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def stopping(last: Callable[[], bool], is_drawn: Callable[[], bool] = lambda: False) -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C (or SIGTERM, SIGHUP) ends the run after its update, model saved; a second one at once.

    `last` says whether what is trained now becomes the run's model; `is_drawn`, whether a panel holds the terminal,
    which shows the same: nothing is written past it.

    Who stops a whole service or a job signals every process of it, and may follow SIGTERM with SIGHUP: what comes
    within SAME seconds, from the parent too, is one request.
    """
    if threading.current_thread() is not threading.main_thread():  # only there may signals be caught
        yield lambda: False
        return
    seen: list[float] = []

    def note(number: int, frame: object) -> None:
        if seen:
            if time.monotonic() - seen[0] > SAME:
                sys.exit(EXIT_INTERRUPTED)
            return
        seen.append(time.monotonic())
        if is_drawn():
            return
        # Written past Python's streams: the terminal may be gone, or one of them in the middle of a line.
        with suppress(OSError):
            os.write(2, FINISHING if last() else KEEPING)

    old = {number: signal.signal(number, note) for number in wanted()}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
