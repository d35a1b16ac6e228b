"""What MLX's CPU build computes one element at a time, as arithmetic on whole arrays, for training.

There, exp takes 9 ns an element on one core, and a product or a sum 0.2: SiLU and attention's softmax take as long as
a third of the matrix products. The exp below is a polynomial, made of what is fast: about 2 ns, and closer to the exact
value than MLX's own (relative error 8e-8 against 3e-6 between -60 and 20).

Axes: B rows, T tokens, H query heads, K key heads, G = H / K query heads that share a key head, D head size.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

_LOG2_E = 1.4426950408889634
_ROUND = 12582912.0  # 1.5 x 2**23: adding it and taking it away rounds to a whole number
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4  # their sum is ln 2, and n x the first is exact
# e**r = 1 + r + r**2 x (this polynomial, highest power first) for |r| <= ln(2) / 2, fitted for the least error.
_POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_LEAST, _MOST = -87.0, 88.0  # e to these is just a float32; beyond them the exponent's bits run over
_MANTISSA = 2**23
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
