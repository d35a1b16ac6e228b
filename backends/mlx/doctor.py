"""What `doctor` asks of MLX: device, memory, BLAS, the rate of matrix products. Run as a process of its own."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

import backends.mlx.backend  # what training imports has to import here, too
from backends.mlx.device import choose_device, choose_dtype, has_gpu, measure_gflops
from gsm8k_core.machine import Finding, Report
from gsm8k_core.models.hub import human_size
from gsm8k_core.types import Choice

SIZES = {"cpu": 1024, "gpu": 4096}  # a GPU needs a larger product to show its rate


def choices() -> dict[str, Choice]:
    """What `auto` picks here."""
    device = choose_device("auto", has_gpu())
    return {"device": device, "dtype": choose_dtype("auto", device.name)}


def findings() -> list[Finding]:
    """What MLX finds on this machine, measured on the device that it would use."""
    device = choices()["device"].name
    mx.set_default_device(mx.gpu if device == "gpu" else mx.cpu)
    return [_device(device, mx.device_info()), _rate(device), _compiler()]


def _device(name: str, info: dict[str, Any]) -> Finding:
    value = f"{mx.__version__} on {name}: {info.get('device_name', 'unnamed')}"
    if total := info.get("memory_size"):
        value += f", {human_size(int(total))}"
    limit = info.get("max_recommended_working_set_size")
    value += f", working set up to {human_size(int(limit))}" if limit else "; no working-set limit"
    return Finding("mlx", "ok", value)


def _rate(device: str) -> Finding:
    rate = f"{measure_gflops(SIZES[device]):,.0f} GFLOPS in float32"
    if device == "gpu":
        return Finding("mlx rate", "ok", rate)
    if backends.mlx.BLAS.name == "reference":
        mend = "pip install mkl (x86_64), or apt install libopenblas0-pthread"
        return Finding("mlx rate", "warning", rate, "MLX's own BLAS is slow, and no faster one was found", mend)
    return Finding("mlx rate", "ok", f"{rate}, BLAS {backends.mlx.BLAS.name} ({backends.mlx.BLAS.reason})")


def _compiler() -> Finding:
    chosen = backends.mlx.COMPILER
    if chosen.name == "compiled":
        return Finding("mlx compile", "ok", chosen.reason)
    return Finding("mlx compile", "note", chosen.name, chosen.reason, "apt install g++")


def report() -> Report:
    return Report(findings(), choices())
