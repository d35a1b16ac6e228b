"""What MLX offers, what it takes when nobody says (device, dtype, micro-batch), and how fast it is there."""

from __future__ import annotations

import functools
import platform

import mlx.core as mx

from gsm8k_core.backend import Capabilities
from gsm8k_core.training.memory import gflops
from gsm8k_core.types import Choice, PreflightError

CAPABILITIES = Capabilities(
    devices=("cpu", "gpu"),
    dtypes=("float32", "bfloat16", "float16"),
    methods=("full", "lora", "dora", "qlora"),
)
MICRO_BATCH = {
    "cpu": Choice("1024", "on a CPU a few rows fill the cores, and more take memory"),
    "gpu": Choice("2048", "a GPU with shared memory; an estimate, not a measurement"),
    "cuda": Choice("8192", "a card needs many tokens at once; an estimate, not a measurement"),
}
SLOW_GFLOPS = 20.0  # the reference BLAS gives about 8, OpenBLAS and MKL 200 and more on the same two cores


def has_gpu() -> bool:
    """Whether there is a Metal or a CUDA device."""
    return bool(mx.metal.is_available() or mx.cuda.is_available())


def fast_tokens(device: str) -> Choice:
    """Padded tokens in a micro-batch that cpu or gpu is fast with."""
    return MICRO_BATCH["cuda" if device == "gpu" and mx.cuda.is_available() else device]


def choose_device(asked: str, has_gpu: bool) -> Choice:
    """cpu or gpu. Raises PreflightError for what is not there."""
    if asked not in ("auto", *CAPABILITIES.devices):
        raise PreflightError(f"--device {asked} is torch's (mlx has cpu and gpu); try --backend torch or --device auto")
    if asked == "gpu" and not has_gpu:
        raise PreflightError("--device gpu: mlx finds no Metal or CUDA device here (it has cpu); try --device cpu")
    if asked != "auto":
        return Choice(asked, f"--device {asked}")
    return Choice("gpu", "mlx finds a GPU") if has_gpu else Choice("cpu", "mlx finds no GPU here")


def choose_dtype(asked: str, device: str) -> Choice:
    """The compute dtype on loading. Raises PreflightError for another dtype."""
    if asked == "float16" and device == "cpu":
        raise PreflightError("--dtype float16 is for a GPU (mlx on the CPU has float32, bfloat16); try --dtype float32")
    if asked not in ("auto", *CAPABILITIES.dtypes):
        raise PreflightError(
            f"--dtype {asked} is not mlx's (it has {', '.join(CAPABILITIES.dtypes)}); try --dtype float32"
        )
    if asked != "auto":
        return Choice(asked, f"--dtype {asked}")
    if device == "cpu":
        return Choice("float32", "mlx has no fast bfloat16 on a CPU")
    return Choice("float32", "every model alike, so that their scores can be compared; --dtype bfloat16 may be faster")


def check(device: str, dtype: str) -> None:
    """Raises PreflightError for a device or a dtype that is not there."""
    choose_dtype(dtype, choose_device(device, has_gpu()).name)


@functools.cache
def measure_gflops(size: int = 1024) -> float:
    """The rate of a float32 matrix product on MLX's default device, in GFLOPS; once a process."""
    left, right = mx.random.normal((size, size)), mx.random.normal((size, size))
    mx.eval(left, right)
    return gflops(lambda: mx.eval(left @ right), size)


def rated(chosen: Choice, gflops: float) -> Choice:
    """The choice with its measured rate, and with what to do where that is slow."""
    reason = f"{chosen.reason}; {gflops:.0f} GFLOPS measured"
    if gflops < SLOW_GFLOPS and chosen.name != "reference":
        reason += ", which is slow for this library: the machine is busy, or small"
    elif gflops < SLOW_GFLOPS:
        wheel = "pip install mkl, or " if platform.machine() in ("x86_64", "AMD64") else ""
        reason += f", which is slow: {wheel}install your system's OpenBLAS (Debian, Ubuntu: libopenblas0-pthread)"
    return Choice(chosen.name, reason)
