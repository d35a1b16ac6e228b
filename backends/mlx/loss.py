"""The loss of base.py in MLX.

Axes: B rows, T tokens, N targets, H hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from gsm8k_core.types import IGNORE_INDEX, Batch

BLOCK = 256  # elements that are added one after another in float32: few enough to lose nothing that counts


def hidden_states(model: Any, tokens_BT: mx.array) -> mx.array:
    """The body's output after the final norm, (B, T, H)."""
    return model.model(tokens_BT)


def raw_head(model: Any, hidden: mx.array) -> mx.array:
    """Logits in the dtype of the products: (..., H) -> (..., V)."""
    tied = not hasattr(model, "lm_head")
    return model.model.embed_tokens.as_linear(hidden) if tied else model.lm_head(hidden)


def head(model: Any, hidden: mx.array) -> mx.array:
    """Logits in float32: (..., H) -> (..., V)."""
    # On the CPU the reduction runs in the logits' dtype; in bfloat16 that is off in the third digit.
    return raw_head(model, hidden).astype(mx.float32)


def sum_all(array: mx.array) -> mx.array:
    """The sum of all elements, in blocks.

    MLX's CPU reduction adds float32 one after another: the squares of a 28-million-element gradient came out 6 % short.
    """
    flat = array.reshape(-1)
    while flat.size > BLOCK:
        flat = mx.pad(flat, (0, -flat.size % BLOCK)).reshape(-1, BLOCK).sum(axis=-1)
    return flat.sum()


def logsumexp(logits: mx.array) -> mx.array:
    """log sum exp over the last axis, in blocks: (..., V) -> (...).

    Over 49,152 logits in one piece, MLX's CPU reduction is off by 1e-4 nats, always to the same side.
    """
    short = -logits.shape[-1] % BLOCK
    if short:
        logits = mx.pad(logits, [(0, 0)] * (logits.ndim - 1) + [(0, short)], constant_values=float("-inf"))
    return mx.logsumexp(mx.logsumexp(logits.reshape(*logits.shape[:-1], -1, BLOCK), axis=-1), axis=-1)


def target_positions(batch: Batch) -> tuple[mx.array, mx.array, mx.array | None]:
    """Rows of the flattened (B*T, H) states that predict a target, the targets (N,), and their weights."""
    supervised = batch.labels[:, 1:] != IGNORE_INDEX
    row, column = np.nonzero(supervised)
    positions = row * batch.labels.shape[1] + column
    weights = None if batch.weights is None else mx.array(batch.weights[:, 1:][supervised])
    return mx.array(positions.astype(np.int32)), mx.array(batch.labels[:, 1:][supervised]), weights


def loss_sum(
    model: Any, tokens_BT: mx.array, positions_N: mx.array, targets_N: mx.array, weights_N: mx.array | None
) -> mx.array:
    """Sum of weight x -log p over the targets of one micro-batch, in nats. Divided by the caller, once."""
    hidden_BTH = hidden_states(model, tokens_BT)
    hidden_NH = hidden_BTH.reshape(-1, hidden_BTH.shape[-1])[positions_N]
    logits_NV = head(model, hidden_NH)
    nll_N = logsumexp(logits_NV) - mx.take_along_axis(logits_NV, targets_N[:, None], axis=-1)[:, 0]
    return (nll_N if weights_N is None else nll_N * weights_N).sum()
