"""MLX's CPU reductions are not precise over long axes; ours are. Against float64, with the plain ones as control."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import backends

pytestmark = pytest.mark.skipif(not backends.installed("mlx"), reason="backend mlx is not installed here")


@pytest.fixture
def loss() -> Any:
    from backends.mlx import loss

    return loss


def on_the_cpu() -> bool:
    import mlx.core as mx

    return not (mx.metal.is_available() or mx.cuda.is_available())


def test_logsumexp_over_a_large_vocabulary(loss: Any) -> None:
    import mlx.core as mx

    logits = np.random.default_rng(0).normal(0, 3, (8, 49_153)).astype(np.float32)
    exact = np.log(np.exp(logits.astype(np.float64)).sum(axis=-1))
    assert np.abs(np.array(loss.logsumexp(mx.array(logits))) - exact).max() < 3e-6  # measured: 6e-7
    if on_the_cpu():
        assert np.abs(np.array(mx.logsumexp(mx.array(logits), axis=-1)) - exact).max() > 3e-5  # measured: 7e-5


def test_the_sum_of_a_large_gradient(loss: Any) -> None:
    import mlx.core as mx

    squares = np.square(np.random.default_rng(0).normal(0, 3, (20_000, 576)).astype(np.float32))
    exact = squares.sum(dtype=np.float64)
    assert abs(loss.sum_all(mx.array(squares)).item() / exact - 1) < 1e-6  # measured: 4e-8
    if on_the_cpu():
        assert abs(mx.array(squares).sum().item() / exact - 1) > 1e-5  # measured: 6e-2 on 28 million elements
