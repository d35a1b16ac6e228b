"""What a CUDA device in float32 is asked for: keys as many as queries, so that a kernel without scores can be taken.

On a CPU that runs the same function. No test here has run on a GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import backends
from backends.torch.load import REPEATED, choose_attention
from backends.torch.loss import LossModel, to_device
from gsm8k_core.problems.batching import pad
from gsm8k_core.types import Example

CPU = torch.device("cpu")
Asked = list[tuple[int, int, bool, bool]]


def opened(folder: Path, device: str) -> Any:
    """The model as on that device, on a CPU."""
    model: Any = backends.open("torch", folder, "cpu", "float32")._model  # type: ignore[attr-defined]
    choose_attention(model, device)
    return model


def spy(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """(heads of the query, of the key, whether they are shared, whether causal) of each attention."""
    asked: Asked = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def watched(query: Any, key: Any, value: Any, **more: Any) -> Any:
        assert key.shape == value.shape
        asked.append((query.shape[1], key.shape[1], more.get("enable_gqa", False), more["is_causal"]))
        return attention(query, key, value, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    return asked


def trained(model: Any, examples: list[Example]) -> dict[str, Any]:
    model.zero_grad()
    LossModel(model)(**to_device(pad(examples[:4]), CPU), scale=0.1).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_in_float32_keys_are_repeated_for_training_and_scoring(
    tiny_model: Path, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked = opened(tiny_model, "cuda"), spy(monkeypatch)
    trained(model, examples)
    assert asked == [(4, 4, False, True)] * 2
    asked.clear()
    with torch.no_grad():
        model(input_ids=torch.tensor([[4, 5, 6, 7]]), use_cache=False)
    assert asked == [(4, 4, False, True)] * 2


def test_in_bfloat16_flash_attention_shares_them_itself(
    tiny_model: Path, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked = opened(tiny_model, "cuda"), spy(monkeypatch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trained(model, examples)
    assert asked == [(4, 2, True, True)] * 2


def test_control_transformers_own_way_shares_them(
    tiny_model: Path, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked = opened(tiny_model, "cpu"), spy(monkeypatch)
    assert model.config._attn_implementation == "sdpa"
    trained(model, examples)
    assert asked == [(4, 2, True, True)] * 2


def test_every_gradient_is_that_of_shared_keys(
    tiny_model: Path, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the control: keys repeated in another order than the heads that share them."""
    right, found = (trained(opened(tiny_model, device), examples) for device in ("cpu", "cuda"))
    monkeypatch.setattr("backends.torch.load.repeat_kv", lambda states, times: states.repeat(1, times, 1, 1))
    wrong = trained(opened(tiny_model, "cuda"), examples)

    def error(other: dict[str, Any]) -> float:
        return max(
            float((right[name] - other[name]).square().mean().sqrt() / right[name].square().mean().sqrt())
            for name in right
        )

    assert error(found) < 2e-6 < error(wrong) / 100  # measured 2.6e-7


def test_an_attention_that_is_not_sdpa_is_left_as_it_is(tiny_model: Path) -> None:
    model = opened(tiny_model, "cpu")
    model.set_attn_implementation("eager")
    choose_attention(model, "cuda")
    assert model.config._attn_implementation == "eager"
    assert opened(tiny_model, "cuda").config._attn_implementation == REPEATED
    assert opened(tiny_model, "mps").config._attn_implementation == "sdpa"
