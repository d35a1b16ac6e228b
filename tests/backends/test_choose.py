"""`auto` is a pure function of the machine: the name and the reason for each kind."""

from __future__ import annotations

from dataclasses import replace

import pytest

import backends
from backends import Machine, choose
from gsm8k_core.types import PreflightError, UsageError

BOTH, TORCH = frozenset({"mlx", "torch"}), frozenset({"torch"})


@pytest.mark.parametrize(
    ("machine", "name", "reason"),
    [
        (Machine("Darwin", "arm64", BOTH, macos=(15, 1)), "mlx", "Apple Silicon with macOS 15.1 and mlx installed"),
        (Machine("Darwin", "arm64", TORCH, macos=(15, 1)), "torch", "mlx is not installed: pip install mlx mlx-lm"),
        (Machine("Darwin", "arm64", BOTH, macos=(13, 6)), "torch", "macOS 13.6 is too old for mlx, which needs 14.0"),
        (Machine("Darwin", "x86_64", TORCH, macos=(15, 1)), "torch", "Intel processor"),
        (Machine("Darwin", "x86_64", TORCH, macos=(15, 1), rosetta=True), "torch", "Rosetta"),
        (Machine("Linux", "x86_64", TORCH), "torch", "no NVIDIA GPU was found, so it runs on the CPU"),
        (Machine("Linux", "x86_64", TORCH, cuda=True), "torch", "an NVIDIA GPU was found"),
        (Machine("Linux", "x86_64", BOTH), "torch", "mlx is installed too: --backend mlx"),
        (Machine("Linux", "aarch64", BOTH, cuda=True), "torch", "an NVIDIA GPU was found; mlx is installed too"),
        (Machine("Windows", "AMD64", TORCH), "torch", "Windows AMD64: mlx is made for Apple Silicon"),
    ],
)
def test_auto_has_one_answer_and_a_reason(machine: Machine, name: str, reason: str) -> None:
    choice = choose(machine)
    assert choice.name == name
    assert reason in choice.reason


def test_a_named_backend_is_honoured() -> None:
    assert backends.resolve("torch").name == "torch"
    assert backends.resolve("torch").reason == "--backend torch"


def test_a_launchers_backend_is_its_own_choice() -> None:
    backends.share(None, reason="torchrun starts it")
    try:
        assert backends.resolve("torch").reason == "torchrun starts it"
    finally:
        backends.share(None)
    assert backends.resolve("torch").reason == "--backend torch"


def test_a_missing_backend_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    without = replace(backends.PROVIDERS["mlx"], packages=("a_package_that_is_not_there",))
    monkeypatch.setitem(backends.PROVIDERS, "mlx", without)
    with pytest.raises(PreflightError, match=r"needs a_package_that_is_not_there.*mlx-cpu"):
        backends.resolve("mlx")


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(UsageError, match="jax does not exist"):
        backends.resolve("jax")
