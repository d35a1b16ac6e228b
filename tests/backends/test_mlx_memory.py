"""The limits on unified memory, from a device that only a Mac has; and the prediction, held to a measurement."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import backends
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.files import read_json
from gsm8k_core.problems.batching import pad
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
