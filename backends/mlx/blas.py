"""The BLAS under MLX's CPU wheel, chosen before mlx is imported.

The Linux wheel links a reference BLAS: about 8 GFLOPS where OpenBLAS or MKL give 200 and more. A library
loaded first with global symbols takes its place; no result changes beyond rounding.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import shutil
import sys
import time
from pathlib import Path

from gsm8k_core.types import Choice, PreflightError

_OPENBLAS = ("libopenblas.so.0", "libopenblas.so")


def _mkl_library() -> Path | None:
    try:
        files = importlib.metadata.files("mkl") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = [Path(str(file.locate())) for file in files if file.name.startswith("libmkl_rt.so")]
    return next((path.resolve() for path in found if path.exists()), None)


def _load(library: str) -> bool:
    try:
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


def preload() -> Choice:
    """Load the fastest BLAS at hand: $GSM8K_BLAS, the system's OpenBLAS, then the `mkl` wheel.

    Raises PreflightError when $GSM8K_BLAS names a library that does not load.
    """
    if "mlx.core" in sys.modules:
        return Choice("unchanged", "mlx was already imported by the caller")
    if platform.system() != "Linux":
        return Choice("system", "MLX uses Accelerate or Metal on this system")
    named = os.environ.get("GSM8K_BLAS")
    if named:
        if not _load(named):
            raise PreflightError(f"GSM8K_BLAS={named} cannot be loaded; unset it, or give the path of a BLAS library")
        return Choice(named, "named by GSM8K_BLAS")
    for library in _OPENBLAS:
        if _load(library):
            return Choice(library, "the system's OpenBLAS")
    mkl = _mkl_library()
    # MKL picks the threading layer by what is loaded; GNU OpenMP is the one that torch brings.
    if mkl is not None and _load(str(mkl)):
        return Choice(mkl.name, "the mkl wheel")
    return Choice(
        "reference", "no OpenBLAS and no mkl found: matrix products run at about 8 GFLOPS; pip install mkl mends it"
    )


def compiler() -> Choice:
    """Whether mx.compile may be used: on the CPU it calls g++ at run time. Must run before mlx is imported."""
    if platform.system() != "Linux" or shutil.which("g++"):
        return Choice("compiled", "mx.compile works here")
    os.environ["MLX_DISABLE_COMPILE"] = "1"
    return Choice("eager", "mx.compile needs g++ on the CPU and there is none")


def measure_gflops(size: int = 1024, rounds: int = 4) -> float:
    """The rate of a float32 matrix product on MLX's default device, in GFLOPS: the best of `rounds`."""
    import mlx.core as mx  # here, not above: this module decides what the import will find

    left, right = mx.random.normal((size, size)), mx.random.normal((size, size))
    mx.eval(left, right)
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        mx.eval(left @ right)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9
