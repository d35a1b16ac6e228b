"""`benchmark train --world 1,2,4`: the same training on several processes beside that on one, and what it is worth.

Each count is a run of its own in the rounds, named "ours-mlx x2", and started by the backend's own launcher. On a CPU
every process has as many threads, so that more of them are more cores and nothing else. Beside the clock, which other
programs slow down, stands the CPU time of the slowest process: what an update would take where each has a core of its
own, the engine's waiting without work apart.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import backends
from benchmarks.contenders import CONTENDERS, name_of, parts_of
from benchmarks.job import TrainSample
from benchmarks.results import FIRST_LOSS, Run, steady, train_rate
from gsm8k_core.types import Choice, PreflightError

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
NOTES = (
    "Efficiency: times as fast as one process, over the processes; the median of the rounds' ratios, and their range.",
    "By CPU time: the same from the CPU seconds of the slowest process in each steady update, which no other program "
    "lengthens; waiting for a sum without work is not in it.",
    "Loss apart: the largest difference of an update's loss to one process's, in nats per target.",
)


def spread_out(devices: Mapping[str, Choice], worlds: Sequence[int]) -> dict[str, Choice]:
    """Each contender once for each count of processes, with its device.

    Raises PreflightError where there are fewer devices than processes, and no CPU to share.
    """
    for name, device in devices.items():
        if not CONTENDERS[name].ours:
            raise PreflightError(f"--world is for this project's own training, not {name}; leave it out")
        if device.name != "cpu" and (there := num_gpus(device.name)) < max(worlds):
            raise PreflightError(
                f"--world {max(worlds)} needs {max(worlds)} devices for {name}, and there is {there} ({device.name}); "
                f"try --world {','.join(str(each) for each in worlds if each <= there)}, or --device cpu"
            )
    return {name_of(name, world): device for name, device in devices.items() for world in worlds}


def num_gpus(device: str) -> int:
    """GPUs of this machine; a Mac has one, and so does who cannot say."""
    if device == "mps" or not (smi := shutil.which("nvidia-smi")):
        return 1
    listed = subprocess.run([smi, "-L"], capture_output=True, text=True, check=False).stdout
    return max(1, sum(line.startswith("GPU ") for line in listed.splitlines()))


def threads_each(device: str, worlds: Sequence[int], cores: int) -> dict[str, str]:
    """The environment of every process, whatever their number: on a CPU, its cores over the largest number."""
    return dict.fromkeys(THREADS, str(max(1, cores // max(worlds)))) if device == "cpu" else {}


def threads_told(devices: Mapping[str, Choice], worlds: Sequence[int]) -> str:
    """The same in words, for the record."""
    found = {name: threads_each(device.name, worlds, os.cpu_count() or 1) for name, device in devices.items()}
    return ", ".join(sorted({each.get(THREADS[0], "as the framework has it, on a GPU") for each in found.values()}))


def command(framework: str, world: int, program: Sequence[str]) -> list[str]:
    """What starts `python PROGRAM` on so many processes of this machine. Raises PreflightError without a launcher."""
    if world == 1:
        return [sys.executable, *program]
    name = backends.PROVIDERS[framework].launchers[0].split()[0]
    launcher = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if launcher is None:
        raise PreflightError(f"--world {world} needs {name}, which {framework} brings and is not here")
    count, port = str(world), str(free_ports(world))
    if framework == "torch":
        return [launcher, "--nproc-per-node", count, "--master-port", port, *program]
    return [launcher, "-n", count, "--starting-port", port, "--", sys.executable, *program]


def free_ports(count: int) -> int:
    """The first of `count` neighbours that nobody listens on."""
    for first in range(20_000 + os.getpid() % 1_500 * 8, 60_000, count):  # below what outgoing connections take
        try:
            with ExitStack() as held:
                for port in range(first, first + count):
                    held.enter_context(socket.create_server(("127.0.0.1", port)))
                return first
        except OSError:
            continue
    raise PreflightError("no port of this machine is free")


@contextmanager
def full_input() -> Iterator[int]:
    """The reading end of a pipe that is full and stays open, for a launcher's stdin.

    mlx.launch looks without a pause for whether it could write to a rank, which takes a core: it passes its own stdin
    on to them, and to a rank whose stdin is full nothing can be written. On a stdin that has ended, one more of its
    threads would loop without a pause. Seen on Linux.
    """
    reading, writing = os.pipe()
    try:
        if hasattr(os, "set_blocking"):  # not on Windows before Python 3.12
            os.set_blocking(writing, False)
            with suppress(BlockingIOError):
                while True:
                    os.write(writing, b"\n" * 4096)
        yield reading
    finally:
        os.close(reading)
        os.close(writing)


# --- what the samples say ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scaled:
    """One contender on so many processes, against itself on one. Ratios by round."""

    name: str
    world: int
    tokens: float | None  # a second, the median of the rounds
    wall: tuple[float, ...]  # efficiencies
    cpu: tuple[float, ...]
    apart: float  # nats per target
    counts: bool  # it is the same training


def scaled(run: Run) -> list[Scaled]:
    """A line for each count of each contender; a round counts where it has both."""
    found = []
    for name, rounds in run.samples.items():
        alone, world = parts_of(name)
        ones = run.samples.get(name_of(alone, 1), {})
        pairs = [(ones[number], one) for number, one in rounds.items() if number in ones]
        both = [(a, b) for a, b in pairs if isinstance(a, TrainSample) and isinstance(b, TrainSample)]
        apart = max((_apart(a, b) for a, b in both), default=0.0)
        rates = [rate for one in rounds.values() if isinstance(one, TrainSample) and (rate := _tokens(run, name, one))]
        found.append(
            Scaled(
                alone,
                world,
                statistics.median(rates) if rates else None,
                tuple(ratio / world for a, b in both if (ratio := _ratio(run, name, a, b))),
                tuple(ratio / world for a, b in both if (ratio := _cpu_ratio(a, b))),
                apart,
                apart <= FIRST_LOSS[run.config["dtype"]],
            )
        )
    return found


def _tokens(run: Run, name: str, one: TrainSample) -> float | None:
    return train_rate(run, name, one, "tokens")


def _ratio(run: Run, name: str, alone: TrainSample, one: TrainSample) -> float | None:
    first, other = _tokens(run, name, alone), _tokens(run, name, one)
    return other / first if first and other else None


def _cpu_ratio(alone: TrainSample, one: TrainSample) -> float | None:
    """One process's CPU seconds over those of the slowest of several, in the updates that are steady for both."""
    places = set(steady(alone)) & set(steady(one))
    if not (alone.cpu and one.cpu and places):
        return None
    slowest = sum(max(one.cpu[place]) for place in places)
    return sum(sum(alone.cpu[place]) for place in places) / slowest if slowest else None


def _apart(alone: TrainSample, one: TrainSample) -> float:
    return max(abs(a - b) for a, b in zip(alone.losses, one.losses, strict=True))
