"""Keys and values while decoding: a place for each row, filled again in place; and those of a prompt being read.

mlx-lm's models ask a cache for `offset` (where RoPE begins), `make_mask` and `update_and_fetch`. mlx-lm's own
BatchKVCache keeps all rows at one position: a row that leaves or joins copies every key and value of the others
(0.9 GB for 64 rows of SmolLM2). Here each row starts at 0 and has its own length, so nothing is ever shifted.

Axes: B places, N rows in use (the first N places), G rows read together, H key heads, S positions, T tokens, D of a
head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.base import create_causal_mask

GROW = 128  # positions added at once, when the longest row needs one more


class PromptLayer:
    """One layer's keys and values while G prompts are read, (G, H, T, D), behind a prefix that they share."""

    def __init__(self, prefix: PromptLayer | None, mask: mx.array | str | None) -> None:
        self.keys: Any = None
        self.values: Any = None
        self.offset = 0 if prefix is None else prefix.keys.shape[2]
        self._prefix, self._mask = prefix, mask

    def make_mask(
        self, num_tokens: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        if isinstance(self._mask, mx.array):  # of a body that has no window
            return self._mask
        short = window_size is not None and self.offset + num_tokens > window_size
        return create_causal_mask(num_tokens, self.offset, window_size) if return_array or short else self._mask

    def update_and_fetch(self, keys_GHTD: mx.array, values_GHTD: mx.array) -> tuple[mx.array, mx.array]:
        self.keys, self.values = keys_GHTD, values_GHTD
        if self._prefix is None:
            return keys_GHTD, values_GHTD
        return _behind(self._prefix.keys, keys_GHTD), _behind(self._prefix.values, values_GHTD)


def _behind(prefix_1HPD: mx.array, new_GHTD: mx.array) -> mx.array:
    shape = (new_GHTD.shape[0], *prefix_1HPD.shape[1:])
    return mx.concatenate([mx.broadcast_to(prefix_1HPD, shape), new_GHTD], axis=2)


def causal(num_tokens: int, num_before: int) -> mx.array:
    """The mask of `num_tokens` behind `num_before` others, to be added to scores: (T, S) float32, 0 or -inf."""
    query_T1, key_S = mx.arange(num_tokens)[:, None] + num_before, mx.arange(num_before + num_tokens)
    return mx.where(key_S > query_T1, -mx.inf, 0.0).astype(mx.float32)


class Slots:
    """B places in every layer. `begin_step` is called before each step, for all layers at once."""

    def __init__(
        self,
        num_places: int,
        prefix: Sequence[Any] | None,
        num_layers: int,
        num_heads: int = 1,
        window: int | None = None,
        convolutions: Sequence[bool] | None = None,
    ) -> None:
        """`num_heads` get a mask of their own, made once a step; one that they share is their attention's to spread.

        `window` is that of some layers, which ask for another mask. `convolutions` says which layers are some.
        """
        self._num_heads, self._window = num_heads, window
        # Positions in use, counted on the host: they grow by one a step.
        self.lengths_B = np.zeros(num_places, np.int32)
        before = [None] * num_layers if prefix is None else prefix
        self.layers = [
            (ConvolutionSlot if convolves else Slot)(num_places, layer)
            for convolves, layer in zip(convolutions or [False] * num_layers, before, strict=True)
        ]

    @property
    def num_positions(self) -> int:
        """Of each place, used or not."""
        keys = next((slot.keys for slot in self.layers if isinstance(slot, Slot)), None)
        return 0 if keys is None else int(keys.shape[2])

    def put(self, place: int, prompt: Sequence[PromptLayer | PromptConvolution], row: int, num_tokens: int) -> None:
        """Give `place` the keys and values of row `row` of a prompt that was read: `num_tokens` behind its prefix."""
        self.lengths_B[place] = prompt[0].offset + num_tokens
        for slot, layer in zip(self.layers, prompt, strict=True):
            slot.take(place, layer, row, num_tokens)

    def move(self, source: int, target: int) -> None:
        """Row `source` takes the place of one that left."""
        length = int(self.lengths_B[source])
        self.lengths_B[target] = length
        for slot in self.layers:
            slot.move(source, target, length)

    def begin_step(self, num_rows: int, dtype: mx.Dtype) -> None:
        """The first `num_rows` places get one token more."""
        lengths_N = mx.array(self.lengths_B[:num_rows])
        longest = int(self.lengths_B[:num_rows].max()) + 1
        mask = self._mask(lengths_N, longest, dtype) if self.lengths_B[:num_rows].min() + 1 < longest else None
        near = mask
        if self._window is not None and longest > self._window:
            near = self._mask(lengths_N, longest, dtype, self._window)
        for slot in self.layers:
            slot.offset, slot.mask, slot.near, slot.longest = lengths_N, mask, near, longest
        self.lengths_B[:num_rows] += 1

    def _mask(self, lengths_N: mx.array, longest: int, dtype: mx.Dtype, window: int | None = None) -> mx.array:
        """0 where a row sees a position, else -inf: (N, heads, 1, S), each number written out."""
        place_S, now_N1 = mx.arange(longest), lengths_N[:, None]
        hidden_NS = place_S > now_N1  # what an earlier row left there counts for nothing
        if window is not None:
            hidden_NS = hidden_NS | (place_S <= now_N1 - window)
        mask_N11S = mx.where(hidden_NS, -mx.inf, 0.0).astype(dtype)[:, None, None, :]
        shape = len(lengths_N), self._num_heads, 1, longest
        return mask_N11S if self._num_heads == 1 else mx.contiguous(mx.broadcast_to(mask_N11S, shape))


class Slot:
    """One layer's keys and values, (B, H, S, D) with as many positions as the longest row ever needed."""

    def __init__(self, num_places: int, prefix: PromptLayer | None) -> None:
        self.offset: Any = None  # (N,) int32
        self.mask: Any = None  # (N, heads or 1, 1, S), added to scores; None where each row sees all positions
        self.near: Any = None  # the same for a layer with a window
        self.longest = 0  # the longest of the N rows, this step's token included
        self.keys: Any = None
        self.values: Any = None
        self._num_places = num_places
        if prefix is not None:  # every place keeps it, whichever rows come and go
            shape = (num_places, *prefix.keys.shape[1:])
            self.keys, self.values = mx.broadcast_to(prefix.keys, shape), mx.broadcast_to(prefix.values, shape)

    def make_mask(self, num_tokens: int, return_array: bool = False, window_size: int | None = None) -> mx.array | None:
        found: mx.array | None = self.mask if window_size is None else self.near
        return found

    def update_and_fetch(self, keys_NH1D: mx.array, values_NH1D: mx.array) -> tuple[mx.array, mx.array]:
        num_rows = keys_NH1D.shape[0]
        self._room_for(self.longest, keys_NH1D)
        rows_N = mx.arange(num_rows)
        self.keys[rows_N, :, self.offset] = keys_NH1D[:, :, 0]
        self.values[rows_N, :, self.offset] = values_NH1D[:, :, 0]
        return self.keys[:num_rows, :, : self.longest], self.values[:num_rows, :, : self.longest]

    def take(self, place: int, prompt: PromptLayer, row: int, num_tokens: int) -> None:
        """What stands behind the prefix in row `row` of a prompt that was read."""
        self._put(place, prompt.offset, prompt.keys[row, :, :num_tokens], prompt.values[row, :, :num_tokens])

    def move(self, source: int, target: int, length: int) -> None:
        """The first positions of `source` as those of `target`."""
        self._put(target, 0, self.keys[source, :, :length], self.values[source, :, :length])

    def _put(self, place: int, start: int, keys_HTD: mx.array, values_HTD: mx.array) -> None:
        end = start + keys_HTD.shape[1]
        self._room_for(end, keys_HTD[None])
        self.keys[place, :, start:end] = keys_HTD
        self.values[place, :, start:end] = values_HTD

    def _room_for(self, num_positions: int, like_NHTD: mx.array) -> None:
        there = 0 if self.keys is None else self.keys.shape[2]
        if there >= num_positions:
            return
        _, num_heads, _, size = like_NHTD.shape
        more = -(-(num_positions - there) // GROW) * GROW
        shape = (self._num_places, num_heads, more, size)

        def grown(block: Any) -> mx.array:
            # Each its own zeros: an array that both held would be written by both.
            room = mx.zeros(shape, like_NHTD.dtype)
            return room if block is None else mx.concatenate([block, room], axis=2)

        self.keys, self.values = grown(self.keys), grown(self.values)


class PromptConvolution:
    """A layer's last inputs of its convolution while G prompts are read, (G, few, channels): mlx-lm's `cache[0]`."""

    def __init__(self, prefix: PromptConvolution | None, offset: int, own: Sequence[int]) -> None:
        """`own` are the tokens of each prompt behind `offset`, which are the prefix's."""
        self.inputs: Any = None
        if prefix is not None:
            self.inputs = mx.broadcast_to(prefix.inputs, (len(own), *prefix.inputs.shape[1:]))
        self.offset, self.lengths = offset, mx.array(list(own))

    def make_mask(self, num_tokens: int) -> None:
        """Nothing: no row sees what stands behind it."""

    def __getitem__(self, place: int) -> Any:
        return self.inputs

    def __setitem__(self, place: int, inputs: mx.array) -> None:
        self.inputs = inputs

    def advance(self, num_tokens: int) -> None:
        """Nothing: `lengths` say where each row ends."""


class ConvolutionSlot:
    """The same of each place while decoding, (B, few, channels)."""

    lengths = None  # every row of a step has one token

    def __init__(self, num_places: int, prefix: PromptConvolution | None) -> None:
        self._num_places = num_places
        self.inputs: Any = None
        self.offset: Any = None  # (N,) int32
        self.mask: Any = None
        self.near: Any = None
        self.longest = 0

    def make_mask(self, num_tokens: int) -> None:
        """None."""

    def __getitem__(self, place: int) -> Any:
        return self.inputs[: self.offset.shape[0]]

    def __setitem__(self, place: int, inputs: mx.array) -> None:
        self.inputs[: inputs.shape[0]] = inputs

    def advance(self, num_tokens: int) -> None:
        """Nothing."""

    def take(self, place: int, prompt: PromptConvolution, row: int, num_tokens: int) -> None:
        """The last inputs of row `row` of a prompt that was read."""
        if self.inputs is None:
            self.inputs = mx.zeros((self._num_places, *prompt.inputs.shape[1:]), prompt.inputs.dtype)
        self.inputs[place] = prompt.inputs[row]

    def move(self, source: int, target: int, length: int) -> None:
        """Those of `source` as those of `target`."""
        self.inputs[target] = self.inputs[source]
