"""A tiny model, a small data folder, the command line, and small disks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import tiny
from tests.apples import write_problems
from tests.e2e.conftest import Done, brief, from_now, run

__all__ = ["brief", "from_now", "run"]

# Two updates of four rows, a checkpoint after the first.
SHORT = (
    "--device",
    "cpu",
    "--dtype",
    "float32",
    "--max-samples",
    "8",
    "--batch-size",
    "2",
    "--gradient-accumulation-steps",
    "2",
    "--num-epochs",
    "1",
    "--save-steps",
    "1",
)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("faults") / "tiny", hidden_size=32)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_problems(tmp_path_factory.mktemp("faults") / "data")


def one_error(done: Done) -> str:
    """The only line that begins with `error:`, of an output without a traceback."""
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "Traceback" not in done.stderr
    return line


Disk = Callable[[int], Path]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Disk]:
    """`small_disk(kilobytes)`: the folder of a file system of that size. Where CI is set, it has to be possible."""
    mounted: list[Path] = []

    def make(kilobytes: int) -> Path:
        folder = tmp_path / f"disk-{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            refused = done.stderr.strip() if done.returncode else ""
        except FileNotFoundError:
            refused = "there is no mount"
        if refused:
            leave = pytest.fail if "CI" in os.environ else pytest.skip
            leave(f"a tmpfs cannot be mounted here ({refused}); root on Linux can")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount_read_only(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)


def enlarge(folder: Path, kilobytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(folder)], check=True)


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="tmpfs is Linux's")
