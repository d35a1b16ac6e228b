"""Programs that this process starts and ends, on every system: what Windows' os and signal lack is asked for here."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import Any

END_SECONDS = 5.0  # for a program that was asked to end


def end(process: subprocess.Popen[Any]) -> None:
    """Kill a program of a session of its own (start_new_session) with all that it started, even where it has ended."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):  # nothing of its group is left
            os.killpg(process.pid, signal.SIGKILL)
        return
    import psutil  # type: ignore[import-untyped]  # here, not above: only Windows, which has no groups, needs it

    with contextlib.suppress(psutil.NoSuchProcess):  # it has ended: which ones it started is not known any more
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                child.kill()
    process.kill()


def end_in_order(process: subprocess.Popen[Any], seconds: float = END_SECONDS) -> None:
    """Ask it to end, which lets it clear up; after so long, `end` it. Nothing of it is left."""
    if hasattr(os, "killpg"):  # Windows asks nobody: it would be gone, and what it started could not be found
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    end(process)
    process.wait()


def is_child_of(parent: int) -> bool:
    """Whether the process that started this one is still there."""
    if os.name == "posix":
        return os.getppid() == parent  # on Windows, that is the virtual environment's launcher
    import psutil

    return bool(psutil.pid_exists(parent))


def began(process: int) -> float | None:
    """When a process began, in seconds since 1970; None for one that is not there."""
    import psutil

    try:
        return float(psutil.Process(process).create_time())
    except psutil.Error:
        return None


def seconds_since_start() -> float:
    """Seconds since this process was started.

    On Linux by the clock of the boot, by which the kernel notes it to a hundredth of a second (proc(5), starttime).
    psutil adds the boot's time of day in whole seconds: a run of two processes would count up to two that never were.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, IndexError, ValueError), open("/proc/self/stat", "rb") as file:
            noted = int(file.read().rpartition(b")")[2].split()[19])
            return time.clock_gettime(time.CLOCK_BOOTTIME) - noted / os.sysconf("SC_CLK_TCK")
    import psutil

    # Asked once, soon after the start: no setting of the wall clock is to be feared.
    return time.time() - float(psutil.Process().create_time())


def ending(code: int) -> str:
    """How a program ended, in words: Popen's returncode is negative where a signal ended it."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:  # one without a name, such as a real-time signal
        return f"killed by signal {-code}"
