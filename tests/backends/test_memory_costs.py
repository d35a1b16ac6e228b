"""The memory planner against what was measured: benchmarks/memory.jsonl, one process a line (benchmarks/memory.py)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import backends
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.training.memory import Costs, Need, model_of, predict

MEASURED = Path(__file__).resolve().parents[2] / "benchmarks/memory.jsonl"
BODIES = {
    "embedded": {
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "qwen2.5-0.5b-shaped": {
        "num_hidden_layers": 24,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
}
WITHIN = 0.15


def points(backend: str) -> list[dict[str, Any]]:
    every = [json.loads(line) for line in MEASURED.read_text(encoding="utf-8").splitlines()]
    return [point for point in every if point["backend"] == backend]


def predicted(point: dict[str, Any], costs: Costs) -> Need:
    config = TrainConfig(method=point["method"], gradient_checkpointing=point["gradient_checkpointing"])
    model = model_of(BODIES[point["model"]], config)
    assert model is not None
    rows, width = point["shapes"][0]
    return predict(model, config, point["dtype"], costs, rows * width, width)


def errors(backend: str, costs: Costs) -> dict[str, float]:
    """Of the process's peak, and of MLX's own, by point."""
    found = {}
    for point in points(backend):
        need = predicted(point, costs)
        name = " ".join(str(point[key]) for key in ("model", "method", "dtype", "tokens", "gradient_checkpointing"))
        found[name] = need.total / point["rss"] - 1
        if point["own"]:
            found[f"{name} (own)"] = (need.total - need.process) / point["own"] - 1
    return found


def test_the_prediction_is_within_fifteen_percent(backend_name: str) -> None:
    found = errors(backend_name, backends.device_memory(backend_name, "cpu").costs)
    assert len(found) >= 8
    assert {name: error for name, error in found.items() if abs(error) > WITHIN} == {}


@pytest.mark.parametrize("part", ["activations", "adapted"])
def test_without_what_was_measured_it_would_not_be(backend_name: str, part: str) -> None:
    """The control: half the activations."""
    costs = backends.device_memory(backend_name, "cpu").costs
    halved: dict[str, Any] = {part: getattr(costs, part) / 2}
    found = errors(backend_name, replace(costs, **halved))
    assert min(found.values()) < -WITHIN
