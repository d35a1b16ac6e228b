"""What PyTorch takes when nobody says."""

from __future__ import annotations

import pytest
import torch

from backends.torch.device import choose_dtype


@pytest.mark.parametrize(
    ("small", "full", "taken", "sizes"),
    [(2.0, 2.0, "float32", [256]), (60.0, 400.0, "bfloat16", [256, 1024]), (60.0, 140.0, "float32", [256, 1024])],
)
def test_a_cpu_that_emulates_bfloat16_is_asked_for_a_small_product_alone(
    monkeypatch: pytest.MonkeyPatch, small: float, full: float, taken: str, sizes: list[int]
) -> None:
    asked = []

    def measure(dtype: torch.dtype, device: str = "cpu", size: int = 1024) -> float:
        if dtype == torch.float32:
            return 100.0
        asked.append(size)
        return small if size < 1024 else full

    monkeypatch.setattr("backends.torch.device.measure_gflops", measure)
    assert (choose_dtype("auto", "cpu").name, asked) == (taken, sizes)
