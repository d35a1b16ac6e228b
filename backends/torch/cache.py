"""Keys and values of a batch that is decoded: one row a seat, each with a length of its own.

The rows lie in preallocated blocks, one for a group of neighbours, so a step writes one position and copies nothing:
torch's bfloat16 products copy an operand whose matrices do not lie back to back, as those of a slice of a block.

Axes: B rows, T new tokens, S positions of a block, K key/value heads, G query heads per key/value head, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import transformers
from torch.nn import functional as F
from transformers import AttentionInterface

from backends.torch.seats import GROUP

STEP = 32  # positions by which a block grows: few are read for nothing, and it grows seldom
ATTENTION = "grouped_decode"
Pair = tuple[torch.Tensor, torch.Tensor]


class _Group:
    """Neighbours, and their keys and values by layer, each (B, K, S, D), S a multiple of STEP."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows, self.size = num_rows, 0
        self.layers: list[Pair] = []

    def fit(self, width: int) -> None:
        """Hold `width` positions and little more."""
        if width <= self.size < width + 2 * STEP:
            return
        self.size = -(-width // STEP) * STEP
        for layer, pair in enumerate(self.layers):  # one after the other: twice the memory of one layer, not of all
            keys, values = (F.pad(block, (0, 0, 0, self.size - block.shape[2])) for block in pair)
            self.layers[layer] = keys, values

    def layer(self, index: int, like: Pair) -> Pair:
        if index == len(self.layers):
            keys, values = (part.new_zeros(self.num_rows, part.shape[1], self.size, part.shape[3]) for part in like)
            self.layers.append((keys, values))
        return self.layers[index]


class SeatCache(transformers.Cache):
    """transformers' cache protocol over the blocks. Say what the next forward reads, with `at_prompts` or `at_step`."""

    def __init__(self, num_rows: int, grouped: bool) -> None:
        super().__init__(layers=[])
        self._grouped, self._group_rows = grouped, GROUP if grouped else num_rows
        starts = range(0, num_rows, self._group_rows)
        self._groups = [_Group(min(self._group_rows, num_rows - start)) for start in starts]
        self._num_rows = num_rows
        self._rows, self._prefix, self._shared = slice(0, 0), None, 0
        self._positions_B: torch.Tensor | None = None  # of a step; of prompts there is none
        self._places: dict[int, int] = {}  # layer -> its place among those with keys
        self._inputs: dict[int, torch.Tensor] = {}  # layer with a convolution -> its last inputs, (B, channels, few)
        self._lengths_B: torch.Tensor | None = None  # of what is read of each prompt

    def at_prompts(
        self, rows: slice, width: int, prefix: SeatCache | None, shared: int, lengths_B: torch.Tensor | None = None
    ) -> None:
        """The next forward reads the prompts of `rows`, up to `width` tokens, all but the first `shared`, which are
        those of the only row of `prefix`. `lengths_B` counts what is read of each, for layers with a convolution."""
        self._rows, self._positions_B, self._prefix, self._shared = rows, None, prefix, shared
        self._lengths_B = lengths_B
        for group, _, _ in self._parts(rows):
            group.fit(max(width, group.size))

    def at_step(self, cached: Sequence[int], positions_B: torch.Tensor) -> int:
        """The next forward reads one token a row, after its `cached` positions; how many positions it may see."""
        self._rows, self._positions_B = slice(0, len(cached)), positions_B
        parts = list(self._parts(self._rows))
        for group, _, part in parts:
            group.fit(max(cached[part]) + 1)
        return max(group.size for group, _, _ in parts)

    def _parts(self, rows: slice) -> Iterator[tuple[_Group, slice, slice]]:
        """The groups that `rows` lie in: the group, which of its rows, and which of `rows` these are."""
        for index in range(rows.start // self._group_rows, -(-rows.stop // self._group_rows)):
            start = index * self._group_rows
            first, last = max(rows.start, start), min(rows.stop, start + self._group_rows)
            yield self._groups[index], slice(first - start, last - start), slice(first - rows.start, last - rows.start)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Any, Any]:
        """Write (B, K, T, D) and return what attention sees, (B, K, S, D), or that of each group in a step."""
        new, place = (key_states, value_states), self._places.setdefault(layer_idx, len(self._places))
        if self._positions_B is None:
            return self._write_prompts(new, place)
        seen: list[Pair] = []
        for group, rows, part in self._parts(self._rows):
            blocks = group.layer(place, new)
            index_B = torch.arange(rows.stop, device=key_states.device)
            for block, states in zip(blocks, new, strict=True):
                block[index_B, :, self._positions_B[part]] = states[part, :, 0]
            seen.append((blocks[0][rows], blocks[1][rows]))
        keys, values = zip(*seen, strict=True)
        return (keys, values) if self._grouped else seen[0]

    def _write_prompts(self, new: Pair, layer: int) -> Pair:
        if self._prefix is not None:
            shared = (block[:, :, : self._shared] for block in self._prefix._groups[0].layers[layer])
            keys, values = (
                torch.cat([first.expand(states.shape[0], -1, -1, -1), states], dim=2)
                for first, states in zip(shared, new, strict=True)
            )
            new = keys, values
        for group, rows, part in self._parts(self._rows):
            for block, states in zip(group.layer(layer, new), new, strict=True):
                block[rows, :, : states.shape[2]] = states[part]
        return new

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> None:
        """None: so a step asks `update_conv_state`, as prompts do."""

    def update_conv_state(
        self, conv_states: torch.Tensor, layer_idx: int, state_idx: int = 0, conv_kernel_size: int = 0, **unused: Any
    ) -> torch.Tensor:
        """Keep the last inputs of each row's convolution, and return (B, channels, few + T) with those before."""
        few, rows = conv_kernel_size - 1, self._rows
        if layer_idx not in self._inputs:
            self._inputs[layer_idx] = conv_states.new_zeros(self._num_rows, conv_states.shape[1], few)
        kept = self._inputs[layer_idx]
        if self._positions_B is not None:
            before = kept[rows]
        elif self._prefix is not None:
            before = self._prefix._inputs[layer_idx].expand(len(conv_states), -1, -1)
        else:
            before = torch.zeros_like(kept[rows])
        whole = torch.cat([before, conv_states], dim=2)
        if self._positions_B is not None or self._lengths_B is None:
            kept[rows] = whole[:, :, whole.shape[2] - few :]
        else:
            index_BF = self._lengths_B.to(whole.device)[:, None] + torch.arange(few, device=whole.device)
            kept[rows] = whole.gather(2, index_BF[:, None].expand(-1, whole.shape[1], -1))
        return whole

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return max(group.size for group, _, _ in self._parts(self._rows))

    def reorder(self, order: Sequence[int], cached: Sequence[int]) -> None:
        """Row i becomes the old row `order[i]`, which is i or higher, with its `cached[i]` positions."""
        for row, old in enumerate(order):
            if row != old:
                self.copy(self, old, row, cached[row])

    def copy(self, source: SeatCache, old: int, row: int, width: int) -> None:
        """Row `row` becomes row `old` of `source`, with its first `width` positions."""
        (group, to, _), (other, of, _) = (
            next(each._parts(slice(at, at + 1))) for each, at in ((self, row), (source, old))
        )
        group.fit(max(width, group.size))
        for layer, pair in enumerate(other.layers):
            for block, copied in zip(group.layer(layer, pair), pair, strict=True):
                block[to, :, :width] = copied[of, :, :width]
        for layer, inputs in source._inputs.items():
            if layer not in self._inputs:
                self._inputs[layer] = inputs.new_zeros(self._num_rows, *inputs.shape[1:])
            self._inputs[layer][row] = inputs[old]


def decode_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: Sequence[torch.Tensor],
    value: Sequence[torch.Tensor],
    attention_mask: torch.Tensor,
    scaling: float,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """One new token a row, group by group, each group over its own block; keys are read once for all G heads.

    Returns (B, 1, K x G, D).
    """
    rows, heads, kv_heads = query.shape[0], query.shape[1], key[0].shape[1]
    query_BKGD = (query * scaling).reshape(rows, kv_heads, heads // kv_heads, -1)
    mixed, first = [], 0
    for key_BKSD, value_BKSD in zip(key, value, strict=True):
        last, size = first + key_BKSD.shape[0], key_BKSD.shape[2]
        scores_BKGS = query_BKGD[first:last] @ key_BKSD.transpose(-1, -2)
        scores_BKGS += attention_mask[first:last, :, :, :size]
        mixed.append(scores_BKGS.softmax(dim=-1) @ value_BKSD)  # softmax sums in float32 in any case
        first = last
    return torch.cat(mixed).reshape(rows, 1, heads, -1), None


AttentionInterface.register(ATTENTION, decode_attention)
