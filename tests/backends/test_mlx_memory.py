"""The limits on unified memory, from a device that only a Mac has; and the prediction, held to a measurement."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import backends
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.files import read_json
from gsm8k_core.problems.batching import pad
from gsm8k_core.training.memory import model_of, plan
from gsm8k_core.types import Choice, Example, Update
from tests import tiny
from tests.backends.conftest import FakePilot

pytestmark = pytest.mark.skipif(not backends.installed("mlx"), reason="backend mlx is not installed here")

GB = 10**9
MAC = {"max_recommended_working_set_size": 12 * GB, "memory_size": 16 * GB}  # about what a 16 GB Mac says


@pytest.fixture
def memory() -> Any:
    from backends.mlx import memory

    return memory


def test_a_fifth_more_than_the_peak_is_wired(memory: Any) -> None:
    found, choices = memory.limits(MAC, 5 * GB)
    assert (found.wired, found.cache, found.memory) == (6 * GB, 3 * GB, 12 * GB)
    assert choices["wired"].reason == "the predicted peak of 5 GB, and a fifth more"
    assert set(choices) == {"wired", "cache", "memory"}


def test_never_more_than_the_working_set_is_wired(memory: Any) -> None:
    found, choices = memory.limits(MAC, 15 * GB)
    assert found.wired == 12 * GB < MAC["memory_size"]
    assert "--micro-batch-tokens" in choices["wired"].reason


def test_a_device_without_a_working_set_gets_no_limits(memory: Any) -> None:
    found, choices = memory.limits({"device_name": "AMD EPYC"}, GB)
    assert found is None
    assert choices == {"memory": Choice("unlimited", "the device names no working set")}


@pytest.mark.parametrize(
    ("info", "free", "limit", "reason"),
    [
        (MAC, 12 * GB, 12 * GB, "Metal's working set"),  # not what other programs leave of it: 3 GB, here
        ({"free_memory": 70 * GB, "total_memory": 80 * GB}, 70 * GB, 80 * GB, "free on the GPU"),
        ({"device_name": "a GPU that says nothing"}, 3 * GB, 3 * GB, "free on this machine"),
    ],
)
def test_what_a_gpu_has_is_its_own_to_say(
    memory: Any, monkeypatch: pytest.MonkeyPatch, info: dict[str, Any], free: int, limit: int, reason: str
) -> None:
    from backends.mlx.backend import MLXBackend

    monkeypatch.setattr(memory, "system_memory", lambda: (3 * GB, 16 * GB, "free on this machine"))
    monkeypatch.setattr(memory, "has_gpu", lambda: True)
    monkeypatch.setattr(memory.mx, "device_info", lambda device=memory.mx.gpu: info if device == memory.mx.gpu else {})
    found = backends.device_memory("mlx", "gpu")
    assert (found.device, found.free, found.limit, found.reason) == ("gpu", free, limit, reason)
    assert backends.device_memory("mlx", "cpu").free == 3 * GB
    is_card = "total_memory" in info  # whose memory is its own, and alone caps a micro-batch
    assert (found.caps_alone, found.tokens.name) == ((True, "8192") if is_card else (False, "2048"))
    monkeypatch.setattr(memory.mx.cuda, "is_available", lambda: is_card)
    backend = SimpleNamespace(choices={"device": Choice("gpu", "in this test")})
    assert MLXBackend.micro_batch_tokens.fget(backend) == found.tokens
    assert "not a measurement" in found.tokens.reason


def test_a_micro_batch_that_metal_holds_is_not_made_smaller(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """8 GB of 12, beside other programs that macOS would make give way: what is free now would halve it."""
    monkeypatch.setattr(memory, "system_memory", lambda: (7 * GB, 16 * GB, "free on this machine"))
    monkeypatch.setattr(memory, "has_gpu", lambda: True)
    monkeypatch.setattr(memory.mx, "device_info", lambda *device: MAC)
    body = {"num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9}
    body |= {"num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True}
    config, device = TrainConfig(), backends.device_memory("mlx", "gpu")
    wanted = Choice("2048", "asked for in this test")
    model = model_of(body, config)
    assert model is not None
    found = plan(model, config, "float32", device, wanted, 512, asked=False)
    assert (found.tokens, found.fits) == (wanted, True)
    scarce = plan(model, config, "float32", replace(device, free=7 * GB), wanted, 512, asked=False)
    assert (int(scarce.tokens.name) < 2048, "close other programs" in found.line()) == (True, False)


def test_metals_limits_hold_inside_and_no_longer(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"memory": 1, "cache": 2, "wired": 3}

    def setter(which: str) -> Any:
        def put(size: int) -> int:
            before, now[which] = now[which], size
            return before

        return put

    for which in now:
        monkeypatch.setattr(memory.mx, f"set_{which}_limit", setter(which))
    monkeypatch.setattr(memory.mx.metal, "is_available", lambda: True)
    choices: dict[str, Choice] = {}
    with memory.limited(MAC, lambda: 5 * GB, choices):
        assert now == {"memory": 12 * GB, "cache": 3 * GB, "wired": 6 * GB}
    assert now == {"memory": 1, "cache": 2, "wired": 3}
    assert set(choices) == {"memory", "cache", "wired"}


def test_without_metal_nothing_is_limited(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.mx.metal, "is_available", lambda: False)
    before = memory.mx.set_cache_limit(12345)
    choices: dict[str, Choice] = {}
    with memory.limited(MAC, lambda: 5 * GB, choices):
        inside = memory.mx.set_cache_limit(before)
    assert (inside, choices) == (12345, {})


def test_the_predicted_peak_is_near_the_measured_one(memory: Any, tmp_path: Path) -> None:
    """Over it, so that what is wired suffices; and not by half."""
    shape = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 6}
    folder = tiny.make(tmp_path / "wide", **shape)
    backend = backends.open("mlx", folder, "cpu", "float32")
    batch = pad([Example(str(row), tuple(4 + place % 50 for place in range(256)), 20) for row in range(8)])
    memory.mx.reset_peak_memory()
    start = memory.mx.get_active_memory()
    backend.train([Update(1, 0, ("a",), (batch,))], TrainConfig(), FakePilot())
    weights = sum(value.nbytes for value in backend._masters.values())
    measured = memory.mx.get_peak_memory() - start + weights
    config = TrainConfig(max_length=256, micro_batch_tokens="2048")
    predicted = memory.own_peak(read_json(folder / "config.json"), config, "float32", "cpu")
    assert 0.8 < predicted / measured < 1.5, (predicted, measured)
    assert weights < 0.2 * measured  # so it is the activations that were predicted


def test_the_prediction_goes_by_the_padded_tokens(memory: Any, tmp_path: Path) -> None:
    body = read_json(tiny.make(tmp_path / "tiny") / "config.json")

    def peak(**settings: Any) -> int:
        return int(memory.own_peak(body, TrainConfig(max_length=256, **settings), "float32", "cpu"))

    assert peak(micro_batch_tokens="512") < peak(micro_batch_tokens="1024") == peak(batch_size=8)
    assert peak(batch_size=2) == peak(micro_batch_tokens="512")


def test_metals_watchdog_is_asked_to_wait(memory: Any) -> None:
    assert os.environ["AGX_RELAX_CDM_CTXSTORE_TIMEOUT"]


def test_a_smaller_rehearsal_after_a_larger_one_has_the_smaller_peak(
    memory: Any, qwen2: Path, examples: list[Example]
) -> None:
    backend = backends.open("mlx", qwen2, "cpu", "float32")
    peaks = []
    for rows in (2, 16, 2):
        backend.rehearse(pad(examples[:rows]), TrainConfig())
        peaks.append(backend.peak_memory())
    assert peaks[1] > peaks[0]
    assert abs(peaks[2] - peaks[0]) < 0.2 * (peaks[1] - peaks[0]), peaks  # not the larger one's for ever
