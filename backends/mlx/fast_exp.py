"""What MLX's CPU build computes one element at a time, as arithmetic on whole arrays: exp, SiLU and attention.

There, exp takes 9 to 15 ns an element (one thread, no vector instructions), and a product or a sum 0.2: in training,
SiLU and attention's softmax take as long as a third of the matrix products, in decoding a fifth of a step of 64 rows.
The exp below is a polynomial, made of what is fast: about 2 ns, and closer to the exact value than MLX's own (relative
error 8e-8 against 3e-6 between -60 and 20).

Training finds them where mlx-lm's model code looks for its own (`whole_array_ops`); decoding runs a body of its own
(`fast_body`), whose exp is compiled by itself. On a GPU both are mlx-lm's, single kernels with MLX's fused attention.

Axes: B rows, T tokens, H query heads, K key heads, G = H / K query heads that share a key head, S cached positions,
D head size.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import mlx.core as mx
from mlx_lm.models import llama, qwen2

_LOG2_E = 1.4426950408889634
_ROUND = 12582912.0  # 1.5 x 2**23: adding it and taking it away rounds to a whole number
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4  # their sum is ln 2, and n x the first is exact
# e**r = 1 + r + r**2 x (this polynomial, highest power first) for |r| <= ln(2) / 2, fitted for the least error.
_POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_LEAST, _MOST = -87.0, 88.0  # e to these is just a float32; beyond them the exponent's bits run over
_MANTISSA = 2**23
_ONE = 0x3F800000  # 1.0 as the bits of a float32
_HIDDEN = -1e30  # added to the score of a token that comes later: its share is then exactly 0


def _in_range(values: mx.array) -> mx.array:
    return mx.minimum(mx.maximum(values, _LEAST), _MOST)


def _whole_power(values: mx.array) -> mx.array:
    """n of e**values = p x 2**n, a whole number."""
    return (values * _LOG2_E + _ROUND) - _ROUND


def mantissa(values: mx.array) -> mx.array:
    """p of e**values = p x 2**n, float32."""
    values = _in_range(values)
    n = _whole_power(values)
    r = (values - n * _LN2_HIGH) - n * _LN2_LOW
    p = r * _POLYNOMIAL[0] + _POLYNOMIAL[1]
    for coefficient in _POLYNOMIAL[2:]:
        p = p * r + coefficient
    return p * (r * r) + r + 1.0


def exponent(values: mx.array) -> mx.array:
    """n of e**values = p x 2**n, where a float32 keeps its exponent: n x 2**23, int32."""
    return _whole_power(_in_range(values)).astype(mx.int32) * _MANTISSA


def exp(values: mx.array) -> mx.array:
    """e**values in float32, to one unit in the last place; beyond -87 and 88 as at them. NaN stays NaN."""
    values = values.astype(mx.float32)
    return mx.view(mx.view(mantissa(values), mx.int32) + exponent(values), mx.float32)


def alone(values: mx.array) -> mx.array:
    """The same values, behind what mx.compile does not fuse.

    A fused kernel with one broadcast operand walks all of them by strides, and then nothing in it is vector code.
    """
    return mx.view(mx.view(values, mx.int32), mx.float32)


@mx.custom_function
def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) * up."""
    return (gate / (1.0 + exp(-gate)) * up).astype(gate.dtype)


@swiglu.vjp
def _swiglu_gradient(primals: Any, d_out: mx.array, unused_out: mx.array) -> tuple[mx.array, mx.array]:
    gate, up = mx.depends(list(primals), [d_out])  # else mx.compile keeps the forward pass's exp: as much as `gate`
    share = 1.0 / (1.0 + exp(-gate))
    d_gate = d_out * up * share * (1.0 + gate * (1.0 - share))
    return d_gate.astype(gate.dtype), (d_out * gate * share).astype(up.dtype)


def _scores(q_BKGTD: mx.array, k_BKTD: mx.array) -> mx.array:
    """Scaled queries times keys in float32, tokens that come later hidden: (B, K, G, T, T)."""
    B, K, G, T, D = q_BKGTD.shape
    scores = q_BKGTD.reshape(B, K, G * T, D) @ k_BKTD.swapaxes(-1, -2)
    place = mx.arange(T)
    later = mx.where(place[:, None] < place[None], mx.array(_HIDDEN), mx.array(0.0))
    return alone(scores.reshape(B, K, G, T, T).astype(mx.float32) + later)


