"""The draw of gsm8k_core/scoring/sampling.py in MLX, on the device; nothing waits for it, but for top-p on a CPU.

Axes: B rows, R rows at once, V vocabulary, N blocks, G groups.
"""

from __future__ import annotations

import mlx.core as mx

from backends.mlx import fast_exp
from gsm8k_core.scoring.sampling import COLDEST, FAN
from gsm8k_core.types import Sampling

CPU_WEIGHTS = 2**16  # computed at once on a CPU, one row at the least; a GPU takes all rows at once


def draw(logits_BV: mx.array, sampling: Sampling, uniforms_B3: mx.array) -> mx.array:
    """A token id for each row, (B,) int32; any id where a row's logits are not finite."""
    num_rows, size = logits_BV.shape
    rows = max(1, CPU_WEIGHTS // size) if _on_cpu() else num_rows
    parts = [slice(first, first + rows) for first in range(0, num_rows, rows)]
    tokens = [_first_above_each(_weights(logits_BV[part], sampling), uniforms_B3[part]) for part in parts]
    return mx.concatenate(tokens)


def _on_cpu() -> bool:
    return mx.default_device() == mx.Device(mx.cpu)


def _weights(logits_RV: mx.array, sampling: Sampling) -> mx.array:
    """What each token weighs, (R, V) float32."""
    logits_RV = logits_RV.astype(mx.float32)
    below_RV = logits_RV - logits_RV.max(axis=-1, keepdims=True)
    if sampling.temperature != 1:
        below_RV = below_RV * (1 / max(sampling.temperature, COLDEST))
    weights_RV = fast_exp.compiled_exp(below_RV) if _on_cpu() else mx.exp(below_RV)
    size = weights_RV.shape[1]
    if 0 < sampling.top_k < size:
        weights_RV = _kept(weights_RV, _heaviest(weights_RV, sampling.top_k)[:, -1:])
    if sampling.top_p < 1:
        weights_RV = _kept(weights_RV, _last_of_top_p(weights_RV, sampling.top_p))
    return weights_RV


def _kept(weights_RV: mx.array, least_R1: mx.array) -> mx.array:
    return weights_RV * (weights_RV >= least_R1)


def _heaviest(weights_RV: mx.array, count: int) -> mx.array:
    """The `count` heaviest, heaviest first: (R, count)."""
    size = weights_RV.shape[1]
    if count < size:
        weights_RV = mx.partition(weights_RV, size - count, axis=-1)[:, size - count :]
    return mx.sort(weights_RV, axis=-1)[:, ::-1]


def _last_of_top_p(weights_RV: mx.array, top_p: float) -> mx.array:
    """The least weight that top-p keeps, (R, 1)."""
    size, whole_R1 = weights_RV.shape[1], _sums(weights_RV).sum(axis=-1, keepdims=True)
    count = size
    if _on_cpu():
        # What weighs less than an even share of what may go is not kept. Few weigh more, and sorting all takes ten
        # times as long as all else; on a GPU, waiting to hear how many they are would.
        least_R1 = (1 - top_p) / size * whole_R1
        count = max(int((weights_RV >= least_R1).sum(axis=-1).max().item()), 1)
    heaviest_RN = _heaviest(weights_RV, count)
    missing_R1 = (heaviest_RN.cumsum(axis=-1) < top_p * whole_R1).sum(axis=-1, keepdims=True)
    missing_R1 = mx.minimum(missing_R1, count - 1)  # the last, where rounding misses it
    return mx.take_along_axis(heaviest_RN, missing_R1, axis=-1)


def _sums(values_RV: mx.array) -> mx.array:
    """Of FAN neighbours each: (R, N)."""
    return _by_fan(values_RV).sum(axis=-1)


def _by_fan(values_RV: mx.array) -> mx.array:
    """(R, V) as (R, N, FAN), filled up with zeros."""
    short = -values_RV.shape[1] % FAN
    if short:
        values_RV = mx.pad(values_RV, [(0, 0), (0, short)])
    return values_RV.reshape(len(values_RV), -1, FAN)


def _first_above_each(weights_RV: mx.array, u_R3: mx.array) -> mx.array:
    """A token for each row, (R,): its group, its block, itself."""
    blocks_RNF = _by_fan(weights_RV)
    groups_RGF = _by_fan(blocks_RNF.sum(axis=-1))
    row_R = mx.arange(len(weights_RV))
    group_R = _first_above(groups_RGF.sum(axis=-1), u_R3[:, 0:1])
    block_R = group_R * FAN + _first_above(groups_RGF[row_R, group_R], u_R3[:, 1:2])
    return block_R * FAN + _first_above(blocks_RNF[row_R, block_R], u_R3[:, 2:3])


def _first_above(sums_RF: mx.array, u_R1: mx.array) -> mx.array:
    """Where each row's running sum is first above u times the whole, (R,) int32."""
    running_RF = sums_RF.cumsum(axis=-1)
    found_R = (running_RF <= u_R1 * running_RF[:, -1:]).sum(axis=-1)  # u x whole is below the whole, in float32 as well
    return mx.minimum(found_R, sums_RF.shape[1] - 1).astype(mx.int32)  # no index is checked here: NaN, too, is a place
