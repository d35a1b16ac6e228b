"""The command that gets PyTorch's CUDA build, on each system."""

from __future__ import annotations

import pytest

import backends
from backends.torch import doctor


@pytest.mark.parametrize(
    ("system", "index"),
    [
        ("Linux", ""),  # PyPI's build is the one with CUDA
        ("Windows", " --no-deps --index-url URL; pytorch.org/get-started names the URL (Windows, Pip, CUDA)"),
    ],
)
def test_a_torch_that_cannot_use_the_gpu_is_mended_with_the_build_that_can(
    system: str, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = backends.Machine(system, "AMD64", frozenset({"torch"}), cuda=True)
    monkeypatch.setattr(backends, "detect", lambda: here)
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr(doctor, "devices_here", lambda: ["cpu"])
    monkeypatch.setattr("torch.__version__", "2.13.0+cpu")
    found = doctor._devices()
    assert (found.status, found.mend) == ("warning", f"pip install --force-reinstall torch==2.13.0{index}")
