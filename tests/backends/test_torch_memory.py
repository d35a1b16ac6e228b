"""What torch's devices have and took, where there is none of them: CUDA and MPS by name alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import backends
from backends.torch import memory
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.problems.batching import pad
from gsm8k_core.types import Choice, Example

GB = 10**9


def test_of_what_metal_recommends_all_is_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever other programs hold now: macOS makes room for who asks."""
    monkeypatch.setattr(memory, "choose_device", lambda asked, here: Choice("mps", "in this test"))
    monkeypatch.setattr(memory, "system_memory", lambda: (5 * GB, 32 * GB, "free on this machine"))
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 21 * GB)
    found = memory.device_memory("mps")
    assert (found.free, found.limit, found.reason) == (21 * GB, 21 * GB, "what Metal recommends")


@pytest.mark.parametrize(
    ("device", "told"),
    [
        ("cuda", ["cuda.empty_cache", "cuda.reset_peak_memory_stats"]),  # else what is reserved stays
        ("mps", ["mps.empty_cache"]),  # whose figure is what the driver holds now
        ("cpu", []),  # a process's own peak never falls
    ],
)
def test_a_rehearsal_begins_with_a_new_peak(
    qwen2: Path, examples: list[Example], monkeypatch: pytest.MonkeyPatch, device: str, told: list[str]
) -> None:
    said: list[str] = []
    backend: Any = backends.open("torch", qwen2, "cpu", "float32")
    for name in ("cuda.empty_cache", "cuda.reset_peak_memory_stats", "mps.empty_cache"):
        monkeypatch.setattr(f"torch.{name}", lambda name=name: said.append(name))
    forget = memory.forget_peak
    monkeypatch.setattr(memory, "forget_peak", lambda of: said.append(of) or forget(device))
    one = backend._one
    monkeypatch.setattr(backend, "_one", lambda *arguments: said.append("computed") or one(*arguments))
    backend.rehearse(pad(examples[:2]), TrainConfig(), lambda: True)
    assert said == ["cpu", *told, "computed"]
