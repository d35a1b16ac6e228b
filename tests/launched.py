"""Programs on several processes of this machine, as torchrun and mlx.launch start them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import psutil

from benchmarks.scaling import free_ports, full_input
from tests import patient_rank

ROOT = Path(__file__).parents[1]


def are_gone(word: str) -> bool:
    """Whether no process has `word` in its command line: a launcher may end before those that it started."""

    def has(process: psutil.Process) -> bool:
        try:
            return word in process.cmdline()
        except psutil.Error:
            return False

    return not any(map(has, psutil.process_iter()))


def errors_of(said: str) -> list[str]:
    """The error lines of all ranks. MLX writes its own in pieces, `[ring]` first, and ours may come between them."""
    return re.findall(r"^(?:\[ring\].*)?(error: .*)$", said, re.MULTILINE)


# As `accelerate launch` says that a config file has `distributed_type: FSDP` and `fsdp_version: 2`.
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def launch(engine: str, size: int, command: Sequence[str], folder: Path) -> subprocess.Popen[str]:
    """`python command` on `size` processes, in `folder`, with the patience of patient_rank.py.

    `engine` is a backend's, or "fsdp": torch's by accelerate and docs/launch/fsdp.yaml.
    """
    command = [patient_rank.__file__, *command]
    beside = Path(sys.executable).with_name
    port = free_ports(size)
    if engine == "torch":
        start = [str(beside("torchrun")), "--nproc-per-node", str(size), "--master-port", str(port), *command]
    elif engine == "fsdp":
        config = ["--config_file", str(ROOT / "docs/launch/fsdp.yaml"), "--num_processes", str(size)]
        start = [str(beside("accelerate")), "launch", *config, "--main_process_port", str(port), *command]
    else:
        start = [str(beside("mlx.launch")), "-n", str(size), "-p", str(port), "--", sys.executable, *command]
    given = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    said = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    held = ExitStack()
    full = held.enter_context(full_input())  # no pipe of the Popen's own: communicate() would end that
    started = subprocess.Popen(start, stdin=full, cwd=folder, env=given, **said)  # type: ignore[call-overload]
    weakref.finalize(started, held.close)
    return started  # type: ignore[no-any-return]
