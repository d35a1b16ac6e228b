"""What `train` says of its plan."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gsm8k_core.config.train import TrainConfig
from gsm8k_core.types import StepEvent
from verbs.train.words import Narrator


@pytest.mark.parametrize(
    ("seconds", "total", "ends"),
    [
        (100.0, 30, "the budget is enough"),
        (900.0, 30, "the budget ends before that"),  # not even one more update fits, so the plan stays
        (900.0, 10, "the budget ends after 1.0 epochs (10 updates)"),
    ],
)
def test_an_estimate_says_whether_the_budget_is_enough(seconds: float, total: int, ends: str) -> None:
    said: list[str] = []
    job: Any = SimpleNamespace(
        config=TrainConfig(max_time="120", num_epochs=3),
        total=30,
        rows=SimpleNamespace(examples=[0] * 80),
        events=[SimpleNamespace(total=30)],
    )
    steps: Any = SimpleNamespace(resize=lambda number: None)
    terminal: Any = SimpleNamespace(say=said.append)
    values = {"update": 1, "seconds": seconds, "asked": 30, "total": total}
    Narrator(job, steps, terminal)(StepEvent("estimate", values))
    assert len(said) == 1
    assert said[0].endswith(f"on this machine; {ends}")
