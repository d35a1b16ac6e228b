"""What `doctor` asks of PyTorch: CUDA, MPS, bfloat16, the rate of matrix products. Run as a process of its own."""

from __future__ import annotations

import platform

import torch

import backends.torch.backend  # what training imports has to import here, too
from backends.torch.device import choose_device, choose_dtype, devices_here, measure_gflops
from gsm8k_core.machine import Finding, Report
from gsm8k_core.models.hub import human_size
from gsm8k_core.types import Choice

DEVICES = {"cuda": "CUDA", "mps": "MPS", "cpu": "CPU"}
SIZE = 4096  # a GPU needs a large product to show its rate


def choices() -> dict[str, Choice]:
    """What `auto` picks here; on a CPU, the dtype is measured."""
    device = choose_device("auto", devices_here())
    return {"device": device, "dtype": choose_dtype("auto", device.name)}


def report() -> Report:
    """One measurement for both the findings and the choice."""
    chosen = choices()
    return Report(_found(chosen), chosen)


def findings() -> list[Finding]:
    """What torch finds on this machine, measured on the device that it would use."""
    return _found(choices())


def _found(chosen: dict[str, Choice]) -> list[Finding]:
    return [_devices(), _rate(chosen), _bfloat16(chosen)]


def _devices() -> Finding:
    here = devices_here()
    kinds = ", ".join(f"{'' if name in here else 'no '}{words}" for name, words in DEVICES.items())
    value = f"{torch.__version__}: {kinds}"
    if "cuda" in here:
        device = torch.cuda.get_device_properties(0)
        return Finding("torch", "ok", f"{value}; {device.name}, {human_size(device.total_memory)}")
    if backends.detect().cuda:
        reason = "there is an NVIDIA GPU here, and this torch cannot use it (a CPU build, or an old driver)"
        mend = f"pip install --force-reinstall torch=={torch.__version__.partition('+')[0]}"
        if platform.system() != "Linux":  # PyPI's build is the one with CUDA for Linux alone
            mend += " --no-deps --index-url URL; pytorch.org/get-started names the URL (Windows, Pip, CUDA)"
        return Finding("torch", "warning", value, reason, mend)
    return Finding("torch", "ok", value)


def _rate(chosen: dict[str, Choice]) -> Finding:
    device, dtype = chosen["device"].name, chosen["dtype"]
    if device == "cpu":  # choose_dtype has measured both kinds
        return Finding("torch rate", "ok", dtype.reason)
    rates = {name: measure_gflops(getattr(torch, name), device, SIZE) for name in ("float32", "bfloat16")}
    words = " and ".join(f"{rate:,.0f} GFLOPS in {name}" for name, rate in rates.items())
    return Finding("torch rate", "ok", f"matrix products run at {words}")


def _bfloat16(chosen: dict[str, Choice]) -> Finding:
    value = "used for computing" if chosen["dtype"].name == "bfloat16" else "not used"
    on_cpu = chosen["device"].name == "cpu"  # where the rates above are the reason
    return Finding("torch bfloat16", "ok", value, "" if on_cpu else chosen["dtype"].reason)
