"""cli.py under a launcher, with faults on rank 1 while it answers: FAULTS="2:memory 9:kill", by number of its piece.

memory: it runs out. kill: kill -9 of that rank. stop: SIGTERM to the launcher; the piece goes on when rank 0 has heard
of it. Each at the piece's third token.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import psutil

import cli
from gsm8k_core.ranks import follower
from gsm8k_core.types import OutOfMemoryError
from tests.waiting import wait_for
from verbs.link import Link

AT = 3
HEARD = Path("heard")  # in the folder that all ranks were started in


def launcher() -> psutil.Process:
    """The child of whoever launched that this process comes from; mlx.launch starts each rank through another one."""
    by = int(os.environ["LAUNCHED_BY"])
    return next(process for process in psutil.Process().parents() if process.ppid() == by)


def mark_stops() -> None:
    """From now on what stops a run here leaves a file: a signal, or the end of a launcher that passes none on."""
    real, watch = signal.signal, Link.watch_launcher

    def marking(number: int, handler: Any) -> Any:
        def heard(*given: Any) -> None:
            handler(*given)
            HEARD.touch()

        return real(number, heard if callable(handler) else handler)

    def watching(link: Link) -> None:
        def wait() -> None:
            link._alone.wait()
            HEARD.touch()

        watch(link)
        threading.Thread(target=wait, daemon=True).start()

    signal.signal, Link.watch_launcher = marking, watching  # type: ignore[assignment, method-assign]


def add_faults(faults: dict[int, str]) -> None:
    """From now on they happen in this process, if it is a rank above 0."""
    call, pieces = follower._Telling.__call__, [0]

    class Faulty(follower._Telling):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            pieces[0] += 1
            self.heard = 0

        def __call__(self, index: int, token: int) -> None:
            self.heard += 1
            what = faults.get(pieces[0]) if self.heard == AT else None
            if what == "memory":
                raise OutOfMemoryError("no memory for the answers")
            if what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "stop":
                launcher().terminate()
                wait_for(HEARD.exists)
            call(self, index, token)

    follower._Telling = Faulty  # type: ignore[misc]


if __name__ == "__main__":
    given = (each.split(":") for each in os.environ.get("FAULTS", "").split())
    add_faults({int(number): what for number, what in given})
    mark_stops()
    sys.exit(cli.main(sys.argv[1:]))
