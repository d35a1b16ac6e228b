"""A folder that this process holds: its lock, whether it is still the folder that was claimed, and who else has it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from filelock import FileLock, Timeout

from gsm8k_core.types import StorageError

LOCK = ".lock"
ELSEWHERE = "give another --output-dir"
LONGEST_PATH = 1024  # bytes; macOS's MAXPATHLEN


class Hold:
    """A held folder. The system lets go of it when the process ends, however it ends.

    A folder is known by its device and number. Of a removed one the number may be given to another folder: not as long
    as a file in it is open, and the lock is.
    """

    def __init__(self, folder: Path, advice: str = ELSEWHERE) -> None:
        """Takes hold. Raises StorageError where another process has it, or it cannot be written."""
        self.folder = folder
        self._open: int | None = None
        self._lock = FileLock(folder / LOCK)
        try:
            self._lock.acquire(blocking=False)
            self._names = {path: _name(path) for path in (folder, folder / LOCK)}
            if sys.platform != "win32":  # there, no folder can be moved whose lock is open
                self._open = os.open(folder, os.O_RDONLY)
        except Timeout:
            raise StorageError(f"{folder} is in use by another process {_advice(folder)}") from None
        except OSError as error:
            raise StorageError(f"{folder} cannot be written ({error.strerror}); {advice}") from error

    def release(self) -> None:
        """Let go before the process ends."""
        self._lock.release()
        if self._open is not None:
            os.close(self._open)
            self._open = None

    def __del__(self) -> None:
        self.release()

    @property
    def stands(self) -> bool:
        """Whether the folder is where it was claimed, its lock in it."""
        try:
            return all(_name(path) == name for path, name in self._names.items())
        except OSError:
            return False

    def now(self) -> Path | None:
        """Where the folder is now; None where it was removed, or the system does not say."""
        path = self.folder if self._open is None else _path_of(self._open)
        try:
            return path if path is not None and _name(path) == self._names[self.folder] else None
        except OSError:
            return None


def _name(path: Path) -> tuple[int, int]:
    """What the system knows a file or folder by, wherever it lies. A link is followed."""
    found = path.stat()
    return found.st_dev, found.st_ino


def _path_of(handle: int) -> Path | None:
    """Of an open folder, where the system says it. What was removed has a path that nothing lies at."""
    try:
        if sys.platform == "linux":
            return Path(os.readlink(f"/proc/self/fd/{handle}"))
        if sys.platform == "darwin":
            import fcntl  # here, not above: Windows has none

            return Path(os.fsdecode(fcntl.fcntl(handle, fcntl.F_GETPATH, bytes(LONGEST_PATH)).rstrip(b"\0")))
    except OSError:
        return None
    return None


def _advice(folder: Path) -> str:
    """Which process it is, as the system says, and how to end it. A manifest's pid may be another's by now."""
    pid = holder(folder)
    if pid is None:
        return f"(pid unknown: it is another user's, or on another machine); wait for it, or see lsof {folder / LOCK}"
    return f"(pid {pid}); wait for it, or end it with kill {pid}"


def holder(folder: Path) -> int | None:
    """The process that has the folder's lock open; None where none is seen: other users' are not."""
    import psutil  # type: ignore[import-untyped]  # here, not above: only who asks needs it

    wanted = str((folder / LOCK).resolve())
    for process in psutil.process_iter():
        try:
            if any(file.path == wanted for file in process.open_files()):
                return int(process.pid)
        except (psutil.Error, OSError):  # it has just ended, or is another user's
            continue
    return None
