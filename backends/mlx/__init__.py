"""MLX: Metal on a Mac, and the CPU or CUDA wheel on Linux. Importing this package imports no mlx.

It settles what has to be settled before mlx starts, so whoever imports a module of it need not think of that: what MLX
and Metal read once from the environment, the BLAS under MLX's CPU wheel, and whether mx.compile has a compiler.

The Linux wheel links a reference BLAS: about 8 GFLOPS where OpenBLAS or MKL give 200 and more. A library
loaded first with global symbols takes its place; no result changes beyond rounding.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from backends import left_open
from gsm8k_core.types import Choice, PreflightError

# Metal's watchdog ends a long kernel while the display is on. Read once, when MLX starts.
DARWIN = {"AGX_RELAX_CDM_CTXSTORE_TIMEOUT": "1"}
# float32 is float32: MLX would round products to TF32 on CUDA and on newer Macs. Read once, at the first product.
EXACT = {"MLX_ENABLE_TF32": "0"}
_OPENBLAS = ("libopenblas.so.0", "libopenblas.so")
_PRODUCTS = ("cblas_sgemm", "sgemm_")  # MLX calls the first, and the reference BLAS's first calls the second
_CUDA_WHEELS = ("mlx-cuda-13", "mlx-cuda-12", "mlx-cuda")
# A header and a function of the standard library: a g++ without its headers is found and does not compile.
_PROBE = '#include <cmath>\nextern "C" float probe(float x) { return std::exp(x); }\n'
_PROBE_SECONDS = 10.0  # it takes a quarter of one; a busy machine is not a machine without a compiler


def _mkl_library() -> Path | None:
    try:
        files = importlib.metadata.files("mkl") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = [Path(str(file.locate())) for file in files if file.name.startswith("libmkl_rt.so")]
    return next((path.resolve() for path in found if path.exists()), None)


def _load(library: str) -> str | None:
    """Load a BLAS for every library to come. What is wrong with it, or None; a wrong one stays out of the way."""
    try:
        handle = ctypes.CDLL(library, mode=ctypes.RTLD_LOCAL)
        if not any(hasattr(handle, name) for name in _PRODUCTS):
            return f"is no BLAS library (it has neither {' nor '.join(_PRODUCTS)})"
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        return f"cannot be loaded ({error})"
    return None


def preload() -> Choice:
    """Load the fastest BLAS at hand: $GSM8K_BLAS, the system's OpenBLAS, then the `mkl` wheel.

    Raises PreflightError when $GSM8K_BLAS names a library that does not load or is no BLAS.
    """
    if "mlx.core" in sys.modules:
        return Choice("unchanged", "mlx was already imported by the caller")
    if platform.system() != "Linux":
        return Choice("system", "MLX uses Accelerate or Metal on this system")
    named = os.environ.get("GSM8K_BLAS")
    if named:
        if problem := _load(named):
            raise PreflightError(f"GSM8K_BLAS={named} {problem}; unset it, or give the path of a BLAS library")
        return Choice(named, "named by GSM8K_BLAS")
    for library in _OPENBLAS:
        if _load(library) is None:
            return Choice(library, "the system's OpenBLAS")
    mkl = _mkl_library()
    # MKL picks the threading layer by what is loaded; GNU OpenMP is the one that torch brings.
    if mkl is not None and _load(str(mkl)) is None:
        return Choice(mkl.name, "the mkl wheel")
    return Choice("reference", "MLX's own BLAS, as there is no OpenBLAS and no mkl")


def compiler() -> Choice:
    """Whether mx.compile may be used: on the CPU it calls g++ at run time."""
    if platform.system() != "Linux":
        metal = platform.system() == "Darwin"
        return Choice("compiled", "Metal compiles its own kernels" if metal else "mx.compile is left as it is")
    if any(_is_installed(wheel) for wheel in _CUDA_WHEELS):
        return Choice("compiled", "MLX's CUDA build compiles its own kernels")
    if "MLX_DISABLE_COMPILE" in os.environ:
        return Choice("eager", "MLX_DISABLE_COMPILE is set")
    problem = _compile_problem()
    if problem is None:
        from backends.mlx.kernels import build_quickly  # here, not above: it brings numpy, and a Mac has no use for it

        build_quickly()
        return Choice("compiled", "g++ compiles here")
    os.environ["MLX_DISABLE_COMPILE"] = "1"
    return Choice("eager", f"mx.compile needs g++ on the CPU, and {problem}")


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@functools.cache
def _compile_problem() -> str | None:
    """Why g++ does not make a shared library of two lines, as mx.compile will ask of it; None where it does."""
    if shutil.which("g++") is None:
        return "there is none"
    try:
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, "probe.cpp"), Path(folder, "probe.so")
            source.write_text(_PROBE)
            command = ["g++", "-std=c++17", "-O3", "-fPIC", "-shared", str(source), "-o", str(target)]
            done = subprocess.run(command, capture_output=True, timeout=_PROBE_SECONDS, check=False)
            if done.returncode != 0:
                return "the one here does not compile"
            ctypes.CDLL(str(target))  # from where temporary files may not be run, it cannot be loaded
            return None
    except subprocess.TimeoutExpired:
        return f"the one here took over {_PROBE_SECONDS:.0f} s for two lines"
    except OSError as error:
        return f"it could not be tried ({error})"


def settle() -> tuple[Choice, Choice]:
    """The BLAS under MLX, and whether mx.compile is used; its variables are set, too."""
    for own in (EXACT, DARWIN):  # the latter elsewhere, too, where nobody reads it
        os.environ.update(left_open(own, os.environ))
    return preload(), compiler()


BLAS, COMPILER = settle()
