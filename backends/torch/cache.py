"""Keys and values of a batch that is decoded: one row a seat, each with a length of its own.

The rows lie in one preallocated block, so a step writes one position and copies nothing.

Axes: B rows, T new tokens, S cached positions, K key/value heads, G query heads per key/value head, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch.nn import functional as F
from transformers import AttentionInterface

STEP = 128  # positions by which the block grows
ATTENTION = "grouped_decode"
Span = tuple[int, int, int]  # rows from, rows to, cached positions that the longest of them has


class SeatCache(transformers.Cache):
    """transformers' cache protocol over the block. Say where the next forward writes, with `at`, before it."""

    def __init__(self, num_rows: int) -> None:
        super().__init__(layers=[])
        self._num_rows = num_rows
        self._blocks: list[tuple[torch.Tensor, torch.Tensor]] = []  # by layer: keys, values, each (B, K, S, D)
        self._rows = slice(0, 0)
        self._start: int | torch.Tensor = 0
        self._width = 0

    def at(self, rows: slice, start: int | torch.Tensor, width: int) -> None:
        """The next forward's tokens are those of `rows`, from position `start` on (or each row's own, (B,), for one
        token each); attention then sees the first `width` positions."""
        self._rows, self._start, self._width = rows, start, width
        if self._blocks and self._blocks[0][0].shape[2] < width:
            self._blocks = [(self._grown(keys), self._grown(values)) for keys, values in self._blocks]

    def _grown(self, block: torch.Tensor) -> torch.Tensor:
        return F.pad(block, (0, 0, 0, -(-self._width // STEP) * STEP - block.shape[2]))

    def _layer(self, layer: int, like: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        if layer == len(self._blocks):
            size = -(-self._width // STEP) * STEP
            keys, values = (part.new_zeros(self._num_rows, part.shape[1], size, part.shape[3]) for part in like)
            self._blocks.append((keys, values))
        return self._blocks[layer]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (B, K, T, D) and return what attention sees, (B, K, S, D)."""
        blocks = self._layer(layer_idx, (key_states, value_states))
        for block, new in zip(blocks, (key_states, value_states), strict=True):
            if isinstance(self._start, int):
                block[self._rows, :, self._start : self._start + new.shape[2]] = new
            else:
                block[torch.arange(new.shape[0], device=new.device), :, self._start] = new[:, :, 0]
        keys, values = (block[self._rows, :, : self._width] for block in blocks)
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._width

    def share(self, rows: slice, other: SeatCache, width: int) -> None:
        """Give `rows` the first `width` positions of the only row of another cache."""
        for layer, like in enumerate(other._blocks):
            for block, shared in zip(self._layer(layer, like), like, strict=True):
                block[rows, :, :width] = shared[:1, :, :width]

    def reorder(self, order: Sequence[int], width: int) -> None:
        """Row i becomes the old row `order[i]`, which is i or higher; the first `width` positions are in use."""
        for row, old in enumerate(order):
            if row != old:
                for block in (block for pair in self._blocks for block in pair):
                    block[row, :, :width] = block[old, :, :width]


def decode_attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor, scaling: float, spans: Sequence[Span], **unused: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """One new token a row, group by group, each group over its own longest row; keys are read once for all G heads.

    On a CPU, torch's fused kernel takes a third more time than these products in float32, and twice theirs in bfloat16.
    Returns (B, 1, K x G, D).
    """
    rows, heads, kv_heads = query.shape[0], query.shape[1], key.shape[1]
    query_BKGD = (query * scaling).reshape(rows, kv_heads, heads // kv_heads, -1)
    mixed = []
    for first, last, width in spans:
        key_BKSD, value_BKSD = key[first:last, :, :width], value[first:last, :, :width]
        if query.dtype == torch.float32:
            scores_BKGS = query_BKGD[first:last] @ key_BKSD.transpose(-1, -2)
        else:  # in bfloat16 the product is faster with the long axis first
            scores_BKGS = (key_BKSD @ query_BKGD[first:last].transpose(-1, -2)).transpose(-1, -2)
        scores_BKGS = scores_BKGS + attention_mask[first:last, :, :, :width]
        mixed.append(scores_BKGS.softmax(dim=-1, dtype=torch.float32).to(value.dtype) @ value_BKSD)
    return torch.cat(mixed).reshape(rows, 1, heads, -1), None


AttentionInterface.register(ATTENTION, decode_attention)
