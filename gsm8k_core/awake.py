"""Keeping a Mac awake while a run lasts."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PROGRAM = "caffeinate"
END_SECONDS = 5.0


@contextmanager
def kept_awake(system: str, pid: int, say: Callable[[str], None]) -> Iterator[None]:
    """On macOS (`system` is Darwin), no idle sleep until the end, or until process `pid` is gone, killed or not.

    A closed lid still puts it to sleep; the budget counts that, and the run says so.
    """
    if system != "Darwin":
        yield
        return
    program = shutil.which(PROGRAM)
    if program is None:
        say(f"awake    there is no {PROGRAM} on this Mac's PATH: if it sleeps, the time counts all the same")
        yield
        return
    # A session of its own: Ctrl-C goes to the run, which still has a model to save.
    holder = subprocess.Popen(
        [program, "-i", "-w", str(pid)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        holder.terminate()
        try:
            holder.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            holder.kill()
            holder.wait()
