"""The draw of gsm8k_core/scoring/sampling.py in PyTorch, on the device.

Axes: B rows, R rows at once, V vocabulary, N blocks, G groups.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from gsm8k_core.scoring.sampling import COLDEST, FAN
from gsm8k_core.types import Sampling

NOT_FINITE = -1  # in a token's place: it travels with the tokens, so that nobody waits for the device to hear of it
CPU_WEIGHTS = 2**19  # computed at once on a CPU: 2 MB stay in its cache; a GPU takes all rows at once


def draw(logits_BV: torch.Tensor, sampling: Sampling, uniforms_B3: torch.Tensor) -> torch.Tensor:
    """A token id for each row, (B,); NOT_FINITE where its logits are not."""
    rows = max(1, CPU_WEIGHTS // logits_BV.shape[1]) if _on_cpu(logits_BV) else len(logits_BV)
    parts = zip(logits_BV.split(rows), uniforms_B3.split(rows), strict=True)
    return torch.cat([_drawn(logits_RV.float(), sampling, u_R3) for logits_RV, u_R3 in parts])


def likeliest(logits_BV: torch.Tensor) -> torch.Tensor:
    """The same at temperature 0."""
    largest_B, tokens_B = logits_BV.max(dim=-1)
    return _where_finite(tokens_B, largest_B)


def _where_finite(tokens_B: torch.Tensor, largest_B: torch.Tensor) -> torch.Tensor:
    return tokens_B.where(torch.isfinite(largest_B), NOT_FINITE)


def _on_cpu(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu"


def _drawn(logits_RV: torch.Tensor, sampling: Sampling, u_R3: torch.Tensor) -> torch.Tensor:
    largest_R1 = logits_RV.amax(dim=-1, keepdim=True)
    tokens_R = _first_above_each(_weights(logits_RV, largest_R1, sampling), u_R3)
    return _where_finite(tokens_R, largest_R1[:, 0])


def _weights(logits_RV: torch.Tensor, largest_R1: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """What each token weighs, (R, V) float32."""
    weights_RV = logits_RV - largest_R1
    if sampling.temperature != 1:
        weights_RV *= 1 / max(sampling.temperature, COLDEST)
    weights_RV.exp_()
    if 0 < sampling.top_k < weights_RV.shape[1]:
        weights_RV.masked_fill_(weights_RV < weights_RV.topk(sampling.top_k).values[:, -1:], 0)
    if sampling.top_p < 1:
        weights_RV.masked_fill_(weights_RV < _last_of_top_p(weights_RV, sampling.top_p), 0)
    return weights_RV


def _last_of_top_p(weights_RV: torch.Tensor, top_p: float) -> torch.Tensor:
    """The least weight that top-p keeps, (R, 1)."""
    whole_R1 = weights_RV.sum(dim=-1, keepdim=True)
    if not _on_cpu(weights_RV):
        return _where_reached(weights_RV.sort(descending=True).values, top_p * whole_R1)
    # What weighs less than an even share of what may go is not kept. Few weigh more, and sorting all takes ten times as
    # long as all else; on a GPU, finding out how many they are would.
    least_R1 = (1 - top_p) / weights_RV.shape[1] * whole_R1
    heavy = (
        row_V[~(row_V < least)].sort(descending=True).values  # NaN, too: of a row there is always something
        for row_V, least in zip(weights_RV, least_R1, strict=True)
    )
    return torch.stack([_where_reached(row_N, top_p * whole) for row_N, whole in zip(heavy, whole_R1, strict=True)])


def _where_reached(heaviest: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The weight with which the running sum of the heaviest, (..., N), reaches what is wanted, (..., 1)."""
    missing = (heaviest.cumsum(dim=-1) < wanted).sum(dim=-1, keepdim=True)
    return heaviest.gather(-1, missing.clamp_(max=heaviest.shape[-1] - 1))  # the last, where rounding misses it


def _first_above_each(weights_RV: torch.Tensor, u_R3: torch.Tensor) -> torch.Tensor:
    """A token for each row, (R,): its group, its block, itself."""
    blocks_RNF = F.pad(weights_RV, (0, -weights_RV.shape[1] % FAN)).unflatten(1, (-1, FAN))
    sums_RN = blocks_RNF.sum(dim=-1)
    groups_RGF = F.pad(sums_RN, (0, -sums_RN.shape[1] % FAN)).unflatten(1, (-1, FAN))
    row_R = torch.arange(len(weights_RV), device=weights_RV.device)
    group_R = _first_above(groups_RGF.sum(dim=-1), u_R3[:, 0:1])
    block_R = group_R * FAN + _first_above(groups_RGF[row_R, group_R], u_R3[:, 1:2])
    return block_R * FAN + _first_above(blocks_RNF[row_R, block_R], u_R3[:, 2:3])


def _first_above(sums_RF: torch.Tensor, u_R1: torch.Tensor) -> torch.Tensor:
    """Where each row's running sum is first above u times the whole, (R,)."""
    running_RF = sums_RF.cumsum(dim=-1)
    return (running_RF <= u_R1 * running_RF[:, -1:]).sum(dim=-1)  # u x whole is below the whole, in float32 as well
