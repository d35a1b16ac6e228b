"""What training takes in PyTorch, and what its device has. Measured on the CPU: docs/memory.md."""

from __future__ import annotations

import sys
from dataclasses import replace

import torch

from backends.torch.device import MICRO_BATCH, choose_device, devices_here
from backends.torch.loss import BLOCK, CHUNK_BYTES, TOO_MANY_ON_MPS
from gsm8k_core.training.memory import Costs, DeviceMemory, peak_rss, system_memory
from gsm8k_core.types import Choice

# How torch, Metal and CUDA's libraries say that memory ran out; torch.OutOfMemoryError is a RuntimeError. "Not enough
# memory" is Windows', "invalid buffer size" MPS's.
NO_MEMORY = (
    "out of memory",
    "allocate memory",
    "not enough memory",
    "insufficient memory",
    "invalid buffer size",
    "bad_alloc",
    "alloc_failed",
    "allocation_failed",
)

# Measured as the whole process on Linux: glibc keeps much of what was freed, the more the smaller the pieces.
_CPU = Costs(
    process=700_000_000,
    chunk=CHUNK_BYTES,
    frozen_chunk=CHUNK_BYTES,
    half_bytes=3,
    activations=1.3,
    adapted=2.0,
    again=7.0,
)
# Estimates, not measurements: the formula, a fifth more, and the device's own context.
_CUDA = replace(_CPU, process=600_000_000, activations=1.2, adapted=1.3, again=2.0)
_MPS = replace(_CPU, process=900_000_000, adapted=1.5, scores=2.0, again=2.0)
_MOST_ON_MPS = Choice(
    str(BLOCK), f"no more than {BLOCK} on MPS, whose products are wrong from {TOO_MANY_ON_MPS} on (pytorch#195163)"
)


def device_memory(asked: str) -> DeviceMemory:
    """Of the device that `--device asked` means."""
    device = choose_device(asked, devices_here()).name
    if device == "cuda":
        here, everything = torch.cuda.mem_get_info()
        return DeviceMemory(device, here, everything, _CUDA, MICRO_BATCH[device], "free on the GPU", caps_alone=True)
    if device == "mps":
        most = int(torch.mps.recommended_max_memory())  # of which macOS makes room for who asks
        said = "what Metal recommends"
        return DeviceMemory(device, most, most, _MPS, MICRO_BATCH[device], said, most=_MOST_ON_MPS)
    free, total, reason = system_memory()
    limit = total if sys.platform == "darwin" else free
    return DeviceMemory(device, free, limit, _CPU, MICRO_BATCH[device], reason)


def forget_peak(device: str) -> None:
    """A new peak begins, on a GPU: what its allocator keeps of an earlier one goes back first.

    A process's own peak is left. Linux alone could forget it, and what glibc keeps of freed memory would stay in it.
    """
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    elif device == "mps":
        torch.mps.empty_cache()


def peak(device: str) -> int:
    """Bytes at the peak: of a device since it was forgotten last, on a CPU of the process so far."""
    if device == "cuda":
        return int(torch.cuda.max_memory_reserved())
    if device == "mps":
        return int(torch.mps.driver_allocated_memory())
    return peak_rss()
