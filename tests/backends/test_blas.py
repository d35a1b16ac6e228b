"""Which BLAS goes under MLX, and whether mx.compile has a compiler; what would disturb this process's mlx is faked."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import backends
from backends import mlx
from gsm8k_core.types import Choice, PreflightError

ROOT = Path(__file__).parents[2]
MKL = Path("/wheel/libmkl_rt.so.3")
on_linux = pytest.mark.skipif(platform.system() != "Linux", reason="a BLAS is chosen on Linux only")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A Linux with MLX's CPU build, before mlx is imported, with nothing set and nothing probed."""
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.delitem(sys.modules, "mlx.core", raising=False)
    monkeypatch.setattr(mlx, "_is_installed", lambda package: False)
    # Its own cache: what is found here is not what this process's mlx goes by.
    monkeypatch.setattr(mlx, "_compile_problem", functools.cache(mlx._compile_problem.__wrapped__))
    for key in ("GSM8K_BLAS", "MLX_DISABLE_COMPILE"):
        monkeypatch.setenv(key, "")  # so that what the code sets is undone, too
        monkeypatch.delenv(key)
    return monkeypatch


def libraries(machine: pytest.MonkeyPatch, *there: str) -> list[str]:
    """Only these can be loaded. The list of what was tried, in order."""
    tried: list[str] = []

    def load(library: str) -> str | None:
        tried.append(library)
        return None if library in there else "cannot be loaded"

    machine.setattr(mlx, "_load", load)
    machine.setattr(mlx, "_mkl_library", lambda: MKL if str(MKL) in there else None)
    return tried


def test_openblas_comes_first(machine: pytest.MonkeyPatch) -> None:
    tried = libraries(machine, "libopenblas.so.0", str(MKL))
    assert mlx.preload() == Choice("libopenblas.so.0", "the system's OpenBLAS")
    assert tried == ["libopenblas.so.0"]


def test_then_the_mkl_wheel(machine: pytest.MonkeyPatch) -> None:
    tried = libraries(machine, str(MKL))
    assert mlx.preload() == Choice("libmkl_rt.so.3", "the mkl wheel")
    assert tried == ["libopenblas.so.0", "libopenblas.so", str(MKL)]


def test_then_mlx_s_own(machine: pytest.MonkeyPatch) -> None:
    libraries(machine)
    assert mlx.preload().name == "reference"


def test_the_variable_wins(machine: pytest.MonkeyPatch) -> None:
    tried = libraries(machine, "libopenblas.so.0", str(MKL), "/my/libblis.so")
    machine.setenv("GSM8K_BLAS", "/my/libblis.so")
    assert mlx.preload() == Choice("/my/libblis.so", "named by GSM8K_BLAS")
    assert tried == ["/my/libblis.so"]


@pytest.mark.parametrize("there", [True, False])
def test_what_the_variable_names_is_never_replaced(there: bool, machine: pytest.MonkeyPatch) -> None:
    libraries(machine, *(["libopenblas.so.0"] if there else []))
    machine.setenv("GSM8K_BLAS", "/my/libblis.so")
    with pytest.raises(PreflightError, match=r"GSM8K_BLAS=/my/libblis.so cannot be loaded; unset it, or give"):
        mlx.preload()


def test_after_mlx_it_is_too_late(machine: pytest.MonkeyPatch) -> None:
    tried = libraries(machine, "libopenblas.so.0")
    machine.setitem(sys.modules, "mlx.core", sys)
    assert mlx.preload().name == "unchanged"
    assert tried == []


def test_a_mac_has_its_own(machine: pytest.MonkeyPatch) -> None:
    tried = libraries(machine, "libopenblas.so.0")
    machine.setattr(platform, "system", lambda: "Darwin")
    assert mlx.preload().name == "system"
    assert mlx.compiler() == Choice("compiled", "Metal compiles its own kernels")
    assert "MLX_DISABLE_COMPILE" not in os.environ
    assert tried == []


@on_linux
def test_a_library_without_matrix_products_is_none(machine: pytest.MonkeyPatch) -> None:
    machine.setenv("GSM8K_BLAS", "libm.so.6")
    with pytest.raises(PreflightError, match=r"GSM8K_BLAS=libm.so.6 is no BLAS library \(it has neither cblas_sgemm"):
        mlx.preload()
    machine.setenv("GSM8K_BLAS", "libnothing-at-all.so")
    with pytest.raises(PreflightError, match=r"cannot be loaded \(libnothing-at-all.so: "):
        mlx.preload()


