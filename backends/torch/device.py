"""What PyTorch offers, what it takes when nobody says (device, dtype, micro-batch), and how fast it is there."""

from __future__ import annotations

import functools

import torch

from gsm8k_core.backend import Capabilities
from gsm8k_core.training.memory import gflops
from gsm8k_core.types import Choice, PreflightError

CAPABILITIES = Capabilities(
    devices=("cpu", "cuda", "mps", "gpu"),
    dtypes=("float32", "bfloat16"),
    methods=("full", "lora", "dora"),
    engines=("vllm",),
)
# bfloat16 is taken on a CPU only where it is clearly faster: casts around the products cost some of the gain.
FASTER = 1.5
SMALL = 256  # a product of this size comes first: where bfloat16 is emulated, four of the full one take 10 s
MICRO_BATCH = {
    "cpu": Choice("640", "on a CPU a few rows fill the cores, and more take memory"),
    "cuda": Choice("8192", "a GPU needs many tokens at once; an estimate, not a measurement"),
    "mps": Choice("2048", "a GPU with shared memory; an estimate, not a measurement"),
}


def devices_here() -> tuple[str, ...]:
    """cuda, mps and cpu, those that are there, the fastest first."""
    found = [("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available()), ("cpu", True)]
    return tuple(name for name, there in found if there)


def choose_device(asked: str, here: tuple[str, ...]) -> Choice:
    """One of cuda, mps and cpu. Raises PreflightError for what is not there."""
    if asked == "auto" and here[0] == "mps":
        return Choice(
            "cpu", "MPS can give wrong gradients (pytorch#177116, #153957); --device mps takes it all the same"
        )
    if asked == "auto":
        return Choice(here[0], f"the fastest that torch finds here (of {', '.join(here)})")
    if asked == "gpu" and here[0] != "cpu":
        return Choice(here[0], "--device gpu")
    if asked not in here:
        raise PreflightError(f"--device {asked}: torch finds none here (it has {', '.join(here)}); try --device auto")
    return Choice(asked, f"--device {asked}")


@functools.cache
def measure_gflops(dtype: torch.dtype, device: str = "cpu", size: int = 1024) -> float:
    """The rate of a matrix product on a device, in GFLOPS; once a process."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device)

    def product() -> None:
        torch.mm(left, right)
        if wait is not None:
            wait()

    return gflops(product, size)


def choose_dtype(asked: str, device: str) -> Choice:
    """float32 or bfloat16 compute; the trained weights are float32 either way."""
    if asked not in ("auto", *CAPABILITIES.dtypes):
        raise PreflightError(
            f"--dtype {asked} is not torch's (it has {', '.join(CAPABILITIES.dtypes)}); try --dtype auto"
        )
    if asked != "auto":
        return Choice(asked, f"--dtype {asked}")
    if device == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return Choice("bfloat16", "this GPU supports it") if fast else Choice("float32", "this GPU has no bfloat16")
    if device == "mps":
        return Choice("float32", "float16 gives NaN on MPS, and bfloat16 is not faster on M1 and M2")
    single, half = measure_gflops(torch.float32), measure_gflops(torch.bfloat16, size=SMALL)
    if half > single / 4:  # a small product may run at less than its best, but not at a quarter of it
        half = measure_gflops(torch.bfloat16)
    rates = (
        f"matrix products run at {half:.0f} GFLOPS in bfloat16 and {single:.0f} in float32; "
        f"bfloat16 is taken from {FASTER} times on"
    )
    return Choice("bfloat16" if half > FASTER * single else "float32", rates)


def check(device: str, dtype: str) -> None:
    """Raises PreflightError for a device or a dtype that is not there."""
    chosen = choose_device(device, devices_here())
    if dtype != "auto":  # which would be measured
        choose_dtype(dtype, chosen.name)
