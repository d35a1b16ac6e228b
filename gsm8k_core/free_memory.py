"""How much memory this process may take, what it took, and what a container allows."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
NO_LIMIT = 2**60  # version 1 writes a huge number where there is none


def system_memory(cgroups: Path = CGROUPS, own: Path = OWN_GROUPS) -> tuple[int, int, str]:
    """Bytes that this process may hold now, what it holds included; all that there is; and where that is from."""
    import psutil  # type: ignore[import-untyped]  # here, not above: only who asks needs it

    now, held = psutil.virtual_memory(), int(psutil.Process().memory_info().rss)
    free, total, reason = int(now.available) + held, int(now.total), "free on this machine"
    for limit, used in container_limits(cgroups, own):
        if limit < total:
            total, reason = limit, "the container's limit"
        free = min(free, limit - used + held)
    return max(free, 0), total, reason


def peak_rss() -> int:
    """Bytes that this process held at its peak. The kernel counts in KiB on Linux, in bytes on macOS."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource  # here, not above: Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def container_limits(cgroups: Path, own: Path) -> Iterator[tuple[int, int]]:
    """(limit, used) in bytes of each control group that this process is in and that has a limit, versions 1 and 2."""
    try:
        lines = own.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return  # not Linux
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root, names = cgroups, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root, names = cgroups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root) and (found := _limit(folder, *names)) is not None:
                yield found


def _limit(folder: Path, limit: str, used: str) -> tuple[int, int] | None:
    try:
        most = (folder / limit).read_text(encoding="ascii").strip()
        now = int((folder / used).read_text(encoding="ascii"))
        pages = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return None
    if most == "max" or int(most) >= NO_LIMIT:
        return None
    return int(most), max(now - int(pages.get("inactive_file", 0)), 0)  # pages of files are given back when asked for