@pytest.mark.skipif(not backends.installed("mlx"), reason="backend mlx is not installed here")
@pytest.mark.parametrize(
    ("name", "gflops", "processor", "said"),
    [
        ("libmkl_rt.so.3", 212.4, "x86_64", "found; 212 GFLOPS measured"),
        ("libmkl_rt.so.3", 20.0, "x86_64", "found; 20 GFLOPS measured"),
        ("libmkl_rt.so.3", 8.1, "x86_64", "found; 8 GFLOPS measured, which is slow for this library: the machine"),
        ("reference", 8.1, "x86_64", "found; 8 GFLOPS measured, which is slow: pip install mkl, or install"),
        ("reference", 8.1, "aarch64", "found; 8 GFLOPS measured, which is slow: install"),  # mkl has no wheel there
    ],
)
def test_a_slow_one_is_said_to_be_slow(
    name: str, gflops: float, processor: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: processor)
    from backends.mlx.device import rated  # imports mlx

    found = rated(Choice(name, "found"), gflops)
    assert found.name == name
    assert found.reason.startswith(said)
    assert ("slow" in found.reason) == (gflops < 20)


@on_linux
@pytest.mark.skipif(not shutil.which("g++"), reason="there is no g++ here")
def test_a_compiler_that_works(machine: pytest.MonkeyPatch) -> None:
    assert mlx.compiler() == Choice("compiled", "g++ compiles here")
    assert "MLX_DISABLE_COMPILE" not in os.environ


def test_no_compiler(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine.setenv("PATH", str(tmp_path))
    assert mlx.compiler() == Choice("eager", "mx.compile needs g++ on the CPU, and there is none")
    assert os.environ["MLX_DISABLE_COMPILE"] == "1"


def fake_compiler(folder: Path, script: str) -> Path:
    path = folder / "g++"
    path.write_text(f"#!/bin/sh\necho called >> {folder / 'calls'}\n{script}\n")
    path.chmod(0o755)
    return folder


@on_linux
@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 1", "the one here does not compile"),  # as without the header files
        ("exit 0", "it could not be tried"),  # and makes nothing
        ("exec /bin/sleep 3600", "the one here took over"),
    ],
)
def test_a_compiler_that_does_not_work(script: str, said: str, machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine.setenv("PATH", str(fake_compiler(tmp_path, script)))
    if "sleep" in script:
        machine.setattr(mlx, "_PROBE_SECONDS", 0.5)
    assert mlx.compiler().reason.startswith(f"mx.compile needs g++ on the CPU, and {said}")
    assert os.environ["MLX_DISABLE_COMPILE"] == "1"


@on_linux
def test_the_compiler_is_tried_once(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine.setenv("PATH", str(fake_compiler(tmp_path, "exit 1")))
    for _ in range(3):
        machine.delenv("MLX_DISABLE_COMPILE", raising=False)
        assert mlx.compiler().name == "eager"
    assert (tmp_path / "calls").read_text() == "called\n"


def test_who_switched_it_off_is_believed(machine: pytest.MonkeyPatch) -> None:
    machine.setenv("MLX_DISABLE_COMPILE", "1")
    assert mlx.compiler() == Choice("eager", "MLX_DISABLE_COMPILE is set")


@pytest.mark.parametrize("wheel", ["mlx-cuda-13", "mlx-cuda-12", "mlx-cuda"])
def test_the_cuda_build_needs_no_compiler(wheel: str, machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine.setenv("PATH", str(tmp_path))
    machine.setattr(mlx, "_is_installed", lambda package: package == wheel)
    assert mlx.compiler() == Choice("compiled", "MLX's CUDA build compiles its own kernels")
    assert "MLX_DISABLE_COMPILE" not in os.environ


def test_installed_wheels_are_looked_up_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package != "mlx-cuda-13":
            raise importlib.metadata.PackageNotFoundError(package)
        return "0.32.4"

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert mlx._is_installed("mlx-cuda-13")
    assert not mlx._is_installed("mlx-cuda")


IN_A_PROCESS = """
import backends.mlx.device as device
from backends.mlx import BLAS, COMPILER
import mlx.core as mx
assert "GFLOPS measured" in device.rated(BLAS, device.measure_gflops(256)).reason
print(BLAS.name, COMPILER.name, float(mx.compile(lambda x: mx.exp(x) * 2 + 1)(mx.zeros(3))[0]))
"""


@on_linux
@pytest.mark.skipif(not mlx._is_installed("mlx-cpu"), reason="MLX's CPU build is not installed here")
def test_mlx_runs_on_what_was_chosen_and_without_a_compiler(tmp_path: Path) -> None:
    variables = {key: value for key, value in os.environ.items() if key not in ("GSM8K_BLAS", "MLX_DISABLE_COMPILE")}
    command = [sys.executable, "-c", IN_A_PROCESS]
    done = subprocess.run(
        command, cwd=ROOT, env={**variables, "PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1:] == ["eager", "3.0"]
