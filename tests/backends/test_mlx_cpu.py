"""MLX's training arithmetic on a CPU against MLX's own: exp, SwiGLU, attention, and the head's loss in chunks."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if importlib.util.find_spec("mlx") is None:
    pytest.skip("needs mlx", allow_module_level=True)

import backends
from gsm8k_core.batching import pad
from gsm8k_core.types import Example

EXP = 3e-7  # relative to float64; measured 8e-8
GRADIENTS = 5e-6  # of the largest; measured up to about 6e-7


@pytest.fixture(scope="module")
def mx(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import mlx.core

    mlx.core.set_default_device(mlx.core.cpu)
    return mlx.core


def normal(mx: Any, seed: int, *shape: int) -> Any:
    return mx.array(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def gap(ours: Any, theirs: Any) -> float:
    """The largest difference over the largest value."""
    ours, theirs = np.array(ours), np.array(theirs)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def test_exp_is_close_to_float64_and_nan_stays_nan(mx: Any) -> None:
    from backends.mlx.cpu import exp

    values = np.linspace(-86, 87, 20_001).astype(np.float32)
    found = np.array(exp(mx.array(values))).astype(np.float64)
    right = np.exp(values.astype(np.float64))
    assert np.abs(found / right - 1).max() < EXP
    shifted = np.array(exp(mx.array(values) + 1e-4)).astype(np.float64)
    assert np.abs(shifted / right - 1).max() > 10 * EXP
    assert np.isnan(np.array(exp(mx.array([float("nan")])))).all()
    assert np.isfinite(np.array(exp(mx.array([-1e30, 1e30])))).all()


def gradients(mx: Any, function: Callable[..., Any], arrays: list[Any], weights: Any) -> list[Any]:
    return list(mx.grad(lambda *given: (function(*given) * weights).sum(), argnums=list(range(len(arrays))))(*arrays))


def test_swiglu_and_its_gradients_are_those_of_silu(mx: Any) -> None:
    import mlx.nn as nn

    from backends.mlx.cpu import swiglu

    arrays = [normal(mx, 0, 7, 33) * 4, normal(mx, 1, 7, 33)]
    weights = normal(mx, 2, 7, 33)
    assert gap(swiglu(*arrays), nn.silu(arrays[0]) * arrays[1]) < GRADIENTS
    ours = gradients(mx, swiglu, arrays, weights)
    theirs = gradients(mx, lambda gate, up: nn.silu(gate) * up, arrays, weights)
    wrong = gradients(mx, lambda gate, up: nn.relu(gate) * up, arrays, weights)
    assert all(gap(a, b) < GRADIENTS for a, b in zip(ours, theirs, strict=True))
    assert all(gap(a, b) > 10 * GRADIENTS for a, b in zip(ours, wrong, strict=True))


def test_attention_and_its_gradients_are_those_of_mlx(mx: Any) -> None:
    from backends.mlx.cpu import attention

    arrays = [normal(mx, 0, 2, 6, 19, 8), normal(mx, 1, 2, 2, 19, 8), normal(mx, 2, 2, 2, 19, 8)]
    weights = normal(mx, 3, 2, 6, 19, 8)

    def ours(q: Any, k: Any, v: Any) -> Any:
        return attention(q, k, v, 0.3)

    def theirs(q: Any, k: Any, v: Any, mask: str | None = "causal") -> Any:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=0.3, mask=mask)

    assert gap(ours(*arrays), theirs(*arrays)) < GRADIENTS
    found, right = gradients(mx, ours, arrays, weights), gradients(mx, theirs, arrays, weights)
    assert all(gap(a, b) < GRADIENTS for a, b in zip(found, right, strict=True))
    wrong = gradients(mx, lambda *given: theirs(*given, mask=None), arrays, weights)
    assert all(gap(a, b) > 10 * GRADIENTS for a, b in zip(found, wrong, strict=True))


@pytest.mark.parametrize("weighted", [False, True])
def test_chunks_change_no_loss_and_no_gradient(
    mx: Any, qwen2: Path, examples: list[Example], monkeypatch: pytest.MonkeyPatch, weighted: bool
) -> None:
    from mlx.utils import tree_flatten

    from backends.mlx import loss

    model: Any = backends.open("mlx", qwen2, "cpu", "float32")._model  # type: ignore[attr-defined]
    batch = pad(examples[:4])
    positions, targets, weights = loss.target_positions(batch)
    if weighted:
        weights = weights * mx.arange(weights.size)
    arguments = (mx.array(batch.tokens), positions, targets, weights)

    def plain(parameters: Any) -> Any:
        model.update(parameters)
        hidden = loss.hidden_states(model, arguments[0])
        logits = loss.head(model, hidden.reshape(-1, hidden.shape[-1])[positions])
        nll = loss.logsumexp(logits) - mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
        return (nll * weights).sum()

    def chunked(parameters: Any) -> Any:
        model.update(parameters)
        return loss.loss_sum(model, *arguments)

    parameters = model.parameters()
    right, right_gradients = mx.value_and_grad(plain)(parameters)
    for rows in (1000, 7):
        monkeypatch.setattr(loss, "CHUNK_BYTES", 4 * rows * model.model.embed_tokens.weight.shape[0])
        found, found_gradients = mx.value_and_grad(chunked)(parameters)
        assert found.item() == pytest.approx(right.item(), rel=1e-5)
        pairs = zip(tree_flatten(found_gradients), tree_flatten(right_gradients), strict=True)
        assert max(gap(a, b) for (_, a), (_, b) in pairs) < GRADIENTS
    weights[0] = weights[0] + 1  # the control: one target counts once more
    assert abs(chunked(parameters).item() - right.item()) > 1e-4 * abs(right.item())


def test_spare_targets_weigh_nothing(mx: Any, examples: list[Example]) -> None:
    from backends.mlx.loss import TARGETS_MULTIPLE, target_positions

    batch = pad(examples[:3])
    positions, targets, weights = target_positions(batch)
    assert positions.size == targets.size == weights.size
    assert positions.size % TARGETS_MULTIPLE == 0
    assert weights.sum().item() == batch.num_targets


def test_no_more_shapes_are_traced_than_allowed(
    mx: Any, qwen2: Path, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    from backends.mlx import train

    monkeypatch.setattr(train, "MOST_TRACES", 2)
    model: Any = backends.open("mlx", qwen2, "cpu", "float32")._model  # type: ignore[attr-defined]
    model.unfreeze()
    compiled, eager = train.MicroBatch(model, compiled=True), train.MicroBatch(model, compiled=False)
    for count in (1, 2, 3, 4, 1):
        batch = pad(examples[:count])
        loss, other = compiled(batch, 1.0)[0].item(), eager(batch, 1.0)[0].item()
        assert loss == pytest.approx(other, rel=1e-5)
    assert compiled.num_traces == 2
    assert eager.num_traces == 0
