"""Waiting for what another process or thread does: for the event itself, and not for so many seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from backends import installed

# For what is no matter of the backend and takes a process of its own: the one that is imported in half the time.
SOONEST = "mlx" if installed("mlx") else "torch"
CEILING = 1800.0  # seconds: where a hang ends, on a machine that is many times slower than those of today


class Ends(Protocol):
    def poll(self) -> int | None: ...


def wait_for(what: Callable[[], object], process: Ends | None = None, step: float = 0.02) -> None:
    """Until `what()` holds; a process that ends before that is an error, and so is the ceiling."""
    end = time.monotonic() + CEILING
    while not what():
        if process is not None and process.poll() is not None:
            assert what(), f"the process ended before, with {process.poll()}"
            return
        assert time.monotonic() < end, f"it did not happen within {CEILING:.0f} s"
        time.sleep(step)


def ends(work: Callable[[], object]) -> None:
    """Does the work, which may wait for nothing that never comes: one that hangs is an error at the ceiling."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(CEILING)
    assert not thread.is_alive(), f"it did not end within {CEILING:.0f} s"
    if errors:
        raise errors[0]
