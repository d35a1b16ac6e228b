"""mlx-lm's decoder blocks with a faster exp, for MLX on a CPU.

MLX's CPU wheel takes 10 to 15 ns for one exp on x86 (one thread, no vector instructions), 60 times as long as for a
product: at 64 rows a fifth of a decoding step went into softmax and SiLU. An exp made of sums, products and shifts
is vectorised when mx.compile builds it: 9 times as fast alone, error 9e-8, mx.exp's 4e-6 (|x| <= 80).
On a GPU mlx-lm's own blocks are used, with MLX's fused attention.

Axes: B rows, T tokens, H heads, K key heads, R = H / K queries for each key head, S positions, D of a head.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import mlx.core as mx
from mlx_lm.models import llama, qwen2

from backends.mlx import cpu

ONE = 0x3F800000  # 1.0 as the bits of a float32

_compiled = partial(mx.compile, shapeless=True)


@_compiled
def _power_bits(x: mx.array) -> mx.array:
    """2**n of e**x = p x 2**n, as the bits of a float32."""
    return cpu.exponent(x) + ONE


@_compiled
def _times_mantissa(x: mx.array, power: mx.array) -> mx.array:
    return cpu.mantissa(x) * power


def exp(x: mx.array) -> mx.array:
    """cpu.exp of a float32 array, compiled by itself."""
    # Two kernels: with view() inside, mx.compile would trace each shape anew.
    return _times_mantissa(x, _power_bits(x).view(mx.float32))


@_compiled
def _gated(gate: mx.array, up: mx.array, power: mx.array) -> mx.array:
    return gate * up / (1.0 + cpu.mantissa(-gate) * power)


def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """SiLU(gate) * up."""
    return _gated(gate, up, _power_bits(-gate).view(mx.float32))


def attention(q_BHTD: mx.array, k_BKSD: mx.array, v_BKSD: mx.array, scale: float, mask: mx.array | None) -> mx.array:
    """Softmax attention, (B, H, T, D); `mask` is added to the scores and fits (B, 1, T, S).

    The R queries of a key head are one matrix, so its keys and values are read once.
    """
    B, H, T, D = q_BHTD.shape
    K, S = k_BKSD.shape[1:3]
    scores = (q_BHTD * scale).reshape(B, K, H // K * T, D) @ k_BKSD.swapaxes(-1, -2)
    if mask is not None:
        scores = (scores.reshape(B, H, T, S) + mask).reshape(B, K, H // K * T, S)
    weights = exp(scores - scores.max(axis=-1, keepdims=True))
    return ((weights @ v_BKSD) / weights.sum(axis=-1, keepdims=True)).reshape(B, H, T, D)


class _Attention:
    """The attention of mlx-lm's Llama and Qwen2, on the same projections."""

    def __init__(self, theirs: Any) -> None:
        self._theirs = theirs

    def __call__(self, x_BTC: mx.array, mask: mx.array | None, cache: Any) -> mx.array:
        theirs = self._theirs
        B, T, _ = x_BTC.shape

        def by_head(projection: Any, num_heads: int) -> mx.array:
            return projection(x_BTC).reshape(B, T, num_heads, -1).transpose(0, 2, 1, 3)

        queries = theirs.rope(by_head(theirs.q_proj, theirs.n_heads), offset=cache.offset)
        keys = theirs.rope(by_head(theirs.k_proj, theirs.n_kv_heads), offset=cache.offset)
        keys, values = cache.update_and_fetch(keys, by_head(theirs.v_proj, theirs.n_kv_heads))
        output_BHTD = attention(queries, keys, values, theirs.scale, mask)
        return theirs.o_proj(output_BHTD.transpose(0, 2, 1, 3).reshape(B, T, -1))


class _MLP:
    def __init__(self, theirs: Any) -> None:
        self._theirs = theirs

    def __call__(self, x_BTC: mx.array) -> mx.array:
        theirs = self._theirs
        return theirs.down_proj(swiglu(theirs.gate_proj(x_BTC), theirs.up_proj(x_BTC)))


def applies(model: Any) -> bool:
    """Whether the model runs in float32 on a CPU and has blocks that are known here."""
    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    known = all(
        type(layer.self_attn) in (llama.Attention, qwen2.Attention) and type(layer.mlp) in (llama.MLP, qwen2.MLP)
        for layer in model.layers
    )
    return on_cpu and known and model.layers[0].input_layernorm.weight.dtype == mx.float32


def body(model: Any) -> Any:
    """The model's body with lean blocks. It shares all layers with weights; the model itself is not changed."""
    lean = copy.copy(model.model)
    lean.layers = [copy.copy(layer) for layer in model.layers]
    for layer in lean.layers:
        layer.self_attn, layer.mlp = _Attention(layer.self_attn), _MLP(layer.mlp)
    return lean
