"""How large a micro-batch may be, found out with real ones: where a peak begins anew, and where it never falls."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gsm8k_core.config.train import TrainConfig
from gsm8k_core.training.memory import Costs, DeviceMemory, model_of, plan
from gsm8k_core.types import Batch, Choice, Example, OutOfMemoryError
from verbs.train.model import _tokens_that_fit

SMOL = {"num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9}
SMOL |= {"num_key_value_heads": 3, "vocab_size": 49152}
CONFIG = TrainConfig(batch_size=8, gradient_accumulation_steps=1)
WIDEST = 504
ROWS = [Example(str(row), (5,) * WIDEST, 20) for row in range(8)]
LEAST, EACH = 2_700_000_000, 1_700_000  # bytes, and of a padded token: the formula says 1,566,720
FREE = 6_000_000_000  # 1024 tokens take 5.5 GB with the moments, 2048 take 7.2


class Device:
    """Its peak begins anew with each rehearsal, or never."""

    def __init__(self, forgets: bool, most: int | None = None) -> None:
        self.choices = {"dtype": Choice("float32", "in this test")}
        self._forgets, self._most, self._peak = forgets, most, 0
        self.tried = list[int]()

    def rehearse(self, batch: Batch, config: TrainConfig) -> float:
        self.tried.append(batch.tokens.size)
        if self._forgets:
            self._peak = 0
        if self._most is not None and batch.tokens.size > self._most:
            raise OutOfMemoryError("no memory")
        self._peak = max(self._peak, LEAST + EACH * batch.tokens.size)
        return 1.0

    def peak_memory(self) -> int:
        return self._peak


def found(device: Device, free: int = FREE, tokens: int = 2048) -> Choice:
    model, wanted = model_of(SMOL, CONFIG), Choice(str(tokens), "asked for")
    assert model is not None
    memory = DeviceMemory("gpu", free, free, Costs(0, 2**20, 2**20), wanted, "in this test")
    planned = plan(model, CONFIG, "float32", memory, wanted, WIDEST, asked=True)
    job: Any = SimpleNamespace(config=CONFIG, rows=SimpleNamespace(examples=ROWS), widest=WIDEST)
    return _tokens_that_fit(device, job, planned, wanted)


@pytest.mark.parametrize("forgets", [True, False])
def test_one_micro_batch_over_the_limit_does_not_lead_down_to_one_row(forgets: bool) -> None:
    device = Device(forgets)
    assert found(device).name == "1024"
    assert device.tried == [4 * WIDEST, 2 * WIDEST]


@pytest.mark.parametrize("forgets", [True, False])
@pytest.mark.parametrize(("free", "tokens"), [(8, "2048"), (5, "512"), (4.2, "504")])
def test_it_is_no_smaller_and_no_larger_than_fits(forgets: bool, free: float, tokens: str) -> None:
    assert found(Device(forgets), int(free * 1e9)).name == tokens


@pytest.mark.parametrize("forgets", [True, False])
def test_what_had_no_memory_is_halved_and_the_rest_measured(forgets: bool) -> None:
    assert found(Device(forgets, most=3 * WIDEST)).name == "1024"
    with pytest.raises(OutOfMemoryError):
        found(Device(forgets, most=WIDEST - 1))
