"""What torch's devices have and took, where there is none of them: CUDA and MPS by name alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

import backends
from backends.torch import memory
from backends.torch.loss import TOO_MANY_ON_MPS
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.problems.batching import pad
from gsm8k_core.types import Choice, Example
from verbs.train.model import _plan_memory, _without_a_plan

GB = 10**9
SMOL = {"num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9}
SMOL |= {"num_key_value_heads": 3, "vocab_size": 49152}


def test_of_what_metal_recommends_all_is_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever other programs hold now: macOS makes room for who asks."""
    monkeypatch.setattr(memory, "choose_device", lambda asked, here: Choice("mps", "in this test"))
    monkeypatch.setattr(memory, "system_memory", lambda: (5 * GB, 32 * GB, "free on this machine"))
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 21 * GB)
    found = memory.device_memory("mps")
    assert (found.free, found.limit, found.reason) == (21 * GB, 21 * GB, "what Metal recommends")


@pytest.mark.parametrize("body", [SMOL, {}])  # with sizes that are known, and with none
@pytest.mark.parametrize(("asked", "tokens"), [("40000", "16384"), ("16384", "16384"), ("auto", "2048")])
def test_a_micro_batch_that_mps_is_wrong_with_is_never_made(
    monkeypatch: pytest.MonkeyPatch, body: dict[str, Any], asked: str, tokens: str
) -> None:
    """Chosen before training, and not found out in the middle of it."""
    monkeypatch.setattr(memory, "choose_device", lambda asked, here: Choice("mps", "in this test"))
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 900 * GB)
    source = SimpleNamespace(model=SimpleNamespace(config=body))
    config = TrainConfig(device="mps", micro_batch_tokens=asked, batch_size=128)
    job: Any = SimpleNamespace(config=config, source=source, backend=Choice("torch", "in this test"), widest=504)
    planned = _plan_memory(job, cast("Any", SimpleNamespace(explicit={"micro_batch_tokens"})))
    assert (planned is not None) == bool(body)
    found = planned.tokens if planned else _without_a_plan(job)
    assert found.name == tokens
    assert ("pytorch#195163" in found.reason) == (asked == "40000")
    assert int(found.name) < TOO_MANY_ON_MPS


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
