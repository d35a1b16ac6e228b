"""What `doctor` asks of MLX: device, memory, BLAS, the rate of matrix products. Run as a process of its own."""

from __future__ import annotations

from typing import Any

from backends.mlx import backend, blas
from backends.mlx.choose import choose_device, choose_dtype
from gsm8k_core.machine import Finding, Report, report_in_turn
from gsm8k_core.models.hub import human_size
from gsm8k_core.types import Choice

import mlx.core as mx  # isort: skip  # after backend, which chooses the BLAS

SIZES = {"cpu": 1024, "gpu": 4096}  # a GPU needs a larger product to show its rate


def choices() -> dict[str, Choice]:
    """What `auto` picks here."""
    has_gpu = mx.metal.is_available() or mx.cuda.is_available()
    device = choose_device("auto", has_gpu)
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
    rate = f"{blas.measure_gflops(SIZES[device]):,.0f} GFLOPS in float32"
    if device == "gpu":
        return Finding("mlx rate", "ok", rate)
    if backend.BLAS.name == "reference":
        mend = "pip install mkl (x86_64), or apt install libopenblas0-pthread"
        return Finding("mlx rate", "warning", rate, "MLX's own BLAS is slow, and no faster one was found", mend)
    return Finding("mlx rate", "ok", f"{rate}, BLAS {backend.BLAS.name} ({backend.BLAS.reason})")


def _compiler() -> Finding:
    chosen = backend.COMPILER
    if chosen.name == "compiled":
        return Finding("mlx compile", "ok", chosen.reason)
    return Finding("mlx compile", "note", chosen.name, chosen.reason, "apt install g++")


def report() -> Report:
    return Report(findings(), choices())


if __name__ == "__main__":
    report_in_turn(report)
