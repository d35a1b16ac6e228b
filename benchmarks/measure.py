"""What each contender's process measures the same way: a clock that waits for the device, memory, the GEMM rate."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import psutil

from benchmarks.job import Row, TrainJob, TrainSample
from gsm8k_core.training.memory import gflops, peak_rss

GEMM_SIZES = {"cpu": 2048, "gpu": 4096}  # large enough for the rate to be flat, small enough for a second
GEMM_ROUNDS = 8


class Device(Protocol):
    """A framework's device, as far as it is measured."""

    def synchronise(self) -> None:
        """Wait until all work that was sent to the device is done."""
        ...

    def product(self, size: int) -> Callable[[], None]:
        """A matrix product of that size, ready to be run and waited for."""
        ...

    def peak_bytes(self) -> int | None: ...


class MlxDevice:
    """MLX, with the BLAS that our backend loads: the same under every contender."""

    def __init__(self, device: str, dtype: str) -> None:
        settled: Any = importlib.import_module("backends.mlx")  # before mlx: it chooses the BLAS
        import mlx.core as mx

        self.blas, self.compiler = settled.BLAS, settled.COMPILER
        self.mx, self.dtype, self.is_cpu = mx, getattr(mx, dtype), device == "cpu"
        mx.set_default_device(mx.cpu if self.is_cpu else mx.gpu)
        mx.reset_peak_memory()

    def synchronise(self) -> None:
        self.mx.synchronize()

    def product(self, size: int) -> Callable[[], None]:
        mx = self.mx
        left, right = (mx.random.normal((size, size)).astype(self.dtype) for _ in range(2))
        mx.eval(left, right)
        return lambda: mx.eval(left @ right)

    def peak_bytes(self) -> int | None:
        return int(self.mx.get_peak_memory())

    def notes(self) -> dict[str, str]:
        return {"blas": self.blas.name, "compile": self.compiler.name}


class TorchDevice:
    """PyTorch on a CPU, CUDA or MPS."""

    def __init__(self, device: str, dtype: str) -> None:
        import torch

        self.torch, self.device, self.dtype = torch, device, getattr(torch, dtype)
        self.is_cpu = device == "cpu"

    def synchronise(self) -> None:
        if not self.is_cpu:
            getattr(self.torch, self.device).synchronize()

    def product(self, size: int) -> Callable[[], None]:
        torch = self.torch
        left, right = (torch.randn(size, size, device=self.device).to(self.dtype) for _ in range(2))

        def run() -> None:
            torch.mm(left, right)
            self.synchronise()

        return run

    def peak_bytes(self) -> int | None:
        """MPS counts no peak, only what it holds now: nothing is said there."""
        return int(self.torch.cuda.max_memory_allocated()) if self.device == "cuda" else None

    def notes(self) -> dict[str, str]:
        return {"threads": str(self.torch.get_num_threads())}


def open_device(framework: str, device: str, dtype: str) -> Any:
    return (MlxDevice if framework == "mlx" else TorchDevice)(device, dtype)


def gemm_gflops(device: Any) -> float:
    """The rate of a matrix product in the compute dtype, the best of some."""
    size = GEMM_SIZES["cpu" if device.is_cpu else "gpu"]
    return gflops(device.product(size), size, GEMM_ROUNDS)


def ended(row: Row, tokens: Sequence[int]) -> list[int]:
    """A peer's tokens of a row without the line end that some templates write behind the last turn.

    Our rows end at their end token (docs/decisions.md), and everyone has to train on the same ones.
    """
    size = len(row.tokens)
    return list(tokens[:size] if list(tokens[:size]) == row.tokens else tokens)


def check_tokens(who: str, row: Row, tokens: Sequence[int], num_prompt: int) -> None:
    """Refuse to measure other work than asked for."""
    if list(tokens) != row.tokens or num_prompt != row.num_prompt:
        raise SystemExit(
            f"{who} makes other tokens of {row.id}: {len(tokens)} with {num_prompt} masked, "
            f"not {len(row.tokens)} with {row.num_prompt}"
        )


class Tape:
    """What happens while a contender trains: seconds of each update, its loss, and the shapes that ran."""

    def __init__(self, job: TrainJob, device: Any, begun: float, processes: Sequence[psutil.Process]) -> None:
        self.job, self.device, self._begun = job, device, begun
        self.processes = processes  # that share the work; this one first
        self.aside_seconds = 0.0
        with self.aside():
            self.gemm = gemm_gflops(device)
        self.seconds: list[float] = []
        self.cpu: list[list[float]] = []
        self.losses: list[float] = []
        self.shapes: list[list[list[int]]] = []
        self._running: list[list[int]] = []
        self._last: float | None = None
        self._used: list[float] = []
        self.load_seconds = 0.0

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is measured here and would not be in real work: its seconds are taken off the process's."""
        start = time.perf_counter()
        yield
        self.device.synchronise()
        self.aside_seconds += time.perf_counter() - start

    def start(self) -> None:
        """Right before the first update."""
        self.device.synchronise()
        self._running.clear()  # a forward pass before the training is not one of its shapes
        self._last, self._used = time.perf_counter(), self._cpu()
        self.load_seconds = time.time() - self._begun - self.aside_seconds

    def ran(self, rows: int, width: int) -> None:
        """A micro-batch of this size went into the model."""
        self._running.append([rows, width])

    def _cpu(self) -> list[float]:
        return [sum(process.cpu_times()[:2]) for process in self.processes]

    def update_done(self) -> None:
        self.device.synchronise()
        now = time.perf_counter()
        assert self._last is not None, "start() comes before the first update"
        self.seconds.append(now - self._last)
        used = self._cpu()
        self.cpu.append([now - before for now, before in zip(used, self._used, strict=True)])
        self._last, self._used = now, used
        self.shapes.append(list(self._running))
        self._running.clear()

    def sample(self, first_loss: float) -> TrainSample:
        wanted = len(self.job.updates) * self.job.passes
        if not len(self.seconds) == len(self.losses) == wanted:
            raise RuntimeError(
                f"{len(self.seconds)} updates and {len(self.losses)} losses, but {wanted} were asked for"
            )
        memory = {"peak_rss": peak_rss(), "peak_framework": self.device.peak_bytes()}  # before more products are run
        with self.aside():
            gemm_after = gemm_gflops(self.device)
        return TrainSample(
            seconds=self.seconds,
            cpu=self.cpu,
            losses=self.losses,
            first_loss=first_loss,
            shapes=self.shapes,
            load_seconds=self.load_seconds,
            aside_seconds=self.aside_seconds,
            gemm_gflops=self.gemm,
            gemm_after=gemm_after,
            **memory,
            notes=self.device.notes(),
        )