@mx.custom_function
def _attention(q_BKGTD: mx.array, k_BKTD: mx.array, v_BKTD: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Causal attention on scaled queries, (B, K, G, T, D); exp(scores - their largest), and its sums."""
    B, K, G, T, D = q_BKGTD.shape
    scores = _scores(q_BKGTD, k_BKTD)
    parts = exp(alone(scores - scores.max(axis=-1, keepdims=True)))
    total = parts.sum(axis=-1, keepdims=True)
    mixed = parts.astype(v_BKTD.dtype).reshape(B, K, G * T, T) @ v_BKTD
    return (mixed.reshape(B, K, G, T, D) / total).astype(q_BKGTD.dtype), parts, total


@_attention.vjp
def _attention_gradient(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, mx.array, mx.array]:
    (q, k, v), d_out, (out, parts, total) = primals, cotangents[0], outputs
    B, K, G, T, D = q.shape
    d_rows = (d_out / total).astype(q.dtype).reshape(B, K, G * T, D)  # the division, on D numbers instead of T
    d_shares = (d_rows @ v.swapaxes(-1, -2)).reshape(B, K, G, T, T)
    along = (d_rows.reshape(q.shape) * out).astype(mx.float32).sum(axis=-1, keepdims=True)
    d_scores = (parts * alone(d_shares.astype(mx.float32) - along)).astype(q.dtype).reshape(B, K, G * T, T)
    d_v = parts.astype(v.dtype).reshape(B, K, G * T, T).swapaxes(-1, -2) @ d_rows
    return (d_scores @ k).reshape(q.shape), d_scores.swapaxes(-1, -2) @ q.reshape(B, K, G * T, D), d_v


def attention(q_BHTD: mx.array, k_BKTD: mx.array, v_BKTD: mx.array, scale: float) -> mx.array:
    """Causal attention, (B, H, T, D); heads that share a key head are one product, and keys are never repeated."""
    B, H, T, D = q_BHTD.shape
    K = k_BKTD.shape[1]
    grouped = (q_BHTD * scale).reshape(B, K, H // K, T, D)
    return _attention(grouped, k_BKTD, v_BKTD)[0].reshape(B, H, T, D)


@contextmanager
def whole_array_ops(model: Any) -> Iterator[None]:
    """While inside, the model's code finds the SiLU and the attention above where it looks for mlx-lm's.

    mlx-lm's model files name both at module level. Attention with a cache, with a mask of its own or with sinks stays
    mlx-lm's, and so does everything on a GPU, where these are single kernels.
    """
    module: Any = sys.modules[type(model).__module__]
    theirs = {name: getattr(module, name) for name in _REPLACED if hasattr(module, name)}
    if mx.default_device().type != mx.DeviceType.cpu:
        theirs = {}
    try:
        for name, function in theirs.items():
            setattr(module, name, _REPLACED[name](function))
        yield
    finally:
        for name, function in theirs.items():
            setattr(module, name, function)


def _training_attention(theirs: Callable[..., mx.array]) -> Callable[..., mx.array]:
    def choose(q: mx.array, k: mx.array, v: mx.array, cache: Any, scale: float, mask: Any, sinks: Any = None) -> Any:
        if cache is not None or sinks is not None or not (isinstance(mask, str) and mask == "causal"):
            return theirs(q, k, v, cache=cache, scale=scale, mask=mask, sinks=sinks)
        return attention(q, k, v, scale)

    return choose


_REPLACED: dict[str, Callable[[Any], Any]] = {
    "swiglu": lambda theirs: swiglu,
    "scaled_dot_product_attention": _training_attention,
}


# --- decoding ---------------------------------------------------------------------------------------------------------

# What is made of sums, products and shifts alone is vectorised when mx.compile builds it: 9 times as fast as mx.exp.
_compiled = partial(mx.compile, shapeless=True)


@_compiled
def _power_bits(x: mx.array) -> mx.array:
    """2**n of e**x = p x 2**n, as the bits of a float32."""
    return exponent(x) + _ONE


@_compiled
def _times_mantissa(x: mx.array, power: mx.array) -> mx.array:
    return mantissa(x) * power


def compiled_exp(x: mx.array) -> mx.array:
    """`exp` of a float32 array, compiled by itself."""
    # Two kernels: with view() inside, mx.compile would trace each shape anew.
    return _times_mantissa(x, _power_bits(x).view(mx.float32))


@_compiled
def _gated(gate: mx.array, up: mx.array, power: mx.array) -> mx.array:
    return gate * up / (1.0 + mantissa(-gate) * power)


def compiled_swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """`swiglu` for decoding."""
    return _gated(gate, up, _power_bits(-gate).view(mx.float32))


def cached_attention(
    q_BHTD: mx.array, k_BKSD: mx.array, v_BKSD: mx.array, scale: float, mask: mx.array | None
) -> mx.array:
    """Softmax attention, (B, H, T, D); `mask` is added to the scores and fits (B, 1, T, S).

    The queries that share a key head are one matrix, so its keys and values are read once.
    """
    B, H, T, D = q_BHTD.shape
    K, S = k_BKSD.shape[1:3]
    scores = (q_BHTD * scale).reshape(B, K, H // K * T, D) @ k_BKSD.swapaxes(-1, -2)
    if mask is not None:
        scores = (scores.reshape(B, H, T, S) + mask).reshape(B, K, H // K * T, S)
    weights = compiled_exp(scores - scores.max(axis=-1, keepdims=True))
    return ((weights @ v_BKSD) / weights.sum(axis=-1, keepdims=True)).reshape(B, H, T, D)


class _CachedAttention:
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
        output_BHTD = cached_attention(queries, keys, values, theirs.scale, mask)
        return theirs.o_proj(output_BHTD.transpose(0, 2, 1, 3).reshape(B, T, -1))


class _CompiledMLP:
    """The MLP of mlx-lm's Llama and Qwen2, on the same projections."""

    def __init__(self, theirs: Any) -> None:
        self._theirs = theirs

    def __call__(self, x_BTC: mx.array) -> mx.array:
        theirs = self._theirs
        return theirs.down_proj(compiled_swiglu(theirs.gate_proj(x_BTC), theirs.up_proj(x_BTC)))


def has_fast_body(model: Any) -> bool:
    """Whether the model runs in float32 on a CPU and has blocks that are known here."""
    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    known = all(
        type(getattr(layer, "self_attn", None)) in (llama.Attention, qwen2.Attention)
        and type(layer.mlp) in (llama.MLP, qwen2.MLP)
        for layer in model.layers
    )
    return on_cpu and known and model.layers[0].input_layernorm.weight.dtype == mx.float32


def fast_body(model: Any) -> Any:
    """The model's body with the blocks above. It shares all layers with weights; the model itself is not changed."""
    fast = copy.copy(model.model)
    fast.layers = [copy.copy(layer) for layer in model.layers]
    for layer in fast.layers:
        layer.self_attn, layer.mlp = _CachedAttention(layer.self_attn), _CompiledMLP(layer.mlp)
    return fast
