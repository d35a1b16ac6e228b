"""The loss of gsm8k_core/backend.py in MLX.

Axes: B rows, T tokens, N targets, H hidden, V vocabulary.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from backends.mlx import fast_exp
from gsm8k_core.models.head import PLAIN, Finish
from gsm8k_core.types import Batch

BLOCK = 256  # elements that are added one after another in float32: few enough to lose nothing that counts
CHUNK_BYTES = 128 * 2**20  # of float32 logits at a time: 680 rows of SmolLM2's vocabulary, 220 of Qwen2.5's
FROZEN_CHUNK_BYTES = 32 * 2**20  # without a gradient of the head, a chunk more costs nothing
TARGETS_MULTIPLE = 64  # each number of targets is one more shape for mx.compile


def hidden_states(model: Any, tokens_BT: mx.array) -> mx.array:
    """The body's output after the final norm, (B, T, H)."""
    return model.model(tokens_BT)


def compute_dtype(model: Any) -> mx.Dtype:
    """What its blocks compute in, packed weights apart."""
    arrays = (value for _, value in tree_flatten(model.layers[0].parameters()))
    return next(array.dtype for array in arrays if mx.issubdtype(array.dtype, mx.floating))


def raw_head(model: Any, hidden: mx.array) -> mx.array:
    """Logits in the dtype of the products, or in float32 where something follows those: (..., H) -> (..., V)."""
    tied = not hasattr(model, "lm_head")
    return finished(model.finish, model.model.embed_tokens.as_linear(hidden) if tied else model.lm_head(hidden))


def finished(finish: Finish, products: mx.array) -> mx.array:
    """The logits."""
    if finish.is_plain:
        return products
    logits = products.astype(mx.float32) / finish.divisor
    return logits if finish.cap is None else finish.cap * mx.tanh(logits / finish.cap)


def by_products(finish: Finish, logits: mx.array, gradient: mx.array) -> mx.array:
    """The gradient by the products of what has `gradient` by the logits."""
    if finish.is_plain:
        return gradient
    if finish.cap is not None:
        gradient = gradient * (1.0 - mx.square(logits / finish.cap))
    return gradient / finish.divisor


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


def chunk_rows(model: Any) -> int:
    """Positions whose float32 logits are there at one time, where no gradient is."""
    return max(FROZEN_CHUNK_BYTES // (4 * getattr(model, "lm_head", model.model.embed_tokens).weight.shape[0]), 1)


def target_positions(batch: Batch) -> tuple[mx.array, mx.array, mx.array]:
    """Rows of the flattened (B*T, H) states that predict a target, the targets (N,), and their weights.

    N is rounded up by targets of weight 0, so that few shapes come up.
    """
    targets = batch.targets()
    spare = (0, -len(targets.positions_N) % TARGETS_MULTIPLE)
    padded = (np.pad(part, spare) for part in (targets.positions_N, targets.targets_N, targets.weights_N))
    positions_N, targets_N, weights_N = map(mx.array, padded)
    return positions_N, targets_N, weights_N


def _exp(values: mx.array) -> mx.array:
    return fast_exp.exp(values) if mx.default_device().type == mx.DeviceType.cpu else mx.exp(values)


def _row_sums(array: mx.array) -> mx.array:
    """Sums over the last axis, in blocks: (..., V) -> (..., 1)."""
    block = math.gcd(array.shape[-1], BLOCK)
    if block < BLOCK // 16:
        array, block = mx.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, -array.shape[-1] % BLOCK)]), BLOCK
    return array.reshape(*array.shape[:-1], -1, block).sum(axis=-1).sum(axis=-1, keepdims=True)


def _nll_and_gradient(logits_NV: mx.array, targets_N: mx.array, weights_N: mx.array) -> tuple[mx.array, mx.array]:
    """The sum of weight x -log p, and its gradient by the logits; float32, each exp taken once."""
    logits_NV = logits_NV.astype(mx.float32)
    shifted = fast_exp.alone(logits_NV - logits_NV.max(axis=-1, keepdims=True))
    parts = _exp(shifted)
    total = _row_sums(parts)
    picked = mx.take_along_axis(shifted, targets_N[:, None], axis=-1)
    loss = ((mx.log(total) - picked)[:, 0] * weights_N).sum()
    gradient = parts * (weights_N[:, None] / total)
    return loss, gradient.at[mx.arange(targets_N.size), targets_N].add(-weights_N)


def _logits(module: Any, hidden_NH: mx.array, *trained: mx.array) -> mx.array:
    """A head's logits; `trained` is its weight (V, H), and its bias where it has one, or nothing when it is frozen."""
    if not trained:
        return module.as_linear(hidden_NH) if hasattr(module, "as_linear") else module(hidden_NH)
    logits = hidden_NH @ trained[0].T
    return logits + trained[1] if len(trained) > 1 else logits


def head_loss(
    module: Any, hidden_NH: mx.array, targets_N: mx.array, weights_N: mx.array, finish: Finish = PLAIN
) -> mx.array:
    """Sum of weight x -log p over the targets, in nats; its gradients are computed with it, in chunks of rows.

    So no logits wait for the backward pass, and none is computed twice. A frozen head gets no gradient.
    """
    parameters = module.trainable_parameters()
    trained = [parameters[name] for name in ("weight", "bias") if name in parameters]
    rows = max((CHUNK_BYTES if trained else FROZEN_CHUNK_BYTES) // (4 * module.weight.shape[0]), 1)

    @mx.custom_function
    def with_gradients(hidden: mx.array, *trained: mx.array) -> tuple[mx.array, ...]:
        loss, d_hidden, d_trained = mx.array(0.0), [], []
        for start in range(0, targets_N.size, rows):
            part = slice(start, start + rows)
            arguments = [hidden[part], *trained]
            products = _logits(module, *arguments)
            logits = finished(finish, products)
            more, d_logits = _nll_and_gradient(logits, targets_N[part], weights_N[part])
            d_products = by_products(finish, logits, d_logits).astype(products.dtype)
            _, (d_part, *d_more) = mx.vjp(partial(_logits, module), arguments, [d_products])
            loss = loss + more
            d_hidden.append(d_part)
            d_trained = [a + b for a, b in zip(d_trained, d_more, strict=True)] if d_trained else d_more
        return (loss, mx.concatenate(d_hidden) if len(d_hidden) > 1 else d_hidden[0], *d_trained)

    @with_gradients.vjp
    def _(primals: Any, cotangents: Any, outputs: Any) -> Any:
        scaled = [gradient * cotangents[0].astype(gradient.dtype) for gradient in outputs[1:]]
        return scaled if trained else scaled[0]

    return with_gradients(hidden_NH, *trained)[0]


def loss_sum(
    model: Any, tokens_BT: mx.array, positions_N: mx.array, targets_N: mx.array, weights_N: mx.array
) -> mx.array:
    """Sum of weight x -log p over the targets of one micro-batch, in nats. Divided by the caller, once."""
    hidden_BTH = hidden_states(model, tokens_BT)
    hidden_NH = hidden_BTH.reshape(-1, hidden_BTH.shape[-1])[positions_N]
    module = getattr(model, "lm_head", model.model.embed_tokens)
    return head_loss(module, hidden_NH, targets_N, weights_N, model.finish)
